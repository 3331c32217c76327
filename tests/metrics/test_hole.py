"""Laws of the figures inside a hole."""

import pytest
import torch

from fm_ext.metrics import colour_error, hole_psnr, hole_ssim


def case():
    target = torch.rand(4, 3, 32, 32) * 2 - 1
    mask = torch.zeros(4, 1, 32, 32, dtype=torch.bool)
    mask[:, :, 8:20, 10:24] = True
    return target, mask


def test_psnr_is_its_formula_over_missing_pixels():
    target, mask = case()
    image = target + 0.1 * mask
    torch.testing.assert_close(
        hole_psnr(image, target, mask), 10 * torch.log10(torch.tensor(400.0))
    )


def test_known_pixels_do_not_count():
    target, mask = case()
    far = torch.zeros_like(mask)
    far[:, :, 30:, :4] = True  # out of every window that is centred in the hole
    image = target + 0.1 * mask
    other = torch.where(far, -target, image)
    torch.testing.assert_close(hole_psnr(other, target, mask), hole_psnr(image, target, mask))
    torch.testing.assert_close(hole_ssim(other, target, mask), hole_ssim(image, target, mask))


def test_truth_is_perfect():
    target, mask = case()
    assert hole_psnr(target, target, mask) == torch.inf
    torch.testing.assert_close(hole_ssim(target, target, mask), torch.tensor(1.0))


@pytest.mark.parametrize("metric", [hole_psnr, hole_ssim, lambda *args: -colour_error(*args)])
def test_more_noise_is_worse(metric):
    target, mask = case()
    noise = torch.randn_like(target) * mask
    values = torch.stack([metric(target + s * noise, target, mask) for s in (0.05, 0.1, 0.2, 0.4)])
    assert values.diff().lt(0).all()


@pytest.mark.parametrize("metric", [hole_psnr, hole_ssim, colour_error])
def test_a_mask_of_numbers_is_refused(metric, untyped):
    target, mask = case()
    with pytest.raises(TypeError, match="`mask` must be bool with True = missing"):
        metric(target, target, mask.long())
    with pytest.raises(ValueError, match="`mask` must have as many axes as `target`"):
        metric(target, target, mask[:, 0])
    torch.testing.assert_close(metric(-target, target, mask[:1]), metric(-target, target, mask))


def test_nothing_missing():
    target, mask = case()
    with pytest.raises(ValueError, match=r"`mask` must have missing pixels \(True\) to measure"):
        hole_psnr(target, target, torch.zeros_like(mask))


@pytest.mark.parametrize("metric", [hole_psnr, hole_ssim, colour_error])
def test_images_that_do_not_compare_are_refused(metric, untyped):
    target, mask = case()
    for image in (target[:1], target[..., :-1], target.unsqueeze(-1)):
        with pytest.raises(ValueError, match="`image` and `target` must have one shape"):
            metric(image, target, mask)
    with pytest.raises(ValueError, match="`image` and `target` must be finite"):
        metric(target * torch.nan, target, mask)
    with pytest.raises(TypeError, match="`target` must be floating point"):
        metric(target, target.to(torch.uint8), mask)


def test_images_smaller_than_half_a_window():
    target = torch.rand(2, 1, 5, 8)
    with pytest.raises(ValueError, match="`image` must have sides of at least 6 pixels"):
        hole_ssim(target, target, torch.ones(2, 1, 5, 8, dtype=torch.bool))


def test_colours_of_single_pixels_are_the_pixels():
    target, mask = case()
    image = target + torch.randn_like(target)
    mse = (image - target)[mask.expand_as(target)].square().mean()
    torch.testing.assert_close(colour_error(image, target, mask, block=1), mse.sqrt())


@pytest.mark.parametrize("block", [3, 8, 100])
def test_a_foreign_colour_counts_in_full_and_an_order_of_pixels_not_at_all(block):
    target, mask = case()
    for shift in (0.3, -0.3):
        error = colour_error(target + shift, target, mask, block=block)
        torch.testing.assert_close(error, torch.tensor(0.3))
    inside = torch.zeros_like(target)
    inside[:, 0, 9:11, 12:14] = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])  # of one block, sum 0
    assert colour_error(target + inside, target, mask, block=block) < 1e-6
    assert colour_error(torch.where(mask, target, 7), target, mask) == 0  # known pixels


def test_grain_counts_by_the_side_of_a_block():
    target = torch.zeros(64, 3, 32, 32)
    grain = torch.randn_like(target)
    everything = torch.ones(1, 1, 32, 32, dtype=torch.bool)
    error = colour_error(0.4 * grain, target, everything, block=8)
    torch.testing.assert_close(error, torch.tensor(0.4 / 8), rtol=0.05, atol=0)


def test_a_block_without_pixels():
    target, mask = case()
    with pytest.raises(ValueError, match="`block` must be at least 1 pixel; got 0"):
        colour_error(target, target, mask, block=0)
