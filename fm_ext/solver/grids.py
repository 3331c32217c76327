"""Time grids: the times at which the steps of a solver fall."""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from numbers import Real
from typing import Any

import torch
from flow_matching.path.scheduler import Scheduler
from jaxtyping import Float64
from torch import Tensor

from fm_ext.utils.inputs import check_whole


def uniform_grid(steps: int, start: float = 0.0, end: float = 1.0) -> Float64[Tensor, " times"]:
    r"""$t_i = t_0 + (t_N - t_0)\, i / N$.

    Args:
        steps: N, at least 1; the grid has N + 1 times.
        start: the first time.
        end: the last; below `start` to go back.
    """
    return start + (end - start) * _unit(steps)


def shifted_grid(steps: int, shift: float = 3.0) -> Float64[Tensor, " times"]:
    r"""$t_i = \frac{u_i}{u_i + s\,(1 - u_i)}$ of $u_i = i / N$: the time shift of Stable Diffusion 3.

    For $s > 1$ the steps crowd at the source, where large images, whose pixels repeat one another, are decided
    (Esser et al., arXiv 2403.03206, equation 23, there in the noise level $1 - t$). A shift of the steps alone; a
    network trained on shifted times needs none of its own.

    Args:
        steps: N, at least 1.
        shift: $s > 0$; 3 for Stable Diffusion 3 at 1024 pixels, 1 for the uniform grid.
    """
    if not 0 < shift < math.inf:
        raise ValueError(f"`shift` must be positive and finite; got {shift}.")
    u = _unit(steps)
    return u / (u + shift * (1 - u))


def cosine_grid(steps: int) -> Float64[Tensor, " times"]:
    r"""$t_i = 1 - \cos(\pi u_i / 2)$ of $u_i = i / N$: short steps at the source (CosyVoice, arXiv 2407.05407).

    Args:
        steps: N, at least 1.
    """
    grid = 1 - torch.cos(math.pi / 2 * _unit(steps))
    grid[-1] = 1.0
    return grid


def karras_grid(
    steps: int,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    scheduler: Scheduler | None = None,
) -> Float64[Tensor, " times"]:
    r"""The noise levels of EDM, in flow time.

    $$\sigma_i = \Big(\sigma_{\max}^{1/\rho} + \frac{i}{N - 1}
    \big(\sigma_{\min}^{1/\rho} - \sigma_{\max}^{1/\rho}\big)\Big)^{\rho}, \qquad \frac{\sigma_{t_i}}{\alpha_{t_i}} =
    \sigma_i, \qquad t_N = 1$$

    (Karras et al., arXiv 2206.00364). On the straight path $t_i = 1 / (1 + \sigma_i)$. The first time is 0
    and not that of $\sigma_{\max}$ (0.012 for 80), because a flow starts from its source. A schedule that ends at
    $\sigma_{\min}$, as `EDMScheduler`'s does, is there at $t = 1$: N takes the place of $N - 1$, and no time is added.

    Args:
        steps: N, at least 2.
        sigma_min: the smallest positive ratio of noise to signal.
        sigma_max: the largest.
        rho: how much shorter the steps are near the data.
        scheduler: of the path; the straight one if None.

    Raises:
        ValueError: for fewer than two steps, noise levels that are out of order or that the schedule does not reach,
            or a `rho` that is not positive.
    """
    steps = check_whole("steps", steps, 2)
    if not 0 < sigma_min < sigma_max < math.inf:
        raise ValueError(
            f"`sigma_min` and `sigma_max` must satisfy 0 < sigma_min < sigma_max; got {sigma_min} and {sigma_max}."
        )
    if not rho > 0:
        raise ValueError(f"`rho` must be positive; got {rho}.")
    high, low = math.inf, 0.0
    if scheduler is not None:
        at = scheduler(torch.tensor([0.0, 1.0], dtype=torch.float64))
        high, low = (at.sigma_t / at.alpha_t).tolist()
        if not low * (1 - 1e-9) <= sigma_min < sigma_max <= high * (1 + 1e-9):  # up to rounding
            raise ValueError(
                f"`sigma_min` and `sigma_max` must lie in the range of {scheduler!r}, whose ratio of noise to signal "
                f"goes from {high:g} to {low:g}; got {sigma_min:g} and {sigma_max:g}."
            )
    ends = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    last = steps if math.isclose(sigma_min, low, rel_tol=1e-9) else steps - 1
    sigma = uniform_grid(last, *ends)[1:steps] ** rho
    time = 1 / (1 + sigma) if scheduler is None else scheduler.snr_inverse(1 / sigma)
    return torch.cat([time.new_zeros(1), time, time.new_ones(1)])


