"""Painting strokes, larger or smaller where needed, so that every area lies inside the bounds."""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fm_ext.mask import bitmap
from fm_ext.mask.raster import rasterise
from fm_ext.mask.stroke import Strokes, far_corner

ROUNDS = 6  # bounds 1 % apart are met by all but 1 or 2 shapes in 100
SMALLEST = -6.0


def paint(
    strokes: Strokes,
    size: tuple[int, int],
    pixels: tuple[int, int],
    wish: Float[Tensor, " batch"],
    *,
    selective: bool | None = None,
) -> Bool[Tensor, "batch 1 height width"]:
    r"""Paint the strokes of each image, at a scale that brings their area into the bounds.

    A shape whose area is inside the bounds is left as it is. Another is drawn larger or smaller, at the
    first of up to `ROUNDS` scales that does; once it spans the image, only its brush grows. The scales
    follow from the rule of false position, $\log(-\log(1 - \text{area}))$ being almost linear in the
    logarithm of the scale. If none of them does, the largest shape below the bounds gets the pixels it
    lacks from the smallest shape above them, row by row: the bounds hold whatever they are.

    Args:
        strokes: What to paint, in pixels.
        size: Height and width.
        pixels: Lowest and highest number of missing pixels.
        wish: Where between the bounds to bring the area of a shape that is outside, in [0, 1].
        selective: Work on those images only that are still outside the bounds. This asks the device
            how many they are: free on a CPU, a stall on a GPU. The masks are the same. By default
            True on a CPU.
    """
    if selective is None:
        selective = wish.device.type == "cpu"
    table = bitmap.prefixes(size[1], wish.device)
    words = rasterise(strokes, size, table, selective=selective)
    count = bitmap.count(words)
    if not selective or ((count < pixels[0]) | (count > pixels[1])).any():
        words = _fit(words, count, strokes, size, pixels, wish, table, selective)
    return bitmap.unpack(words, size[1])[:, None]


def _fit(
    words: Int[Tensor, "batch height word"],
    count: Int[Tensor, " batch"],
    strokes: Strokes,
    size: tuple[int, int],
    pixels: tuple[int, int],
    wish: Float[Tensor, " batch"],
    table: Int[Tensor, "length word"],
    selective: bool,
) -> Int[Tensor, "batch height word"]:
    """Bring the shapes whose `count` of pixels is outside the bounds inside, as `paint` says."""
    low, high = pixels
    total = size[0] * size[1]

    def level(count: Tensor) -> Tensor:
        return (count.clamp(0.5, total - 0.5) / -total).log1p().neg().log2()

    goal = level(low + wish * (high - low))
    # The largest shape below the bounds and the smallest above them, each with its scale (a power of
    # two) and level: at first the empty and the full image.
    largest = (math.hypot(*size) / strokes.radius.amax(1)).log2()
    inner = torch.zeros_like(words), torch.full_like(wish, SMALLEST), level(0 * count)
    outer = table[-1].expand_as(words), largest, level(0 * count + total)
    scale = torch.zeros_like(wish)
    for attempt in range(ROUNDS + 1):
        small, large = count < low, count > high
        wrong = small | large
        todo = wrong.nonzero()[:, 0] if selective else slice(None)
        if selective and not wrong.any():
            break
        shape = words, scale, level(count)
        inner, outer = _choose(small, shape, inner), _choose(large, shape, outer)
        if attempt == ROUNDS:
            lacking = low - bitmap.count(inner[0])
            filled = inner[0] | bitmap.first(outer[0] & ~inner[0], lacking)
            return filled.where(wrong[:, None, None], words)
        part = (goal - inner[2]) / (outer[2] - inner[2])
        scale = torch.lerp(inner[1], outer[1], part.clamp(0.02, 0.98)).where(wrong, scale)
        painted = rasterise(scaled(strokes, size, scale, todo), size, table, selective=selective)
        words[todo], count[todo] = painted, bitmap.count(painted)
    return words


def scaled(
    strokes: Strokes,
    size: tuple[int, int],
    scale: Float[Tensor, " batch"],
    images: slice | Int[Tensor, " image"],
) -> Strokes:
    """The strokes of some images, 2^scale times as large.

    The point (x, y) that stays is the one that divides the image as it divides the strokes' bounding
    box. They reach the borders on both sides at once then, where the box is as wide or high as the
    image; from there on only the brush grows.
    """
    start, end, radius = (part[images] for part in strokes)
    points, border = torch.cat([start, end], dim=1), far_corner(size, start)
    low, high = points.amin(1), points.amax(1)
    extent = (high - low).clamp_min(1e-6)
    stays = border * (low / (border - extent).clamp_min(1e-6)).clamp(0, 1)
    factor = scale[images, None].exp2()
    room = (border / extent).amin(1, keepdim=True).clamp_min(1)
    longer = torch.minimum(factor, room)[..., None]
    start, end = (torch.lerp(stays[:, None], vertex, longer) for vertex in (start, end))
    return Strokes(start, end, radius * factor)


def _choose(
    condition: Bool[Tensor, " batch"], new: tuple[Tensor, ...], old: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """`new` for the images where `condition` holds, `old` for the others."""
    words = new[0].where(condition[:, None, None], old[0])
    return words, *(a.where(condition, b) for a, b in zip(new[1:], old[1:], strict=True))
