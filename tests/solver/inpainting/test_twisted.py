"""Twisted sequential Monte Carlo: the fills of one image share its modes rightly."""

import pytest
import torch
from flow_matching.path.scheduler import CondOTScheduler
from torch.testing import assert_close

from fm_ext.metrics import energy_distance
from fm_ext.models import EmpiricalVelocityModel
from fm_ext.solver import InpaintingSolver
from fm_ext.solver.inpainting.krylov import Krylov
from fm_ext.solver.inpainting.problem import Problem
from fm_ext.solver.inpainting.twisted import TwistedSMC

MEANS = torch.tensor([[-0.5, 0.3, -2.0, 1.0], [0.4, 0.0, 2.0, 1.5], [0.1, -0.4, 0.5, -2.0]])
WEIGHTS = torch.tensor([0.5, 0.2, 0.3])
MASK = torch.tensor([[False, False, True, True]])
IMAGE = torch.tensor([[0.2, 0.1, 0.0, 0.0], [-0.6, 0.2, 0.0, 0.0]])


def mixture(scheduler):
    return EmpiricalVelocityModel(MEANS, scheduler, 0.4, weights=WEIGHTS)


def problem(model, image, mask, copies=1, noise_std=0.0, seed=0):
    return Problem(
        model,
        image.masked_fill(mask, 0.0),
        ~mask,
        noise_std=noise_std,
        steps=50,
        source=None,
        coupled=False,
        generator=torch.Generator().manual_seed(seed),
        extras={},
        dtype=image.dtype,
        progress=False,
        copies=copies,
    )


def test_modes_have_their_weights(generator):
    scheduler = CondOTScheduler()
    model = mixture(scheduler)
    exact = model.sample_posterior(IMAGE, mask=MASK, fills=1000, generator=generator)
    distances, errors = {}, {}
    for method in ("moment_matching", "twisted_smc"):
        fills = InpaintingSolver(model, scheduler, method).sample(
            IMAGE, mask=MASK, fills=100, generator=generator
        )
        distances[method] = max(energy_distance(fills[:, i], exact[:, i]) for i in range(2))
        shares = torch.stack([model.posterior_weights(f, torch.ones(())).mean(0)
                              for f in fills.unbind(1)])  # fmt: skip
        true = model.inpainting_weights(IMAGE, mask=MASK)
        errors[method] = (shares - true).abs().sum(1).max() / 2
    assert distances["twisted_smc"] < 0.03 < distances["moment_matching"], distances
    assert errors["twisted_smc"] < min(0.12, errors["moment_matching"]), errors


@pytest.mark.parametrize("noise_std", [0.0, 0.3])
def test_the_twist_is_the_gaussian_likelihood(noise_std):
    # Two points: the covariance is a multiple of the identity and one direction, which two products find.
    data = torch.randn(2, 12, dtype=torch.float64)
    mask = torch.arange(12)[None] >= 7
    model = EmpiricalVelocityModel(data, CondOTScheduler(), 0.5)
    x, t = torch.randn(6, 12, dtype=torch.float64), 0.4
    y = torch.randn(1, 12, dtype=torch.float64).expand(6, 12)
    p = problem(model, y, mask, copies=6, noise_std=noise_std)
    solver = TwistedSMC(products=2)
    signs = solver.signs(p)
    assert (
        signs[:, :7].abs().eq(1).all() and signs[:, 7:].eq(0).all() and (signs == signs[:1]).all()
    )
    x_1, shift, twist = solver.twisted(p, x, t, signs)
    jacobian = torch.stack(
        [torch.func.jacrev(lambda x: model.target(x[None], torch.tensor(t))[0])(row) for row in x]
    )
    covariance = (1 - t) ** 2 / t * jacobian
    seen = covariance[:, :7, :7] + noise_std**2 * torch.eye(7)
    weights = torch.linalg.solve(seen, (p.y - x_1)[:, :7])
    assert_close(shift, (covariance[:, :, :7] @ weights[:, :, None])[:, :, 0], rtol=1e-6, atol=1e-6)
    values, vectors = torch.linalg.eigh(seen)
    logarithm = vectors @ (values.log()[:, :, None] * vectors.mT)
    determinant = (signs[:, None, :7] @ logarithm @ signs[:, :7, None]).flatten()
    expected = -((weights * (p.y - x_1)[:, :7]).sum(1) + determinant) / 2
    assert_close(twist, expected, rtol=1e-6, atol=1e-6)


def test_the_determinant_is_right_in_the_mean_and_equal_where_covariances_are():
    matrix = torch.randn(7, 7, dtype=torch.float64)
    matrix = matrix @ matrix.mT + torch.eye(7)
    p = problem(
        torch.zeros_like,
        torch.zeros(4000, 7, dtype=torch.float64),
        torch.zeros(1, 7).bool(),
        copies=2,
    )
    signs = TwistedSMC.signs(p)
    found = Krylov.of(lambda u: (u, u @ matrix), signs, 7).quadrature(torch.log).view(2, 2000)
    assert_close(found[0], found[1])
    assert_close(found[0].mean(), matrix.logdet(), rtol=0.03, atol=0)


