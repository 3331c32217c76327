"""Laws of the ODE solver; upstream's and torchdiffeq's are the reference where they are right."""

import math

import numpy as np
import pytest
import torch
from flow_matching.path.scheduler import CondOTScheduler
from flow_matching.solver import ODESolver as UpstreamODESolver
from flow_matching.utils import ModelWrapper
from torch import nn
from torch.testing import assert_close
from torchdiffeq import odeint

from fm_ext.models import MLP, MaskedVelocityModel, UNetWrapper
from fm_ext.path.scheduler import ScheduleTransformedModel, get_scheduler
from fm_ext.solver import InpaintingSolver, ODESolver, karras_grid, uniform_grid
from fm_ext.solver.methods import ADAPTIVE, FIXED, METHODS, MULTISTEP, SCIPY, SampleNorm
from fm_ext.utils import ModelWrapper as Wrapper
from fm_ext.utils import shared

BY_STEPS = [*FIXED, *MULTISTEP]
BY_TOLERANCE = [method for method in METHODS if method not in BY_STEPS]
LOW_ORDER = ("adaptive_heun", "fehlberg2")
TORCH = [method for method in METHODS if method not in SCIPY]


class Recorder(nn.Module):
    """x' = 2 sin(3 t + 2 x) - x, and every time and state it was asked at."""

    def __init__(self, shift=0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(1.0 + shift))
        self.times, self.states = [], []

    def forward(self, x, t):
        self.times.append(t.item())
        self.states.append(x)
        return 2 * torch.sin(3 * t + 2 * x) - self.weight * x


def steps_for(method, steps=20):
    return {"steps": steps} if method in BY_STEPS else {}


# ---- the same results as torchdiffeq's -----------------------------------------------------------


@pytest.mark.parametrize("method", BY_STEPS)
@pytest.mark.parametrize("ends", [(0.0, 1.0), (1.0, 0.0), (0.2, 0.9)])
def test_steps_are_torchdiffeqs_to_rounding(method, ends):
    x = torch.randn(5, 3, dtype=torch.float64)
    grid = uniform_grid(16, *ends)
    field, step = Recorder(), {"method": method, "rtol": 1e-3, "atol": 1e-3}
    got = ODESolver(field).sample(x, time_grid=grid, return_intermediates=True, **step)
    options = {"max_order": 5} if method in MULTISTEP else {}
    want = odeint(lambda t, x: field(x, t), x, grid, **step, options=options)
    assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method", ADAPTIVE)
def test_one_sample_takes_torchdiffeqs_adaptive_steps(method):
    """Which stop at the end, when they are told to."""
    x, end = torch.randn(1, 3, dtype=torch.float64), torch.tensor([1.0])
    ours, theirs = Recorder(), Recorder()
    tolerance = {"rtol": 1e-6, "atol": 1e-7}
    solver = ODESolver(ours)
    got = solver.sample(x, method=method, **tolerance)
    times = torch.tensor([0.0, 1.0], dtype=torch.float64)
    options = {"step_t": end}
    want = odeint(lambda t, x: theirs(x, t), x, times, method=method, options=options, **tolerance)
    assert_close(got, want[-1], rtol=1e-12, atol=1e-12)
    assert solver.nfe == len(ours.times) == len(theirs.times)
    assert_close(torch.tensor(ours.times), torch.tensor(theirs.times))


