"""Brush strokes: chains of segments with round ends, and the pixels of each row that they cover."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class Strokes(NamedTuple):
    """Segments drawn with a round brush, in pixels: the first pixel reaches from 0 to 1.

    Attributes:
        start: Where each segment starts, (x, y).
        end: Where it ends.
        radius: Of the brush; 0 paints nothing.
    """

    start: Float[Tensor, "batch segment 2"]
    end: Float[Tensor, "batch segment 2"]
    radius: Float[Tensor, "batch segment"]


def share_out(
    batch: int,
    strokes: tuple[int, int],
    segments: tuple[int, int],
    device: torch.device,
    generator: torch.Generator | None,
) -> tuple[Int[Tensor, "batch segment"], Bool[Tensor, "batch segment"]]:
    """Share a random number of segments out among a random number of strokes, evenly.

    Returns:
        For each segment the index of the first segment of its stroke, and whether it is used at all;
        segments that are not count as the last stroke's.
    """
    number, total = (
        torch.randint(low, high + 1, (batch, 1), device=device, generator=generator)
        for low, high in (strokes, segments)
    )
    index = torch.arange(segments[1], device=device)
    stroke = torch.minimum(index * number // total, number - 1)
    return -(-stroke * total // number), index < total


def between(
    bounds: tuple[float, float], noise: Float[Tensor, "batch segment"]
) -> Float[Tensor, "batch segment"]:
    """Numbers in `bounds` from numbers in [0, 1)."""
    return bounds[0] + (bounds[1] - bounds[0]) * noise


def far_corner(size: tuple[int, int], like: Tensor) -> Float[Tensor, "2"]:
    """Where an image of this height and width ends, (x, y), as a tensor beside `like`."""
    corner = torch.tensor([size[1], size[0]], dtype=like.dtype, device="cpu")
    return corner.to(like.device, non_blocking=True)


def chain(
    origin: Float[Tensor, "2 batch segment"],
    angle: Float[Tensor, "batch segment"],
    length: Float[Tensor, "batch segment"],
    radius: Float[Tensor, "batch segment"],
    first: Int[Tensor, "batch segment"],
    size: tuple[int, int],
) -> Strokes:
    """String segments together to strokes; a vertex outside the image is mirrored at the border.

    Args:
        origin: Where a stroke starts, (x, y) relative to the image; read at its first segment.
        angle: Direction of each segment, in radians.
        length: Of each segment, in pixels.
        radius: Of the brush, in pixels.
        first: Index of the first segment of each segment's stroke.
        size: Height and width of the image.
    """
    step = torch.stack([angle.cos(), angle.sin()]) * length
    border = far_corner(size, step)[:, None, None]
    end = step.cumsum(2)
    begin = end - step
    shift = (border * origin - begin).gather(2, first.expand_as(step))
    vertices = torch.stack([begin + shift, end + shift])
    start, end = border - (border - vertices.remainder(2 * border)).abs()
    return Strokes(start.permute(1, 2, 0), end.permute(1, 2, 0), radius)


def spans(strokes: Strokes, size: tuple[int, int]) -> Int[Tensor, "2 height segment batch"]:
    r"""For each row and segment the pixels `spans[0] <= x < spans[1]` whose centres are covered.

    With the segment turned so that it runs down from $(x_0, y_0)$ by $(d_x, d_y)$, $d_y \ge 0$, and
    $e = y - y_0$, the brush reaches furthest to the left (-) or right (+) of row $y$ when it has come
    down by $u = \min(\max(e \pm r d_x / |d|, 0), d_y)$, at a tangent point or at an end, and reaches
    $x_0 + u\,d_x / d_y \pm \sqrt{\max(r^2 - (u - e)^2, 0)}$ then. In a row that it does not meet, both are
    the same point and the span is empty.
    """
    height, width = size
    # Segments and images side by side in the last axis: every operation runs along memory.
    start, end = (point.permute(2, 1, 0).flatten(1) for point in strokes[:2])
    radius = strokes.radius.t().flatten()
    down = start[1] <= end[1]
    x, y = torch.where(down, start, end)
    dx, dy = torch.where(down, end - start, start - end)
    dy = dy.clamp_min(1e-6)
    tangent = radius * dx / torch.hypot(dx, dy)
    below = torch.arange(0.5, height, device=x.device, dtype=x.dtype)[:, None] - y

    reach = below + torch.stack([-tangent, tangent])[:, None]
    torch.minimum(reach.clamp_min_(0), dy, out=reach)
    root = reach - below
    torch.sub(radius.square(), root.mul_(root), out=root)
    # Not 0, whose root takes MKL 40 times as long; 1e-15 is lost in the sums below.
    root.clamp_min_(1e-30).sqrt_()
    edges = reach.mul_(dx / dy).add_(x)
    edges[0].sub_(root[0])
    edges[1].add_(root[1])
    # The centre of pixel i is at i + 0.5, so that the first one covered is floor(left + 0.5).
    columns = edges.add_(0.5).clamp_(0, width).int()
    return columns.view(2, height, *strokes.radius.t().shape)
