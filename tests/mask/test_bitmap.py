"""Bitmaps against the same operations on bools."""

import pytest
import torch

from fm_ext.mask import bitmap

WIDTHS = [1, 7, 8, 28, 63, 64, 65, 100, 128, 200]


def random_bitmap(width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Words and the same pixels as bools."""
    spans = torch.randint(0, width + 1, (2, 9, 3, 5), dtype=torch.int32).sort(0).values
    words = bitmap.union(spans, bitmap.prefixes(width, torch.device("cpu")))
    column = torch.arange(width)
    pixels = ((column >= spans[0, ..., None]) & (column < spans[1, ..., None])).any(1)
    return words, pixels.transpose(0, 1)


@pytest.mark.parametrize("width", WIDTHS)
def test_union_and_unpack(width):
    words, pixels = random_bitmap(width)
    assert torch.equal(bitmap.unpack(words, width), pixels)


@pytest.mark.parametrize("width", WIDTHS)
def test_count(width):
    words, pixels = random_bitmap(width)
    assert torch.equal(bitmap.count(words), pixels.sum((1, 2)))
    full = torch.full((1, 3, 2), -1)
    assert bitmap.count(full).item() == 3 * 2 * 64


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.7, 1.0, 2.0])
def test_first_keeps_the_first_in_reading_order(width, share):
    words, pixels = random_bitmap(width)
    number = (pixels.sum((1, 2)) * share).long()
    expected = pixels.flatten(1) & (pixels.flatten(1).cumsum(1) <= number[:, None])
    kept = bitmap.unpack(bitmap.first(words, number), width)
    assert torch.equal(kept.flatten(1), expected)
