"""Every method by its name: ours, torchdiffeq's and scipy's."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fm_ext.solver import elsewhere
from fm_ext.solver.compiled import CompiledSteps
from fm_ext.solver.field import Field
from fm_ext.solver.grids import subdivide
from fm_ext.solver.runge_kutta import (
    ADAPTIVE_OPTIONS,
    Norm,
    StepGuard,
    VelocityField,
    adaptive_steps,
    fixed_steps,
)
from fm_ext.solver.tableau import ADAPTIVE, FIXED

MULTISTEP = ("explicit_adams", "implicit_adams", "fixed_adams")
SCIPY = ("RK45", "RK23", "DOP853", "Radau", "BDF", "LSODA")
METHODS = (*FIXED, *MULTISTEP, *ADAPTIVE, *elsewhere.ORDERS, *SCIPY, "scipy_solver")
_OURS = (*ADAPTIVE_OPTIONS, "max_num_steps", "norm")
_SCIPYS = ("min_step", "max_step", "max_num_steps")
_TAKES = (
    (FIXED, ()),
    (MULTISTEP, ("max_order", "max_iters")),
    (ADAPTIVE, _OURS),
    (elsewhere.ORDERS, (*_OURS, "min_step", "step_t", "jump_t", "dtype")),
    (SCIPY, _SCIPYS),
    (("scipy_solver",), (*_SCIPYS, "solver")),
)


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """A method with the steps or the tolerances that belong to it.

    Its arguments are the solver's; `end_alone` says that of the grid's states only the last is wanted.

    Raises:
        ValueError: for an unknown method or option, steps for an adaptive method, and bad tolerances.
    """

    method: str
    step_size: float | None
    steps: int | None
    atol: float | None
    rtol: float | None
    time_grid: object
    end_alone: bool
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
        solver = self.options.get("solver")
        if isinstance(solver, str) and solver not in SCIPY:
            raise ValueError(
                f"`options`: 'solver' must be one of {', '.join(SCIPY)}, or a class; got {solver!r}."
            )
        for name in ("first_step", "max_step", "max_num_steps"):
            value = self.options.get(name)
            if value is not None and not value > 0:
                raise ValueError(f"`options`: {name!r} must be positive; got {value}.")
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
        """The states that are wanted of `grid` after the first, in order; `x` is the state at the first."""
        wanted = [grid[0], grid[-1]] if self.end_alone else grid
        if self.by_steps:
            intervals = subdivide(grid, self.step_size, self.steps)
            if self.end_alone:
                intervals = [[grid[0], *(t for times in intervals for t in times[1:])]]
            if self.compiled is not None:
                assert isinstance(field, Field)
                return self.compiled(field, x, intervals, FIXED[self.method])
            if self.method in FIXED:
                return fixed_steps(field, x, intervals, FIXED[self.method])
            return elsewhere.multistep(
                field, x, wanted, intervals, self.method, self.options, self.rtol
            )
        atol, rtol = self.tolerances
        options = {name: value for name, value in self.options.items() if name != "norm"}
        most = options.pop("max_num_steps", 2**31 - 1)
        hint = f"`atol` = {atol} and `rtol` = {rtol} are below the rounding of {x.dtype}"
        guard = StepGuard(self.method, grid[-1], most, hint)
        how = {"atol": atol, "rtol": rtol, "norm": norm, "options": options, "guard": guard}
        if self.method in ADAPTIVE:
            return adaptive_steps(field, x, wanted, ADAPTIVE[self.method], **how)
        method = elsewhere.by_scipy if self.by_scipy else elsewhere.adaptive
        return method(field, x, wanted, self.method, **how)
