"""Laws of the exponential step."""

import pytest
import torch
from flow_matching.path.scheduler import CondOTScheduler, Scheduler, SchedulerOutput
from flow_matching.solver import ODESolver
from torch import nn

from fm_ext.models import MLP, GuidedVelocityModel, MaskedVelocityModel, PredictionVelocityModel
from fm_ext.path.scheduler import (
    CosineScheduler,
    EDMScheduler,
    IDDPMCosineScheduler,
    LinearVPScheduler,
    VPScheduler,
)
from fm_ext.solver import ExponentialSolver
from fm_ext.utils import shared

PREDICTIONS = ("x_1", "x_0", "epsilon", "score", "velocity")
SCHEDULERS = [
    CondOTScheduler(),
    CosineScheduler(),
    EDMScheduler(),
    IDDPMCosineScheduler(),
    LinearVPScheduler(),
    VPScheduler(),
]


class Point(nn.Module):
    """The best prediction for data that are one point, and source N(0, 1)."""

    def __init__(self, point, scheduler, prediction):
        super().__init__()
        self.point, self.scheduler, self.prediction = point, scheduler, prediction
        self.asked = []

    def forward(self, x, t):
        self.asked.append(t.item())
        out = self.scheduler(t.double())
        x_0 = (x - out.alpha_t * self.point) / out.sigma_t
        return {
            "x_1": self.point.expand_as(x),
            "x_0": x_0,
            "epsilon": x_0,
            "score": -x_0 / out.sigma_t,
            "velocity": out.d_alpha_t * self.point + out.d_sigma_t * x_0,
        }[self.prediction].to(x.dtype)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=lambda s: type(s).__name__)
def test_straight_lines_between_the_ends_are_exact_in_any_number_of_steps(scheduler, prediction):
    point = torch.tensor([1.0, -2.0], dtype=torch.float64)
    network = Point(point, scheduler, prediction)
    model = PredictionVelocityModel(network, scheduler, prediction, t_eps=(1e-3, 1e-3))
    source = torch.randn(5, 2, dtype=torch.float64)
    out = scheduler(torch.tensor([0.0, 1.0], dtype=torch.float64))
    x_init = out.alpha_t[0] * point + out.sigma_t[0] * source
    expected = out.alpha_t[1] * point + out.sigma_t[1] * source
    # Noise predictions start where alpha = 1e-3: the point is divided by it, and its rounding too.
    for step_size in (None, 0.5, 0.15):
        sample = ExponentialSolver(model).sample(x_init, step_size)
        torch.testing.assert_close(sample, expected, rtol=0, atol=2e-2)
    if prediction in ("x_1", "velocity"):
        torch.testing.assert_close(sample, expected)
    assert max(network.asked) < 1


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_on_the_straight_path_it_is_eulers_method(prediction):
    model = PredictionVelocityModel(MLP(2, 16), CondOTScheduler(), prediction, t_eps=(0.1, 1e-3))
    grid, x = torch.tensor([0.1, 0.3, 0.4, 0.8, 0.99]), torch.randn(5, 2)
    torch.testing.assert_close(
        ExponentialSolver(model).sample(x, None, grid, return_intermediates=True),
        ODESolver(model).sample(x, None, time_grid=grid, return_intermediates=True),
        rtol=1e-4,
        atol=1e-4,
    )


@pytest.mark.parametrize(
    "scheduler", [CosineScheduler(), VPScheduler()], ids=lambda s: type(s).__name__
)
def test_at_the_data_it_returns_the_predicted_data(scheduler):
    model = PredictionVelocityModel(MLP(2, 16), scheduler, "x_1")
    states = ExponentialSolver(model).sample(
        torch.randn(5, 2), 0.05, torch.tensor([0.0, 0.95, 1.0]), return_intermediates=True
    )
    assert torch.equal(states[-1], model.model(x=states[1], t=torch.tensor(0.95)))


