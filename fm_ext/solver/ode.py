"""Upstream's ODESolver, without its traps."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from flow_matching.solver import ODESolver as UpstreamODESolver
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from fm_ext.solver.field import Field, check_keywords, check_state, collect
from fm_ext.solver.likelihood import AugmentedField, log_density
from fm_ext.solver.methods import Method, SampleNorm, compiled_steps
from fm_ext.utils.inputs import check_extras, check_whole, entry_mask, map_samples


class ODESolver(UpstreamODESolver):
    r"""Integrates $\dot x = v_t(x)$: upstream's class, arguments and results, without its traps.

    | `method` | steps | by |
    |---|---|---|
    | "euler", "midpoint", "heun2", "heun3", "rk4" | `step_size`, `steps` or `time_grid` | fm_ext |
    | "explicit_adams", "implicit_adams" | the same, of equal length | torchdiffeq |
    | "dopri5", "bosh3", "dopri8", "fehlberg2", "adaptive_heun" | `atol`, `rtol` | torchdiffeq |
    | "RK45", "RK23", "DOP853", "Radau", "BDF", "LSODA" | `atol`, `rtol`; no gradients | scipy |

    * A keyword that neither the solver nor the model takes is an error, and so is one close to a keyword of the solver.
    * Extras that are tensors with an axis hold one entry a sample; what all samples share is given as `shared(table)`,
      from `fm_ext.utils`.
    * Steps are counted in integers: `step_size=1/61` is 61 steps. `solver.nfe` tells how many evaluations the last
      call took.
    * No evaluation lies outside the time grid. Adaptive methods stop on the last time, and interpolate between steps.
    * Known entries come back bit for bit under every method, where there is a `mask` among the extras (bool, True =
      missing, with `x`'s axes; any other `mask` is the model's own affair) and the model holds them, as
      `MaskedVelocityModel` does.
    * The error of torchdiffeq's adaptive methods is measured a sample at a time, and over the missing entries where
      there is such a mask. The worst sample decides the step that all take. Neighbours change a sample's result within
      the tolerances only; `batch_size=1` keeps them apart altogether. Scipy has one norm over the whole batch; its
      tolerances are scaled by the missing share.
    * In half precision the state and the time are float32, and the model gets `x` in its own dtype. A model that fails
      on the two dtypes at its first evaluation, for it puts `t` beside `x` in one tensor without a cast, is asked again
      with the time in `x`'s dtype, and gets it so from then on.

    Args:
        velocity_model: called as `velocity_model(x=x, t=t, **extras)`, with t 0-d.
        options: of the method. torchdiffeq's for its adaptive ones, `norm` being of a `(batch, ...)` tensor of errors
            over tolerances; `max_order` and `max_iters` for Adams'; `first_step`, `max_step` and, for LSODA, `min_step`
            for scipy's; `max_num_steps` for all adaptive ones.
        compile: whether `sample` compiles each step of the methods whose row says fm_ext, all its evaluations
            included, by `torch.compile(mode="reduce-overhead")`; a mapping gives other arguments of `torch.compile`.
            On CUDA a step is then the replay of one graph, which a small network, bound by the launches of its kernels,
            gains from. The first step of each shape and method compiles, for some ten seconds; results agree to
            rounding. Where `torch.compile` would give up compiling, after eight graphs of a step, there is a
            RuntimeError. Not for other methods, nor for likelihoods: there compile the model.

    Raises:
        TypeError: for a `compile` that is neither bool nor a mapping.
    """

    def __init__(
        self,
        velocity_model: Callable[..., Tensor],
        *,
        options: Mapping[str, Any] | None = None,
        compile: bool | Mapping[str, Any] = False,
    ):
        super().__init__(velocity_model)
        self.options = dict(options or {})
        self._compiled = compiled_steps(compile)
        self.nfe = 0

    def sample(
        self,
        x_init: Float[Tensor, " batch *dim"],
        step_size: float | None = None,
        method: str = "euler",
        atol: float | None = 1e-5,
        rtol: float | None = 1e-5,
        time_grid: Float[Tensor, " times"] | Sequence[float] | None = None,
        return_intermediates: bool = False,
        enable_grad: bool = False,
        *,
        steps: int | None = None,
        batch_size: int | None = None,
        progress: bool = False,
        **model_extras: Any,
    ) -> Float[Tensor, "..."]:
        """Takes `x_init` from the first time of the grid to its last.

        Args:
            x_init: state at the first time, `(batch, ...)`.
            step_size: each interval of the grid is cut into equal steps of at most this length; None to step on the
                grid itself, and for adaptive methods.
            method: see above.
            atol: absolute tolerance of a sample's root mean square error in a step, for adaptive methods.
            rtol: the same, relative to the state.
            time_grid: at least two times, up or down; [0, 1] if None. Adaptive methods step on its ends and
                interpolate between.
            return_intermediates: whether to return the states at all times of the grid, or the last alone.
            enable_grad: whether to compute gradients. Without them the solver runs under `torch.no_grad`; under
                `torch.inference_mode` it runs too, but those results cannot be trained on.
            steps: the number of equal steps between two times, instead of `step_size`.
            batch_size: how many samples to integrate at once; extras are split with it, but `shared` ones.
            progress: whether to show a bar that counts evaluations.
            **model_extras: handed to the model.

        Returns:
            `(batch, ...)`, or `(times, batch, ...)` with the intermediates, in the dtype of `x_init`.

        Raises:
            TypeError: for a keyword that nothing takes, an `x_init` that is not floating point, and a model that
                answers with no tensor.
            ValueError: for an unknown method or option, for steps or tolerances that are missing, contradict each
                other or do not belong to the method, for extras of another length than the batch, and for a model that
                answers with another shape.
            RuntimeError: where an adaptive method cannot go on; it names the last time.
        """
        how = self._method(
            method, (0.0, 1.0), step_size=step_size, steps=steps, atol=atol, rtol=rtol,
            time_grid=time_grid, end_alone=not return_intermediates, enable_grad=enable_grad,
        )  # fmt: skip
        parts = self._parts("sample", "x_init", x_init, model_extras, batch_size, progress)
        results: list[Tensor] = []
        with torch.set_grad_enabled(enable_grad):
            for part in parts:
                norm = how.norm(SampleNorm(part.missing))
                states = map(part.hold, how.integrate(part.field, part.start, norm))
                results.append(
                    collect(part.x, states, len(how.grid) if return_intermediates else 1)
                )
        if len(results) == 1:
            return results[0]
        return torch.cat(results, dim=1 if return_intermediates else 0)

    def compute_likelihood(
        self,
        x_1: Float[Tensor, " batch *dim"],
        log_p0: Callable[[Tensor], Tensor],
        step_size: float | None = None,
        method: str = "euler",
        atol: float | None = 1e-5,
        rtol: float | None = 1e-5,
        time_grid: Float[Tensor, " times"] | Sequence[float] | None = None,
        return_intermediates: bool = False,
        exact_divergence: bool = False,
        enable_grad: bool = False,
        *,
        steps: int | None = None,
        probes: int = 1,
        generator: torch.Generator | None = None,
        return_error: bool = False,
        batch_size: int | None = None,
        progress: bool = False,
        **model_extras: Any,
    ) -> Any:  # upstream's pair, or with the error three
        r"""The log-density of `x_1`: $\ln p_1(x_1) = \ln p_0(x_0) - \int_0^1 \operatorname{div} v_t(x_t)\, dt$.

        (Chen et al., arXiv 1806.07366, theorem 1), for states of any shape. The divergence is estimated by
        Hutchinson's probes, or computed from one derivative an entry. With a model that holds known entries still
        (`MaskedVelocityModel`, as the solver's own model) this is the density of the missing ones given the known ones,
        when `log_p0` is that of the missing entries' noise; then only missing ones are probed or differentiated.

        Args:
            x_1: states at the first time of the grid, `(batch, ...)`.
            log_p0: the log-density at the last time, of `(batch, ...)`, with one value a sample, `(batch,)`.
            step_size: as in `sample`.
            method: as in `sample`; scipy's cannot be differentiated.
            atol: as in `sample`; also of the integrated divergence.
            rtol: as in `sample`.
            time_grid: decreasing times; [1, 0] if None. From below 1 it is the density of the path's own marginal
                there.
            return_intermediates: whether to return the states at all times of the grid, or the last alone.
            exact_divergence: whether to sum the divergence exactly: D backward passes an evaluation.
            enable_grad: whether to compute gradients of the results.
            steps: as in `sample`.
            probes: number of Hutchinson's probes, each one more backward pass an evaluation.
            generator: source of the probes, on any device.
            return_error: whether to return the standard error too, which takes two probes or more.
            batch_size: as in `sample`.
            progress: as in `sample`.
            **model_extras: handed to the model.

        Returns:
            The states at the last time, `(batch, ...)` (or at all, `(times, batch, ...)`), the log-densities
            `(batch,)` in nats, and with `return_error` the standard errors of the estimates, `(batch,)`: 0 for the
            exact divergence.

        Raises:
            TypeError: as `sample`.
            ValueError: as `sample`; for probes below 1 (below 2 with `return_error`), a grid that does not decrease,
                a `log_p0` of another shape, and a velocity that carries no gradient.
            RuntimeError: as `sample`.
        """
        how = self._method(
            method, (1.0, 0.0), step_size=step_size, steps=steps, atol=atol, rtol=rtol,
            time_grid=time_grid, end_alone=not return_intermediates, enable_grad=enable_grad,
        )  # fmt: skip
        if how.grid[0] < how.grid[-1]:
            raise ValueError(
                f"`time_grid` must decrease, from the data to the source; got {how.grid[0]:g} to {how.grid[-1]:g}."
            )
        return self._with_density(
            "compute_likelihood", "x_1", x_1, log_p0, how, model_extras,
            return_intermediates=return_intermediates, exact_divergence=exact_divergence, enable_grad=enable_grad,
            probes=probes, generator=generator, return_error=return_error, batch_size=batch_size, progress=progress,
        )  # fmt: skip

    def sample_with_log_density(
        self,
        x_init: Float[Tensor, " batch *dim"],
        log_p0: Callable[[Tensor], Tensor],
        step_size: float | None = None,
        method: str = "euler",
        atol: float | None = 1e-5,
        rtol: float | None = 1e-5,
        time_grid: Float[Tensor, " times"] | Sequence[float] | None = None,
        return_intermediates: bool = False,
        exact_divergence: bool = False,
        enable_grad: bool = False,
        *,
        steps: int | None = None,
        probes: int = 1,
        generator: torch.Generator | None = None,
        return_error: bool = False,
        batch_size: int | None = None,
        progress: bool = False,
        **model_extras: Any,
    ) -> Any:  # a pair, or with the error three
        r"""Samples, and the log-density of each.

        $$\ln p_1(x_1) = \ln p_0(x_0) - \int_0^1 \operatorname{div} v_t(x_t)\, dt$$

        The counterpart of `compute_likelihood` from the source to the data, in one integration: what that gives for the
        same points up to the error of the steps. `log_p0` is evaluated at `x_init`.

        Args:
            x_init: states at the first time of the grid, `(batch, ...)`.
            log_p0: the log-density at the first time, of `(batch, ...)`, with one value a sample, `(batch,)`.
            step_size: as in `sample`.
            method: as in `compute_likelihood`.
            atol: as in `compute_likelihood`.
            rtol: as in `sample`.
            time_grid: increasing times; [0, 1] if None. To below 1 it is the density of the path's own marginal there.
            return_intermediates: as in `sample`; the log-density is that at the last time.
            exact_divergence: as in `compute_likelihood`.
            enable_grad: as in `compute_likelihood`.
            steps: as in `sample`.
            probes: as in `compute_likelihood`.
            generator: as in `compute_likelihood`.
            return_error: as in `compute_likelihood`.
            batch_size: as in `sample`.
            progress: as in `sample`.
            **model_extras: handed to the model.

        Returns:
            The states at the last time, `(batch, ...)` (or at all, `(times, batch, ...)`), their log-densities
            `(batch,)` in nats, and with `return_error` the standard errors of the estimates, `(batch,)`.

        Raises:
            TypeError: as `sample`.
            ValueError: as `compute_likelihood`; for a grid that does not increase.
            RuntimeError: as `sample`.
        """
        how = self._method(
            method, (0.0, 1.0), step_size=step_size, steps=steps, atol=atol, rtol=rtol,
            time_grid=time_grid, end_alone=not return_intermediates, enable_grad=enable_grad,
        )  # fmt: skip
        if how.grid[0] > how.grid[-1]:
            raise ValueError(
                f"`time_grid` must increase, from the source to the data; got {how.grid[0]:g} to {how.grid[-1]:g}. "
                "compute_likelihood goes the other way."
            )
        return self._with_density(
            "sample_with_log_density", "x_init", x_init, log_p0, how, model_extras,
            return_intermediates=return_intermediates, exact_divergence=exact_divergence, enable_grad=enable_grad,
            probes=probes, generator=generator, return_error=return_error, batch_size=batch_size, progress=progress,
        )  # fmt: skip

    def _with_density(
        self,
        called: str,
        name: str,
        x: Tensor,
        log_p0: Callable[[Tensor], Tensor],
        how: Method,
        extras: dict[str, Any],
        *,
        return_intermediates: bool,
        exact_divergence: bool,
        enable_grad: bool,
        probes: int,
        generator: torch.Generator | None,
        return_error: bool,
        batch_size: int | None,
        progress: bool,
    ) -> Any:
        """The states with the log-density of the end at the data, whichever way the grid goes."""
        probes = check_whole("probes", probes, 1)
        if return_error and probes < 2 and not exact_divergence:
            raise ValueError(f"`probes` must be at least 2 for a standard error; got {probes}.")
        if self._compiled is not None:
            raise ValueError(
                "`compile` is for `sample`: the steps of a likelihood hold derivatives. Compile the model instead: "
                "ODESolver(torch.compile(model))."
            )
        if torch.is_inference_mode_enabled():
            raise ValueError(
                f"{called} differentiates the velocity, which torch.inference_mode() forbids; torch.no_grad() does not."
            )
        to_data = how.grid[0] < how.grid[-1]
        ends, log_ps, errors = [], [], []
        with torch.set_grad_enabled(enable_grad):
            for part in self._parts(called, name, x, extras, batch_size, progress):
                count = 0 if exact_divergence else probes
                moving = part.missing if part.holds else None
                both = AugmentedField(part.field, part.x, count, generator, enable_grad, moving)
                norm = both.norm(how.norm(SampleNorm(part.missing)))
                state, kept = both.start(part.start), [part.x]
                for state in how.integrate(both, state, norm):  # noqa: B020  # the last is used below
                    if return_intermediates:
                        kept.append(part.hold(both.split(state)[0]).to(part.x.dtype))
                end, integral, error = both.result(state)
                end = part.hold(end)
                ends.append(torch.stack(kept) if return_intermediates else end.to(part.x.dtype))
                source = part.start if to_data else end
                log_p = log_density(log_p0, source)
                log_ps.append(log_p - integral if to_data else log_p + integral)
                errors.append(error)
        states = torch.cat(ends, dim=1 if return_intermediates else 0)
        log_p = torch.cat(log_ps)
        return (states, log_p, torch.cat(errors)) if return_error else (states, log_p)

    def _method(self, name: str, ends: tuple[float, float], **given: Any) -> Method:
        return Method(name, ends=ends, options=self.options, compiled=self._compiled, **given)

    def _parts(
        self,
        method: str,
        name: str,
        x: Tensor,
        extras: dict[str, Any],
        batch_size: int | None,
        progress: bool,
    ) -> "Iterator[Part]":
        """The batch in pieces, each with the extras of its samples; state and extras are checked before the first."""
        check_keywords(self.velocity_model, extras, self, method)
        check_state(name, x)
        extras = check_extras(extras, x)
        size = max(1, len(x)) if batch_size is None else check_whole("batch_size", batch_size, 1)
        holds = getattr(self.velocity_model, "holds_known", False)
        self.nfe = 0
        return self._pieces(x, extras, size, holds, progress)

    def _pieces(
        self, x: Tensor, extras: dict[str, Any], size: int, holds: bool, progress: bool
    ) -> "Iterator[Part]":
        with tqdm(unit=" nfe", disable=not progress) as bar:
            for first in range(0, max(1, len(x)), size):
                piece = slice(first, first + size)
                own = map_samples(extras, lambda extra, piece=piece: extra[piece])
                field = Field(self.velocity_model, own, x.dtype, bar)
                yield Part(x[piece], field, entry_mask(own, x[piece]), holds)
                self.nfe = max(self.nfe, field.nfe)


@dataclass
class Part:
    """Some samples of a batch, with all that integrating them takes.

    Args:
        x: their state at the first time.
        field: the velocity, with their extras.
        missing: the mask of entries among those, True = missing; None if there is none.
        holds: whether the model's velocity is 0 at known entries.
    """

    x: Tensor
    field: Field
    missing: Tensor | None
    holds: bool

    @property
    def start(self) -> Tensor:
        """The state at the first time, in float32 at least."""
        return self.x.to(torch.promote_types(self.x.dtype, torch.float32))

    def hold(self, state: Tensor) -> Tensor:
        """A state with its known entries bit for bit, which interpolation of a velocity of 0 may round."""
        if not self.holds or self.missing is None:
            return state
        return torch.where(self.missing, state, self.start)
