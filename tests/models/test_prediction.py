"""Laws of predictions as velocity models: on Gaussian data everything has a closed form."""

import math

import pytest
import torch
from flow_matching.path.scheduler import CondOTScheduler, Scheduler
from flow_matching.solver import ODESolver
from torch import nn

from fm_ext.models import PredictionVelocityModel
from fm_ext.path import AffineProbPath
from fm_ext.path.scheduler import (
    CosineScheduler,
    IDDPMCosineScheduler,
    LinearVPScheduler,
    VPScheduler,
    get_scheduler,
    scheduler_names,
)

PREDICTIONS = ("x_1", "x_0", "epsilon", "score", "velocity")
ARGUMENTS = {
    "polynomial": {"n": 2},
    "beta_table": {"betas": torch.linspace(0.00085**0.5, 0.012**0.5, 1000).square()},
    "shifted": {"scheduler": {"name": "cond_ot"}, "shift": 3.0},
    "shifted_convex": {"scheduler": {"name": "cond_ot"}, "shift": 3.0},
}
SCHEDULERS = {name: get_scheduler(name, **ARGUMENTS.get(name, {})) for name in scheduler_names()}
SCHEDULERS["polynomial_3.5"] = get_scheduler("polynomial", n=3.5)
SCHEDULERS["zero_terminal"] = get_scheduler(
    "beta_table", **ARGUMENTS["beta_table"], zero_terminal_snr=True
)
MEAN, STD = 0.7, 0.4
T_EPS = dict.fromkeys(SCHEDULERS, (1e-6, 1e-6))
T_EPS["polynomial_3.5"] = (1e-3, 1e-6)  # alpha is 1e-21 at 1e-6
TABLES = ("beta_table", "zero_terminal")
# Order, and the largest error constant over all schedules.
METHODS = {"euler": (1, 3), "midpoint": (2, 4), "heun2": (2, 8), "heun3": (3, 4), "rk4": (4, 16)}


class Exact(nn.Module):
    """The best prediction for data N(MEAN, STD^2) and source N(0, 1)."""

    def __init__(self, scheduler: Scheduler, prediction: str):
        super().__init__()
        self.scheduler = scheduler
        self.prediction = prediction
        self.asked: list[float] = []

    def forward(self, x, t):
        self.asked += t.flatten().tolist()
        out = self.scheduler(t.double())
        alpha, sigma = out.alpha_t, out.sigma_t
        rest = (x - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2)
        x_1, x_0 = MEAN + alpha * STD**2 * rest, sigma * rest
        if self.prediction == "velocity":
            near = self.scheduler(t.double().clamp(max=1 - 2**-40))  # where sigma' is infinite
            return out.d_alpha_t * x_1 + near.sigma_t * near.d_sigma_t * rest
        return {"x_1": x_1, "x_0": x_0, "epsilon": x_0, "score": -rest}[self.prediction].to(x)


def flow(scheduler, x_0):
    """What the flow makes of `x_0` at t = 1."""
    out = scheduler(torch.tensor([0.0, 1.0], dtype=torch.float64))
    std = (out.alpha_t**2 * STD**2 + out.sigma_t**2).sqrt()
    return out.alpha_t[1] * MEAN + std[1] / std[0] * (x_0 - out.alpha_t[0] * MEAN)


def start():
    return torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_prediction_samples_to_the_order_of_every_solver(name, prediction):
    scheduler, t_eps = SCHEDULERS[name], T_EPS[name]
    model = PredictionVelocityModel(
        Exact(scheduler, prediction), scheduler, prediction, t_eps=t_eps
    )
    steps = 20
    for method, (order, constant) in METHODS.items():
        sample = ODESolver(model).sample(start(), step_size=1 / steps, method=method)
        # A table changes within 1 / 1000 of the data's end, which 20 steps do not resolve.
        order = min(order, 2) if name in TABLES else order
        bound = constant / steps**order + t_eps[0] ** 2
        error = (sample - flow(scheduler, start())).abs().max()
        assert error <= bound, (method, error, bound)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("name", SCHEDULERS)
def test_adaptive_solver_in_single_precision_with_the_default_distances(name, prediction):
    scheduler = SCHEDULERS[name]
    network = Exact(scheduler, prediction)
    model = PredictionVelocityModel(network, scheduler, prediction)
    sample = ODESolver(model).sample(start().float(), step_size=None, method="dopri5")
    torch.testing.assert_close(sample.double(), flow(scheduler, start()), rtol=0, atol=6e-3)
    assert min(network.asked) >= 0 and max(network.asked) <= 1  # dopri5 looks beyond 1


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_any_shape_of_t_and_extras(prediction):
    class Scaled(Exact):
        def forward(self, x, t, scale):
            return scale * super().forward(x, t.view(-1, *(1 for _ in x.shape[1:])))

    scheduler = CosineScheduler()
    model = PredictionVelocityModel(Scaled(scheduler, prediction), scheduler, prediction)
    x, t = torch.randn(4, 3, 4, 4), torch.rand(4)
    expected = torch.cat([model(x=x[i : i + 1], t=t[i], scale=2.0) for i in range(4)])
    for shape in ((4,), (4, 1, 1, 1)):
        torch.testing.assert_close(model(x=x, t=t.view(shape), scale=2.0), expected)
    half = PredictionVelocityModel(Scaled(scheduler, prediction), scheduler, prediction)
    times = torch.tensor([0.0, 0.004, 0.996, 1.0]).bfloat16()
    assert half(x=x.bfloat16(), t=times, scale=1.0).isfinite().all()