@pytest.mark.parametrize("eta", [0.5, 1.0])
@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=lambda s: type(s).__name__)
def test_fresh_noise_leaves_the_law_of_the_path_in_any_number_of_steps(scheduler, eta):
    point = torch.tensor([1.0], dtype=torch.float64)
    model = PredictionVelocityModel(Point(point, scheduler, "x_1"), scheduler, "x_1")
    at = scheduler(torch.tensor([0.0, 0.6], dtype=torch.float64))
    x = at.alpha_t[0] * point + at.sigma_t[0] * torch.randn(40_000, 1, dtype=torch.float64)
    for step_size in (0.6, 0.2):
        found = ExponentialSolver(model).sample(x, step_size, [0.0, 0.6], eta=eta)
        noise = (found - at.alpha_t[1] * point) / at.sigma_t[1]
        assert noise.mean().item() == pytest.approx(0, abs=0.02)
        assert noise.std().item() == pytest.approx(1, rel=0.01)
        if scheduler(torch.zeros(1)).alpha_t.item() == 0 and step_size == 0.6 and eta == 1:
            together = torch.corrcoef(torch.stack([noise[:, 0], x[:, 0]]))[0, 1]
            assert abs(together) < 0.02  # nothing is left of the first noise


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_scheduler_may_answer_with_constants(eta):
    class Exploding(Scheduler):
        def __init__(self, constant):
            self.constant = constant

        def __call__(self, t):
            one = torch.ones((), dtype=t.dtype)
            alpha, slope = (one, 0 * one) if self.constant else (one.expand_as(t), 0 * t)
            return SchedulerOutput(alpha, 3 * (1 - t), slope, -3 + 0 * t)

        def snr_inverse(self, snr):
            return 1 - 1 / (3 * snr)

    model, x = MLP(2, 16), torch.randn(4, 2)
    found, expected = (
        ExponentialSolver(PredictionVelocityModel(model, Exploding(constant), "x_1")).sample(
            x, 0.5, eta=eta, generator=torch.Generator().manual_seed(0)
        )
        for constant in (True, False)
    )
    assert torch.equal(found, expected)


def test_fresh_noise_forgets_the_errors_of_a_model_and_keeps_its_generator():
    class Wrong(nn.Module):
        """The best prediction of N(0, 1/4), which breaks down before 1/2."""

        def forward(self, x, t):
            variance = t**2 / 4 + (1 - t) ** 2
            return t / 4 / variance * x if t >= 0.5 else 3 + 0 * x

    model = PredictionVelocityModel(Wrong(), CondOTScheduler(), "x_1")
    solver, x = ExponentialSolver(model), torch.randn(4000, 2, dtype=torch.float64)
    carried = solver.sample(x, 0.005).mean()
    first, again = (
        solver.sample(x, 0.005, eta=1.0, generator=torch.Generator().manual_seed(0))
        for _ in range(2)
    )
    assert torch.equal(first, again)
    assert carried > 1.2 and first.mean() < 0.8 * carried
    assert not torch.equal(first, solver.sample(x, 0.005, eta=1.0))


def test_grid_steps_and_inversion():
    model = PredictionVelocityModel(MLP(2, 16), CosineScheduler(), "velocity")
    solver, x = ExponentialSolver(model), torch.randn(5, 2)
    up = torch.linspace(0.1, 0.9, 401)
    torch.testing.assert_close(
        solver.sample(x, 0.002, up[[0, 100, 400]]), solver.sample(x, None, up)
    )
    assert solver.sample(x, 0.5, up[[0, 100, 400]], return_intermediates=True).shape == (3, 5, 2)
    there = solver.sample(x, None, up)
    back = solver.sample(there, None, up.flip(0))
    torch.testing.assert_close(back, x, rtol=1e-2, atol=1e-2)


