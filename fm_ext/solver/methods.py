"""The methods of the ODE solver: steps of given lengths, eager and compiled; torchdiffeq's; scipy's."""

import math
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import scipy.integrate
import torch
from torch import Tensor
from torchdiffeq import odeint

from fm_ext.solver.field import Field
from fm_ext.solver.grids import check_grid, check_number, subdivide

VelocityField = Callable[[Tensor, Tensor], Tensor]  # (t, x) -> velocity
Norm = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Tableau:
    r"""$k_i = v\big(t + c_i h,\; x + h \sum_j a_{ij} k_j\big)$, and $x + h \sum_i b_i k_i$ after the step.

    Attributes:
        c: times of the stages, as fractions of the step.
        a: row i holds the weights of the stages before it.
        b: weights of the step.
    """

    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]


# heun2 is the explicit trapezoid, heun3 Heun's of third order, rk4 Kutta's 3/8 rule: what torchdiffeq calls so.
FIXED = {
    "euler": Tableau((0.0,), ((),), (1.0,)),
    "midpoint": Tableau((0.0, 1 / 2), ((), (1 / 2,)), (0.0, 1.0)),
    "heun2": Tableau((0.0, 1.0), ((), (1.0,)), (1 / 2, 1 / 2)),
    "heun3": Tableau((0.0, 1 / 3, 2 / 3), ((), (1 / 3,), (0.0, 2 / 3)), (1 / 4, 0.0, 3 / 4)),
    "rk4": Tableau(
        (0.0, 1 / 3, 2 / 3, 1.0),
        ((), (1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)),
        (1 / 8, 3 / 8, 3 / 8, 1 / 8),
    ),
}
MULTISTEP = ("explicit_adams", "implicit_adams", "fixed_adams")
ADAPTIVE = {
    "dopri5": 5,
    "bosh3": 3,
    "dopri8": 8,
    "fehlberg2": 2,
    "adaptive_heun": 2,
}  # their orders
SCIPY = ("RK45", "RK23", "DOP853", "Radau", "BDF", "LSODA", "scipy_solver")
METHODS = (*FIXED, *MULTISTEP, *ADAPTIVE, *SCIPY)
_BOTH = ("first_step", "max_step", "max_num_steps")
_OPTIONS = {
    **dict.fromkeys(FIXED, ()),
    **dict.fromkeys(MULTISTEP, ("max_order", "max_iters")),
    **dict.fromkeys(
        ADAPTIVE,
        (*_BOTH, "dfactor", "dtype", "ifactor", "jump_t", "min_step", "norm", "safety", "step_t"),
    ),
    **dict.fromkeys(SCIPY, _BOTH),
    **dict.fromkeys(("LSODA", "scipy_solver"), (*_BOTH, "min_step")),
}


