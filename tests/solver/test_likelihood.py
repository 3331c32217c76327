"""Laws of the log-likelihood: on Gaussian data it has a closed form."""

import math

import pytest
import torch
from flow_matching.utils import ModelWrapper
from torch import nn
from torch.testing import assert_close

from fm_ext.models import MaskedVelocityModel
from fm_ext.solver import ODESolver, bits_per_dimension

SHAPES = [(3,), (2, 3, 2), (1, 2, 2, 1)]


class Gaussian(nn.Module):
    """The velocity of N(mean, C C^T) on the straight path, between all entries of a sample."""

    def __init__(self, shape):
        super().__init__()
        dim = math.prod(shape)
        self.mean = nn.Parameter(torch.randn(dim, dtype=torch.float64) / 2)
        factor = (
            torch.eye(dim, dtype=torch.float64) + torch.randn(dim, dim, dtype=torch.float64) / 4
        )
        self.register_buffer("factor", factor)

    def forward(self, x, t):
        t, flat = t.double(), x.double().flatten(1)
        covariance = self.factor @ self.factor.T
        eye = torch.eye(len(covariance), dtype=torch.float64)
        gain = t * covariance - (1 - t) * eye
        rest = torch.linalg.solve(t**2 * covariance + (1 - t) ** 2 * eye, (flat - t * self.mean).T)
        return (self.mean + (gain @ rest).T).view(x.shape).to(x.dtype)

    def log_prob(self, x):
        covariance = self.factor @ self.factor.T
        return torch.distributions.MultivariateNormal(self.mean, covariance).log_prob(x.flatten(1))