def test_gradients_extras_and_half_precision():
    class Half(Scale):
        def forward(self, x, t, scale):
            assert x.dtype == torch.bfloat16
            return super().forward(x, t, scale)

    model, wide = (
        PredictionVelocityModel(net, CosineScheduler(), "x_0") for net in (Half(), Scale())
    )
    x = torch.ones(5, 2, dtype=torch.bfloat16, requires_grad=True)
    # Each of the steps moves the state by less than bfloat16's rounding.
    grid = torch.tensor([0.0, 0.2])
    sample = ExponentialSolver(model).sample(x, 5e-4, grid, enable_grad=True, scale=0.5)
    exact = ExponentialSolver(wide).sample(torch.ones(5, 2).double(), 5e-4, grid, scale=0.5)
    torch.testing.assert_close(sample.double(), exact, rtol=2e-2, atol=0)
    sample.sum().backward()
    assert x.grad.isfinite().all() and x.grad.ne(0).all()
    assert not ExponentialSolver(model).sample(x, 0.5, scale=1.0).requires_grad


class Scale(nn.Module):
    def forward(self, x, t, scale):
        return scale * x


class Conditional(nn.Module):
    """The best prediction of N(0.9 y, 0.19) where y, the first entry, is known; it expects y as it is."""

    def __init__(self, scheduler, prediction):
        super().__init__()
        self.scheduler, self.prediction, self.asked = scheduler, prediction, []

    def forward(self, x, t, mask):
        assert mask.shape == x.shape
        self.asked.append(x[:, 0])
        at, y, m = self.scheduler(t.double()), x[:, :1], x[:, 1:]
        variance = at.alpha_t**2 * 0.19 + at.sigma_t**2
        rest = (m - 0.9 * at.alpha_t * y) / variance
        x_1 = 0.9 * y + at.alpha_t * 0.19 * rest
        answers = {
            "x_1": x_1,
            "epsilon": at.sigma_t * rest,
            "velocity": at.d_alpha_t * x_1 + at.d_sigma_t * at.sigma_t * rest,
        }
        return torch.cat([7 + 0 * y, answers[self.prediction]], dim=1)  # 7: no one's business


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("scheduler", [CondOTScheduler(), CosineScheduler()])
@pytest.mark.parametrize("prediction", ["x_1", "epsilon", "velocity", "masked velocity"])
def test_known_entries_stay_bit_for_bit_and_the_missing_ones_have_the_posteriors_law(
    scheduler, prediction, eta
):
    """At 1.5 they drifted to 1.46 with the masked velocity, and the network never saw them as they are."""
    network = Conditional(scheduler, prediction.split()[-1])
    model = MaskedVelocityModel(network) if " " in prediction else network
    solver = ExponentialSolver(
        PredictionVelocityModel(model, scheduler, network.prediction, t_eps=(1e-4, 1e-3))
    )
    x = torch.randn(4000, 2, dtype=torch.float64)
    x[:, 0] = 1.5
    mask = torch.tensor([[False, True]])
    grid = [0.0, 0.5, 1.0]
    states = solver.sample(x, 0.01, grid, return_intermediates=True, mask=mask, eta=eta)
    assert states[:, :, 0].eq(1.5).all() and all(y.eq(1.5).all() for y in network.asked)
    missing = states[-1, :, 1]
    if eta == 0:  # a function of the noise
        spread = 0.19**0.5 * x[:, 1].std().item()
        middle = 1.35 + spread * x[:, 1].mean().item()
        assert missing.mean().item() == pytest.approx(middle, abs=0.02)
        assert missing.std().item() == pytest.approx(spread, rel=0.02)
    else:
        assert missing.mean().item() == pytest.approx(1.35, abs=0.03)
        assert missing.std().item() == pytest.approx(0.19**0.5, rel=0.04)


