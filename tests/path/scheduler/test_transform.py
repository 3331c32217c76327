"""The transformed model against the exact velocity of Gaussian data, on every pair of schedulers."""

import math

import pytest
import torch
from flow_matching.path import scheduler as upstream
from flow_matching.path.scheduler import Scheduler, SchedulerOutput
from flow_matching.solver import ODESolver
from flow_matching.utils import ModelWrapper
from torch import nn
from torch.testing import assert_close

from fm_ext.path.scheduler import ScheduleTransformedModel, get_scheduler
from fm_ext.path.scheduler.ends import end_slope

MEAN, STD = 2.0, 0.5
UPSTREAM = {
    "CondOT": upstream.CondOTScheduler(),
    "polynomial": upstream.PolynomialConvexScheduler(2),
    "VP": upstream.VPScheduler(),
    "LinearVP": upstream.LinearVPScheduler(),
    "Cosine": upstream.CosineScheduler(),
}
OURS = {
    name: get_scheduler(name, **arguments)
    for name, arguments in {
        "cosine": {},
        "iddpm_cosine": {},
        "vp": {},
        "linear_vp": {},
        "sigmoid": {},
        "shifted": {"scheduler": {"name": "cond_ot"}, "shift": 3.0},
        "edm": {},
        "ve": {},
        "beta_table": {"betas": torch.linspace(1e-4, 0.02, 1000)},
    }.items()
}
ALL = UPSTREAM | OURS
PAIRS = [(a, b) for group in (UPSTREAM, OURS) for a in group for b in group]
PAIRS += [(a, b) for a in ("CondOT", "polynomial") for b in OURS]
PAIRS += [(b, a) for a, b in PAIRS[-2 * len(OURS) :]]
SINGULAR = ("VP", "LinearVP", "vp", "linear_vp", "iddpm_cosine")  # d_sigma = -inf at t = 1
SHORT = ("VP", "vp", "edm", "ve", "beta_table")  # an end of another schedule is out of reach
every_pair = pytest.mark.parametrize("original, new", PAIRS, ids=map("-".join, PAIRS))
SOLVED = [
    (a, b) for a, b in PAIRS if {a, b} & {"CondOT", "vp"} or (a in UPSTREAM and b in UPSTREAM)
]
solved_pair = pytest.mark.parametrize("original, new", SOLVED, ids=map("-".join, SOLVED))


class GaussianVelocity(nn.Module):
    """The marginal velocity for data N(MEAN, STD^2); as written by its users, so not finite where d_sigma is not."""

    def __init__(self, scheduler):
        super().__init__()
        self.scheduler = scheduler

    def forward(self, x, t, product=None, **extras):
        out = self.scheduler(t)
        product = out.sigma_t * out.d_sigma_t if product is None else product
        variance = out.alpha_t**2 * STD**2 + out.sigma_t**2
        growth = (out.alpha_t * out.d_alpha_t * STD**2 + product) / variance
        return out.d_alpha_t * MEAN + growth * (x - out.alpha_t * MEAN)


def exact_velocity(scheduler, x, t):
    """With the limit of sigma * d_sigma at the end."""
    out = scheduler(t)
    product = out.sigma_t * out.d_sigma_t
    return GaussianVelocity(scheduler)(
        x, t, torch.where(product.isfinite(), product, -end_slope(scheduler))
    )


def exact_flow(scheduler, x):
    """Where the flow from t = 0 to 1 takes x: the map between the two Gaussians."""
    mean, std = [], []
    for t in (0.0, 1.0):
        out = scheduler(torch.tensor(t, dtype=torch.float64))
        mean.append(out.alpha_t * MEAN)
        std.append((out.alpha_t**2 * STD**2 + out.sigma_t**2).sqrt())
    return mean[1] + std[1] / std[0] * (x - mean[0])


def transformed(original, new):
    return ScheduleTransformedModel(GaussianVelocity(ALL[original]), ALL[original], ALL[new])


