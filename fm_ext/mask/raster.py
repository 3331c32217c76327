"""Strokes to bitmaps, band by band: most segments reach only a few rows."""

import torch
from jaxtyping import Int
from torch import Tensor

from fm_ext.mask import bitmap
from fm_ext.mask.stroke import Strokes, spans

BAND, BANDS = 32, 64  # rows of a band, and bands painted at once
GPU_BYTES = 1 << 28  # of the largest intermediate result where images are painted whole


def rasterise(
    strokes: Strokes,
    size: tuple[int, int],
    table: Int[Tensor, "length word"],
    *,
    selective: bool,
) -> Int[Tensor, "batch height word"]:
    """The pixels whose centres the strokes of each image cover.

    Args:
        strokes: What to paint, in pixels.
        size: Height and width.
        table: The prefixes of a row of this width.
        selective: Paint bands of rows, each with the segments that reach it, and bands with about as
            many of them together. This reads their numbers back from the device. Otherwise images
            are painted whole, with all their segments.
    """
    batch, segments = strokes.radius.shape
    height = min(BAND, size[0]) if selective else size[0]
    edges = torch.arange(0, size[0], height, device=table.device)
    bands = len(edges)

    y = torch.stack([strokes.start[..., 1], strokes.end[..., 1]])
    top, bottom = y.amin(0) - strokes.radius, y.amax(0) + strokes.radius
    reached = (bottom[:, None] > edges[:, None]) & (top[:, None] < edges[:, None] + height)
    reached = (reached & (strokes.radius > 0)[:, None]).flatten(0, 1)
    number, order = reached.sum(1).sort()
    segment = reached.byte().argsort(1, descending=True)[order]
    image, shift = order // bands, edges[order % bands]

    if selective:
        together, most = BANDS, [*number[BANDS - 1 :: BANDS].tolist(), *number[-1:].tolist()]
    else:
        together = max(1, GPU_BYTES // (2 * height * segments * table[0].nbytes))
        most = [segments] * -(-len(order) // together)
    flat = torch.cat([strokes.start, strokes.end, strokes.radius[..., None]], dim=-1)
    words = table.new_zeros(len(order), height, table.shape[1])
    for first, reaching in zip(range(0, len(order), together), most, strict=False):
        if reaching:
            part = slice(first, first + together)
            chosen = flat[image[part, None], segment[part, :reaching]]
            chosen[..., 1:4:2] -= shift[part, None, None]  # y counts from the band's first row
            near = Strokes(chosen[..., :2], chosen[..., 2:4], chosen[..., 4])
            words[order[part]] = bitmap.union(spans(near, (height, size[1])), table)
    return words.view(batch, bands * height, table.shape[1])[:, : size[0]]
