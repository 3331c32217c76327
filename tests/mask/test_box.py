"""Boxes: rectangles, centred or uniform over what fits."""

import pytest
import torch

from fm_ext.mask import CenterBox, RandomBox


def corners(masks: torch.Tensor) -> torch.Tensor:
    """Top, left, bottom and right (exclusive) of what is missing, after a check that it is a rectangle."""
    rows, columns = masks.any(3)[:, 0], masks.any(2)[:, 0]
    assert torch.equal(masks, rows[:, None, :, None] & columns[:, None, None])
    ends = []
    for line in (rows, columns):
        start = line.int().argmax(1)
        stop = line.shape[1] - line.flip(1).int().argmax(1)
        assert torch.equal(stop - start, line.sum(1))  # one run
        ends.append((start, stop))
    (top, bottom), (left, right) = ends
    return torch.stack([top, left, bottom, right], 1)


def assert_uniform(values: torch.Tensor, outcomes: int) -> None:
    """Pearson's chi squared within five standard deviations of its mean."""
    seen, counts = values.unique(dim=0, return_counts=True)
    assert len(seen) == outcomes
    expected = len(values) / outcomes
    chi = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi - (outcomes - 1)) < 5 * (2 * (outcomes - 1)) ** 0.5


@pytest.mark.parametrize(
    ("size", "box"),
    [((28, 28), (14, 14)), ((30, 64), (16, 32)), ((29, 31), (15, 17)), ((8, 1024), (4, 512))],
)
def test_center_box_is_half_the_side(size, box):
    top, left, bottom, right = corners(CenterBox()(2, size))[0].tolist()
    assert (bottom - top, right - left) == box


@pytest.mark.parametrize("size", [(8, 8), (28, 30), (29, 31), (64, 96)])
@pytest.mark.parametrize("side", [(0.5, 0.5), (0.1, 0.9), (0.3, 0.4)])
def test_center_box_is_symmetric(size, side):
    masks = CenterBox(side=side)(50, size)
    corners(masks)
    assert torch.equal(masks, masks.flip(2))
    assert torch.equal(masks, masks.flip(3))


def test_center_box_margins_are_not_lost_to_rounding():
    box = corners(CenterBox(side=(0.9, 0.9))(1, (20, 20)))[0]
    assert box.tolist() == [1, 1, 19, 19]


def test_center_box_size_is_uniform():
    boxes = corners(CenterBox(side=(0.2, 0.8))(4000, (10, 20)))
    assert_uniform(boxes, 4 * 7)  # heights 2, 4, 6, 8 and widths 4, 6, ... 16


def test_random_box_position_is_uniform_over_what_fits():
    boxes = corners(RandomBox(side=(0.5, 0.5))(20_000, (8, 12)))
    assert torch.equal(boxes[:, 2:] - boxes[:, :2], torch.tensor([4, 6]).expand(20_000, 2))
    assert_uniform(boxes, 5 * 7)


@pytest.mark.parametrize("area", [(0.0, 1.0), (0.2, 0.3), (0.125, 0.125)])
def test_random_box_size_is_uniform_over_what_is_allowed(area):
    boxes = corners(RandomBox(side=(0.25, 0.75), area=area)(20_000, (8, 16)))
    allowed = [
        (a, b) for a in range(2, 7) for b in range(4, 13) if area[0] <= a * b / 128 <= area[1]
    ]
    assert_uniform(boxes[:, 2:] - boxes[:, :2], len(allowed))


def test_random_box_keeps_to_its_sides():
    boxes = corners(RandomBox(side=(0.3, 0.6))(500, (50, 70)))
    height, width = (boxes[:, 2:] - boxes[:, :2]).unbind(1)
    assert (height.min(), height.max()) == (15, 30)
    assert (width.min(), width.max()) == (21, 42)
