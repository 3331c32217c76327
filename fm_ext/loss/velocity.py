"""The conditional flow matching loss."""

from typing import Literal

import torch
from einops import reduce
from flow_matching.path import PathSample
from jaxtyping import Float
from torch import Tensor

from fm_ext.path.masked import MaskedPathSample


def velocity_loss(
    velocity: Float[Tensor, " batch *dim"],
    sample: PathSample,
    *,
    weight: Float[Tensor, "..."] | None = None,
    reduction: Literal["mean", "sum", "none"] = "mean",
) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
    r"""Squared velocity error, averaged over each sample's missing entries.

    $$\ell_i = \frac{w_i}{\sum_j m_{ij}} \sum_j m_{ij} \big(v_{ij} - \dot X_{t,ij}\big)^2$$

    with $m = 1$ where the entry is missing, and everywhere when the sample carries no mask (Lipman et al., arXiv
    2210.02747, equation 9). The average is taken per sample, so the scale of the loss depends neither on the area of
    the masks nor on the size of the images. A sample in which nothing is missing contributes 0.

    Args:
        velocity: the model's output at `(sample.x_t, sample.t)`, of `sample.dx_t`'s shape.
        sample: what `path.sample` returned; the mask of a `MaskedPathSample` is obeyed.
        weight: one factor a sample, for example a weighting of `t`. It multiplies; it is not normalised.
        reduction: "mean" or "sum" over the batch, or "none" for one loss a sample.

    Returns:
        A scalar, or `(batch,)` for "none"; at least float32, also for half-precision velocities.

    Raises:
        ValueError: for a velocity or weight of another shape, or an unknown reduction.
    """
    if velocity.shape != sample.dx_t.shape:
        raise ValueError(
            f"`velocity` must have the shape of `sample.dx_t`, {tuple(sample.dx_t.shape)}; got "
            f"{tuple(velocity.shape)}. A network with more input channels than image channels needs out_channels=."
        )
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"`reduction` must be 'mean', 'sum' or 'none'; got {reduction!r}.")
    dtype = torch.promote_types(velocity.dtype, torch.float32)
    error = velocity.to(dtype) - sample.dx_t.to(dtype)
    mask = sample.mask if isinstance(sample, MaskedPathSample) else None
    if mask is None:
        loss = reduce(error.square(), "batch ... -> batch", "mean")
    else:
        missing = mask.expand_as(error)
        total = reduce(torch.where(missing, error, 0).square(), "batch ... -> batch", "sum")
        loss = total / reduce(missing, "batch ... -> batch", "sum").clamp(min=1)
    if weight is not None:
        if weight.shape != loss.shape:
            raise ValueError(
                f"`weight` must hold one factor a sample, {tuple(loss.shape)}; got {tuple(weight.shape)}."
            )
        loss = loss * weight
    return loss if reduction == "none" else getattr(loss, reduction)()
