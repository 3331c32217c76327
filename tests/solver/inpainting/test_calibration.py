"""Is it posterior sampling? On Gaussian data with exact velocities, the answer is a number."""

import pytest
import torch
from flow_matching.path.scheduler import CondOTScheduler
from torch import nn

from fm_ext.path.scheduler import CosineScheduler, VPScheduler
from fm_ext.solver import InpaintingSolver
from fm_ext.solver.inpainting.problem import renewal

SCHEDULERS = [CondOTScheduler(), CosineScheduler(), VPScheduler()]
FILLS = 200  # of 10 observations; 200 exact draws have W2 0.15 themselves
# Bounds on W2, on the bias of the mean and on the ratios of the covariances' traces and of the seams, each (least,
# largest): what examples/posterior_check.py measures, with a margin for 10 other observations.
BOUNDS = {
    "replace": ((1.2, 2.7), (0.25, 0.65), (2.4, 3.4), (2.0, 2.9)),
    "repaint": ((0.4, 0.9), (0.08, 0.3), (1.1, 1.6), (1.1, 1.45)),
    "restora": ((0.25, 0.6), (0.03, 0.15), (0.55, 0.9), (0.85, 1.15)),
    "ot_ode": ((0.3, 0.9), (0.08, 0.3), (0.8, 1.1), (1.1, 1.55)),
    "pnp": ((0.3, 0.75), (0.05, 0.2), (0.55, 0.8), (0.95, 1.55)),
    "flower": ((0.25, 0.6), (0.03, 0.15), (1.1, 1.45), (1.15, 1.35)),
    "ding": ((0.25, 0.6), (0.05, 0.2), (1.0, 1.35), (1.0, 1.3)),
    "moment_matching": ((0.0, 0.25), (0.0, 0.05), (0.8, 1.0), (0.85, 1.0)),
    "twisted_smc": ((0.0, 0.3), (0.0, 0.07), (0.75, 1.05), (0.85, 1.05)),
    "d_flow": ((0.0, 0.4), (0.0, 0.1), (0.65, 1.0), (0.9, 1.1)),
}
OPTIONS = {"d_flow": {"iterations": 8}, "repaint": {"jump_n_sample": 4}}
STEPS = {"d_flow": 12, "moment_matching": 25, "twisted_smc": 25}


def fill(hole, gaussian, method, scheduler=SCHEDULERS[0], *, error=None, **arguments):
    options = {"eta", "linear_solver", "products"} & set(arguments)
    options = {name: arguments.pop(name) for name in options}
    model = gaussian(hole.covariance, scheduler, error, hole.center)
    solver = InpaintingSolver(model, scheduler, method, **OPTIONS.get(method, {}), **options)
    arguments = {"steps": STEPS.get(method, 50), "fills": FILLS} | arguments
    return solver.sample(hole.image, mask=hole.mask, **arguments)


@pytest.mark.parametrize("center", [0.0, 3.0])
@pytest.mark.parametrize("method", BOUNDS)
def test_distance_to_the_posterior(hole_of, gaussian, method, center):
    hole = hole_of(center=center)
    scheduler = SCHEDULERS[0 if center == 0 else 2]  # which makes no difference, see below
    result = hole.compare(fill(hole, gaussian, method, scheduler))
    for value, (least, largest) in zip(
        (result.w2, result.bias, result.ratio, result.seam), BOUNDS[method], strict=True
    ):
        assert least <= value <= largest, result


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_moment_matching_with_fifty_steps_is_within_a_fifth(hole_of, gaussian, eta):
    hole = hole_of(observations=4)
    fills = fill(hole, gaussian, "moment_matching", steps=50, fills=400, eta=eta)
    assert hole.compare(fills).w2 <= 0.15