@pytest.mark.parametrize("method", ADAPTIVE)
def test_interpolation_is_torchdiffeqs(method):
    x = torch.randn(1, 3, dtype=torch.float64)
    grid, field = torch.linspace(0, 1, 8, dtype=torch.float64), Recorder()
    got = ODESolver(Recorder()).sample(x, method=method, time_grid=grid, return_intermediates=True)
    options = {"step_t": torch.tensor([1.0])}
    want = odeint(
        lambda t, x: field(x, t), x, grid, method=method, options=options, rtol=1e-5, atol=1e-5
    )
    assert_close(got, want, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("reverse", [False, True])
def test_every_method_solves(method, reverse):
    """x' = (1 + 2 t) x has the solution x exp(t + t^2)."""
    x = torch.randn(4, 2, dtype=torch.float64)
    grid = [1.0, 0.4, 0.0] if reverse else [0.0, 0.4, 1.0]
    step = {"step_size": 0.005} if method in BY_STEPS else {"atol": 1e-7, "rtol": 1e-7}
    if method in LOW_ORDER:
        step = {"atol": 1e-5, "rtol": 1e-5}
    got = ODESolver(lambda x, t: (1 + 2 * t) * x).sample(
        x, method=method, time_grid=grid, return_intermediates=True, **step
    )
    want = [x * math.exp(t + t * t - grid[0] - grid[0] ** 2) for t in grid]
    tolerance = {"euler": 3e-2, "adaptive_heun": 6e-3, "fehlberg2": 6e-3}.get(method, 1e-4)
    assert_close(got, torch.stack(want), rtol=tolerance, atol=tolerance)
    assert torch.equal(got[0], x)


# ---- the number of steps, and where they are ------------------------------------------------------


@pytest.mark.parametrize("method", FIXED)
def test_evaluations_are_counted_exactly(method):
    model = Recorder()
    solver = ODESolver(model)
    stages = len(FIXED[method].c)
    x = torch.zeros(1, 1)
    for n in (1, 2, 3, 10, 61, 109, 115, 246):  # upstream's 1 / 61 are 62 steps
        for step in ({"step_size": 1 / n}, {"steps": n}, {"time_grid": uniform_grid(n)}):
            model.times.clear()
            solver.sample(x, method=method, **step)
            assert solver.nfe == len(model.times) == n * stages


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ends", [(0.0, 1.0), (1.0, 0.0), (0.25, 0.75)])
def test_time_stays_inside_the_grid(method, ends):
    model = Recorder()
    ODESolver(model).sample(torch.randn(3, 2) / 10, method=method, time_grid=ends)
    assert min(ends) <= min(model.times) and max(model.times) <= max(ends)


@pytest.mark.parametrize("method", BY_TOLERANCE)
def test_a_slow_velocity_is_not_asked_outside_either(method):
    """The trial of the first step, and the growth of the next, would both leave the interval."""
    times = []
    ODESolver(lambda x, t: times.append(t.item()) or 1e-6 * x).sample(
        torch.ones(2, 2), method=method
    )
    assert min(times) == 0 and max(times) <= 1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.filterwarnings("ignore:Functional iteration did not converge")  # of implicit Adams
def test_known_entries_come_back_bit_for_bit(method):
    """A step of velocity 0 is exact, whatever the floats; torchdiffeq's interpolation of one is not."""

    class Wild(ModelWrapper):
        def forward(self, x, t, mask):
            return 3 * torch.sin(5 * x) + t + x.flip(-1)

    x = torch.randn(4, 3, 8, 8)
    mask = torch.rand(4, 1, 8, 8) < 0.5
    grid = torch.linspace(0, 1, 7)
    solver = ODESolver(MaskedVelocityModel(Wild(nn.Identity())))
    step = {"step_size": 0.1} if method in BY_STEPS else {"atol": 1e-3, "rtol": 1e-3}
    grid = torch.linspace(0, 1, 11) if method in MULTISTEP else grid
    known = ~mask.expand_as(x)
    for state in solver.sample(
        x, method=method, time_grid=grid, return_intermediates=True, mask=mask, **step
    ):
        assert torch.equal(state[known], x[known])
    assert not torch.isclose(state, x)[~known].all()


def test_intermediates_are_step_ends_of_the_methods_order():
    """Upstream's lie on a line between two steps: 0.047 for the 0.016 here."""
    grid, x = [0.0, 0.25, 1.0], torch.zeros(1, 1)
    got = ODESolver(lambda x, t: 3 * t * t + 0 * x).sample(
        x, 0.5, "rk4", time_grid=grid, return_intermediates=True
    )
    assert_close(got.flatten(), torch.tensor([0.0, 0.25**3, 1.0]))


@pytest.mark.parametrize("name", ["cond_ot", "cosine", "vp", "edm"])
def test_adaptive_steps_through_a_change_of_schedule(name):
    """Past the end the transformed velocity is held, and upstream's steps, which go there, lose digits."""
    new, mean, std = get_scheduler(name), 2.0, 0.5

    def gaussian(x, t):
        variance = t**2 * std**2 + (1 - t) ** 2
        return mean + (t * std**2 - (1 - t)) / variance * (x - t * mean)

    x = torch.tensor([[-1.0], [0.3], [1.7]], dtype=torch.float64)
    model = ScheduleTransformedModel(gaussian, CondOTScheduler(), new)
    got = ODESolver(model).sample(x, method="dopri5", atol=1e-9, rtol=1e-9)
    start, end = (new(torch.tensor(t, dtype=torch.float64)) for t in (0.0, 1.0))
    spread = [(o.alpha_t**2 * std**2 + o.sigma_t**2).sqrt() for o in (start, end)]
    want = end.alpha_t * mean + spread[1] / spread[0] * (x - start.alpha_t * mean)
    assert_close(got, want, rtol=0, atol=3e-5 if name == "vp" else 2e-6)


# ---- the error of adaptive methods ----------------------------------------------------------------


class Spiral(ModelWrapper):
    """A turning field, of a rate that the sample's first entry does not change."""

    holds_known = True

    def __init__(self):
        super().__init__(nn.Identity())

    def forward(self, x, t, mask=None):
        turn = torch.stack([-x[..., 1], x[..., 0]], dim=-1)
        return (
            12 * torch.cos(4 * t) * turn
            if mask is None
            else torch.where(mask, 12 * torch.cos(4 * t) * turn, 0)
        )


@pytest.mark.parametrize("method", ["dopri5", "bosh3", "dopri8", "RK45"])
def test_known_entries_do_not_hide_the_error(method):
    x = torch.randn(1, 400, 2, dtype=torch.float64)
    mask = torch.zeros(1, 400, 1, dtype=torch.bool)
    mask[:, :4] = True
    solver, step = ODESolver(Spiral()), {"method": method, "atol": 1e-4, "rtol": 1e-4}
    alone = solver.sample(x[:, :4], **step)
    nfe = solver.nfe
    among = solver.sample(x, mask=mask, **step)
    assert solver.nfe == nfe
    rounding = 1e-6 if method == "RK45" else 1e-10
    assert_close(among[:, :4], alone, rtol=rounding, atol=rounding)
    assert torch.equal(among[:, 4:], x[:, 4:])


@pytest.mark.parametrize("method", ["dopri5", "bosh3"])
def test_the_worst_sample_decides(method):
    """Still neighbours neither loosen nor change the steps of the one that moves."""
    x = torch.randn(8, 5, 2, dtype=torch.float64)
    solver, step = ODESolver(Spiral()), {"method": method, "atol": 1e-4, "rtol": 1e-4}
    alone = solver.sample(x[:1], **step)
    nfe = solver.nfe
    x[1:] = 0
    assert_close(solver.sample(x, **step)[:1], alone, rtol=1e-10, atol=1e-10)
    assert solver.nfe == nfe
    x = torch.randn(8, 5, 2, dtype=torch.float64)
    together, apart = solver.sample(x, **step), solver.sample(x, batch_size=1, **step)
    assert_close(together, apart, rtol=0, atol=2e-3)
    assert torch.equal(apart[:1], solver.sample(x[:1], **step))


def test_nothing_missing_is_no_error():
    x = torch.randn(3, 5, 2)
    mask = torch.rand(3, 5, 1) < 0.5
    mask[0] = False
    got = ODESolver(Spiral()).sample(x, method="dopri5", mask=mask)
    assert got.isfinite().all() and torch.equal(got[0], x[0])
    assert torch.equal(
        ODESolver(Spiral()).sample(x, method="dopri5", mask=torch.zeros_like(mask)), x
    )


@pytest.mark.parametrize("method", METHODS)
def test_no_samples_are_no_samples(method):
    x, step = torch.ones(0, 5, 2), {"method": method, "time_grid": [0.0, 0.5, 1.0]}
    assert ODESolver(Spiral()).sample(x, **step).shape == x.shape
    assert ODESolver(Spiral()).sample(x, return_intermediates=True, **step).shape == (3, *x.shape)


def test_norm_by_hand():
    ratio = torch.tensor([[3.0, 4.0], [0.0, 10.0]])
    assert_close(SampleNorm()(ratio), torch.tensor(50.0).sqrt())
    mask = torch.tensor([[True, True], [True, False]])
    assert_close(SampleNorm(mask)(ratio), torch.tensor(12.5).sqrt())
    assert_close(SampleNorm(mask & False)(ratio), torch.tensor(0.0))


def test_options_reach_the_method():
    x = torch.randn(2, 2)
    for method in ("dopri5", "dopri8"):
        model = Recorder()
        ODESolver(model, options={"first_step": 0.125}).sample(x, method=method)
        assert model.times[1] < 0.125 < max(model.times)
        seen: list[torch.Tensor] = []

        def strict(ratio, seen=seen):
            seen.append(ratio)
            return 1e3 * ratio.abs().max()

        plain, norm = ODESolver(model), ODESolver(model, options={"norm": strict})
        plain.sample(x, method=method), norm.sample(x, method=method)
        assert seen and all(ratio.shape == x.shape for ratio in seen)
        assert norm.nfe > plain.nfe
    for method in BY_TOLERANCE:
        solver = ODESolver(Recorder(), options={"max_num_steps": 2})
        with pytest.raises(
            RuntimeError, match=rf"'{method}' took `max_num_steps` = 2 steps and is"
        ):
            solver.sample(x, method=method, rtol=1e-7, atol=1e-7)
    solver = ODESolver(Recorder(), options={"max_step": 0.01})
    solver.sample(x, method="bosh3")
    assert solver.nfe >= 300
    lsoda, named = Recorder(), Recorder()
    ODESolver(lsoda).sample(x, method="LSODA")
    ODESolver(named).sample(x, method="scipy_solver")
    assert named.times == lsoda.times
    model = Recorder()
    ODESolver(model, options={"first_step": 0.125}).sample(x, method="RK23")
    assert model.times[1] == 0.125 / 2


def not_finite_after(half):
    return lambda x, t: torch.where(t > half, torch.nan, 0 * x)


TROUBLE = {
    "grows without bound": lambda x, t: 5 * x * x,  # x = 1 / (1 - 5 t)
    "nan after 0.5": not_finite_after(0.5),
    "nan": not_finite_after(-1.0),
    "infinite": lambda x, t: x / (t - 0.5).relu(),
}


@pytest.mark.parametrize("trouble", TROUBLE)
@pytest.mark.parametrize("method", BY_TOLERANCE)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, on the way there
def test_where_an_adaptive_method_cannot_go_on_it_says_so(method, trouble):
    """Scipy's come back with fewer states, with NaN or never, and torchdiffeq's with an AssertionError."""
    for more in ({}, {"time_grid": [0.0, 0.1, 1.0], "return_intermediates": True}):
        with pytest.raises(RuntimeError, match=rf"'{method}' cannot go on: .* at t = \d.* finite"):
            ODESolver(TROUBLE[trouble]).sample(
                torch.ones(2, 1), method=method, atol=1e-3, rtol=1e-3, **more
            )


@pytest.mark.parametrize("method", [*ADAPTIVE, "dopri8", "RK45", "LSODA"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_the_last_time_is_named_in_both_directions(method):
    field = lambda x, t: torch.where(t < 0.5, torch.nan, 0 * x)
    with pytest.raises(RuntimeError) as error:
        ODESolver(field).sample(torch.ones(2, 1), method=method, time_grid=[1.0, 0.0])
    last = float(str(error.value).split("t = ")[1].split(";")[0])
    assert 0.5 <= last <= 1


# ---- precision, gradients, memory ----------------------------------------------------------------


@pytest.mark.parametrize(
    "method", ["euler", "midpoint", "rk4", "explicit_adams", "dopri5", "dopri8"]
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rounds_the_network_and_nothing_else(method, dtype):
    seen = set()

    def velocity(x, t):
        assert x.dtype == dtype and t.dtype == torch.float32
        seen.add(t.item())
        return torch.ones_like(x)

    got = ODESolver(velocity).sample(
        torch.full((2, 1), 2.0, dtype=dtype), method=method, **steps_for(method, 1000)
    )
    assert got.dtype == dtype and got.eq(3).all()  # upstream's Euler ends at 2
    assert method not in BY_STEPS or len(seen) >= 1000


@pytest.mark.parametrize("method", TORCH)
def test_gradients(method):
    """Through the steps, by the difference quotient; and none unless asked."""
    tolerance = 1e-8 if method in ("dopri5", "dopri8") else 1e-3 if method in BY_STEPS else 1e-5
    rounding = {"rtol": 5e-3, "atol": 3e-2 if method in LOW_ORDER else 5e-3}
    step = {"method": method, "atol": tolerance, "rtol": tolerance} | steps_for(method)
    x = torch.rand(3, 2, dtype=torch.float64)
    x.requires_grad_()
    model = Recorder().double()
    solver = ODESolver(model)
    assert not solver.sample(x, **step).requires_grad
    solver.sample(x, **step, enable_grad=True, return_intermediates=True)[-1].sum().backward()
    h = 1e-5
    up, down = (ODESolver(Recorder(s).double()).sample(x, **step).sum() for s in (h, -h))
    assert_close(model.weight.grad, (up - down) / (2 * h), **rounding)
    up, down = (solver.sample(x + s, **step).sum(1) for s in (h, -h))
    assert_close(x.grad.sum(1), (up - down) / (2 * h), **rounding)


def test_under_inference_mode_and_outside_samples_can_be_trained_on():
    model, x = MLP(2, 8), torch.randn(4, 2)
    with torch.inference_mode():
        want = ODESolver(model).sample(x, steps=3)
    got = ODESolver(model).sample(x, steps=3)
    assert torch.equal(got, want) and not got.is_inference()
    (got @ torch.ones(2, 1, requires_grad=True)).sum().backward()


@pytest.mark.parametrize("method", METHODS)
def test_the_end_alone_holds_no_trajectory(method):
    step = {"method": method, "time_grid": uniform_grid(100)}
    solver, x = ODESolver(MLP(2, 8)), torch.randn(4, 2)
    got = solver.sample(x, **step)
    assert got.untyped_storage().nbytes() == 4 * 2 * 4
    rounding = 0.0 if method in BY_STEPS else 1e-5
    all_of_them = solver.sample(x, return_intermediates=True, **step)
    assert_close(got, all_of_them[-1], rtol=rounding, atol=rounding)


@pytest.mark.parametrize("method", MULTISTEP)
@pytest.mark.parametrize("grid", [torch.linspace(0, 1, 201), uniform_grid(300).float()])
def test_equal_steps_in_float32_are_equal_steps(method, grid):
    got = ODESolver(lambda x, t: x).sample(torch.ones(1, 1), method=method, time_grid=grid)
    assert_close(got.item(), math.e, rtol=1e-4, atol=0)


# ---- batches, extras, keywords -------------------------------------------------------------------


class Labelled(nn.Module):
    def forward(self, x, t, label, table, scale=1.0):
        assert len(label) == len(x)
        return scale * table[label] * x


@pytest.mark.parametrize("method", [*FIXED, "RK45"])
def test_batches_are_split_with_their_extras(method):
    x, table = torch.randn(7, 3), torch.randn(10, 1)
    step = {"method": method, "label": torch.arange(7), "table": shared(table), "scale": 0.5}
    step |= steps_for(method, 4) | {"return_intermediates": True, "time_grid": [0.0, 0.5]}
    solver = ODESolver(Labelled())
    whole = solver.sample(x, **step)
    nfe = solver.nfe
    tolerance = {"rtol": 1e-3, "atol": 1e-3} if method == "RK45" else {}
    for size in (1, 3, 7, 100):
        assert_close(solver.sample(x, batch_size=size, **step), whole, **tolerance)
        assert solver.nfe == nfe or method == "RK45"


def test_batches_are_split_with_what_is_in_a_dict():
    seen = []

    def model(x, t, extra):
        seen.append((len(x), extra["label"].tolist(), extra["table"]))
        return -x

    label = torch.arange(4)
    ODESolver(model).sample(
        torch.ones(4, 2), steps=1, batch_size=3, extra={"label": label, "table": 7}
    )
    assert seen == [(3, [0, 1, 2], 7), (1, [3], 7)]


def test_a_tensor_that_holds_no_entry_a_sample_is_shared_or_an_error():
    x, table = (
        torch.ones(4, 2),
        torch.randn(4, 4),
    )  # as long as the batch: no length tells it from labels
    seen = []

    def model(x, t, table, more):
        seen.append((table, *more))
        return -x

    solver = ODESolver(model)
    label = torch.arange(4)
    solver.sample(x, steps=1, batch_size=3, table=shared(table), more=[label, shared(label), 2])
    for (whole, own, all_of_them, two), part in zip(seen, (label[:3], label[3:]), strict=True):
        assert torch.equal(whole, table) and torch.equal(own, part)
        assert torch.equal(all_of_them, label) and two == 2
    with pytest.raises(
        ValueError, match=r"`table` must hold one entry a sample, .*shared\(table\)"
    ):
        solver.sample(x, steps=1, table=torch.ones(7), more=[])
    solver.sample(x, steps=1, table=shared(torch.ones(7)), more=[])
    with pytest.raises(ValueError, match=r"`more\[0\]` must hold one entry a sample"):
        solver.sample(x, steps=1, table=1, more=[torch.ones(7)])


@pytest.mark.parametrize("batch_size", [None, 2])
def test_a_mask_of_one_sample_is_everyones(batch_size):
    class Masked(ModelWrapper):
        def forward(self, x, t, mask):
            assert mask.shape == (len(x), 1, 2, 2)
            return mask.to(x)

    mask = torch.eye(2).bool()[None, None]
    solver, x = ODESolver(Masked(nn.Identity())), torch.zeros(3, 1, 2, 2)
    end = solver.sample(x, method="dopri5", mask=mask, batch_size=batch_size)
    assert_close(end, mask.to(x).expand_as(x))


def test_numbers_may_be_numpys_and_tensors(untyped):
    solver, x = ODESolver(MLP(2, 8)), torch.randn(4, 2)
    want = solver.sample(x, steps=4)
    assert torch.equal(solver.sample(x, steps=np.int64(4), batch_size=np.int32(4)), want)
    assert torch.equal(solver.sample(x, step_size=torch.tensor(0.25)), want)
    assert torch.equal(solver.sample(x, step_size=np.float32(0.25)), want)
    assert torch.equal(solver.sample(x, time_grid=np.linspace(0, 1, 5)), want)


class Beside(nn.Module):
    """Puts the time beside the state, without a cast, as upstream's notebook does."""

    def __init__(self, features=2):
        super().__init__()
        self.linear, self.times = nn.Linear(features + 1, features), []

    def forward(self, x, t, mask=None):
        self.times.append(t)
        return self.linear(torch.cat([x, t.reshape(-1, 1).expand(len(x), 1)], dim=1))


@pytest.mark.parametrize("method", ["euler", "dopri5", "RK45"])
@pytest.mark.parametrize("around", [lambda net: net, MaskedVelocityModel], ids=["alone", "masked"])
def test_a_half_network_that_puts_the_time_beside_the_state_gets_it_in_half(method, around):
    net, x = Beside().bfloat16(), torch.randn(3, 2).bfloat16()
    mask = {"mask": torch.tensor([[True, False]])} if around is MaskedVelocityModel else {}
    solver = ODESolver(around(net))
    got = solver.sample(x, method=method, **steps_for(method, 10), **mask)
    assert got.dtype == torch.bfloat16
    assert [t.dtype for t in net.times] == [torch.float32] + [torch.bfloat16] * solver.nfe
    upstream = UpstreamODESolver(around(net))
    want = upstream.sample(x_init=x, step_size=0.1, method="midpoint", **mask)
    assert_close(got, want, rtol=0.05, atol=0.05)


def test_errors_of_a_half_network_are_its_own():
    def broken(x, t):
        calls.append(t.dtype)
        raise error

    x = torch.ones(1, 2, dtype=torch.bfloat16)
    for error, tries in ((RuntimeError("out of luck"), 1), (RuntimeError("bad dtype"), 2)):
        calls: list[torch.dtype] = []
        with pytest.raises(RuntimeError) as caught:
            ODESolver(broken).sample(x, steps=2)
        assert caught.value is error and len(calls) == tries


def test_progress_counts_evaluations(capsys):
    ODESolver(MLP(2, 8)).sample(torch.randn(4, 2), method="midpoint", steps=7, progress=True)
    assert "14 nfe" in capsys.readouterr().err
    ODESolver(MLP(2, 8)).sample(torch.randn(4, 2), steps=7)
    assert capsys.readouterr().err == ""


class Anything(ModelWrapper):
    def __init__(self):
        super().__init__(nn.Identity())

    def forward(self, x, t, **extras):
        return x


class Named(nn.Module):
    def forward(self, x, t, label=None, timesteps=None):
        return x


TYPOS = [
    "setp_size",
    "stepsize",
    "return_intermediate",
    "time_steps",
    "num_steps",
    "options",
    "Method",
    "tolerances",
]


@pytest.mark.parametrize("typo", TYPOS[:-2])
@pytest.mark.parametrize(
    "model", [Anything(), MaskedVelocityModel(Anything()), lambda x, t, **extras: x]
)
def test_misspelt_keywords_are_found_though_the_model_takes_anything(typo, model):
    with pytest.raises(TypeError, match=rf"`{typo}` is no keyword of the solver: did you mean `"):
        ODESolver(model).sample(torch.ones(1, 1), steps=1, **{typo: None})


@pytest.mark.parametrize(
    "model",
    [
        Named(),
        Wrapper(Named()),
        Wrapper(MaskedVelocityModel(Named())),
        torch.compile(Named(), backend="eager"),
    ],
    ids=["network", "wrapped", "twice", "compiled"],
)
def test_what_a_model_declares_is_believed(model):
    solver, x = ODESolver(model), torch.ones(1, 1)
    extras = {"mask": torch.ones(1, 1, dtype=torch.bool)} if "Masked" in repr(model) else {}
    if not extras:
        assert torch.equal(solver.sample(x, steps=1, timesteps=1, label=2), 2 * x)
    with pytest.raises(TypeError, match=r"`colour` is taken neither by the solver nor by"):
        solver.sample(x, steps=1, colour="red", **extras)
    with pytest.raises(TypeError, match=r"did you mean `step_size`"):
        solver.compute_likelihood(x, torch.sum, steps=1, setp_size=2, **extras)


class Level(nn.Module):
    def forward(self, sample, timestep, step=None, noise_level=None):
        self.seen = sample.shape[1], step, noise_level
        return sample[:, :1]


@pytest.mark.parametrize("around", [lambda model: model, Wrapper], ids=["alone", "wrapped"])
def test_what_a_wrapped_network_names_and_what_is_concatenated_is_the_models(around):
    network, x = Level(), torch.ones(2, 1, 2, 2)
    model = around(UNetWrapper(network, concat=("times",)))
    assert torch.equal(ODESolver(model).sample(x, steps=1, step=3, times=x), 2 * x)
    assert network.seen == (2, 3, None)
    solver = InpaintingSolver(model, CondOTScheduler(), "flower")
    solver.sample(x, mask=x > 0, steps=1, noise_level=0.5, times=x)
    assert network.seen == (2, None, 0.5)
    with pytest.raises(TypeError, match=r"`timesteps` is no keyword .* did you mean `time_grid`"):
        ODESolver(model).sample(x, steps=1, times=x, timesteps=x)
    with pytest.raises(TypeError, match=r"`colour` is taken neither by the solver .*, step, times"):
        ODESolver(model).sample(x, steps=1, times=x, colour="red")


def test_extras_reach_a_model_that_takes_anything():
    seen = {}
    ODESolver(lambda x, t, **extras: seen.update(extras) or x).sample(
        torch.ones(1, 1), steps=1, label=3, cfg_scale=0.2, extra={}
    )
    assert seen == {"label": 3, "cfg_scale": 0.2, "extra": {}}


def test_it_is_upstreams_solver():
    model = MLP(2, 8)
    solver = ODESolver(velocity_model=model)
    assert isinstance(solver, UpstreamODESolver) and solver.velocity_model is model
    x, grid = torch.randn(5, 2), karras_grid(10).float()
    for method in FIXED:
        step = {"x_init": x, "step_size": None, "time_grid": grid, "method": method}
        assert_close(solver.sample(**step), UpstreamODESolver(model).sample(**step))
        step = {"x_init": x, "step_size": 0.1, "method": method, "atol": None, "rtol": None}
        assert_close(solver.sample(**step), UpstreamODESolver(model).sample(**step))


def test_bad_input(untyped):
    solver, x = ODESolver(MLP(2, 8)), torch.zeros(1, 2)
    cases = [
        ({}, r"'euler' needs `steps`, `step_size` or `time_grid`"),
        ({"method": "rk5"}, r"`method` must be one of euler, midpoint.*got 'rk5'"),
        ({"step_size": 2.0}, r"`step_size` must be positive and at most the 1 between.*got 2\.0"),
        ({"step_size": -0.1}, r"`step_size` must be positive and at most"),
        ({"steps": 0}, r"`steps` must be a whole number of at least 1; got 0"),
        ({"step_size": torch.tensor([0.1, 0.2])}, r"`step_size` must be a number; got a tensor \(2,\)"),
        ({"step_size": "1"}, r"`step_size` must be a number; got '1'"),
        ({"time_grid": torch.tensor(0.5)}, r"`time_grid` must be a sequence of times, .*; got \(\)"),
        ({"time_grid": 0.5}, r"`time_grid` must be a sequence of times, .*; got 0\.5"),
        ({"time_grid": torch.rand(2, 2)}, r"`time_grid` must be a sequence of times, .*; got \(2, 2\)"),
        ({"steps": 2, "step_size": 0.5}, r"give `step_size` or `steps`, not both"),
        ({"steps": 2, "time_grid": [0, 0.5, 1]}, r"`steps` counts the equal steps between two times"),
        ({"time_grid": [0.5]}, r"`time_grid` must hold at least two times; got 1"),
        ({"time_grid": [0, 0.5, 0.5]}, r"`time_grid` must be finite and strictly increasing or"),
        ({"time_grid": [0, math.nan]}, r"`time_grid` must be finite and strictly increasing or"),
        ({"method": "dopri5", "step_size": 0.1}, r"`step_size` has no meaning for 'dopri5'"),
        ({"method": "RK45", "steps": 10}, r"`steps` has no meaning for 'RK45'"),
        ({"method": "dopri5", "atol": None}, r"`atol` and `rtol` must be at least 0.*got None"),
        ({"method": "RK45", "enable_grad": True}, r"no gradients pass through scipy's 'RK45'"),
        ({"method": "explicit_adams", "time_grid": [0, 0.1, 1]}, r"`time_grid`: the coefficients of"),
        ({"steps": 1, "batch_size": 0}, r"`batch_size` must be a whole number of at least 1; got 0"),
    ]  # fmt: skip
    for arguments, message in cases:
        with pytest.raises(ValueError, match=message):
            solver.sample(x, **arguments)
    for name, value in (("steps", 2.5), ("steps", True), ("batch_size", 2.5)):
        message = rf"`{name}` must be a whole number of at least 1; got {value} of type"
        with pytest.raises(TypeError, match=message):
            solver.sample(x, **{"steps": 1, name: value})
    with pytest.raises(TypeError, match=r"`x_init` must be floating point; got torch.int64"):
        solver.sample(x.long(), steps=1)
    with pytest.raises(TypeError, match=r"`x_init` must be a tensor; got list"):
        solver.sample([0.0], steps=1)
    with pytest.raises(ValueError, match=r"`x_init` must have a batch axis"):
        solver.sample(torch.tensor(0.0), steps=1)
    with pytest.raises(
        ValueError, match=r"with the shape of its state, \(1, 2\); function answered with \(1, 1\)"
    ):
        ODESolver(lambda x, t: x[:, :1]).sample(x, steps=1)
    with pytest.raises(TypeError, match=r"answer with a tensor; function answered with dict"):
        ODESolver(lambda x, t: {"sample": x}).sample(x, steps=1)
    with pytest.raises(ValueError, match=r"`options`: 'perturb' is nothing that 'euler' takes"):
        ODESolver(MLP(2), options={"perturb": True}).sample(x, steps=1)
    for name in ("first_step", "max_step", "max_num_steps"):
        solver = ODESolver(MLP(2), options={name: -1})
        with pytest.raises(ValueError, match=rf"`options`: '{name}' must be positive; got -1"):
            solver.sample(x, method="dopri5")
    with pytest.raises(
        ValueError, match=r"'min_step' is nothing that 'RK45' takes; it takes first"
    ):
        ODESolver(MLP(2), options={"min_step": 0.1}).sample(x, method="RK45")
    with pytest.raises(ValueError, match=r"'first_stop' is nothing that 'dopri8' takes; it takes"):
        ODESolver(MLP(2), options={"first_stop": 0.1}).sample(x, method="dopri8")
