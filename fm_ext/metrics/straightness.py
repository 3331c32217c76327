"""The straightness of the trajectories of a flow."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def straightness(
    trajectory: Float[Tensor, " time batch *dim"],
    time_grid: Float[Tensor, " time"] | Sequence[float],
) -> Float[Tensor, " batch"]:
    r"""Squared distance of the velocity from that of the straight line, over the whole way, for each sample.

    $$S = \int_0^1 \|(Z_1 - Z_0) - \dot Z_t\|^2\, dt$$

    Liu et al., arXiv 2209.03003, section 2.2, before the expectation is taken. 0 where Euler's method needs one step.
    $\dot Z_t$ is the mean velocity of each interval of the grid, which makes S too small where trajectories bend
    within one; the error falls with the square of the interval. Dividing by $\|Z_1 - Z_0\|^2$ makes data sets
    comparable.

    Args:
        trajectory: states at the times of the grid, as a solver returns its intermediates.
        time_grid: increasing, at least two times; a tensor or a list.

    Returns:
        S of each sample, in the square of the data's unit; `jackknife(torch.mean, S)` is the paper's figure.

    Raises:
        TypeError: for states in half precision, whose rounding would look like bends.
        ValueError: for a grid of another length, or that does not increase.
    """
    if trajectory.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"`trajectory` must be float32 or float64: rounding looks like bends; got {trajectory.dtype}. Solve from a "
            "float32 `x_init`."
        )
    if not isinstance(time_grid, Tensor):
        time_grid = torch.tensor(time_grid, dtype=torch.float64)
    if len(time_grid) != len(trajectory) or len(time_grid) < 2 or not (time_grid.diff() > 0).all():
        raise ValueError(
            "`time_grid` must hold the increasing times of the states in `trajectory`, at least two; got "
            f"{len(time_grid)} times for {len(trajectory)} states."
        )
    states = trajectory.flatten(2) if trajectory.ndim > 2 else trajectory.unsqueeze(2)
    widths = time_grid.diff().to(states)
    velocity = states.diff(dim=0) / widths.view(-1, 1, 1)
    bend = ((states[-1] - states[0]) / widths.sum() - velocity).square().sum(2)
    return (widths.view(-1, 1) * bend).sum(0)
