"""Free-form masks: strokes that go to and fro, as a hand scribbles."""

import math
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool
from torch import Tensor

from fm_ext.mask.mask import Mask, check_range
from fm_ext.mask.paint import paint
from fm_ext.mask.stroke import between, chain, share_out


@final
@dataclass(frozen=True, kw_only=True)
class FreeForm(Mask):
    r"""Zigzag brush strokes: the free-form masks of DeepFill v2.

    Each stroke has one width and one heading; its segments leave the heading to the left and to the
    right in turn, and are mirrored at the border. The defaults follow Yu et al. 2019
    (https://arxiv.org/abs/1806.03589, algorithm 1) and the code released with it: a turn of
    $2\pi/5 \pm 2\pi/15$, a mean length of an eighth of the diagonal. They hide 15 % of an image on
    average, 5 to 30 % almost always.

    Lengths and widths are relative to $\sqrt{hw}$, the side of a square image.

    Args:
        strokes: Smallest and largest number of strokes.
        segments: Smallest and largest number of segments of all strokes together, shared out evenly.
        length: Smallest and largest length of a segment.
        width: Smallest and largest width of a stroke, above 0.
        turn: Smallest and largest angle between a segment and its stroke's heading, in radians.
        area: Bounds of the missing fraction, see [`Mask`][fm_ext.mask.Mask]. Strokes that hide too
            much or too little are drawn smaller or larger, and with a wider brush where larger ones
            do not fit.
    """

    strokes: tuple[int, int] = (1, 3)
    segments: tuple[int, int] = (6, 18)
    length: tuple[float, float] = (0.05, 0.3)
    width: tuple[float, float] = (0.05, 0.15)
    turn: tuple[float, float] = (4 * math.pi / 15, 8 * math.pi / 15)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("strokes", self.strokes, 1, whole=True)
        check_range("segments", self.segments, 1, whole=True)
        check_range("length", self.length, 0)
        check_range("width", self.width, 0, 1, strict=True)
        check_range("turn", self.turn, 0, math.pi)

    def draw(
        self,
        batch: int,
        size: tuple[int, int],
        pixels: tuple[int, int],
        device: torch.device,
        generator: torch.Generator | None,
    ) -> Bool[Tensor, "batch 1 height width"]:
        """See [`Mask.draw`][fm_ext.mask.Mask.draw]."""
        first, used = share_out(batch, self.strokes, self.segments, device, generator)
        noise = torch.rand(7, *first.shape, device=device, dtype=torch.float32, generator=generator)
        heading, width = math.tau * noise[2].gather(1, first), noise[3].gather(1, first)
        side = 1 - 2 * (torch.arange(first.shape[1], device=device) % 2)
        angle = heading + side * between(self.turn, noise[4])
        unit = math.sqrt(size[0] * size[1])
        length = unit * between(self.length, noise[5]) * used
        radius = unit / 2 * between(self.width, width) * used
        strokes = chain(noise[:2], angle, length, radius, first, size)
        return paint(strokes, size, pixels, wish=noise[6, :, 0])
