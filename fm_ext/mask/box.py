"""Boxes: one rectangle per image, in the centre or anywhere."""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from fm_ext.mask.mask import Mask, check_range, unreachable


@final
@dataclass(frozen=True, kw_only=True)
class CenterBox(Mask):
    """A box in the exact centre, as wide a part of the image as `side` says.

    By default half the height and half the width, the centre mask of Palette (Saharia et al. 2022,
    https://arxiv.org/abs/2111.05826). The margins on opposite sides are equal to the pixel, so a
    box has the parity of the image and is rounded up to it: 14 of 28, 16 of 30, 15 of 29 pixels.

    Args:
        side: Smallest and largest height and width of the box, relative to the image's, in (0, 1]. If
            they differ, the size is uniform over all sizes that `side` and `area` admit.
        area: Bounds of the missing fraction, see [`Mask`][fm_ext.mask.Mask].
    """

    side: tuple[float, float] = (0.5, 0.5)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("side", self.side, 0.0, 1.0, strict=True)

    def draw(
        self,
        batch: int,
        size: tuple[int, int],
        pixels: tuple[int, int],
        device: torch.device,
        generator: torch.Generator | None,
    ) -> Bool[Tensor, "batch 1 height width"]:
        """See [`Mask.draw`][fm_ext.mask.Mask.draw]."""
        sides = []
        for n in size:
            # 1e-9: a margin that is whole on paper is not rounded down for a rounding error.
            widest, narrowest = (int(n * (1 - side) / 2 + 1e-9) for side in self.side)
            sides.append(range(n - 2 * widest, n - 2 * narrowest + 1, 2))
        box = _random_size(batch, sides, size, pixels, device, generator)
        margin = [(n - length) // 2 for n, length in zip(size, box, strict=True)]
        return _fill(margin, box, size)


@final
@dataclass(frozen=True, kw_only=True)
class RandomBox(Mask):
    """A box of random size anywhere inside the image.

    The size is uniform over all whole sizes that `side` and `area` admit, the position uniform over
    all where the box fits.

    Args:
        side: Smallest and largest height and width of the box, relative to the image's, in (0, 1].
            Rounded to whole pixels, at least one.
        area: Bounds of the missing fraction, see [`Mask`][fm_ext.mask.Mask].
    """

    side: tuple[float, float] = (0.25, 0.75)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("side", self.side, 0.0, 1.0, strict=True)

    def draw(
        self,
        batch: int,
        size: tuple[int, int],
        pixels: tuple[int, int],
        device: torch.device,
        generator: torch.Generator | None,
    ) -> Bool[Tensor, "batch 1 height width"]:
        """See [`Mask.draw`][fm_ext.mask.Mask.draw]."""
        small, large = self.side
        sides = [range(max(1, round(n * small)), max(1, round(n * large)) + 1) for n in size]
        box = _random_size(batch, sides, size, pixels, device, generator)
        noise = torch.randint(1 << 62, (2, batch), device=device, generator=generator)
        corner = [u % (n - length + 1) for u, n, length in zip(noise, size, box, strict=True)]
        return _fill(corner, box, size)


def _random_size(
    batch: int,
    sides: list[range],
    size: tuple[int, int],
    pixels: tuple[int, int],
    device: torch.device,
    generator: torch.Generator | None,
) -> list[Int[Tensor, " batch"]]:
    """Heights and widths, uniform over the pairs out of `sides` whose area lies inside `pixels`.

    To a height h belong the widths from ceil(low / h) to floor(high / h). The pairs are numbered
    height by height, and one integer picks a number: no pair is drawn in vain.
    """
    heights, widths = (torch.tensor(side, device="cpu") for side in sides)
    first = torch.searchsorted(widths, -(-pixels[0] // heights))
    last = torch.searchsorted(widths, pixels[1] // heights, right=True)
    pairs = (last - first).clamp(0).cumsum(0)
    if not (total := int(pairs[-1])):
        image = size[0] * size[1]
        areas = (heights[:, None] * widths).unique()
        split = torch.searchsorted(areas, pixels[0])
        nearest = areas[max(0, split - 1) : split + 1].tolist()
        area = (pixels[0] / image, pixels[1] / image)
        raise ValueError(unreachable("a box of these sides", area, image, nearest))
    ends, shift = torch.stack([pairs, last - pairs]).to(device, non_blocking=True)
    pick = torch.randint(total, (batch,), device=device, generator=generator)
    row = torch.searchsorted(ends, pick, right=True)
    column = shift[row] + pick
    return [s.start + s.step * index for s, index in zip(sides, (row, column), strict=True)]


def _fill(
    corner: list[Int[Tensor, " batch"]], box: list[Int[Tensor, " batch"]], size: tuple[int, int]
) -> Bool[Tensor, "batch 1 height width"]:
    """The product of two intervals, `corner <= index < corner + box`."""
    sides = []
    for n, start, length in zip(size, corner, box, strict=True):
        offset = torch.arange(n, device=start.device) - start[:, None]
        sides.append(((offset >= 0) & (offset < length[:, None])).view(torch.uint8))
    rows, columns = sides
    # On bytes, `&` takes a sixteenth of the time that it takes on bools.
    return (rows[:, None, :, None] & columns[:, None, None, :]).view(torch.bool)
