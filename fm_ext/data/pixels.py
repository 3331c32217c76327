"""From a decoded image of any mode and size to uint8 pixels, and from those to [-1, 1]."""

from typing import Literal

import numpy as np
import PIL.Image
from jaxtyping import Float32, UInt8
from torch import Tensor

Crop = Literal["center", "random"] | None
PixelRange = tuple[float, float]

_GREY = ("1", "L", "LA", "La")


class BrokenRule(ValueError):
    """A rule that an image breaks; the message goes on after "the image"."""


def to_grey_or_rgb(
    image: PIL.Image.Image, pixel_range: PixelRange | None = None
) -> PIL.Image.Image:
    """The same picture in mode L (if it is grey) or RGB, 8 bits, opaque.

    Transparent pixels are composited on white; palettes and CMYK become RGB. Modes of more than 8 bits (I, I;16, F) do
    not tell what white is: 12 bits of a scanner, millimetres of a depth camera and numpy's integers from 0 to 255 look
    alike. So their range is given, and its ends become 0 and 255, rounded.

    Args:
        image: decoded.
        pixel_range: black and white of a mode that has no range of its own.

    Raises:
        BrokenRule: a mode that has no range of its own, and none is given or pixels lie outside of it.
    """
    transparent = image.has_transparency_data
    if image.mode in ("L", "RGB") and not transparent:
        return image
    if image.mode[0] in "IF":
        return _scaled(image, pixel_range)
    opaque = "L" if image.mode in _GREY else "RGB"
    if not transparent:
        return image.convert(opaque)
    if image.mode == "La":  # PIL converts premultiplied grey to LA only
        image = image.convert("LA")
    white = PIL.Image.new("RGBA", image.size, "white")
    white.alpha_composite(image.convert("RGBA"))
    return white.convert(opaque)


def _scaled(image: PIL.Image.Image, pixel_range: PixelRange | None) -> PIL.Image.Image:
    pixels = np.array(image, np.float64)
    clear = pixels == image.info.get("transparency")  # one grey value may stand for transparent
    shown = pixels[~clear]
    lowest, highest = (shown.min(), shown.max()) if shown.size else (0.0, 0.0)
    if pixel_range is None:
        raise BrokenRule(
            f"has pixels of mode {image.mode}, which does not tell what white is; here they lie in "
            f"{lowest:g}..{highest:g}. Fix: `pixel_range=(0, 255)` for 8 bits, `(0, 4095)` for 12, `(0, 65535)` for "
            "16, or what else black and white are"
        )
    black, white = pixel_range
    if not black <= lowest <= highest <= white:
        raise BrokenRule(
            f"has pixels of mode {image.mode} outside of `pixel_range`, {black:g}..{white:g}; got "
            f"{lowest:g}..{highest:g}"
        )
    pixels[clear] = white
    levels = (pixels - black) * (255 / (white - black))
    return PIL.Image.fromarray(np.rint(levels).astype(np.uint8))


def fit(
    image: PIL.Image.Image, size: tuple[int, int], crop: Crop, place: float = 0.5
) -> PIL.Image.Image:
    """Resize to `size`, bicubic with antialiasing.

    The window is cut out of the source, before anything is scaled: an image of 20,000x1 pixels costs no more than what
    is kept of it.

    Args:
        image: of mode L or RGB.
        size: height and width in pixels.
        crop: "center" and "random" keep the aspect ratio: the image is scaled until it just covers
            `size`, and a window of that size is cut at `place`. None squeezes.
        place: where the window lies along the longer side, from 0, the top or the left, to just
            below 1, the bottom or the right; in whole pixels of the scaled image.
    """
    height, width = size
    top, left, bottom, right = 0.0, 0.0, float(image.height), float(image.width)
    if crop is not None:
        scale = max(height / image.height, width / image.width)
        scaled_height = max(height, round(image.height * scale))
        scaled_width = max(width, round(image.width * scale))
        start = int(place * (scaled_height - height + 1))
        top, bottom = (y * image.height / scaled_height for y in (start, start + height))
        start = int(place * (scaled_width - width + 1))
        left, right = (x * image.width / scaled_width for x in (start, start + width))
    box = (left, top, min(right, image.width), min(bottom, image.height))
    return image.resize((width, height), PIL.Image.Resampling.BICUBIC, box)


def to_float(images: UInt8[Tensor, "*batch"]) -> Float32[Tensor, "*batch"]:
    """$x / 127.5 - 1$: 0..255 to [-1, 1], both ends exact and symmetric about 0."""
    return images.float().sub_(127.5).mul_(1 / 127.5)
