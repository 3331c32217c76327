"""Steps of given lengths as one compiled graph each."""

from collections.abc import Iterator, Mapping, Sequence
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

    Args:
        options: arguments of `torch.compile`.
    """

    def __init__(self, options: Mapping[str, Any]):
        self._step = torch.compile(_step, **options)

    def __call__(
        self, field: Field, x: Tensor, intervals: Sequence[Sequence[float]], tableau: Tableau
    ) -> Iterator[Tensor]:
        """Steps through the times of each interval; yields the state at the end of each."""
        steps = [step for times in intervals for step in pairwise(times)]
        # Each row is a step: its length, then the times of its stages. All go to the device at once.
        rows = [
            (end - start, *(end if c == 1 else start + c * (end - start) for c in tableau.c))
            for start, end in steps
        ]
        clock = iter(torch.tensor(rows, dtype=x.dtype, device=x.device).unbind())
        for times in intervals:
            for _ in pairwise(times):
                x = self._step(field, x, next(clock), tableau)
                if x.is_cuda:
                    x = x.clone()  # the memory of a CUDA graph's result is the next replay's
                field.count(len(tableau.c))
            yield x


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