X = torch.tensor([[-1.0], [0.3], [1.7]], dtype=torch.float64)
GRID = torch.tensor([0.0, 1.0], dtype=torch.float64)


@every_pair
def test_velocity_inside(original, new):
    """Exact wherever the original schedule reaches the ratio of the new one."""
    t = torch.linspace(0.25, 0.9, 9, dtype=torch.float64)[:, None].expand(9, 3)
    x = X.T.expand(9, 3)
    got = transformed(original, new)(x, t)
    # Upstream's VP inverts its ratio with a loss of digits.
    assert_close(got, exact_velocity(ALL[new], x, t), rtol=1e-8, atol=1e-8)


@every_pair
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_velocity_at_both_ends(original, new, dtype):
    model, eps = transformed(original, new), torch.finfo(dtype).eps
    for t in (0.0, 1.0):
        time = torch.tensor(t, dtype=torch.float64)
        got, want = model(X.to(dtype), time.to(dtype)), exact_velocity(ALL[new], X, time)
        tolerance = 100 * eps
        if t == 0 and original == "polynomial":  # X_1 predicted where the ratio is eps^(2/3)
            tolerance = 20 * eps ** (2 / 3)
        if t == 0 and original in SHORT:  # X_1 predicted at the model's first time
            tolerance = 8 * ALL[original](time).alpha_t.item()
        if t == 1 and original in SINGULAR and new in SINGULAR:  # asked at 1 - eps^(2/3)
            tolerance = 600 * eps ** (2 / 3) + 1e-8
        elif t == 1 and new in SINGULAR and original not in SHORT:  # held where sigma is eps^(1/3)
            tolerance = 5000 * eps ** (2 / 3)
        if t == 1 and original in ("edm", "ve", "beta_table"):  # the score of the model's last time
            tolerance = 20 * max(ALL[original](time).sigma_t.item() ** 2, eps)
        scale = 1 + want.abs().max().item()
        assert got.dtype == dtype
        assert_close(got.double(), want, rtol=0, atol=tolerance * scale)


class ExactVelocity(nn.Module):
    def __init__(self, scheduler):
        super().__init__()
        self.scheduler = scheduler

    def forward(self, x, t):
        return exact_velocity(self.scheduler, x, t.clamp(0, 1))


@solved_pair
@pytest.mark.parametrize("method", ["euler", "midpoint", "heun2", "heun3", "rk4"])
def test_every_solver_steps_as_on_the_exact_velocity(original, new, method):
    """With few steps, so that a wrong value at an end weighs a lot."""
    arguments = {"x_init": X, "step_size": 0.125, "method": method, "time_grid": GRID}
    got = ODESolver(transformed(original, new)).sample(**arguments)
    want = ODESolver(ExactVelocity(ALL[new])).sample(**arguments)
    # What the original schedule does not reach at the source is approximated.
    assert_close(got, want, rtol=0, atol=2e-3 if original in SHORT else 2e-6)


@solved_pair
def test_the_adaptive_solver_samples_the_data(original, new):
    got = ODESolver(transformed(original, new)).sample(
        x_init=X, step_size=None, method="dopri5", atol=1e-7, rtol=1e-7, time_grid=GRID
    )
    assert (got - exact_flow(ALL[new], X)).abs().max().item() < 1e-3


@pytest.mark.parametrize("original, new", [("LinearVP", "CondOT"), ("CondOT", "Cosine")])
@pytest.mark.parametrize("method, order", [("euler", 1), ("midpoint", 2), ("heun3", 3), ("rk4", 4)])
def test_solvers_keep_their_order(original, new, method, order):
    solver, errors = ODESolver(transformed(original, new)), []
    for step_size in (1 / 8, 1 / 16):
        end = solver.sample(x_init=X, step_size=step_size, method=method, time_grid=GRID)
        errors.append((end - exact_flow(ALL[new], X)).abs().max().item())
    assert math.log2(errors[0] / errors[1]) > order - 0.5


