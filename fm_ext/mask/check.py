"""What every user of a mask asks of it."""

import torch
from torch import Tensor


def check_mask(mask: Tensor, x: Tensor, like: str = "x_1") -> None:
    """Raises unless `mask` is bool and broadcasts to `x` without adding axes or entries."""
    if mask.dtype != torch.bool:
        raise TypeError(
            f"`mask` must be bool with True = missing (to be generated); got {mask.dtype}. "
            "Write `mask.bool()`, or `mask == 0` if yours marks the known pixels."
        )
    fits = mask.ndim == x.ndim and all(
        m in (1, n) for m, n in zip(mask.shape, x.shape, strict=True)
    )
    if not fits:
        raise ValueError(
            f"`mask` must have as many axes as `{like}`, each of its length or 1, for images "
            f"(batch, 1, height, width); got mask {tuple(mask.shape)} for {like} {tuple(x.shape)}."
        )
