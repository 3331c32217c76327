"""Every method by its name: ours, torchdiffeq's and scipy's."""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torchdiffeq import odeint

from fm_ext.solver.compiled import CompiledSteps
from fm_ext.solver.field import Field
from fm_ext.solver.grids import subdivide
from fm_ext.solver.norm import SampleNorm
from fm_ext.solver.runge_kutta import (
    ADAPTIVE_OPTIONS,
    Norm,
    VelocityField,
    adaptive_steps,
    first_step,
    fixed_steps,
)
from fm_ext.solver.tableau import ADAPTIVE, FIXED

MULTISTEP = ("explicit_adams", "implicit_adams", "fixed_adams")
ELSEWHERE = {"dopri8": 8, "fehlberg2": 2, "adaptive_heun": 2}  # torchdiffeq's adaptive ones: order
SCIPY = ("RK45", "RK23", "DOP853", "Radau", "BDF", "LSODA")
METHODS = (*FIXED, *MULTISTEP, *ADAPTIVE, *ELSEWHERE, *SCIPY, "scipy_solver")
_TAKES = (
    (FIXED, ()),
    (MULTISTEP, ("max_order", "max_iters")),
    (ADAPTIVE, (*ADAPTIVE_OPTIONS, "norm")),
    (ELSEWHERE, (*ADAPTIVE_OPTIONS, "norm", "min_step", "step_t", "jump_t", "dtype")),
    (SCIPY, ("min_step", "max_step")),
    (("scipy_solver",), ("min_step", "max_step", "solver")),
)


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """A method with the steps or the tolerances that belong to it.

    Raises:
        ValueError: for an unknown method or option, steps for an adaptive method, and bad tolerances.
    """

    method: str
    step_size: float | None
    steps: int | None
    atol: float | None
    rtol: float | None
    time_grid: object
    enable_grad: bool
    options: Mapping[str, Any]
    compiled: CompiledSteps | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"`method` must be one of {', '.join(METHODS)}; got {self.method!r}.")
        takes = next(names for methods, names in _TAKES if self.method in methods)
        unknown = set(self.options) - set(takes)
        if unknown:
            raise ValueError(
                f"`options`: {min(unknown)!r} is nothing that {self.method!r} takes; it takes "
                f"{', '.join(sorted(takes)) or 'none'}."
            )
        if self.compiled is not None and self.method not in FIXED:
            raise ValueError(
                f"`compile` is for {', '.join(FIXED)}, whose steps are alike; got {self.method!r}. Compile the model "
                "instead: ODESolver(torch.compile(model))."
            )
        if self.enable_grad and self.by_scipy:
            raise ValueError(
                f"`enable_grad`: no gradients pass through scipy's {self.method!r}; 'dopri5' is the method of 'RK45'."
            )
        if self.by_steps:
            if self.step_size is None and self.steps is None and self.time_grid is None:
                raise ValueError(
                    f"{self.method!r} needs `steps`, `step_size` or `time_grid`; all the way in one step is steps=1."
                )
            return
        if self.step_size is not None or self.steps is not None:
            name = "step_size" if self.step_size is not None else "steps"
            raise ValueError(
                f"`{name}` has no meaning for {self.method!r}, which chooses its steps by `atol` and `rtol`; leave it "
                "out. The first step is an option: ODESolver(model, options={'first_step': ...})."
            )
        atol, rtol = self.tolerances
        if not (atol >= 0 and rtol >= 0 and atol + rtol > 0):
            raise ValueError(
                f"`atol` and `rtol` must be at least 0 and not both 0 for {self.method!r}; got {self.atol} and "
                f"{self.rtol}."
            )

    @property
    def by_steps(self) -> bool:
        """Whether the method goes by steps of given lengths, rather than by tolerances."""
        return self.method in FIXED or self.method in MULTISTEP

    @property
    def by_scipy(self) -> bool:
        """Whether the method is scipy's, through which no gradient passes."""
        return self.method in SCIPY or self.method == "scipy_solver"

    @property
    def tolerances(self) -> tuple[float, float]:
        """`atol` and `rtol`; NaN for None, which the methods of given steps accept."""
        return (
            math.nan if self.atol is None else self.atol,
            math.nan if self.rtol is None else self.rtol,
        )

    def norm(self, default: Norm) -> Norm:
        """The error norm that the user chose, or the default."""
        return self.options.get("norm", default)

    def integrate(
        self, field: VelocityField, x: Tensor, grid: Sequence[float], norm: Norm
    ) -> Iterator[Tensor]:
        """The state at each time of `grid` after the first, in order; `x` is the state at the first."""
        if self.by_steps:
            intervals = subdivide(grid, self.step_size, self.steps)
            if self.compiled is not None:
                assert isinstance(field, Field)
                return self.compiled(field, x, intervals, FIXED[self.method])
            if self.method in FIXED:
                return fixed_steps(field, x, intervals, FIXED[self.method])
            return _multistep(field, x, grid, intervals, self.method, self.options, self.rtol)
        atol, rtol = self.tolerances
        if self.by_scipy:
            return _scipy(field, x, grid, self.method, self.options, norm, atol, rtol)
        options = {name: value for name, value in self.options.items() if name != "norm"}
        if self.method in ADAPTIVE:
            tableau = ADAPTIVE[self.method]
            return adaptive_steps(
                field, x, grid, tableau, atol=atol, rtol=rtol, norm=norm, options=options
            )
        return _adaptive_elsewhere(field, x, grid, self.method, options, norm, atol, rtol)


