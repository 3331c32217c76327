"""Entries and spans: holes in sequences, and pixels and columns of images that are missing at random."""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from fm_ext.mask.mask import Mask, check_range, unreachable


@final
@dataclass(frozen=True, kw_only=True)
class RandomEntries(Mask):
    """Entries anywhere, each for itself: letters of a sentence, pixels of an image.

    How many are missing is uniform over all numbers that `area` admits, and so is which they are: every set of that
    many entries is as likely as any other.

    Args:
        area: Bounds of the missing fraction, see [`Mask`][fm_ext.mask.Mask].
    """

    def draw(
        self,
        batch: int,
        size: tuple[int, int],
        pixels: tuple[int, int],
        device: torch.device,
        generator: torch.Generator | None,
    ) -> Bool[Tensor, "batch 1 height width"]:
        """See [`Mask.draw`][fm_ext.mask.Mask.draw]."""
        low, high = pixels
        number = low + _whole_numbers(batch, device, generator) % (high - low + 1)
        total = torch.full_like(number, size[0] * size[1])
        chosen = _subset(total, number, size[0] * size[1], generator)
        return chosen.view(batch, 1, *size)


@final
@dataclass(frozen=True, kw_only=True)
class RandomSpans(Mask):
    r"""Runs of neighbours along the last axis: words of a sentence, gaps in a sound, frames of a video.

    In an image whole columns are missing, which in a spectrogram `(batch, channel, frequency, time)` are stretches of
    time. How many columns are missing is uniform over all numbers $n$ that `area` and `spans` admit; then how many
    spans they form is, over all numbers $k$; then which they are, over all
    $\binom{n - 1}{k - 1} \binom{L - n + 1}{k}$ ways to part $n$ of $L$ columns into $k$ spans with something known
    between them. So spans of one mask differ in length, and are $n / k$ long on average (as in T5, Raffel et al., arXiv
    1910.10683, section 3.1.4, where both numbers are fixed).

    Args:
        spans: Smallest and largest number of spans.
        area: Bounds of the missing fraction, see [`Mask`][fm_ext.mask.Mask].
    """

    spans: tuple[int, int] = (1, 3)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("spans", self.spans, 1, whole=True)

    def draw(
        self,
        batch: int,
        size: tuple[int, int],
        pixels: tuple[int, int],
        device: torch.device,
        generator: torch.Generator | None,
    ) -> Bool[Tensor, "batch 1 height width"]:
        """See [`Mask.draw`][fm_ext.mask.Mask.draw]."""
        height, width = size
        least, most = self.spans
        low, high = self._columns(size, pixels)
        if high == 0:
            return torch.zeros(batch, 1, *size, dtype=torch.bool, device=device)
        noise = _whole_numbers(2 * batch, device, generator).view(2, batch)
        missing = low + noise[0] % (high - low + 1)
        known = width - missing
        most_here = torch.minimum(missing, known + 1).clamp(max=most)
        spans = least + noise[1] % (most_here - least + 1)

        # A cut after missing column j ends a span; a span stands before one of the known columns, or at the end.
        cut = _subset(missing - 1, spans - 1, width, generator)
        place = _subset(known + 1, spans, width + 1, generator)
        span = cut.long().cumsum(1) - cut.long()  # of each missing column: the cuts before it
        before = (
            place.long().sort(dim=1, descending=True, stable=True).indices
        )  # known columns, span by span
        number = torch.arange(width, device=device)
        column = number + before.gather(1, span)
        column = column.where(number < missing[:, None], width)  # one past the end: no column
        line = torch.zeros(batch, width + 1, dtype=torch.bool, device=device)
        line.scatter_(1, column, True)
        return line[:, None, None, :width].repeat(1, 1, height, 1)

    def _columns(self, size: tuple[int, int], pixels: tuple[int, int]) -> tuple[int, int]:
        """Fewest and most columns that may be missing.

        k spans need k missing columns, and k - 1 known ones between them.
        """
        height, width = size
        least = self.spans[0]
        if pixels[1] == 0:
            return 0, 0
        if width < 2 * least - 1:
            raise ValueError(
                f"`spans` must fit with something known between them: {least} take at least {2 * least - 1} entries "
                f"along the last axis; got {width}. Fix: `spans=(1, {self.spans[1]})`."
            )
        fewest, most = (
            max(-(-pixels[0] // height), least),
            min(pixels[1] // height, width + 1 - least),
        )
        if fewest > most:
            total = height * width
            reached = [height * n for n in range(least, width + 2 - least)]
            below = [n for n in reached if n < pixels[0]][-1:]
            above = [n for n in reached if n >= pixels[0]][:1]
            area = pixels[0] / total, pixels[1] / total
            what = f"a mask of spans, {least} or more," if least > 1 else "a mask of spans"
            raise ValueError(unreachable(what, area, total, below + above))
        return fewest, most


def _whole_numbers(
    count: int, device: torch.device, generator: torch.Generator | None
) -> Int[Tensor, " count"]:
    """Whole numbers so large that a remainder of one is uniform but for a part in 10^14."""
    return torch.randint(1 << 62, (count,), device=device, generator=generator)


def _subset(
    total: Int[Tensor, " batch"],
    number: Int[Tensor, " batch"],
    width: int,
    generator: torch.Generator | None,
) -> Bool[Tensor, "batch width"]:
    """Which of the first `total` of `width` places are chosen: `number` of them, every set alike."""
    device = total.device
    order = torch.rand(len(total), width, device=device, dtype=torch.float32, generator=generator)
    outside = torch.arange(width, device=device) >= total[:, None]
    first = order.masked_fill(outside, 2.0).argsort(1)
    chosen = torch.arange(width, device=device) < number[:, None]
    return torch.zeros_like(chosen).scatter_(1, first, chosen)