@pytest.mark.parametrize(("t", "s"), [(0.3, 0.3), (0.1, 0.4), (0.6, 0.8), (0.9, 1.0)])
def test_with_eta_1_the_noise_is_what_bayes_makes_of_the_kernel_back_in_time(untyped, t, s):
    # X_s ~ N(s x_1, (1 - s)^2), then X_t = t / s X_s + N(0, kernel): the law of X_s given X_t and x_1.
    x_1, x_0 = torch.tensor([0.7, -2.0]), torch.tensor([1.3, 0.2])
    x_t = t * x_1 + (1 - t) * x_0
    kernel = (1 - t) ** 2 - (t / s * (1 - s)) ** 2
    gain = 0.0 if s == t else t / s * (1 - s) ** 2 / (1 - t) ** 2
    mean = x_t if s == t else s * x_1 + gain * (x_t - t * x_1)
    std = (1 - s) / (1 - t) * kernel**0.5 if s > t else 0.0
    for eta in (0.0, 1.0):
        keep, added = renewal(eta, t, s)
        expected = mean if eta else s * x_1 + (1 - s) * x_0
        torch.testing.assert_close(s * x_1 + keep * x_0, expected, rtol=1e-5, atol=1e-6)
        assert added == pytest.approx(std if eta else 0, abs=1e-7)


class Mixture(nn.Module):
    """The exact velocity for three Gaussians in the plane."""

    means, std = torch.tensor([[-2.0, -1.0], [2.0, 1.0], [0.0, 2.0]]), 0.25

    def forward(self, x, t):
        variance = (t * self.std) ** 2 + (1 - t) ** 2
        gaps = x[:, None] - t * self.means
        weights = torch.softmax(-gaps.square().sum(-1) / (2 * variance), 1)[..., None]
        gap = (weights * gaps).sum(1) / variance
        return (weights * self.means).sum(1) + (t * self.std**2 - (1 - t)) * gap


def test_where_the_posterior_is_no_gaussian_fresh_noise_corrects_what_more_steps_do_not():
    """The known entry, 0.5, leaves the third Gaussian alone: mean 2, standard deviation 0.25."""
    image, mask = torch.tensor([[0.5, 0.0]]), torch.tensor([[False, True]])
    means = []
    for eta, steps in ((0.0, 150), (0.0, 50), (0.5, 50), (1.0, 50)):
        solver = InpaintingSolver(
            Mixture(), SCHEDULERS[0], "moment_matching", eta=eta, start=0.02, products=1
        )
        fills = solver.sample(image, mask=mask, steps=steps, fills=2000)
        means.append(fills[..., 1].mean().item())
    # 1.69, 1.69, 1.76 and 1.89, each to 0.01
    assert max(means[:2]) < 1.73 < means[2] < 1.82 < means[3] < 1.95, means


@pytest.mark.filterwarnings("ignore:method '.*' assumes")
@pytest.mark.parametrize(
    "options", [{"source": lambda like, g: 3 + torch.randn_like(like)}, {"coupled": True}]
)
def test_no_noise_is_renewed_where_fresh_noise_is_not_the_models(hole, gaussian, options):
    image, mask = torch.zeros(1, 32), hole.mask
    model = gaussian(hole.covariance, SCHEDULERS[0])
    results = []
    for method, eta in (
        ("moment_matching", {}),
        ("moment_matching", {"eta": 0.0}),
        ("twisted_smc", {}),  # whose weights are made of fresh noise
        ("moment_matching", {"eta": 1.0}),
    ):
        solver = InpaintingSolver(model, SCHEDULERS[0], method, **eta, **options)
        torch.manual_seed(0)
        results.append(solver.sample(image, mask=mask, steps=8, fills=3))
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])
    assert not torch.equal(results[0], results[3])


@pytest.mark.parametrize("method", BOUNDS)
def test_the_schedule_that_the_model_was_trained_on_makes_no_difference(hole, gaussian, method):
    results = []
    for scheduler in SCHEDULERS:
        generator = torch.Generator().manual_seed(0)
        results.append(
            fill(hole, gaussian, method, scheduler, steps=8, fills=2, generator=generator)
        )
    torch.testing.assert_close(results[0], results[1], rtol=1e-3, atol=1e-3)
    # This schedule's source holds 0.0066 of the data.
    torch.testing.assert_close(results[0], results[2], rtol=5e-2, atol=5e-2)


@pytest.mark.parametrize("scheduler", SCHEDULERS[:2], ids=lambda s: type(s).__name__)
def test_noisy_observations_give_the_noisy_posterior(noisy_hole, gaussian, scheduler):
    samples = fill(noisy_hole, gaussian, "moment_matching", scheduler, noise_std=0.3, steps=50)
    result = noisy_hole.compare(samples)
    assert result.w2 <= 0.3 and result.bias <= 0.05 and 0.85 <= result.ratio <= 1.1, result
    wrong = noisy_hole.compare(
        torch.where(noisy_hole.mask, samples, noisy_hole.image)
    )  # noise taken for data
    assert wrong.w2 > 1