@solved_pair
def test_likelihood_through_every_pair(original, new):
    out = ALL[new](torch.zeros((), dtype=torch.float64))
    std = (out.alpha_t**2 * STD**2 + out.sigma_t**2).sqrt()
    source = torch.distributions.Normal(out.alpha_t * MEAN, std)
    got, want = (
        ODESolver(model).compute_likelihood(
            x_1=X,
            log_p0=lambda x: source.log_prob(x).sum(1),
            step_size=0.125,
            method="heun2",
            time_grid=GRID.flip(0),
            exact_divergence=True,
        )[1]
        for model in (transformed(original, new), ExactVelocity(ALL[new]))
    )
    assert_close(got, want, rtol=0, atol=2e-2 if original in SHORT else 2e-5)


def test_likelihood_is_the_densitys():
    data, source = (torch.distributions.Normal(m, s) for m, s in ((MEAN, STD), (0.0, 1.0)))
    _, got = ODESolver(transformed("polynomial", "LinearVP")).compute_likelihood(
        x_1=X,
        log_p0=lambda x: source.log_prob(x).sum(1),
        step_size=0.02,
        method="rk4",
        time_grid=GRID.flip(0),
        exact_divergence=True,
    )
    assert_close(got, data.log_prob(X).sum(1), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in ALL if name not in (*SINGULAR, "polynomial")])
def test_the_same_schedule_is_no_transformation(name):
    model, velocity = transformed(name, name), GaussianVelocity(ALL[name])
    for t in torch.tensor([0.0, 1e-6, 0.3, 0.7, 1 - 1e-6, 1.0], dtype=torch.float64):
        assert_close(model(X, t), velocity(X, t), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("original", UPSTREAM)
@pytest.mark.parametrize("new", UPSTREAM)
def test_upstreams_values_inside(original, new):
    model = GaussianVelocity(UPSTREAM[original])
    ours = ScheduleTransformedModel(model, UPSTREAM[original], UPSTREAM[new])
    theirs = upstream.ScheduleTransformedModel(model, UPSTREAM[original], UPSTREAM[new])
    for t in torch.linspace(0.2, 0.9, 8, dtype=torch.float64):
        assert_close(ours(X, t), theirs(X, t), rtol=1e-9, atol=1e-9)


@every_pair
def test_any_shape_of_the_time(original, new):
    model = transformed(original, new)
    x = torch.randn(4, 2, 3, 4, dtype=torch.float64)
    t = torch.tensor([0.0, 0.3, 0.8, 1.0], dtype=torch.float64)
    want = torch.stack([model(x[i], t[i]) for i in range(4)])
    wide = t[:, None, None, None]
    assert_close(model(x, wide), want)
    assert_close(model(x, wide.expand_as(x)), want)
    seen = []

    def network(x, t):
        seen.append(t)
        return GaussianVelocity(ALL[original])(x, t[:, None, None, None])

    got = ScheduleTransformedModel(network, ALL[original], ALL[new])(x, t)
    assert_close(got, want)
    assert seen[0].shape == (4,) and 0 <= seen[0].min() and seen[0].max() <= 1


@every_pair
def test_outside_the_interval_the_end_is_held(original, new):
    model = transformed(original, new)
    zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    for t in (-2.6, -1e-9):
        assert torch.equal(model(X, zero + t), model(X, zero))
    for t in (1 + 1e-9, 1.11, 3.14):
        assert torch.equal(model(X, zero + t), model(X, one))


@every_pair
def test_half_precision_is_finite_and_close(original, new, dtype=torch.bfloat16):
    model, t = transformed(original, new), torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])
    for time in t:
        got = model(X.to(dtype), time)
        assert got.dtype == dtype and bool(got.isfinite().all())
        if 0 < time < 1:
            assert_close(
                got.double(), exact_velocity(ALL[new], X, time.double()), rtol=0.1, atol=0.2
            )