def _unit(steps: int) -> Tensor:
    steps = check_whole("steps", steps, 1)
    return torch.arange(steps + 1, dtype=torch.float64) / steps


def check_number(name: str, value: Any) -> float:
    """A number as a float, also numpy's and that of a tensor with one entry.

    Raises:
        ValueError: for anything else.
    """
    if isinstance(value, Tensor) and value.numel() == 1:
        return float(value)
    if not isinstance(value, Real) or isinstance(value, bool):
        what = f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
        raise ValueError(f"`{name}` must be a number; got {what}.")
    return float(value)


def check_grid(
    time_grid: Tensor | Sequence[float] | None, default: tuple[float, float]
) -> list[float]:
    """The times as floats, or the default."""
    if time_grid is None:
        return list(default)
    try:
        grid = [float(t) for t in time_grid]
    except (TypeError, ValueError, RuntimeError) as error:  # a number, a 0-d tensor, rows
        what = tuple(time_grid.shape) if isinstance(time_grid, Tensor) else repr(time_grid)
        raise ValueError(
            f"`time_grid` must be a sequence of times, for example [0.0, 0.5, 1.0]; got {what}."
        ) from error
    if len(grid) < 2:
        raise ValueError(f"`time_grid` must hold at least two times; got {len(grid)}.")
    gaps = [b - a for a, b in pairwise(grid)]
    if not all(map(math.isfinite, grid)) or not (min(gaps) > 0 or max(gaps) < 0):
        raise ValueError(
            f"`time_grid` must be finite and strictly increasing or decreasing; got {grid[:8]}"
            f"{'...' if len(grid) > 8 else ''}."
        )
    return grid


def subdivide(
    grid: Sequence[float], step_size: float | None, steps: int | None
) -> list[list[float]]:
    """Each interval of the grid cut into equal steps: lists of times that begin and end with the interval.

    A step is at most `step_size` long, up to rounding, so 1 / N gives N steps for every N; or there are `steps` in
    all, for a grid of two times; or, without either, an interval is one step.
    """
    if step_size is not None and steps is not None:
        raise ValueError(f"give `step_size` or `steps`, not both; got {step_size} and {steps}.")
    span = abs(grid[-1] - grid[0])
    if step_size is not None:
        step_size = check_number("step_size", step_size)
        if not 0 < step_size <= span * (1 + 1e-6):
            raise ValueError(
                f"`step_size` must be positive and at most the {span:g} between the first and the last time; "
                f"got {step_size}."
            )
    if steps is not None:
        steps = check_whole("steps", steps, 1)
        if len(grid) != 2:
            raise ValueError(
                f"`steps` counts the equal steps between two times, and `time_grid` has {len(grid)}: leave `steps` out "
                "to step on the grid, or cut its intervals by `step_size`."
            )
    return [
        [start, *(t for _, t in equal_steps(start, end, step_size, steps))]
        for start, end in pairwise(grid)
    ]


def equal_steps(
    start: float, end: float, size: float | None, count: int | None = None
) -> Iterator[tuple[float, float]]:
    """`count` equal steps from `start` to `end`, both exact; if None as few as are at most `size`, or one."""
    if count is None:
        ratio = 1.0 if size is None else abs(end - start) / size
        count = max(1, math.ceil(ratio - 1e-6 * max(1.0, ratio)))
    times = [start + (end - start) * i / count for i in range(count)] + [end]
    yield from pairwise(times)
