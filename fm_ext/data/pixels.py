"""From a decoded image of any mode and size to uint8 pixels, and from those to [-1, 1]."""

from typing import Literal

import numpy as np
import PIL.Image
from jaxtyping import Float32, UInt8
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode, functional

Crop = Literal["center", "random"] | None

_GREY = ("1", "L", "LA", "La")


def to_grey_or_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """The same picture in mode L (if it is grey) or RGB, 8 bits, opaque.

    Transparent pixels are composited on white, palettes and CMYK become RGB, 16-bit grey is
    scaled by 255 / 65535 and rounded.

    Raises:
        ValueError: floating-point pixels, or integers outside 16 bits: their range is unknown.
    """
    transparent = image.has_transparency_data
    if image.mode in ("L", "RGB") and not transparent:
        return image
    if image.mode.startswith("I"):
        pixels = np.array(image, np.int64)
        if transparent:  # one grey value stands for transparent
            pixels[pixels == image.info["transparency"]] = 65535
        if pixels.min() < 0 or pixels.max() > 65535:
            raise ValueError(f"pixels of mode {image.mode} must lie in 0..65535")
        return PIL.Image.fromarray(((pixels * 255 + 32767) // 65535).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    opaque = "L" if image.mode in _GREY else "RGB"
    if not transparent:
        return image.convert(opaque)
    if image.mode == "La":  # PIL converts premultiplied grey to LA only
        image = image.convert("LA")
    white = PIL.Image.new("RGBA", image.size, "white")
    white.alpha_composite(image.convert("RGBA"))
    return white.convert(opaque)


def fit(
    image: UInt8[Tensor, "channel _ _"],
    size: tuple[int, int],
    crop: Crop,
    place: float = 0.5,
) -> UInt8[Tensor, "channel height width"]:
    """Resize to `size`, bicubic with antialiasing.

    Args:
        image: any height and width.
        size: height and width in pixels.
        crop: "center" and "random" keep the aspect ratio: the image is scaled until it just covers
            `size`, and a window of that size is cut at `place`. None squeezes.
        place: where the window lies along the longer side, from 0, the top or the left, to just
            below 1, the bottom or the right.
    """
    height, width = image.shape[-2:]
    scaled = size
    if crop is not None:
        scale = max(size[0] / height, size[1] / width)
        scaled = (max(size[0], round(height * scale)), max(size[1], round(width * scale)))
    if scaled != (height, width):
        image = functional.resize(
            image, list(scaled), interpolation=InterpolationMode.BICUBIC, antialias=True
        )
    top, left = (
        int(place * (large - small + 1)) for large, small in zip(scaled, size, strict=True)
    )
    return functional.crop(image, top, left, *size)


def to_float(images: UInt8[Tensor, "*batch"]) -> Float32[Tensor, "*batch"]:
    """$x / 127.5 - 1$: 0..255 to [-1, 1], both ends exact and symmetric about 0."""
    return images.float().sub_(127.5).mul_(1 / 127.5)
