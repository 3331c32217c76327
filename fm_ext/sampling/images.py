"""Images as they would be saved."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor


def to_uint8(images: Float[Tensor, " batch *dim"]) -> UInt8[Tensor, " batch *dim"]:
    """$127.5 (x + 1)$, cut to 0..255 and rounded: what a PNG file would hold of images in [-1, 1].

    Judge samples after it, for the images that they are compared with went through it. `load_images` inverts it
    exactly.

    Args:
        images: about in [-1, 1]; what lies outside is cut off, as a file would.

    Raises:
        TypeError: for images that are not floating point, such as uint8 ones.
        ValueError: for NaN or infinity.
    """
    if not images.is_floating_point():
        raise TypeError(
            f"`images` must be floating point, in about [-1, 1]; got {images.dtype}. `Samples.to_float()` gives them."
        )
    if not images.isfinite().all():
        raise ValueError(
            "`images` must be finite; the model or the solver returned NaN or infinity."
        )
    pixels = (images.to(torch.promote_types(images.dtype, torch.float32)) + 1) * 127.5
    return pixels.round().clamp(0, 255).to(torch.uint8)
