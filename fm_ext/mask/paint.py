"""Painting strokes, larger or smaller where needed, so that every area lies inside the bounds."""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fm_ext.mask import bitmap
from fm_ext.mask.stroke import Strokes, spans

ROUNDS = 6  # bounds 1 % apart are met by all but 1 or 2 shapes in 100
SMALLEST = -6.0
# Bytes of the largest intermediate result: one stays in a CPU's cache, the other fills a GPU.
CPU_BYTES, GPU_BYTES = 1 << 23, 1 << 28


def paint(
    strokes: Strokes,
    size: tuple[int, int],
    pixels: tuple[int, int],
    wish: Float[Tensor, " batch"],
    *,
    selective: bool | None = None,
) -> Bool[Tensor, "batch 1 height width"]:
    r"""Paint the strokes of each image, at a scale that brings their area into the bounds.

    A shape whose area is inside the bounds is left as it is. One that is too large is drawn smaller,
    one that is too small with a wider brush: at the first of up to `ROUNDS` scales that does. The
    scales follow from the rule of false position, $\log(-\log(1 - \text{area}))$ being almost linear in
    the logarithm of the scale. If none of them does, the largest shape below the bounds gets the pixels
    it lacks from the smallest shape above them, row by row: the bounds hold whatever they are.

    Args:
        strokes: What to paint, in pixels.
        size: Height and width.
        pixels: Lowest and highest number of missing pixels.
        wish: Where between the bounds to bring the area of a shape that is outside, in [0, 1].
        selective: Work on those images only that are still outside the bounds. This asks the device
            how many they are: free on a CPU, a stall on a GPU. The masks are the same. By default
            True on a CPU.
    """
    low, high = pixels
    total = size[0] * size[1]
    table = bitmap.prefixes(size[1], wish.device)
    if selective is None:
        selective = wish.device.type == "cpu"

    def level(count: Tensor) -> Tensor:
        return (count.clamp(0.5, total - 0.5) / -total).log1p().neg().log2()

    goal = level(low + wish * (high - low))
    words = table.new_zeros(len(wish), size[0], table.shape[1])
    count = table.new_zeros(len(wish))
    # The largest shape below the bounds and the smallest above them, each with its scale (a power of
    # two) and level: at first the empty and the full image.
    largest = (math.hypot(*size) / strokes.radius.amax(1)).log2()
    inner = torch.zeros_like(words), torch.full_like(wish, SMALLEST), level(count)
    outer = table[-1].expand_as(words), largest, level(count + total)
    scale, todo = torch.zeros_like(wish), slice(None)
    for _ in range(1 + ROUNDS):
        words[todo] = rasterise(scaled(strokes, scale, todo), size, table)
        count[todo] = bitmap.count(words[todo])
        small, large = count < low, count > high
        wrong = small | large
        todo = wrong.nonzero()[:, 0] if selective else slice(None)
        if selective and not wrong.any():
            break
        shape = words, scale, level(count)
        inner, outer = _choose(small, shape, inner), _choose(large, shape, outer)
        part = (goal - inner[2]) / (outer[2] - inner[2])
        scale = torch.lerp(inner[1], outer[1], part.clamp(0.02, 0.98)).where(wrong, scale)
    else:
        wrong = (count < low) | (count > high)
        lacking = low - bitmap.count(inner[0])
        filled = inner[0] | bitmap.first(outer[0] & ~inner[0], lacking)
        words = filled.where(wrong[:, None, None], words)
    return bitmap.unpack(words, size[1])[:, None]


def scaled(
    strokes: Strokes, scale: Float[Tensor, " batch"], images: slice | Int[Tensor, " image"]
) -> Strokes:
    """The strokes of some images, 2^scale times as wide and, if that is below 1, as long."""
    start, end, radius = (part[images] for part in strokes)
    factor = scale[images, None].exp2()
    corner, shrink = start[:, :1], factor.clamp(max=1)[..., None]
    return Strokes(
        torch.lerp(corner, start, shrink), torch.lerp(corner, end, shrink), radius * factor
    )


def rasterise(
    strokes: Strokes, size: tuple[int, int], table: Int[Tensor, "length word"]
) -> Int[Tensor, "batch height word"]:
    """The pixels whose centres the strokes of each image cover, as many images at once as fit."""
    batch, segments = strokes.radius.shape
    words = table.new_empty(batch, size[0], table.shape[1])
    memory = CPU_BYTES if table.device.type == "cpu" else GPU_BYTES
    chunk = max(1, memory // (2 * size[0] * segments * table[0].nbytes))
    for i in range(0, batch, chunk):
        part = Strokes(*(field[i : i + chunk] for field in strokes))
        words[i : i + chunk] = bitmap.union(spans(part, size), table)
    return words


def _choose(
    condition: Bool[Tensor, " batch"], new: tuple[Tensor, ...], old: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """`new` for the images where `condition` holds, `old` for the others."""
    words = new[0].where(condition[:, None, None], old[0])
    return words, *(a.where(condition, b) for a, b in zip(new[1:], old[1:], strict=True))