def normal(x):
    return torch.distributions.Normal(0.0, 1.0).log_prob(x).flatten(1).sum(1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("method", ["rk4", "dopri5", "bosh3", "dopri8", "RK45"])
def test_exact_for_states_of_any_shape(shape, method):
    """Images of two channels and more are an IndexError upstream."""
    model, x = Gaussian(shape), torch.randn(4, *shape, dtype=torch.float64)
    step = {"steps": 50} if method == "rk4" else {"atol": 1e-7, "rtol": 1e-7}
    solver = ODESolver(model)
    x_0, log_p = solver.compute_likelihood(x, normal, method=method, exact_divergence=True, **step)
    assert x_0.shape == x.shape and log_p.shape == (4,)
    assert_close(log_p, model.log_prob(x), rtol=2e-5, atol=2e-5)
    assert solver.nfe == 200 or method != "rk4"


@pytest.mark.parametrize("shape", SHAPES[:2])
@pytest.mark.parametrize("method", ["rk4", "dopri5", "RK45"])
def test_samples_come_with_their_density(shape, method):
    model, x_0 = Gaussian(shape), torch.randn(4, *shape, dtype=torch.float64)
    step = {"steps": 50} if method == "rk4" else {"atol": 1e-7, "rtol": 1e-7}
    solver, exact = ODESolver(model), {"method": method, "exact_divergence": True}
    x_1, log_p = solver.sample_with_log_density(x_0, normal, **exact, **step)
    assert_close(x_1, solver.sample(x_0, method=method, **step), rtol=1e-6, atol=1e-6)
    assert_close(log_p, model.log_prob(x_1), rtol=2e-5, atol=2e-5)
    grid = [0.0, 0.4, 1.0]
    states, same, error = solver.sample_with_log_density(
        x_0, normal, time_grid=grid, return_intermediates=True, return_error=True, batch_size=3,
        **exact, **({"step_size": 0.02} if method == "rk4" else step),
    )  # fmt: skip
    assert torch.equal(states[0], x_0) and error.eq(0).all()
    assert_close(states[-1], x_1, rtol=1e-5, atol=1e-5)
    assert_close(same, log_p, rtol=1e-5, atol=1e-5)


def test_fills_come_with_their_density():
    """Given the known pixels, that of the missing ones; both ways agree, probe by probe."""
    model = MaskedVelocityModel(Gaussian((2, 2)), pass_mask=False)
    mask = torch.tensor([[True, False], [True, True]]).expand(5, 2, 2)
    x_init = torch.randn(5, 2, 2, dtype=torch.float64)
    missing = lambda x: torch.distributions.Normal(0.0, 1.0).log_prob(x).where(mask, 0).sum((1, 2))
    given = {"method": "rk4", "steps": 40, "probes": 3, "mask": mask}
    seeded = lambda: {"generator": torch.Generator().manual_seed(5)}
    fills, log_p = ODESolver(model).sample_with_log_density(x_init, missing, **given, **seeded())
    assert torch.equal(fills[~mask], x_init[~mask])
    back, same = ODESolver(model).compute_likelihood(fills, missing, **given, **seeded())
    assert_close(back, x_init, rtol=1e-5, atol=1e-5)
    assert_close(log_p, same, rtol=1e-5, atol=1e-5)


def test_probes_are_unbiased_and_know_their_error():
    model, x = (
        Gaussian((2, 3, 2)),
        torch.randn(1, 2, 3, 2, dtype=torch.float64).expand(400, 2, 3, 2),
    )
    step = {"steps": 20, "method": "rk4"}
    _, exact, none = ODESolver(model).compute_likelihood(
        x[:2], normal, exact_divergence=True, return_error=True, **step
    )
    assert none.eq(0).all()
    _, log_p, error = ODESolver(model).compute_likelihood(
        x, normal, probes=4, return_error=True, **step
    )
    assert (log_p.mean() - exact[0]).abs() < 4 * log_p.std() / 20
    assert log_p.std() > 0.05
    # Mean squares: those are unbiased.
    assert_close(error.square().mean().sqrt(), log_p.std(), rtol=0.15, atol=0)


def test_probes_come_from_the_generator_and_split_with_the_batch():
    model, x = Gaussian((3,)), torch.randn(5, 3, dtype=torch.float64)
    draw = lambda **more: ODESolver(model).compute_likelihood(
        x, normal, steps=4, generator=torch.Generator().manual_seed(1), **more
    )[1]
    assert torch.equal(draw(), draw()) and torch.equal(draw(), draw(batch_size=2))
    states, _ = ODESolver(model).compute_likelihood(
        x, normal, time_grid=[1, 0.3, 0], return_intermediates=True, batch_size=2
    )
    assert states.shape == (3, 5, 3) and torch.equal(states[0], x)


def test_probes_are_drawn_where_the_generator_lives():
    """On the meta device, which has no generators; a GPU would do as well."""
    x = torch.ones(2, 3, device="meta")
    x_0, log_p = ODESolver(lambda x, t: 2 * x).compute_likelihood(
        x, lambda x: x.sum(1), steps=2, generator=torch.Generator()
    )
    assert x_0.device.type == log_p.device.type == "meta"


def test_an_image_may_be_one_number():
    x = torch.randn(4, dtype=torch.float64)
    log_p0 = torch.distributions.Normal(0.0, 1.0).log_prob
    _, log_p = ODESolver(lambda x, t: x).compute_likelihood(
        x, log_p0, method="dopri5", exact_divergence=True, atol=1e-8, rtol=1e-8
    )
    assert_close(log_p, log_p0(x / math.e) - 1)


@pytest.mark.parametrize("exact", [True, False])
def test_gradients_are_those_of_the_difference_quotient(exact):
    """Upstream's 1.0.10 leave out what the divergence contributes."""

    class Bent(nn.Module):
        mean = nn.Parameter(torch.randn(3, dtype=torch.float64))

        def forward(self, x, t):
            return torch.sin(2 * x.roll(1, -1) + x + self.mean * (1 + t))

    model, x = Bent(), torch.randn(2, 3, dtype=torch.float64, requires_grad=True)

    def log_p(x):
        solver, generator = ODESolver(model), torch.Generator().manual_seed(0)
        return solver.compute_likelihood(
            x, normal, steps=8, method="midpoint", exact_divergence=exact, generator=generator,
            enable_grad=True,
        )[1].sum()  # fmt: skip

    assert torch.autograd.gradcheck(log_p, x)
    log_p(x).backward()
    got, h = model.mean.grad[0].item(), 1e-5
    with torch.no_grad():
        model.mean[0] += h
        up = log_p(x).item()
        model.mean[0] -= 2 * h
        down = log_p(x).item()
    assert got == pytest.approx((up - down) / (2 * h), rel=1e-5)
    assert not ODESolver(model).compute_likelihood(x, normal, steps=1)[1].requires_grad


@pytest.mark.parametrize("method", ["dopri5", "RK45"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's
def test_where_the_method_cannot_go_on_there_is_no_likelihood(method):
    for grid in (None, [1.0, 0.95, 0.0]):
        with pytest.raises(RuntimeError, match=rf"'{method}' cannot go on: .* at t = 0\.(8|799)"):
            ODESolver(lambda x, t: -5 * x * x).compute_likelihood(
                torch.ones(2, 1, dtype=torch.float64), normal, method=method,
                time_grid=grid, exact_divergence=True,
            )  # fmt: skip


def test_the_known_pixels_are_a_condition():
    """With the conditional velocity of the missing entry: ln p(x^m | y)."""
    slope, std = 0.8, 0.6  # x^m given y is N(slope y, std^2)

    class Conditional(ModelWrapper):
        def forward(self, x, t, mask):
            y, m = x[..., :1], x[..., 1:]
            gain = (t * std**2 - (1 - t)) / (t**2 * std**2 + (1 - t) ** 2)
            return torch.cat([0 * y, slope * y + gain * (m - t * slope * y)], dim=-1)

    x = torch.randn(5, 1, 1, 2, dtype=torch.float64)
    mask = torch.tensor([False, True]).view(1, 1, 1, 2).expand(5, 1, 1, 2)
    x_0, log_p = ODESolver(MaskedVelocityModel(Conditional(nn.Identity()))).compute_likelihood(
        x, lambda x: torch.distributions.Normal(0.0, 1.0).log_prob(x[..., 1]).flatten(),
        method="dopri5", atol=1e-8, rtol=1e-8, exact_divergence=True, mask=mask,
    )  # fmt: skip
    want = torch.distributions.Normal(slope * x[..., 0], std).log_prob(x[..., 1]).flatten()
    assert_close(log_p, want, rtol=1e-6, atol=1e-6)
    assert torch.equal(x_0[..., 0], x[..., 0])


def test_known_pixels_put_no_noise_on_the_estimate():
    """Nothing but the pair of missing entries: z_1 z_2 (A_12 + A_21), where known ones would add 98 columns."""

    class Linear(nn.Module):
        matrix = torch.randn(100, 100, dtype=torch.float64) / 10

        def forward(self, x, t, mask=None):
            return x @ self.matrix.T

    x = torch.randn(3, 100, dtype=torch.float64)
    mask = (torch.arange(100) < 2)[None]
    solver = ODESolver(MaskedVelocityModel(Linear()))
    log_p0 = lambda x: 0 * x.sum(1)
    arguments = {"steps": 4, "mask": mask, "generator": torch.Generator().manual_seed(0)}
    _, estimate, error = solver.compute_likelihood(
        x, log_p0, probes=400, return_error=True, **arguments
    )
    a = Linear.matrix[:2, :2]
    assert_close(error * 400**0.5, (a[0, 1] + a[1, 0]).abs().expand(3), rtol=0.1, atol=0)
    _, exact = solver.compute_likelihood(x, log_p0, exact_divergence=True, **arguments)
    assert_close(exact, -a.trace().expand(3))
    assert ((estimate - exact).abs() <= 4 * error).all()


@pytest.mark.parametrize("method", ["euler", "dopri5", "dopri8", "RK45"])
@pytest.mark.parametrize("exact", [True, False])
def test_of_no_samples_there_are_no_likelihoods(method, exact):
    step = {"steps": 2} if method == "euler" else {}
    x_0, log_p, error = ODESolver(lambda x, t: -x).compute_likelihood(
        torch.ones(0, 2, 3), normal, method=method, exact_divergence=exact, probes=2,
        return_error=True, **step,
    )  # fmt: skip
    assert x_0.shape == (0, 2, 3) and log_p.shape == error.shape == (0,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_precision(dtype):
    model, x = Gaussian((2, 2)), torch.randn(3, 2, 2).to(dtype)
    x_0, log_p = ODESolver(model).compute_likelihood(
        x, normal, steps=20, method="rk4", exact_divergence=True
    )
    assert x_0.dtype == dtype and log_p.dtype == torch.float32
    assert_close(
        log_p.double(),
        model.log_prob(x.double()),
        rtol=1e-4 if dtype == torch.float32 else 0.1,
        atol=1e-3 if dtype == torch.float32 else 0.3,
    )


def test_bits_of_a_uniform_image_are_those_of_its_levels():
    """All 256 levels alike, dequantised: the density is 1 / 2.008 an entry, and costs 8 bits."""
    dimensions = 12
    log_p = torch.full((2,), -dimensions * math.log(256 / 127.5))
    assert_close(bits_per_dimension(log_p, dimensions), torch.full((2,), 8.0))
    assert_close(
        bits_per_dimension(log_p[:1], torch.tensor([6])),
        torch.tensor([2 * math.log2(256 / 127.5) + math.log2(127.5)]),
    )


def test_bits_do_not_depend_on_the_scale_of_the_pixels():
    """A flow on [-1, 1] and the Gaussian of its levels, 0 to 255, of the same images: y = 127.5 (x + 1)."""
    model = Gaussian((1, 2, 2))
    x = torch.rand(5, 1, 2, 2, dtype=torch.float64) * 2 - 1
    _, log_p = ODESolver(model).compute_likelihood(
        x, normal, method="rk4", steps=50, exact_divergence=True
    )
    covariance = 127.5**2 * model.factor @ model.factor.T
    levels = torch.distributions.MultivariateNormal(127.5 * (model.mean + 1), covariance)
    expected = -levels.log_prob(127.5 * (x + 1).flatten(1)) / (4 * math.log(2))
    assert_close(bits_per_dimension(log_p, 4), expected.detach(), rtol=1e-5, atol=1e-5)
    assert_close(
        bits_per_dimension(levels.log_prob(127.5 * (x + 1).flatten(1)), 4, bin_width=1.0), expected
    )


def test_bad_input(untyped):
    solver, x = ODESolver(Gaussian((3,))), torch.zeros(2, 3, dtype=torch.float64)
    with pytest.raises(
        ValueError, match=r"`log_p0` must return one value a sample, \(2,\); got \(2, 3\)"
    ):
        solver.compute_likelihood(x, torch.distributions.Normal(0.0, 1.0).log_prob, steps=1)
    with pytest.raises(ValueError, match=r"`log_p0` must return one value a sample.*got \(\)"):
        solver.compute_likelihood(x, lambda x: x.sum(), steps=1)
    with pytest.raises(ValueError, match=r"`time_grid` must decrease.*got 0 to 1"):
        solver.compute_likelihood(x, normal, time_grid=[0.0, 1.0])
    with pytest.raises(ValueError, match=r"`time_grid` must increase.*got 1 to 0. compute_like"):
        solver.sample_with_log_density(x, normal, time_grid=[1.0, 0.0])
    with pytest.raises(
        ValueError, match=r"`probes` must be at least 2 for a standard error; got 1"
    ):
        solver.compute_likelihood(x, normal, steps=1, return_error=True)
    with pytest.raises(TypeError, match=r"`probes` must be a whole number of at least 1; got 2\.5"):
        solver.compute_likelihood(x, normal, steps=1, probes=2.5)
    with pytest.raises(ValueError, match=r"'euler' needs `steps`"):
        solver.compute_likelihood(x, normal)
    with pytest.raises(
        TypeError, match=r"`probe` is no keyword of the solver: did you mean `probes`"
    ):
        solver.compute_likelihood(x, normal, steps=1, probe=3)
    with torch.inference_mode(), pytest.raises(ValueError, match=r"inference_mode\(\) forbids"):
        solver.compute_likelihood(x, normal, steps=1)
    silent = ODESolver(torch.no_grad()(lambda x, t: 2 * x))
    with pytest.raises(ValueError, match=r"the velocity carries no gradient to `x`"):
        silent.compute_likelihood(x, normal, steps=1)
    with pytest.raises(ValueError, match=r"`bin_width` must be positive; got 0"):
        bits_per_dimension(torch.zeros(1), 3, bin_width=0.0)
