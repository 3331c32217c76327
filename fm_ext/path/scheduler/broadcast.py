"""A time, in whatever shape its caller has it, beside a state."""

import torch
from torch import Tensor


def time_shape(t: Tensor, x: Tensor) -> torch.Size:
    """The shape in which values at `t` broadcast to `x`: 0-d, `(batch, 1, ..., 1)`, or one of `x`'s own rank.

    Plain broadcasting lines `(batch,)` up with the last axis of `x`, which is silently wrong for square images whose
    side is the batch size.

    Args:
        t: 0-d (the solvers pass that), `(batch,)` (training passes that), or of `x`'s rank with axes of length 1 or
            its.
        x: a state, `(batch, ...)`.

    Raises:
        ValueError: for any other shape.
    """
    fits = t.ndim == x.ndim and all(m in (1, n) for m, n in zip(t.shape, x.shape, strict=True))
    if t.ndim == 0 or fits:
        return t.shape
    if t.ndim == 1 and t.shape[0] == x.shape[0]:
        return torch.Size((*t.shape, *(1 for _ in x.shape[1:])))
    raise ValueError(
        f"`t` must be 0-d, (batch,), (batch, 1, ..., 1) or of the state's shape; got {tuple(t.shape)} for a state of "
        f"{tuple(x.shape)}."
    )