def test_what_stands_around_the_prediction_is_told_where_to_stand(untyped):
    scheduler, x, mask = CosineScheduler(), torch.randn(4, 2), torch.tensor([[False, True]])
    network = Conditional(scheduler, "x_1").float()
    outside = MaskedVelocityModel(PredictionVelocityModel(network, scheduler, "x_1"))
    with pytest.raises(TypeError, match=r"Write ExponentialSolver\(model\.model\), without Masked"):
        ExponentialSolver(outside)
    result = ExponentialSolver(outside.model).sample(x, 0.1, mask=mask)
    assert torch.equal(result[:, 0], x[:, 0])
    network = Labelled()
    with pytest.raises(TypeError, match=r"Write PredictionVelocityModel\(GuidedVelocityModel\(net"):
        ExponentialSolver(
            GuidedVelocityModel(PredictionVelocityModel(network, scheduler, "x_1"), 2.0)
        )
    inside = PredictionVelocityModel(GuidedVelocityModel(network, 2.0), scheduler, "x_1")
    label = torch.arange(4) % 3
    assert ExponentialSolver(inside).sample(x, 0.1, label=label).shape == x.shape


class Labelled(nn.Module):
    null_label = 3

    def forward(self, x, t, label):
        return torch.sin(x) * (1 + label[:, None])


def test_half_networks_that_put_the_time_beside_the_state_and_shared_extras():
    class Beside(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, x, t, table):
            assert table.shape == (9,)
            return self.linear(torch.cat([x, t.expand(len(x), 1)], dim=1))

    model = PredictionVelocityModel(Beside().bfloat16(), CosineScheduler(), "x_1")
    x, table = torch.randn(4, 2).bfloat16(), torch.ones(9)
    result = ExponentialSolver(model).sample(x, 0.1, table=shared(table))
    assert result.dtype == torch.bfloat16 and result.isfinite().all()
    with pytest.raises(ValueError, match=r"`table` must hold one entry a sample"):
        ExponentialSolver(model).sample(x, 0.1, table=table)


def test_bad_input(untyped):
    with pytest.raises(TypeError, match=r"`model` must be a PredictionVelocityModel.*got MLP"):
        ExponentialSolver(MLP(2))
    solver = ExponentialSolver(PredictionVelocityModel(MLP(2), CosineScheduler(), "x_1"))
    x = torch.zeros(1, 2)
    with pytest.raises(ValueError, match=r"`step_size` must be positive or None; got 0\.0"):
        solver.sample(x, 0.0)
    with pytest.raises(ValueError, match=r"`time_grid` must hold at least two times; got 1"):
        solver.sample(x, None, torch.tensor([0.0]))
    with pytest.raises(ValueError, match=r"`time_grid` must be finite and strictly"):
        solver.sample(x, None, torch.tensor([0.0, 0.5, 0.5]))
    for ends in ([0.0, 1.5], [-0.5, 0.5], [1.0, -0.1]):
        with pytest.raises(
            ValueError, match=rf"`time_grid` must lie in \[0, 1\]; got {ends[0]:g} to"
        ):
            solver.sample(x, None, torch.tensor(ends))
    with pytest.raises(ValueError, match=r"`eta` must lie in \[0, 1\]; got 1\.5"):
        solver.sample(x, 0.1, eta=1.5)
    with pytest.raises(ValueError, match=r"`eta` must be 0 on a `time_grid` that goes down"):
        solver.sample(x, 0.1, [1.0, 0.0], eta=1.0)
    with pytest.raises(TypeError, match=r"`x_init` must be floating point; got torch.int64"):
        solver.sample(x.long(), 0.1)


@pytest.mark.parametrize(
    ("typo", "meant"),
    [("steps", "step_size"), ("timegrid", "time_grid"), ("timesteps", "time_grid")],
)
def test_misspelt_keywords_are_found_though_the_network_takes_anything(typo, meant):
    class Anything(nn.Module):
        def forward(self, x, t, **extras):
            return x

    solver = ExponentialSolver(PredictionVelocityModel(Anything(), CondOTScheduler(), "x_1"))
    with pytest.raises(TypeError, match=f"`{typo}` is no keyword .* did you mean `{meant}`"):
        solver.sample(torch.ones(1, 2), step_size=0.5, **{typo: 3})
    assert solver.sample(torch.ones(1, 2), step_size=0.5, context=3).shape == (1, 2)
