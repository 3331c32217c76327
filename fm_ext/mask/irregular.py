"""Irregular masks: a few long, wide chains of segments that leave large holes."""

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
class Irregular(Mask):
    r"""Wide polygonal chains: the large irregular holes of LaMa.

    Each segment has its own width and keeps within `turn` of the chain's heading, so that chains
    cross the image where `FreeForm` scribbles in a place. The defaults follow the wide masks of
    Suvorov et al. 2022 (https://arxiv.org/abs/2109.07161, section 2.3). They hide 40 % of an image
    on average, 10 to 70 % almost always; Liu et al. 2018 (https://arxiv.org/abs/1804.07723, section
    4.1) sort their irregular masks by area, which `area` does here.

    Lengths and widths are relative to $\sqrt{hw}$, the side of a square image.

    Args:
        strokes: Smallest and largest number of chains.
        segments: Smallest and largest number of segments of all chains together, shared out evenly.
        length: Smallest and largest length of a segment.
        width: Smallest and largest width of a segment, above 0.
        turn: Largest angle between a segment and its chain's heading, in radians.
        area: Bounds of the missing fraction, see [`Mask`][fm_ext.mask.Mask]. Strokes that hide too
            much or too little are drawn smaller or larger, and with a wider brush where larger ones
            do not fit.
    """

    strokes: tuple[int, int] = (1, 5)
    segments: tuple[int, int] = (2, 14)
    length: tuple[float, float] = (0.04, 0.8)
    width: tuple[float, float] = (0.02, 0.33)
    turn: float = math.pi / 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("strokes", self.strokes, 1, whole=True)
        check_range("segments", self.segments, 1, whole=True)
        check_range("length", self.length, 0)
        check_range("width", self.width, 0, 1, strict=True)
        check_range("turn", (0, self.turn), 0, math.pi)

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
        heading = math.tau * noise[2].gather(1, first)
        angle = heading + between((-self.turn, self.turn), noise[3])
        unit = math.sqrt(size[0] * size[1])
        length = unit * between(self.length, noise[4]) * used
        radius = unit / 2 * between(self.width, noise[5]) * used
        strokes = chain(noise[:2], angle, length, radius, first, size)
        return paint(strokes, size, pixels, wish=noise[6, :, 0])
