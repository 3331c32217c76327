"""Hybrid masks: every image gets one of several kinds."""

import math
from dataclasses import dataclass
from itertools import accumulate
from typing import final

import torch
from jaxtyping import Bool
from torch import Tensor

from fm_ext.mask.box import RandomBox
from fm_ext.mask.brush import FreeForm
from fm_ext.mask.irregular import Irregular
from fm_ext.mask.mask import Mask, pixel_bounds


@final
@dataclass(frozen=True, kw_only=True)
class Hybrid(Mask):
    """One of several masks per image, with given weights, as LaMa mixes boxes and strokes.

    Every image gets kind i with probability `weights[i]`. The kinds of a batch are balanced: each
    comes up as often as its share of the batch, rounded up or down at random, in random order. So no
    batch lacks a kind, and hardly a mask is drawn in vain.

    Args:
        masks: The kinds: any [`Mask`][fm_ext.mask.Mask], a Hybrid too.
        weights: How often each kind is drawn, above 0, of any sum; all alike if None.
        area: Bounds of the missing fraction for all kinds, on top of their own.
    """

    masks: tuple[Mask, ...] = (RandomBox(), FreeForm(), Irregular())
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.masks:
            raise ValueError("`masks` must name at least one mask; got ().")
        weights = self.weights
        if weights is None:
            return
        if len(weights) != len(self.masks) or not all(0 < w < math.inf for w in weights):
            raise ValueError(
                f"`weights` must be {len(self.masks)} finite numbers above 0, one per mask; got "
                f"{weights}; leave a mask out to give it weight 0."
            )

    def draw(
        self,
        batch: int,
        size: tuple[int, int],
        pixels: tuple[int, int],
        device: torch.device,
        generator: torch.Generator | None,
    ) -> Bool[Tensor, "batch 1 height width"]:
        """See [`Mask.draw`][fm_ext.mask.Mask.draw]."""
        weights = self.weights or (1.0,) * len(self.masks)
        shares = [batch * weight / sum(weights) for weight in weights]
        numbers = [min(batch, math.floor(share) + 1) for share in shares]
        pool = torch.cat(
            [
                mask.draw(number, size, self._bounds(mask, size, pixels), device, generator)
                for mask, number in zip(self.masks, numbers, strict=True)
            ]
        )
        # Image i takes the kind whose share of the line from 0 to batch holds the point i + u, with
        # one random u for all: a share holds at most so many points as it is long, rounded up.
        offsets = list(accumulate(numbers, initial=0))[:-1]
        ends = torch.tensor(list(accumulate(shares))[:-1], dtype=torch.float32, device="cpu")
        ends = ends.to(device, non_blocking=True)
        offset, most = torch.tensor([offsets, numbers], device="cpu").to(device, non_blocking=True)
        index = torch.arange(batch, device=device)
        shift = torch.rand((), device=device, dtype=torch.float32, generator=generator)
        kind = torch.searchsorted(ends, index + shift, right=True)
        rank = index - torch.searchsorted(kind, kind)
        chosen = offset[kind] + torch.minimum(rank, most[kind] - 1)
        order = torch.randperm(batch, device=device, generator=generator)
        return pool.index_select(0, chosen[order])

    def _bounds(
        self, mask: Mask, size: tuple[int, int], pixels: tuple[int, int]
    ) -> tuple[int, int]:
        """The numbers of pixels that both this mask and one of its kinds allow."""
        low, high = pixel_bounds(mask.area, size[0] * size[1])
        if low > pixels[1] or high < pixels[0]:
            raise ValueError(
                f"`area` of a Hybrid must overlap the `area` of each of its masks; got {self.area} and "
                f"{mask.area} of {type(mask).__name__}: widen one of the two."
            )
        return max(low, pixels[0]), min(high, pixels[1])