@pytest.mark.parametrize("method", ["ot_ode", "flower", "moment_matching"])
@pytest.mark.parametrize("noise_std", [0.0, 0.5])
def test_white_data_have_the_scalar_covariance_for_which_the_formulas_are_exact(
    gaussian, method, noise_std
):
    scheduler = CosineScheduler()
    image = torch.tensor([[2.0, -1.0, 9.0]])
    mask = torch.tensor([[False, False, True]])
    options = {"start": 0.01} if method == "ot_ode" else {}
    solver = InpaintingSolver(
        gaussian(torch.eye(3).double(), scheduler), scheduler, method, **options
    )
    steps = 2 if method == "flower" else 50  # its noise is fresh: exact in any number
    samples = solver.sample(image, mask=mask, fills=5000, steps=steps, noise_std=noise_std)[:, 0]
    shrink = 1 / (1 + noise_std**2)
    mean = torch.tensor([2 * shrink, -shrink, 0.0])
    std = torch.tensor([noise_std * shrink**0.5] * 2 + [1.0])
    torch.testing.assert_close(samples.mean(0), mean, rtol=0, atol=0.05)
    torch.testing.assert_close(samples.std(0), std, rtol=0, atol=0.05)


@pytest.mark.parametrize("center", [0.0, 3.0])
@pytest.mark.parametrize(
    "scheduler", [SCHEDULERS[0], SCHEDULERS[2]], ids=lambda s: type(s).__name__
)
@pytest.mark.parametrize(
    "method", ["replace", "repaint", "ding", "twisted_smc", "ot_ode", "d_flow"]
)
def test_a_full_mask_draws_from_the_model(hole_of, gaussian, method, scheduler, center):
    """Its mean, and its variance in the five leading directions; OT-ODE starts without their spread."""
    hole = hole_of(center=center)
    model = gaussian(hole.covariance, scheduler, mean=center)
    options = {"repaint": {"jump_n_sample": 2}, "d_flow": {"iterations": 1}}.get(method, {})
    solver = InpaintingSolver(model, scheduler, method, **options)
    samples = solver.sample(hole.image, mask=torch.ones(1, 32).bool(), fills=200)
    samples = samples.flatten(0, 1).double()
    torch.testing.assert_close(samples.mean().item(), center, rtol=0, atol=0.1)
    values, vectors = torch.linalg.eigh(hole.covariance)
    ratios = ((samples @ vectors).var(0) / values)[-5:]
    least = 0.8 if method != "ot_ode" else torch.tensor([0.8, 0.8, 0.8, 0.65, 0.3])
    assert ((least <= ratios) & (ratios <= 1.25)).all(), ratios


def test_time_travel_keeps_the_law_of_the_model(hole, gaussian):
    # Nothing is known, so any number of repetitions must leave samples of the prior.
    scheduler = CondOTScheduler()
    for options in ({"jump_n_sample": 6}, {"jump_n_sample": 3, "jump_length": 5}):
        solver = InpaintingSolver(
            gaussian(hole.covariance, scheduler), scheduler, "repaint", **options
        )
        samples = solver.sample(hole.image, mask=torch.ones(1, 32).bool(), fills=300)
        values, vectors = torch.linalg.eigh(hole.covariance)
        variances = (samples.flatten(0, 1).double() @ vectors).var(0)
        torch.testing.assert_close(variances[-5:], values[-5:], rtol=0.15, atol=0)


def test_gmres_survives_an_asymmetric_derivative_and_conjugate_gradients_do_not(hole, gaussian):
    error = 0.03 * torch.randn(32, 32, dtype=torch.float64) / 32**0.5
    w2 = {
        name: hole.compare(
            fill(hole, gaussian, "moment_matching", error=error, linear_solver=name)
        ).w2
        for name in ("gmres", "cg")
    }
    assert w2["gmres"] < 0.5 < 5 < w2["cg"], w2


def test_the_default_is_best_at_equal_cost(hole, gaussian):
    # 100 evaluations and gradients together.
    best = hole.compare(fill(hole, gaussian, "moment_matching", steps=19)).w2
    for method, steps in (("flower", 100), ("restora", 33), ("ot_ode", 49), ("pnp", 100)):
        assert best < 0.85 * hole.compare(fill(hole, gaussian, method, steps=steps)).w2, method
