"""PSNR and SSIM inside filled holes. Over the whole image the known pixels, which are right, would count too."""

from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

from fm_ext.utils.inputs import check_mask


def hole_psnr(
    image: Float[Tensor, "batch channel height width"],
    target: Float[Tensor, "batch channel height width"],
    mask: Bool[Tensor, "#batch #channel #height #width"],
) -> Float[Tensor, ""]:
    r"""Peak signal-to-noise ratio over the missing pixels of all images together, in dB.

    $$10 \log_{10} \frac{2^2}{\mathrm{mean}_{m = 1} (x - y)^2}$$

    Higher is better. A sample of a true posterior scores 3 dB less than the posterior's mean: compare like with like.

    Args:
        image: what was filled in, in [-1, 1].
        target: the truth, in [-1, 1].
        mask: bool, True = missing; each axis of the image's length or 1.

    Raises:
        TypeError: if the mask is not bool, or an image is not floating point.
        ValueError: if nothing is missing, the mask does not fit, or the images differ in shape or are not finite.
    """
    hole = check_pair(image, target, mask)
    return peak_signal_noise_ratio(image[hole], target[hole], data_range=2.0)


def hole_ssim(
    image: Float[Tensor, "batch channel height width"],
    target: Float[Tensor, "batch channel height width"],
    mask: Bool[Tensor, "#batch #channel #height #width"],
) -> Float[Tensor, ""]:
    """Structural similarity averaged over the windows that are centred at missing pixels, at most 1.

    The map is that of Wang et al. (IEEE Transactions on Image Processing 13(4), 2004), with Gaussian
    windows of 11 pixels; those at the rim of a hole see known pixels too.

    Args:
        image: what was filled in, in [-1, 1].
        target: the truth, in [-1, 1].
        mask: bool, True = missing; each axis of the image's length or 1.

    Raises:
        TypeError: if the mask is not bool, or an image is not floating point.
        ValueError: if nothing is missing, the mask does not fit, or the images differ in shape, are not finite, or are
            smaller than 6 pixels.
    """
    hole = check_pair(image, target, mask)
    if min(image.shape[-2:]) < 6:
        raise ValueError(
            f"`image` must have sides of at least 6 pixels for windows of 11; got {tuple(image.shape)}."
        )
    _, similarity = structural_similarity_index_measure(
        image, target, data_range=2.0, return_full_image=True
    )
    return similarity[hole].mean()


def colour_error(
    image: Float[Tensor, "batch channel height width"],
    target: Float[Tensor, "batch channel height width"],
    mask: Bool[Tensor, "#batch #channel #height #width"],
    *,
    block: int = 8,
) -> Float[Tensor, ""]:
    r"""Root mean squared error of the colours of blocks: what a patch of foreign colour costs, and grain does not.

    Of the difference $d = x - y$ the mean $\bar d_b$ over the $n_b$ missing entries of each block and channel is taken:

    $$\Big(\sum_b n_b\, \bar d_b^2 \,\Big/ \sum_b n_b\Big)^{1/2}$$

    Lower is better; it is at most the root mean squared error of the entries, and that itself for blocks of one pixel.
    Independent noise of standard deviation s inside a hole adds s / `block` where PSNR sees s.

    Args:
        image: what was filled in, in [-1, 1].
        target: the truth, in [-1, 1].
        mask: bool, True = missing; each axis of the image's length or 1.
        block: side of the square blocks in pixels, at least 1, counted from the top left; those at the bottom and right
            may be cut.

    Raises:
        TypeError: if the mask is not bool, or an image is not floating point.
        ValueError: if nothing is missing, the mask does not fit, the images differ in shape or are not finite, or
            `block` is below 1.
    """
    hole = check_pair(image, target, mask)
    if block < 1:
        raise ValueError(f"`block` must be at least 1 pixel; got {block}.")
    difference = (image - target).to(torch.promote_types(image.dtype, torch.float32))

    sums = partial(F.avg_pool2d, kernel_size=block, ceil_mode=True, divisor_override=1)
    count = sums(hole.to(difference.dtype))
    total = sums(torch.where(hole, difference, 0))
    return (total.square() / count.clamp(min=1)).sum().div(count.sum()).sqrt()


def check_pair(image: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """The mask of `target`'s shape, once both images and it can be compared."""
    for name, pixels in (("image", image), ("target", target)):
        if not pixels.is_floating_point():
            raise TypeError(f"`{name}` must be floating point, in [-1, 1]; got {pixels.dtype}.")
    if image.shape != target.shape:
        raise ValueError(
            f"`image` and `target` must have one shape; got {tuple(image.shape)} and {tuple(target.shape)}."
        )
    if not (image.isfinite().all() and target.isfinite().all()):
        raise ValueError("`image` and `target` must be finite; one holds NaN or infinity.")
    return check_hole(mask, target)


def check_hole(mask: Tensor, target: Tensor, like: str = "target") -> Tensor:
    """The mask of `target`'s shape, once it is bool, fits, and something is missing."""
    check_mask(mask, target, like=like)
    if not mask.any():
        raise ValueError("`mask` must have missing pixels (True) to measure; it has none.")
    return mask.expand_as(target)