class Method:
    """A method with the steps or the tolerances that belong to it: the solver's arguments, checked.

    Args:
        name: of the method.
        step_size: as `ODESolver.sample` takes it, and the same for what follows.
        steps: likewise.
        atol: likewise.
        rtol: likewise.
        time_grid: likewise.
        ends: the grid where `time_grid` is None.
        end_alone: whether of the grid's states only the last is wanted.
        enable_grad: whether gradients are.
        options: of the solver.
        compiled: what compiles the steps, or None.

    Raises:
        ValueError: for an unknown method or option, and for steps or tolerances that are missing, contradict each other
            or do not belong to the method.
    """

    def __init__(
        self,
        name: str,
        *,
        step_size: float | None,
        steps: int | None,
        atol: float | None,
        rtol: float | None,
        time_grid: Tensor | Sequence[float] | None,
        ends: tuple[float, float],
        end_alone: bool,
        enable_grad: bool,
        options: Mapping[str, Any],
        compiled: "CompiledSteps | None",
    ):
        if name not in METHODS:
            raise ValueError(f"`method` must be one of {', '.join(METHODS)}; got {name!r}.")
        self.name, self.options, self.compiled = name, dict(options), compiled
        self.by_steps = name in FIXED or name in MULTISTEP
        self.grid = check_grid(time_grid, ends)
        self.wanted = [self.grid[0], self.grid[-1]] if end_alone else self.grid
        self._check_options()
        if compiled is not None and name not in FIXED:
            raise ValueError(
                f"`compile` is for {', '.join(FIXED)}, whose steps are alike; got {name!r}. Compile the model instead: "
                "ODESolver(torch.compile(model))."
            )
        if enable_grad and name in SCIPY:
            raise ValueError(
                f"`enable_grad`: no gradients pass through scipy's {name!r}; 'dopri5' is the method of 'RK45'."
            )
        if self.by_steps:
            if step_size is None and steps is None and time_grid is None:
                raise ValueError(
                    f"{name!r} needs `steps`, `step_size` or `time_grid`; all the way in one step is steps=1."
                )
            self.intervals = subdivide(self.grid, step_size, steps)
            if end_alone:
                self.intervals = [[self.grid[0], *(t for ts in self.intervals for t in ts[1:])]]
            if name in MULTISTEP:
                _check_equal(self.intervals, name)
            self.atol = self.rtol = 1e-5 if rtol is None else check_number("rtol", rtol)
            return
        if step_size is not None or steps is not None:
            raise ValueError(
                f"`{'step_size' if step_size is not None else 'steps'}` has no meaning for {name!r}, which chooses its "
                "steps by `atol` and `rtol`; leave it out. The first step is an option: "
                "ODESolver(model, options={'first_step': ...})."
            )
        self.atol = math.nan if atol is None else check_number("atol", atol)
        self.rtol = math.nan if rtol is None else check_number("rtol", rtol)
        if not (self.atol >= 0 and self.rtol >= 0 and self.atol + self.rtol > 0):
            raise ValueError(
                f"`atol` and `rtol` must be at least 0 and not both 0 for {name!r}; got {atol} and {rtol}."
            )

    def _check_options(self) -> None:
        takes = _OPTIONS[self.name]
        if unknown := set(self.options) - set(takes):
            raise ValueError(
                f"`options`: {min(unknown)!r} is nothing that {self.name!r} takes; it takes "
                f"{', '.join(sorted(takes)) or 'none'}."
            )
        for option in _BOTH:
            value = self.options.get(option)
            if value is not None and not value > 0:
                raise ValueError(f"`options`: {option!r} must be positive; got {value}.")

    def norm(self, default: Norm) -> Norm:
        """The error norm that the user chose, or the default."""
        return self.options.get("norm", default)

    def integrate(self, field: VelocityField, x: Tensor, norm: Norm) -> Iterator[Tensor]:
        """The states that are wanted of the grid after the first, in order; `x` is the state at the first."""
        if self.compiled is not None:
            assert isinstance(field, Field)
            return self.compiled(field, x, self.intervals, FIXED[self.name])
        if self.name in FIXED:
            return fixed_steps(field, x, self.intervals, FIXED[self.name])
        if x.numel() == 0:  # which neither torchdiffeq's norms nor scipy's methods bear
            return (x for _ in self.wanted[1:])
        if self.name in MULTISTEP:
            return self._multistep(field, x)
        return (self._adaptive if self.name in ADAPTIVE else self._by_scipy)(field, x, norm)

    def _multistep(self, field: VelocityField, x: Tensor) -> Iterator[Tensor]:
        times = [self.grid[0], *(t for interval in self.intervals for t in interval[1:])]
        # torchdiffeq's own default, 12, is unstable: x' = (1 + 2 t) x, backwards in 200 steps, ends 8e10 times too
        # large. The tolerances are of the implicit method's iteration.
        options = {"max_order": 5, **self.options, "grid_constructor": lambda *_: _clock(times, x)}
        return self._odeint(field, x, options)

    def _adaptive(self, field: VelocityField, x: Tensor, norm: Norm) -> Iterator[Tensor]:
        """Torchdiffeq's, with a first step that stays inside the grid, as its own does not, and a stop at the end."""
        options = {name: value for name, value in self.options.items() if name != "max_num_steps"}
        guarded = _Guarded(field, self._guard(x))
        if options.get("first_step") is None:
            guarded.slope = field(_time(self.grid[0], x), x)
            options["first_step"] = self._first_step(field, x, guarded.slope, norm)
        stops = sorted({*map(float, options.get("step_t", ())), self.grid[-1]})
        options["step_t"] = _clock(stops, x)
        if "jump_t" in options:
            options["jump_t"] = _clock([float(t) for t in options["jump_t"]], x)
        options.setdefault("dtype", options["step_t"].dtype)

        def rejected_if_nan(
            ratio: Tensor,
        ) -> Tensor:  # torchdiffeq would give up, and a shorter step may do
            return torch.as_tensor(norm(ratio), device=ratio.device).nan_to_num(nan=math.inf)

        return self._odeint(guarded, x, {**options, "norm": rejected_if_nan})

    @torch.no_grad()
    def _first_step(self, field: VelocityField, x: Tensor, slope: Tensor, norm: Norm) -> float:
        """By one more evaluation, inside the grid (Hairer, Norsett and Wanner, section II.4)."""
        span, sign = abs(self.grid[-1] - self.grid[0]), self._sign
        scale = x.abs().mul_(self.rtol).add_(self.atol)
        d_0, d_1 = float(norm(x / scale)), float(norm(slope / scale))
        trial = 1e-6 if d_0 < 1e-5 or d_1 < 1e-5 else 0.01 * d_0 / d_1
        trial = min(trial, span) if 0 < trial < math.inf else 1e-6 * span
        moved = field(_time(self.grid[0] + sign * trial, x), x + sign * trial * slope)
        bend = max(d_1, float(norm((moved - slope) / scale)) / trial)
        order = ADAPTIVE[self.name]
        guess = max(1e-6, trial * 1e-3) if bend <= 1e-15 else (0.01 / bend) ** (1 / order)
        return min(100 * trial, guess, span) if math.isfinite(guess) else 1e-6 * span

    def _by_scipy(self, field: VelocityField, x: Tensor, norm: Norm) -> Iterator[Tensor]:
        guard, sign = self._guard(x), self._sign
        kind: Any = getattr(scipy.integrate, self.name, scipy.integrate.LSODA)

        class Guarded(kind):
            def step(self) -> str | None:
                start = self.t
                guard(start, getattr(self, "h_abs", math.inf))  # LSODA keeps its own to itself
                try:
                    message = super().step()
                    failed = self.status == "failed" or not np.isfinite(self.y).all()
                except ValueError as error:
                    if "infs or NaNs" not in str(error):  # what scipy's linear algebra says of them
                        raise
                    message, failed = None, True
                if failed or not sign * (self.t - start) > 0:
                    guard(start, 0.0)
                return message

        def velocity(t: float, y: np.ndarray) -> np.ndarray:
            state = torch.tensor(y).to(x).view(x.shape)
            return field(_time(t, x), state).detach().cpu().double().numpy().ravel()

        share = 1.0
        if isinstance(norm, SampleNorm) and norm.mask is not None:
            # scipy's norm is the mean over all entries, those that stay included
            share = max(norm.mask.expand_as(x).float().mean().item(), 1e-12) ** 0.5
        found = scipy.integrate.solve_ivp(
            velocity,
            (self.grid[0], self.grid[-1]),
            x.detach().cpu().double().numpy().ravel(),
            method=Guarded,  # pyright: ignore[reportArgumentType]  # its stub knows the names alone
            t_eval=self.wanted,
            atol=self.atol * share,
            rtol=self.rtol * share,
            **{name: value for name, value in self.options.items() if name != "max_num_steps"},
        )
        for state in found.y.T[1:]:
            yield torch.tensor(state).to(x).view(x.shape)

    def _odeint(self, field: VelocityField, x: Tensor, options: dict[str, Any]) -> Iterator[Tensor]:
        clock = _clock(self.wanted, x)
        states = odeint(
            field, x, clock, method=self.name, options=options, atol=self.atol, rtol=self.rtol
        )
        assert isinstance(states, Tensor)
        yield from map(torch.clone, states[1:].unbind())  # one kept keeps not all

    def _guard(self, x: Tensor) -> "StepGuard":
        most = self.options.get("max_num_steps", 2**31 - 1)
        hint = f"`atol` = {self.atol} and `rtol` = {self.rtol} are below the rounding of {x.dtype}"
        return StepGuard(self.name, self.grid[-1], most, hint)

    @property
    def _sign(self) -> float:
        return math.copysign(1.0, self.grid[-1] - self.grid[0])


