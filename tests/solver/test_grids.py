"""Laws of the time grids."""

import math

import pytest
import torch
from flow_matching.path.scheduler import CondOTScheduler
from torch.testing import assert_close

from fm_ext.path.scheduler import (
    CosineScheduler,
    EDMScheduler,
    ShiftedScheduler,
    VEScheduler,
    VPScheduler,
)
from fm_ext.solver import cosine_grid, karras_grid, shifted_grid, uniform_grid
from fm_ext.solver.grids import equal_steps, subdivide

GRIDS = [uniform_grid, shifted_grid, cosine_grid, karras_grid]


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("steps", [2, 3, 10, 1000])
def test_grids_go_from_0_to_1(grid, steps):
    t = grid(steps)
    assert t.dtype == torch.float64 and len(t) == steps + 1
    assert t[0] == 0 and t[-1] == 1 and (t.diff() > 0).all()


def test_uniform():
    assert_close(uniform_grid(4, 1.0, 0.5), torch.tensor([1, 0.875, 0.75, 0.625, 0.5]).double())


def test_shifted_is_the_shifted_schedules_time():
    t, u = shifted_grid(10, 3.0), uniform_grid(10)
    assert_close(t, ShiftedScheduler(CondOTScheduler(), 3.0)(u).alpha_t)
    noise = 1 - u  # Esser et al., equation 23
    assert_close(1 - t, 3 * noise / (1 + 2 * noise))
    assert_close(shifted_grid(10, 1.0), u)


@pytest.mark.parametrize(
    "scheduler", [None, CondOTScheduler(), CosineScheduler()], ids=lambda s: type(s).__name__
)
def test_karras_has_edms_noise_levels(scheduler):
    t = karras_grid(18, scheduler=scheduler)[1:-1]
    at = (scheduler or CondOTScheduler())(t)
    i = torch.arange(1, 18, dtype=torch.float64)
    sigma = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    assert_close(at.sigma_t / at.alpha_t, sigma)


@pytest.mark.parametrize(
    "scheduler",
    [EDMScheduler(), VEScheduler(0.002, 80.0), EDMScheduler(0.001, 100.0), EDMScheduler(0.001)],
    ids=lambda s: type(s).__name__,
)
@pytest.mark.parametrize("steps", [2, 10, 1000])
def test_karras_on_schedules_that_end_in_noise(scheduler, steps):
    t = karras_grid(steps, scheduler=scheduler)
    assert len(t) == steps + 1 and t[0] == 0 and t[-1] == 1 and (t.diff() > 0).all()
    if scheduler == EDMScheduler():  # whose time is the index
        assert_close(t, uniform_grid(steps))
    at = scheduler(torch.tensor([0.0, 1.0], dtype=torch.float64))  # with its rounding
    high, low = (at.sigma_t / at.alpha_t).tolist()
    own = karras_grid(steps, low, high, scheduler=scheduler)
    assert own[-1] == 1 and (own.diff() > 0).all()


def test_cosine():
    assert_close(cosine_grid(3), torch.tensor([0, 1 - math.sqrt(3) / 2, 0.5, 1]).double())


def test_equal_steps_are_counted_in_integers():
    for n in range(1, 1000):
        assert len(list(equal_steps(0.0, 1.0, 1 / n))) == n
        single = torch.tensor([0.25, 0.75]).tolist()
        assert len(list(equal_steps(*single, 0.5 / n))) == n
    assert [b - a for a, b in equal_steps(0.0, 1.0, 0.3)] == pytest.approx([0.25] * 4)
    assert subdivide([0.0, 0.5, 0.6], 0.25, None) == [[0.0, 0.25, 0.5], [0.5, 0.6]]


def test_bad_input(untyped):
    for grid in GRIDS[:3]:
        with pytest.raises(
            ValueError, match=r"`steps` must be a whole number of at least 1; got 0"
        ):
            grid(0)
        with pytest.raises(
            TypeError, match=r"`steps` must be a whole number of at least 1; got 2\.5"
        ):
            grid(2.5)
    with pytest.raises(ValueError, match=r"`steps` must be a whole number of at least 2; got 1"):
        karras_grid(1)
    with pytest.raises(ValueError, match=r"`shift` must be positive and finite; got 0"):
        shifted_grid(10, 0.0)
    with pytest.raises(ValueError, match=r"`sigma_min` and `sigma_max` must satisfy"):
        karras_grid(10, 80.0, 0.002)
    with pytest.raises(ValueError, match=r"`rho` must be positive; got 0"):
        karras_grid(10, rho=0.0)
    with pytest.raises(
        ValueError,
        match=r"`sigma_min` and `sigma_max` must lie in .*VP.* from 152.* to 0; got .*1000",
    ):
        karras_grid(5, sigma_max=1000.0, scheduler=VPScheduler())