def _multistep(
    field: VelocityField,
    x: Tensor,
    grid: Sequence[float],
    intervals: Sequence[Sequence[float]],
    method: str,
    options: Mapping[str, Any],
    rtol: float | None,
) -> Iterator[Tensor]:
    times = [grid[0], *(t for interval in intervals for t in interval[1:])]
    lengths = [b - a for a, b in pairwise(times)]
    if max(lengths) - min(lengths) > 1e-5 * max(map(abs, lengths)):
        raise ValueError(
            f"`time_grid`: the coefficients of {method!r} are those of equal steps; got steps of {min(lengths):g} to "
            f"{max(lengths):g}. A Runge-Kutta method takes any."
        )
    clock = torch.tensor(times, dtype=torch.float64, device=x.device)
    # torchdiffeq's own default, 12, is unstable: x' = (1 + 2 t) x, backwards in 200 steps, ends 8e10 times too large.
    more = {"grid_constructor": lambda *_: clock, "max_order": 5, **options}
    rtol = 1e-5 if rtol is None else rtol  # of the implicit method's iteration; `atol` is not read
    yield from _odeint(field, x, grid, method, more, atol=rtol, rtol=rtol)


def _adaptive_elsewhere(
    field: VelocityField,
    x: Tensor,
    grid: Sequence[float],
    method: str,
    options: Mapping[str, Any],
    norm: Norm,
    atol: float,
    rtol: float,
) -> Iterator[Tensor]:
    more = {"first_step": None, "step_t": [], **options, "norm": norm}
    if more["first_step"] is None:
        start = torch.full((), grid[0], dtype=x.dtype, device=x.device)
        more["first_step"] = first_step(
            field,
            x,
            field(start, x),
            grid[0],
            grid[-1],
            ELSEWHERE[method],
            norm=norm,
            atol=atol,
            rtol=rtol,
        )
    stops = sorted({*map(float, more["step_t"]), grid[-1]})
    more["step_t"] = torch.tensor(stops, dtype=torch.float64, device=x.device)
    yield from _odeint(field, x, grid, method, more, atol=atol, rtol=rtol)


def _scipy(
    field: VelocityField,
    x: Tensor,
    grid: Sequence[float],
    method: str,
    options: Mapping[str, Any],
    norm: Norm,
    atol: float,
    rtol: float,
) -> Iterator[Tensor]:
    more = dict(options)
    if method != "scipy_solver":
        more["solver"] = method
    mask = norm.mask if isinstance(norm, SampleNorm) else None
    if mask is not None:  # scipy's norm is the mean over all entries, those that stay included
        share = math.sqrt(max(mask.expand_as(x).float().mean().item(), 1e-12))
        atol, rtol = atol * share, rtol * share
    with warnings.catch_warnings():  # torchdiffeq hands `min_step` to all of scipy's methods
        warnings.filterwarnings("ignore", "The following arguments have no effect", UserWarning)
        states = list(_odeint(field, x, grid, "scipy_solver", more, atol=atol, rtol=rtol))
    yield from states


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
    times = torch.tensor(grid, dtype=torch.float64, device=x.device)
    states = odeint(field, x, times, method=method, options=dict(options), atol=atol, rtol=rtol)
    assert isinstance(states, Tensor)
    yield from states[1:].unbind()