def _time(t: float, x: Tensor) -> Tensor:
    return torch.full((), t, dtype=x.dtype, device=x.device)


def _clock(times: Sequence[float], x: Tensor) -> Tensor:
    """Times in float64, on the one backend (mps) that has no float64 in float32."""
    dtype = torch.float32 if x.device.type == "mps" else torch.float64
    return torch.tensor(times, dtype=dtype, device=x.device)


def _check_equal(intervals: Sequence[Sequence[float]], method: str) -> None:
    lengths = [end - start for times in intervals for start, end in pairwise(times)]
    largest = max(abs(t) for times in intervals for t in times)
    rounding = 4 * torch.finfo(torch.float32).eps * largest  # of a grid in float32
    if max(lengths) - min(lengths) > 1e-5 * max(map(abs, lengths)) + rounding:
        raise ValueError(
            f"`time_grid`: the coefficients of {method!r} are those of equal steps; got steps of {min(lengths):g} to "
            f"{max(lengths):g}. A Runge-Kutta method takes any."
        )


class SampleNorm:
    r"""$\max_i \big(\sum_j m_{ij} r_{ij}^2 / \sum_j m_{ij}\big)^{1/2}$: the worst sample, over its missing entries.

    torchdiffeq's own norm averages over the batch and over entries that do not move, so that known pixels and easy
    neighbours hide a sample's error. Here every sample keeps the tolerance. A sample in which nothing is missing
    counts 0.

    Args:
        mask: bool, True = missing, broadcastable to the state; None for all entries.
    """

    def __init__(self, mask: Tensor | None = None):
        self.mask = mask

    def __call__(self, ratio: Tensor) -> Tensor:
        entries = math.prod(ratio.shape[1:])
        if ratio.numel() == 0:
            return ratio.new_zeros(())
        count: Tensor | int = entries
        if self.mask is not None:
            missing = self.mask.expand_as(ratio)
            ratio = ratio.masked_fill(~missing, 0)
            count = missing.reshape(-1, entries).sum(1).clamp(min=1)
        length = torch.linalg.vector_norm(ratio.reshape(-1, entries), dim=1)
        return (length / count**0.5).amax()


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


