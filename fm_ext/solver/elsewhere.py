"""The methods of torchdiffeq and scipy, on our grids, with our norm and our errors."""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import scipy.integrate
import torch
from torch import Tensor
from torchdiffeq import odeint

from fm_ext.solver.norm import SampleNorm
from fm_ext.solver.runge_kutta import Norm, StepGuard, VelocityField, first_step

ORDERS = {"dopri8": 8, "fehlberg2": 2, "adaptive_heun": 2}  # torchdiffeq's adaptive methods


def multistep(
    field: VelocityField,
    x: Tensor,
    grid: Sequence[float],
    intervals: Sequence[Sequence[float]],
    method: str,
    options: Mapping[str, Any],
    rtol: float | None,
) -> Iterator[Tensor]:
    """The Adams methods of torchdiffeq, by equal steps."""
    times = [grid[0], *(t for interval in intervals for t in interval[1:])]
    lengths = [b - a for a, b in pairwise(times)]
    rounding = 4 * torch.finfo(torch.float32).eps * max(map(abs, times))  # of a grid in float32
    if max(lengths) - min(lengths) > 1e-5 * max(map(abs, lengths)) + rounding:
        raise ValueError(
            f"`time_grid`: the coefficients of {method!r} are those of equal steps; got steps of {min(lengths):g} to "
            f"{max(lengths):g}. A Runge-Kutta method takes any."
        )
    clock = torch.tensor(times, dtype=torch.float64, device=x.device)
    # torchdiffeq's own default, 12, is unstable: x' = (1 + 2 t) x, backwards in 200 steps, ends 8e10 times too large.
    more = {"grid_constructor": lambda *_: clock, "max_order": 5, **options}
    rtol = 1e-5 if rtol is None else rtol  # of the implicit method's iteration; `atol` is not read
    yield from _odeint(field, x, grid, method, more, atol=rtol, rtol=rtol)


def adaptive(
    field: VelocityField,
    x: Tensor,
    grid: Sequence[float],
    method: str,
    *,
    atol: float,
    rtol: float,
    norm: Norm,
    options: Mapping[str, Any],
    guard: StepGuard,
) -> Iterator[Tensor]:
    """The other adaptive methods of torchdiffeq."""
    tolerances = {"atol": atol, "rtol": rtol}
    more = {"first_step": None, "step_t": [], **options, "norm": norm}
    if more["first_step"] is None:
        start = torch.full((), grid[0], dtype=x.dtype, device=x.device)
        more["first_step"] = first_step(
            field, x, field(start, x), grid[0], grid[-1], ORDERS[method], norm=norm, **tolerances
        )
    stops = sorted({*map(float, more["step_t"]), grid[-1]})
    more["step_t"] = torch.tensor(stops, dtype=torch.float64, device=x.device)
    yield from _odeint(_Guarded(field, guard), x, grid, method, more, **tolerances)


def by_scipy(
    field: VelocityField,
    x: Tensor,
    grid: Sequence[float],
    method: str,
    *,
    atol: float,
    rtol: float,
    norm: Norm,
    options: Mapping[str, Any],
    guard: StepGuard,
) -> Iterator[Tensor]:
    """The methods of scipy, through torchdiffeq."""
    kind = options.get("solver", "LSODA") if method == "scipy_solver" else method
    kind = getattr(scipy.integrate, kind) if isinstance(kind, str) else kind
    more = {**options, "solver": _guarded(kind, guard, math.copysign(1.0, grid[-1] - grid[0]))}
    mask = norm.mask if isinstance(norm, SampleNorm) else None
    if mask is not None:  # scipy's norm is the mean over all entries, those that stay included
        share = math.sqrt(max(mask.expand_as(x).float().mean().item(), 1e-12))
        atol, rtol = atol * share, rtol * share
    with warnings.catch_warnings():  # torchdiffeq hands `min_step` to all of scipy's methods
        warnings.filterwarnings("ignore", "The following arguments have no effect", UserWarning)
        states = list(_odeint(field, x, grid, "scipy_solver", more, atol=atol, rtol=rtol))
    yield from states


class _Guarded:
    """A field whose steps torchdiffeq reports to a guard before it takes them."""

    def __init__(self, field: VelocityField, guard: StepGuard):
        self.field, self.guard = field, guard

    def __call__(self, t: Tensor, x: Tensor) -> Tensor:
        return self.field(t, x)

    def callback_step(self, t: Tensor, x: Tensor, size: Tensor) -> None:
        """Called by torchdiffeq."""
        self.guard(float(t), float(size) if x.isfinite().all() else math.nan)


def _guarded(kind: Any, guard: StepGuard, sign: float) -> type:
    """A solver of scipy that raises where it fails: torchdiffeq looks at nothing but the states that came out.

    Its time is `sign` times ours.
    """

    class Guarded(kind):
        def step(self) -> str | None:
            start = self.t
            guard(sign * start, getattr(self, "h_abs", math.inf))  # LSODA keeps its own to itself
            try:
                message = super().step()
                stuck = self.status == "failed" or self.t == start or not np.isfinite(self.y).all()
            except ValueError as error:
                if "infs or NaNs" not in str(error):  # what scipy's linear algebra says of them
                    raise
                message, stuck = None, True
            if stuck:
                guard(sign * start, 0.0)
            return message

    return Guarded


def _odeint(
    field: VelocityField,
    x: Tensor,
    grid: Sequence[float],
    method: str,
    options: Mapping[str, Any],
    *,
    atol: float,
    rtol: float,
) -> Iterator[Tensor]:
    if x.numel() == 0:  # which scipy's methods cannot reshape
        yield from (x for _ in grid[1:])
        return
    times = torch.tensor(grid, dtype=torch.float64, device=x.device)
    states = odeint(field, x, times, method=method, options=dict(options), atol=atol, rtol=rtol)
    assert isinstance(states, Tensor) and len(states) == len(grid)
    yield from map(torch.clone, states[1:].unbind())  # one kept keeps not all
