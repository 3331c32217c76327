"""Laws of the straightness of trajectories."""

import math

import pytest
import torch

from fm_ext.metrics import straightness


def arc(steps):
    """A half circle at constant speed pi, from (1, 0) to (-1, 0)."""
    t = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    states = torch.stack([torch.cos(math.pi * t), torch.sin(math.pi * t)], -1)
    return states.unsqueeze(1), t


def test_a_straight_line_is_straight_on_any_grid():
    x_0, x_1 = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    t = torch.tensor([0.0, 0.1, 0.5, 0.6, 1.0], dtype=torch.float64)
    line = torch.stack([(1 - s) * x_0 + s * x_1 for s in t])
    torch.testing.assert_close(straightness(line, t), torch.zeros(5, dtype=torch.float64))


def test_half_circle():
    """The integral of |v|^2 less |Z_1 - Z_0|^2: pi^2 - 4."""
    torch.testing.assert_close(straightness(*arc(1000)).item(), math.pi**2 - 4, rtol=1e-5, atol=0)


def test_error_falls_with_the_square_of_the_interval():
    errors = [math.pi**2 - 4 - straightness(*arc(steps)).item() for steps in (20, 40)]
    assert errors[0] > 0 and errors[0] / errors[1] == pytest.approx(4, rel=0.01)


def test_each_sample_its_own():
    trajectory, t = arc(10)
    both = torch.cat([trajectory, trajectory * 2, trajectory * 0], 1)
    value = straightness(trajectory, t)
    torch.testing.assert_close(straightness(both, t), torch.cat([value, 4 * value, 0 * value]))


def test_the_grid_may_be_a_list():
    trajectory, t = arc(10)
    assert torch.equal(straightness(trajectory, t.tolist()), straightness(trajectory, t))


def test_errors(untyped):
    trajectory, t = arc(4)
    for grid in (t[:-1], t.flip(0), t * 0):
        with pytest.raises(ValueError, match="`time_grid` must hold the increasing times"):
            straightness(trajectory, grid)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_is_not_taken_for_bends(dtype):
    grid = torch.linspace(0, 1, 11)
    line = (grid.view(-1, 1, 1) * torch.randn(5, 3)).to(dtype)
    with pytest.raises(TypeError, match="`trajectory` must be float32 or float64"):
        straightness(line, grid)
