"""Entries and spans: every set, and every arrangement of spans, is as likely as any other."""

from itertools import combinations
from math import comb

import pytest
import torch

from fm_ext.mask import Hybrid, RandomEntries, RandomSpans


def spans(masks: torch.Tensor) -> torch.Tensor:
    """The number of spans of masks (batch, 1, length)."""
    line = masks[:, 0].int()
    return line[:, 0] + (line.diff(dim=1) == 1).sum(1)


def assert_alike(masks: torch.Tensor, outcomes: int) -> None:
    """Pearson's chi squared within five standard deviations of its mean."""
    seen, counts = masks.flatten(1).unique(dim=0, return_counts=True)
    assert len(seen) == outcomes
    expected = len(masks) / outcomes
    chi = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi - (outcomes - 1)) < 5 * (2 * (outcomes - 1)) ** 0.5


@pytest.mark.parametrize("size", [(6,), (2, 3)])
@pytest.mark.parametrize("number", [1, 2, 4])
def test_every_set_of_entries_is_alike(size, number):
    masks = RandomEntries(area=(number / 6, number / 6))(20_000, size)
    assert_alike(masks, comb(6, number))


def test_the_number_of_entries_is_uniform_over_what_is_allowed():
    masks = RandomEntries(area=(0.2, 0.7))(20_000, (10,))
    assert_alike(masks.sum((1, 2))[:, None], 6)


@pytest.mark.parametrize(("number", "count"), [(1, 1), (3, 1), (3, 2), (4, 2), (3, 3), (4, 4)])
def test_every_arrangement_of_spans_is_alike(number, count):
    masks = RandomSpans(spans=(count, count), area=(number / 8, number / 8))(20_000, (8,))
    assert masks.sum((1, 2)).unique().tolist() == [number]
    assert spans(masks).unique().tolist() == [count]
    arrangements = sum(
        1
        for places in combinations(range(8), number)
        if sum(place - 1 not in places for place in places) == count
    )
    assert arrangements == comb(number - 1, count - 1) * comb(8 - number + 1, count)
    assert_alike(masks, arrangements)


def test_the_numbers_of_columns_and_of_spans_are_uniform():
    masks = RandomSpans(spans=(1, 3), area=(0.3, 0.6))(30_000, (10,))
    both = torch.stack([masks.sum((1, 2)), spans(masks)], dim=1)
    assert_alike(both, 4 * 3)  # 3, 4, 5 or 6 columns in 1, 2 or 3 spans


def test_few_entries_form_few_spans():
    """Two missing columns cannot be three spans, nor can all but one."""
    for missing, most in ((2, 2), (9, 2), (10, 1)):
        masks = RandomSpans(spans=(1, 3), area=(missing / 10, missing / 10))(500, (10,))
        assert spans(masks).unique().tolist() == list(range(1, most + 1))


def test_spans_of_an_image_are_whole_columns():
    masks = RandomSpans()(50, (6, 20))
    assert torch.equal(masks, masks[:, :, :1].expand_as(masks))


def test_frames_of_a_video():
    """A mask of the frames alone broadcasts over pixels, axis by axis."""
    frames = RandomSpans()(4, (16,))[..., None, None]
    assert frames.shape == (4, 1, 16, 1, 1)


def test_a_hybrid_of_a_sequence():
    mixed = Hybrid(masks=(RandomEntries(), RandomSpans()), area=(0.25, 0.5))
    masks = mixed(40, (32,))
    assert masks.shape == (40, 1, 32)
    assert all(8 <= number <= 16 for number in masks.sum((1, 2)).tolist())


def test_spans_that_do_not_fit():
    with pytest.raises(
        ValueError, match=r"`spans` must fit .* 3 take at least 5 .* got 4\."
    ) as got:
        RandomSpans(spans=(3, 4))(2, (4,))
    assert "Fix: `spans=(1, 4)`" in str(got.value)
    assert RandomSpans(spans=(1, 4))(2, (4,)).shape == (2, 1, 4)
    with pytest.raises(ValueError, match=r"`area` must hold a fraction that a mask of spans, 3 or"):
        RandomSpans(spans=(3, 4), area=(0.1, 0.2))(2, (10,))
    with pytest.raises(ValueError, match=r"the nearest are 8/24 = 0\.333333 and 12/24 = 0\.5"):
        RandomSpans(area=(0.4, 0.45))(2, (4, 6))  # 10 pixels
