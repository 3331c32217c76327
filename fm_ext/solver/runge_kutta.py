"""Runge-Kutta methods that land on the times they are given."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from fm_ext.solver.tableau import Tableau, advance

VelocityField = Callable[[Tensor, Tensor], Tensor]  # (t, x) -> velocity
Norm = Callable[[Tensor], Tensor]

ADAPTIVE_OPTIONS = {
    "first_step": None,
    "max_step": math.inf,
    "safety": 0.9,
    "ifactor": 10.0,
    "dfactor": 0.2,
}


@dataclass
class StepGuard:
    """Counts the steps of an adaptive method, whoever takes them, and tells where it cannot go on.

    Args:
        method: its name.
        end: the last time.
        most: how many steps it may try.
        hint: what else than the velocity may be at fault.
    """

    method: str
    end: float
    most: int
    hint: str
    taken: int = 0

    def __call__(self, t: float, size: float) -> None:
        """Lets a step of this size begin at `t`."""
        if self.taken == self.most:
            raise RuntimeError(
                f"{self.method!r} took `max_num_steps` = {self.taken} steps and is at t = {t:g}: raise it, or `atol` "
                "and `rtol`."
            )
        self.taken += 1
        if not size > 1e-14 * max(abs(t), abs(self.end)):
            raise RuntimeError(
                f"{self.method!r} cannot go on: the step size fell to {size:g} at t = {t:g}; the velocity is not "
                f"finite there or just after, or {self.hint}."
            )


def fixed_steps(
    field: VelocityField, x: Tensor, intervals: Sequence[Sequence[float]], tableau: Tableau
) -> Iterator[Tensor]:
    """Steps through the times of each interval; yields the state at the end of each.

    All times go to the device at once: no step waits for it.
    """
    stages = [
        end if c == 1 else start + c * (end - start)
        for times in intervals
        for start, end in pairwise(times)
        for c in tableau.c
    ]
    clock = iter(torch.tensor(stages, dtype=x.dtype, device=x.device).unbind())
    for times in intervals:
        for start, end in pairwise(times):
            slopes: list[Tensor] = []
            for weights in tableau.a:
                slopes.append(field(next(clock), advance(x, end - start, weights, slopes)))
            x = advance(x, end - start, tableau.b, slopes)
        yield x


def adaptive_steps(
    field: VelocityField,
    x: Tensor,
    grid: Sequence[float],
    tableau: Tableau,
    *,
    atol: float,
    rtol: float,
    norm: Norm,
    options: Mapping[str, float],
    guard: StepGuard,
) -> Iterator[Tensor]:
    """Steps as long as the error allows; yields the state at each time of the grid after the first.

    The last step ends on the last time, and its end is the last state; between steps, the states are those of the
    quartic through both ends, their slopes and the middle. Controller and constants are torchdiffeq's, so a batch of
    one takes the same steps, except that no stage lies outside the grid and that the last one of a step is asked at
    most one rounding before its end.
    """
    option = ADAPTIVE_OPTIONS | dict(options)
    t, end = grid[0], grid[-1]
    sign = math.copysign(1.0, end - t)
    slope = field(_time(t, x), x)
    size = option["first_step"]
    if size is None:
        size = first_step(field, x, slope, t, end, tableau.order, atol=atol, rtol=rtol, norm=norm)
    size, wanted = min(size, option["max_step"]), 1
    while wanted < len(grid):
        guard(t, size)
        last = abs(end - t) <= size * (1 + 1e-12)
        stop = end if last else t + sign * size
        h = stop - t
        slopes, state = [slope], x
        for c, weights in zip(tableau.c[1:], tableau.a[1:], strict=True):
            state = advance(x, h, weights, slopes)
            at = _before(stop, t, x) if c == 1 else _time(t + c * h, x)
            slopes.append(field(at, state))
        with torch.no_grad():
            error = advance(torch.zeros_like(x), h, tableau.error, slopes)
            tolerance = torch.maximum(x.abs(), state.abs()).mul_(rtol).add_(atol)
            ratio = float(norm(error.div_(tolerance)))
        if math.isnan(ratio):
            size = abs(h) * option["dfactor"]
            continue
        if ratio <= 1:
            while wanted < len(grid) and abs(grid[wanted] - grid[0]) <= abs(stop - grid[0]):
                fraction = (grid[wanted] - t) / h
                inside = fraction < 1
                yield advance(x, h, _between(fraction, tableau), slopes) if inside else state
                wanted += 1
            t, x, slope = stop, state, slopes[-1]
        grow = option["ifactor"] if ratio == 0 else option["safety"] * ratio ** (-1 / tableau.order)
        least = 1.0 if ratio < 1 else option["dfactor"]
        size = min(abs(h) * min(option["ifactor"], max(grow, least)), option["max_step"])


@torch.no_grad()
def first_step(
    field: VelocityField,
    x: Tensor,
    slope: Tensor,
    t: float,
    end: float,
    order: int,
    *,
    atol: float,
    rtol: float,
    norm: Norm,
) -> float:
    """A first step by one more evaluation (Hairer, Norsett and Wanner, section II.4), inside the grid."""
    span, sign = abs(end - t), math.copysign(1.0, end - t)
    scale = x.abs().mul_(rtol).add_(atol)
    d_0, d_1 = float(norm(x / scale)), float(norm(slope / scale))
    trial = 1e-6 if d_0 < 1e-5 or d_1 < 1e-5 else 0.01 * d_0 / d_1
    trial = min(trial, span) if 0 < trial < math.inf else 1e-6 * span
    moved = field(_time(t + sign * trial, x), advance(x, sign * trial, (1.0,), [slope]))
    bend = max(d_1, float(norm((moved - slope) / scale)) / trial)
    guess = max(1e-6, trial * 1e-3) if bend <= 1e-15 else (0.01 / bend) ** (1 / order)
    return min(100 * trial, guess, span) if math.isfinite(guess) else 1e-6 * span


def _between(fraction: float, tableau: Tableau) -> list[float]:
    """Weights of the slopes in the quartic that has the step's ends, their slopes and its middle."""
    s = fraction
    step = s * s * (14 * s - 8 * s * s - 5)
    middle = 16 * s * s * (1 - s) ** 2
    weights = [step * b + middle * m for b, m in zip(tableau.b, tableau.middle, strict=True)]
    weights[0] += s + s * s * (5 * s - 2 * s * s - 4)
    weights[-1] += s * s * (1 - 3 * s + 2 * s * s)
    return weights


def _time(t: float, x: Tensor) -> Tensor:
    return torch.full((), t, dtype=x.dtype, device=x.device)


def _before(t: float, start: float, x: Tensor) -> Tensor:
    return torch.nextafter(_time(t, x), _time(start, x))