class _Guarded:
    """A field whose steps torchdiffeq reports to a guard before it takes them.

    `slope` is the answer to its first question, where that is known.
    """

    slope: Tensor | None = None

    def __init__(self, field: VelocityField, guard: StepGuard):
        self.field, self.guard = field, guard

    def __call__(self, t: Tensor, x: Tensor) -> Tensor:
        slope, self.slope = self.slope, None
        return self.field(t, x) if slope is None else slope

    def callback_step(self, t: Tensor, x: Tensor, size: Tensor) -> None:
        """Called by torchdiffeq."""
        self.guard(float(t), float(size) if x.isfinite().all() else math.nan)


def advance(x: Tensor, h: float, weights: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
    """`x + h * sum(weights * slopes)` in one new tensor; `x` itself where all weights are 0.

    Where the slopes are 0 the result is `x` bit for bit.
    """
    result = x
    for weight, slope in zip(weights, slopes, strict=True):
        if weight == 0:
            continue
        if result is x:
            result = torch.add(x, slope, alpha=h * weight)
        else:
            result.add_(slope, alpha=h * weight)
    return result


def fixed_steps(
    field: VelocityField, x: Tensor, intervals: Sequence[Sequence[float]], tableau: Tableau
) -> Iterator[Tensor]:
    """Steps through the times of each interval; yields the state at the end of each.

    All times go to the device at once: no step waits for it.
    """
    rows = [row for times in intervals for row in _stages(times, tableau)]
    clock = iter(torch.tensor(rows, dtype=x.dtype, device=x.device)[:, 1:].unbind())
    for times in intervals:
        for start, end in pairwise(times):
            slopes: list[Tensor] = []
            for t, weights in zip(next(clock).unbind(), tableau.a, strict=True):
                slopes.append(field(t, advance(x, end - start, weights, slopes)))
            x = advance(x, end - start, tableau.b, slopes)
        yield x


def _stages(times: Sequence[float], tableau: Tableau) -> Iterator[list[float]]:
    """A step's length and the times of its stages, for each step."""
    for start, end in pairwise(times):
        yield [end - start, *(end if c == 1 else start + c * (end - start) for c in tableau.c)]


class CompiledSteps:
    """`fixed_steps` with each step, all evaluations in it included, compiled by `torch.compile`.

    With `mode="reduce-overhead"` CUDA replays it as one graph. Times and lengths of steps are tensors: no step compiles
    anew, and none waits for the device.

    `torch.compile` keeps its graphs with the code of a function, at most eight, and past them runs that code as it is.
    So every solver has code of its own, for each method, dtype and number of axes; what is still too much is an error.
    A copy, and one that comes out of a pickle, compiles anew.

    Args:
        options: arguments of `torch.compile`.
    """

    def __init__(self, options: Mapping[str, Any]):
        self.options = dict(options)
        self._steps: dict[tuple[object, ...], Callable[..., Tensor]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"options": self.options, "_steps": {}}

    def __call__(
        self, field: Field, x: Tensor, intervals: Sequence[Sequence[float]], tableau: Tableau
    ) -> Iterator[Tensor]:
        """Steps through the times of each interval; yields the state at the end of each."""
        step = self._step(tableau, x.dtype, x.ndim)
        x = x.clone()  # no view, and of the mode that the ends of steps are of: one graph for all
        rows = [row for times in intervals for row in _stages(times, tableau)]
        clock = iter(torch.tensor(rows, dtype=x.dtype, device=x.device).unbind())
        if field.in_time.settled is None:  # nothing can be tried in a graph
            field.velocity(_time(intervals[0][0], x), x)
        for times in intervals:
            with _compiled_or_not_at_all():
                for _ in pairwise(times):
                    x = step(field, x, next(clock), tableau)
                    if x.is_cuda:
                        x = x.clone()  # the memory of a CUDA graph's result is the next replay's
                    field.count(len(tableau.c))
            yield x

    def _step(self, *key: object) -> Callable[..., Tensor]:
        if key not in self._steps:
            own = types.FunctionType(_step.__code__.replace(), globals())
            self._steps[key] = torch.compile(own, **self.options)
        return self._steps[key]


def compiled_steps(how: bool | Mapping[str, Any]) -> CompiledSteps | None:
    """What a solver's argument `compile` asks for."""
    if not isinstance(how, bool | Mapping):
        raise TypeError(
            "`compile` must be True, False or a mapping of arguments of torch.compile, for example "
            f"{{'mode': 'default'}}; got {how!r}."
        )
    if how is False:
        return None
    return CompiledSteps({"mode": "reduce-overhead"} if how is True else how)


@contextmanager
def _compiled_or_not_at_all() -> Iterator[None]:
    from torch._dynamo import config, exc  # a second to import, which only compiling needs

    known = hasattr(config, "fail_on_recompile_limit_hit")  # not to an older torch
    if config.suppress_errors or not known:
        yield
        return
    try:
        with config.patch(fail_on_recompile_limit_hit=True):
            yield
    except exc.FailOnRecompileLimitHit as error:
        raise RuntimeError(
            f"`compile`: a step has as many graphs as torch.compile keeps, {config.recompile_limit} "
            "(torch._dynamo.config.recompile_limit), because extras, their shapes or the model's attributes changed as "
            'often; TORCH_LOGS="recompiles" names them. Another ODESolver has graphs of its own.'
        ) from error


def _step(field: Field, x: Tensor, clock: Tensor, tableau: Tableau) -> Tensor:
    h, *times = clock.unbind()
    slopes: list[Tensor] = []
    for t, weights in zip(times, tableau.a, strict=True):
        slopes.append(field.velocity(t, _combine(x, h, weights, slopes)))
    return _combine(x, h, tableau.b, slopes)


def _combine(x: Tensor, h: Tensor, weights: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
    """`x + h * sum(weights * slopes)`: `x` bit for bit where the slopes are 0."""
    for weight, slope in zip(weights, slopes, strict=True):
        if weight != 0:
            x = x + h * weight * slope
    return x
