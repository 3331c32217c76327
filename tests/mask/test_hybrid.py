"""Hybrid: proportions, independence of order, and bounds that compose."""

from dataclasses import dataclass

import pytest
import torch

from fm_ext.mask import FreeForm, Hybrid, Mask, RandomBox


@dataclass(frozen=True, kw_only=True)
class Pixels(Mask):
    """The first `number` pixels: tells its masks apart from others by their areas."""

    number: int

    def draw(self, batch, size, pixels, device, generator):
        index = torch.arange(size[0] * size[1], device=device)
        return (index < self.number).view(1, 1, *size).repeat(batch, 1, 1, 1)


def kinds(batch: int, weights: tuple[float, ...] | None, count: int = 3) -> torch.Tensor:
    masks = tuple(Pixels(number=i + 1) for i in range(count))
    return Hybrid(masks=masks, weights=weights)(batch, (4, 4)).sum((1, 2, 3)) - 1


@pytest.mark.parametrize("weights", [None, (1.0, 2.0, 3.0), (0.2, 0.2, 0.6), (1e-3, 1.0, 1e3)])
@pytest.mark.parametrize("batch", [1, 2, 7, 12, 64])
def test_each_kind_has_its_share_of_a_batch_rounded(weights, batch):
    shares = torch.tensor(weights or (1.0,) * 3, dtype=torch.float64)
    shares *= batch / shares.sum()
    for _ in range(10):
        numbers = kinds(batch, weights).bincount(minlength=3)
        assert numbers.sum() == batch
        assert ((numbers - shares).abs() < 1 + 1e-4).all()


def test_proportions_are_the_weights_for_every_image_of_a_batch():
    drawn = torch.stack([kinds(3, (1.0, 2.0, 5.0)) for _ in range(500)])
    for image in drawn.unbind(1):
        share = image.bincount(minlength=3) / len(drawn)
        torch.testing.assert_close(share, torch.tensor([1, 2, 5]) / 8, atol=0.07, rtol=0)


def test_order_is_random():
    drawn = torch.stack([kinds(4, None, count=2) for _ in range(400)])
    patterns, counts = drawn.unique(dim=0, return_counts=True)
    assert len(patterns) == 6  # two of each kind in every order
    assert counts.min() > 40


def test_no_mask_comes_twice():
    masks = Hybrid()(64, (64, 64))
    assert len(masks.flatten(1).unique(dim=0)) == 64


def test_a_hybrid_of_one():
    assert kinds(5, None, count=1).tolist() == [0] * 5


def test_a_hybrid_of_hybrids():
    masks = Hybrid(masks=(Hybrid(), RandomBox()), area=(0.2, 0.3))(9, (20, 20))
    assert all(0.2 <= fraction <= 0.3 for fraction in masks.float().mean((1, 2, 3)).tolist())


def test_errors():
    with pytest.raises(ValueError, match="`masks` must name at least one mask"):
        Hybrid(masks=())
    with pytest.raises(ValueError, match=r"`weights` must be 2 finite numbers .* got \(1.0,\)"):
        Hybrid(masks=(RandomBox(), FreeForm()), weights=(1.0,))
    with pytest.raises(ValueError, match="leave a mask out to give it weight 0"):
        Hybrid(masks=(RandomBox(), FreeForm()), weights=(1.0, 0.0))
    with pytest.raises(ValueError, match=r"`area` of a Hybrid must overlap .* of RandomBox"):
        Hybrid(masks=(RandomBox(area=(0.4, 0.5)),), area=(0.1, 0.2))(1, (16, 16))