class StandsStill(Scheduler):
    """Smoothstep: the velocity is 0 at both ends and says nothing there."""

    def __call__(self, t):
        alpha, slope = t * t * (3 - 2 * t), 6 * t * (1 - t)
        return SchedulerOutput(alpha, (1 - t) ** 2 * (1 + 2 * t), slope, -slope)

    def snr_inverse(self, snr):
        low, high = torch.zeros_like(snr), torch.ones_like(snr)
        for _ in range(60):
            middle = (low + high) / 2
            out = self(middle)
            low = torch.where(out.alpha_t < snr * out.sigma_t, middle, low)
            high = torch.where(out.alpha_t < snr * out.sigma_t, high, middle)
        return low


@pytest.mark.parametrize("new", ALL)
def test_a_schedule_that_stands_still_at_both_ends(new):
    scheduler = StandsStill()
    model = ScheduleTransformedModel(GaussianVelocity(scheduler), scheduler, ALL[new])
    for t in torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64):
        want = exact_velocity(ALL[new], X, t)
        assert_close(model(X, t), want, rtol=1e-6, atol=1e-6)


def test_a_model_that_fails_at_the_end_of_a_singular_schedule_is_not_asked_there():
    def network(x, t):
        assert t < 1
        return x * 0 + math.nan if t == 1 else x

    for new in ("CondOT", "VP", "LinearVP"):
        model = ScheduleTransformedModel(network, UPSTREAM["LinearVP"], UPSTREAM[new])
        assert bool(model(X, torch.ones((), dtype=torch.float64)).isfinite().all())


def test_a_velocity_that_does_not_count_may_be_anything():
    model = ScheduleTransformedModel(lambda x, t: x / 0, UPSTREAM["CondOT"], UPSTREAM["polynomial"])
    assert not model(X, torch.zeros((), dtype=torch.float64)).any()


def test_it_wraps_the_model_and_passes_extras():
    network = nn.Linear(1, 1)

    class Conditional(ModelWrapper):
        def forward(self, x, t, **extras):
            return self.model(x) * extras["scale"]

    model = ScheduleTransformedModel(
        velocity_model=Conditional(network),
        original_scheduler=UPSTREAM["CondOT"],
        new_scheduler=UPSTREAM["Cosine"],
    )
    assert isinstance(model, ModelWrapper) and set(model.parameters()) == set(network.parameters())
    x, t = torch.randn(4, 1), torch.tensor(0.0)
    # At t = 0, where x is x_0, X_1 is predicted as x + v, and the velocity is pi / 2 of that.
    assert_close(model(x=x, t=t, scale=2.0), torch.pi / 2 * (x + 2 * network(x)))
    model(x, t, scale=1.0).sum().backward()
    assert network.weight.grad is not None


def test_compiles_without_a_break(untyped):
    model = transformed("polynomial", "VP")
    torch.compiler.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for t in (torch.tensor(0.0), torch.tensor(0.4), torch.tensor(1.0)):
        assert_close(compiled(X.float(), t), model(X.float(), t))


def test_what_is_refused(untyped):
    condot, velocity = UPSTREAM["CondOT"], GaussianVelocity(UPSTREAM["CondOT"])
    with pytest.raises(TypeError, match=r"`original_scheduler` must be a .*; got 'cond_ot'"):
        ScheduleTransformedModel(velocity, "cond_ot", condot)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"`new_scheduler` must be a .*; got None"):
        ScheduleTransformedModel(velocity, condot, None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`new_scheduler` must have finite derivatives at t = 0"):
        ScheduleTransformedModel(velocity, condot, upstream.PolynomialConvexScheduler(0.5))
    with pytest.raises(ValueError, match=r"`t` must be 0-d, .*got \(5,\) for a state of \(3, 1\)"):
        transformed("CondOT", "VP")(X, torch.rand(5))


def test_a_polynomial_with_an_infinite_start_can_be_left_for_another_schedule():
    root = upstream.PolynomialConvexScheduler(0.5)
    model = ScheduleTransformedModel(GaussianVelocity(root), root, UPSTREAM["CondOT"])
    for t in torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64):
        assert_close(model(X, t), exact_velocity(UPSTREAM["CondOT"], X, t), rtol=1e-8, atol=1e-8)
