"""Steps of given lengths as one compiled graph each."""

import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from fm_ext.solver.field import Field
from fm_ext.solver.tableau import Tableau


class CompiledSteps:
    """`fixed_steps` with each step, all evaluations in it included, compiled by `torch.compile`.

    With `mode="reduce-overhead"` CUDA replays it as one graph. Times and lengths of steps are tensors: no step compiles
    anew, and none waits for the device.

    `torch.compile` keeps its graphs with the code of a function, at most eight, and past them runs that code as it is.
    So every solver has code of its own, for each method, dtype and number of axes; what is still too much is an error.

    Args:
        options: arguments of `torch.compile`.
    """

    def __init__(self, options: Mapping[str, Any]):
        self.options = dict(options)
        self._steps: dict[tuple[object, ...], Callable[..., Tensor]] = {}

    def __call__(
        self, field: Field, x: Tensor, intervals: Sequence[Sequence[float]], tableau: Tableau
    ) -> Iterator[Tensor]:
        """Steps through the times of each interval; yields the state at the end of each."""
        step = self._step(tableau, x.dtype, x.ndim)
        x = x.clone()  # no view, and of the mode that the ends of steps are of: one graph for all
        steps = [step for times in intervals for step in pairwise(times)]
        # Each row is a step: its length, then the times of its stages. All go to the device at once.
        rows = [
            (end - start, *(end if c == 1 else start + c * (end - start) for c in tableau.c))
            for start, end in steps
        ]
        clock = iter(torch.tensor(rows, dtype=x.dtype, device=x.device).unbind())
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