@pytest.mark.parametrize(
    ("scheduler", "prediction", "times"),
    [
        (CondOTScheduler(), "velocity", (0.0, 1.0)),
        (CondOTScheduler(), "x_1", (0.0, 0.9)),
        (CondOTScheduler(), "epsilon", (0.2, 1.0)),
        (CondOTScheduler(), "score", (0.2, 1.0)),
        (IDDPMCosineScheduler(), "epsilon", (0.2, 0.9)),
        (IDDPMCosineScheduler(), "score", (0.2, 1.0)),
        (VPScheduler(), "score", (0.0, 1.0)),
        (LinearVPScheduler(), "velocity", (0.0, 1.0)),
        (SCHEDULERS["beta_table"], "epsilon", (0.0, 1.0)),
        (SCHEDULERS["edm"], "x_1", (0.0, 1.0)),
    ],
)
def test_distance_is_kept_where_the_velocity_is_undetermined_and_nowhere_else(
    scheduler, prediction, times
):
    network = Exact(scheduler, prediction)
    model = PredictionVelocityModel(network, scheduler, prediction, t_eps=(0.2, 0.1))
    assert f"t in [{times[0]}, {times[1]}]" in repr(model)
    x = start()
    for end, held in zip((0.0, 1.0), times, strict=True):
        at_end = model(x=x, t=torch.tensor(end, dtype=torch.float64))
        torch.testing.assert_close(at_end, model(x=x, t=torch.tensor(held, dtype=torch.float64)))
    assert network.asked == [times[0], times[0], times[1], times[1]]


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("name", SCHEDULERS)
def test_ends_are_both_expectations_and_meet_the_state(name, prediction):
    scheduler = SCHEDULERS[name]
    model = PredictionVelocityModel(Exact(scheduler, prediction), scheduler, prediction)
    x, times = start(), [0.0, 0.02, 0.3, 0.7, 0.97]
    for t in torch.tensor(times, dtype=torch.float64):
        out = scheduler(t)
        x_0, x_1 = model.ends(x, t)
        torch.testing.assert_close(out.alpha_t * x_1 + out.sigma_t * x_0, x)
        if t >= model.end_times[0]:
            torch.testing.assert_close(x_1, Exact(scheduler, "x_1")(x, t))
            torch.testing.assert_close(x_0, Exact(scheduler, "x_0")(x, t))
        else:  # the data's end of the nearest time inside
            torch.testing.assert_close(x_1, Exact(scheduler, "x_1")(x, model.end_times[0] + 0 * t))


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_likelihood(prediction):
    scheduler = CosineScheduler()
    model = PredictionVelocityModel(
        Exact(scheduler, prediction), scheduler, prediction, t_eps=(1e-3, 1e-3)
    )
    x_1 = start().float() * STD + MEAN
    _, log_p = ODESolver(model).compute_likelihood(
        x_1,
        lambda x: -(x**2).sum(1) / 2 - math.log(2 * math.pi) / 2,
        step_size=0.02,
        method="heun3",
        exact_divergence=True,
    )
    truth = torch.distributions.Normal(MEAN, STD).log_prob(x_1[:, 0])
    torch.testing.assert_close(log_p, truth, rtol=0, atol=1e-3)


def test_outside_the_kept_distance_it_is_the_conversion_of_the_path():
    path = AffineProbPath(VPScheduler())
    sample = path.sample(torch.randn(8, 3, 4, 4), torch.randn(8, 3, 4, 4), torch.rand(8) * 0.9)
    for prediction, value in (("x_1", sample.x_1), ("epsilon", sample.x_0), ("x_0", sample.x_0)):
        model = PredictionVelocityModel(Constant(value), path.scheduler, prediction)
        torch.testing.assert_close(
            model(x=sample.x_t, t=sample.t), sample.dx_t, rtol=1e-3, atol=1e-4
        )


class Constant(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x, t):
        return self.value


def test_bad_input(untyped):
    net = nn.Identity()
    with pytest.raises(ValueError, match=r"`prediction` must be one of .*'x_1'.*; got 'noise'"):
        PredictionVelocityModel(net, CondOTScheduler(), "noise")
    with pytest.raises(ValueError, match=r"`t_eps` must lie in \(0, 0\.5\); got \(0\.0, 0\.1\)"):
        PredictionVelocityModel(net, CondOTScheduler(), "x_1", t_eps=(0.0, 0.1))
    with pytest.raises(ValueError, match=r"`t_eps` = \(1e-06, 0\.01\) is too small for .*epsilon"):
        PredictionVelocityModel(net, SCHEDULERS["polynomial_3.5"], "epsilon", t_eps=(1e-6, 0.01))
    with pytest.raises(TypeError, match="`scheduler` must be a flow_matching"):
        PredictionVelocityModel(net, "vp", "x_1")
    model = PredictionVelocityModel(Constant(torch.zeros(2, 1)), CondOTScheduler(), "x_1")
    with pytest.raises(
        ValueError, match=r"`model` must answer with the shape of its state, \(2, 3\).*\(2, 1\)"
    ):
        model(x=torch.zeros(2, 3), t=torch.tensor(0.5))