def test_on_gaussian_data_a_path_keeps_its_weight(hole, gaussian, monkeypatch):
    # The proposal is exact there, but for the size of its steps. Nothing is drawn; the spread is that of the start.
    spreads, drawn = [], TwistedSMC.drawn

    def spread(self, problem, log_weight, always=False):
        spreads.append(log_weight.view(problem.copies, -1).std(0).mean().item())
        return drawn(self, problem, log_weight, always)

    monkeypatch.setattr(TwistedSMC, "drawn", spread)
    scheduler = CondOTScheduler()
    solver = InpaintingSolver(
        gaussian(hole.covariance, scheduler), scheduler, "twisted_smc", threshold=1e-6
    )
    solver.sample(hole.image, mask=hole.mask, steps=100, fills=50)
    assert 0.3 < spreads[0] < spreads[-1] < 1.8 * spreads[0]


def test_one_fill_is_moment_matching(generator):
    model = mixture(CondOTScheduler())
    fills = [
        InpaintingSolver(model, CondOTScheduler(), method).sample(
            IMAGE, mask=MASK, steps=8, generator=torch.Generator().manual_seed(1)
        )
        for method in ("moment_matching", "twisted_smc")
    ]
    assert_close(*fills)


def drawn(weights, copies=4, always=False, seed=0, threshold=0.5):
    """Which fills go on; weights `(copies, images)`."""
    images = weights.shape[1]
    image = IMAGE[:1].expand(copies * images, 4)
    p = problem(mixture(CondOTScheduler()), image, MASK, copies, seed=seed)
    solver = TwistedSMC(threshold=threshold)
    rows, new = solver.drawn(p, weights.flatten().log(), always)
    return rows.view(copies, images), new.view(copies, images)


def test_images_do_not_share_weights():
    # Fill 1 of image 0 holds all weight, and image 1 has equal weights; image 2 is broken and stays alone with it.
    weights = torch.ones(4, 3, dtype=torch.float64)
    weights[:, 0] = torch.tensor([1e-9, 1.0, 1e-9, 1e-9])
    weights[0, 2] = torch.nan
    rows, new = drawn(weights, threshold=0.25, always=True)
    assert rows[:, :2].T.tolist() == [[3, 3, 3, 3], [1, 4, 7, 10]] and new.all()
    _, new = drawn(weights, threshold=0.26)
    assert new[:, :2].T.tolist() == [[True] * 4, [False] * 4]
    assert ((rows[:, 2] - 2) % 3 == 0).all()


@pytest.mark.parametrize("always", [False, True])
def test_fills_are_drawn_by_their_weights(always):
    share = torch.tensor([0.15, 0.2, 0.25, 0.4], dtype=torch.float64)
    counts = torch.zeros(4)
    for seed in range(200):
        rows, new = drawn(share[:, None], always=always, seed=seed, threshold=0.9)
        counts += torch.bincount(rows.flatten(), minlength=4)
        assert new.all()
    power = counts.log().diff().sum() / share.log().diff().sum()  # the weights are tempered
    assert 0.6 < power < 1
    tempered = (share.float().log() * 0.79).softmax(0)
    assert_close(counts / 800, tempered, rtol=0, atol=0.03)


@pytest.mark.parametrize("threshold", [0.25, 0.5, 0.9])
def test_each_drawing_leaves_the_share_of_effective_particles(threshold):
    weights = torch.linspace(0, 40, 400, dtype=torch.float64).exp()[:, None]
    counts = torch.zeros(400)
    for seed in range(50):
        counts += torch.bincount(
            drawn(weights, 400, seed=seed, threshold=threshold)[0].flatten(), minlength=400
        )
    share = counts / counts.sum()
    assert_close(1 / share.square().sum() / 400, torch.tensor(threshold), rtol=0.05, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_known_and_everything_known(dtype):
    model = mixture(CondOTScheduler())
    image = IMAGE.to(dtype)
    solver = InpaintingSolver(model, CondOTScheduler(), "twisted_smc")
    for missing in (True, False):
        mask = torch.full((1, 4), missing)
        fills = solver.sample(image, mask=mask, fills=8, steps=20)
        assert fills.isfinite().all()
        assert missing or torch.equal(fills, image.expand(8, 2, 4))


@pytest.mark.parametrize(
    "option, rule",
    [
        ({"products": 0}, "`products` of method 'twisted_smc' must be a whole number"),
        ({"until": 1.0}, "`until` of method 'twisted_smc' must be in"),
        ({"threshold": 0.0}, "`threshold` of method 'twisted_smc' must be in"),
        ({"start": 0.0}, "`start` of method 'twisted_smc' must be in"),
    ],
)
def test_options(option, rule):
    with pytest.raises(ValueError, match=rule):
        InpaintingSolver(mixture(CondOTScheduler()), CondOTScheduler(), "twisted_smc", **option)
