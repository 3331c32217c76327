"""A velocity model, as the integrators call it: counted, checked, in the state's precision."""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from fm_ext.models.extras import map_samples


class Field:
    """`(t, x) -> v` of a model and its extras.

    Args:
        model: the velocity model.
        extras: handed to it.
        dtype: what it gets `x` in.
        bar: told of every evaluation.
    """

    def __init__(
        self,
        model: Callable[..., Tensor],
        extras: dict[str, Any],
        dtype: torch.dtype,
        bar: "tqdm[Any]",
    ):
        self.model, self.extras, self.dtype, self.bar = model, extras, dtype, bar
        self.nfe = 0

    def __call__(self, t: Tensor, x: Tensor) -> Tensor:
        velocity = self.velocity(t, x)
        self.count(1)
        return velocity

    def count(self, evaluations: int) -> None:
        """Takes note of evaluations."""
        self.nfe += evaluations
        if not self.bar.disable:
            self.bar.update(evaluations)

    def velocity(self, t: Tensor, x: Tensor) -> Tensor:
        """An evaluation that is not counted."""
        velocity = self.model(x=x.to(self.dtype), t=t, **self.extras)
        if velocity.shape != x.shape:
            raise ValueError(
                f"`velocity_model` must answer with the shape of `x`, {tuple(x.shape)}; got {tuple(velocity.shape)}."
            )
        return velocity.to(x.dtype)


def parts(
    x: Tensor, extras: dict[str, Any], batch_size: int | None
) -> Iterator[tuple[Tensor, dict[str, Any]]]:
    """The batch in pieces, with the extras that belong to its samples: tensors as long as the batch, in dicts too."""
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1; got {batch_size}.")
    size = batch_size or max(1, len(x))
    for start in range(0, max(1, len(x)), size):
        piece = slice(start, start + size)
        yield x[piece], map_samples(extras, len(x), lambda extra, piece=piece: extra[piece])


def collect(x: Tensor, states: Iterator[Tensor], count: int) -> Tensor:
    """The last state if `count` is 1, else `x` and all, in `x`'s dtype."""
    if count == 1:
        return deque(states, maxlen=1)[0].to(x.dtype)
    if torch.is_grad_enabled():
        return torch.stack([x, *(state.to(x.dtype) for state in states)])
    result = x.new_empty(count, *x.shape)
    result[0] = x
    for row, state in zip(result[1:], states, strict=True):
        row.copy_(state)
    return result
