"""The seam of a filled hole, and the diversity of its fillings, neither of which PSNR sees."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fm_ext.metrics.hole import check_hole
from fm_ext.utils.inputs import check_mask


def seam_gradient(
    image: Float[Tensor, "batch channel height width"],
    mask: Bool[Tensor, "#batch #channel #height #width"],
) -> Float[Tensor, ""]:
    r"""How much larger the steps across the border of a hole are than those inside it.

    $$\frac{\mathrm{mean}\, |x_p - x_q| \text{ over neighbours with one of } p, q \text{ missing}}
    {\mathrm{mean}\, |x_p - x_q| \text{ over neighbours with both missing}}$$

    Neighbours share a side; means are over all images and channels together. Above 1 a seam shows, if the holes lie
    anywhere in the image; since content may change at their border, compare with the figure of the true images. Noise
    inside the hole lowers it as well, so it means something only beside PSNR or a distance.

    Args:
        image: filled images, in any range.
        mask: bool, True = missing; each axis of the image's length or 1.

    Returns:
        The ratio; infinite where only the insides are constant.

    Raises:
        TypeError: if the mask is not bool.
        ValueError: if the mask does not fit, no hole has a border and an inside of two neighbouring pixels, or an
            image that is constant in both.
    """
    check_mask(mask, image, like="image")
    image = image.to(torch.promote_types(image.dtype, torch.float32))
    mask = mask.expand_as(image)
    steps, crossing, inside = [], [], []
    for axis in (-2, -1):
        length = image.shape[axis] - 1
        first, second = (mask.narrow(axis, start, length) for start in (0, 1))
        steps.append(image.diff(dim=axis).abs().flatten())
        crossing.append((first ^ second).flatten())
        inside.append((first & second).flatten())
    step, cross, within = (torch.cat(parts) for parts in (steps, crossing, inside))
    if not cross.any() or not within.any():
        raise ValueError(
            "`mask` must have holes with a border and with two missing pixels side by side; it has none."
        )
    border, inner = step[cross].mean(), step[within].mean()
    if border == 0 and inner == 0:
        raise ValueError(
            "`image` must change at the border of its holes or inside; it is constant there."
        )
    return border / inner


def fill_diversity(
    fills: Float[Tensor, "batch fill channel height width"],
    mask: Bool[Tensor, "#batch #channel #height #width"],
) -> Float[Tensor, ""]:
    r"""Standard deviation between several fillings of the same holes, at missing pixels.

    $$\Big(\mathrm{mean}_{m = 1} \frac{1}{K - 1} \sum_k (x_k - \bar x)^2\Big)^{1/2}$$

    The mean is over the missing entries of all images together. 0 where all fillings agree. It can be checked: for
    samples of the true posterior, the root mean squared error of one filling is $\sqrt 2$ times this number (the
    truth is then one more filling); a larger factor means fillings too alike, or wrong.

    Args:
        fills: K fillings of each image, K at least 2.
        mask: bool, True = missing; each axis of the image's length or 1.

    Raises:
        TypeError: if the mask is not bool.
        ValueError: if nothing is missing, the mask does not fit, or for fewer than two fillings.
    """
    if fills.shape[1] < 2:
        raise ValueError(
            f"`fills` must hold at least 2 fillings of each image; got {fills.shape[1]}."
        )
    variance = fills.to(torch.promote_types(fills.dtype, torch.float32)).var(1)
    return variance[check_hole(mask, variance, like="one filling")].mean().sqrt()
