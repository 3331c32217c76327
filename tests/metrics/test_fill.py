"""Laws of seams, and of the diversity of fillings."""

import math

import pytest
import torch

from fm_ext.metrics import fill_diversity, hole_psnr, seam_gradient


def holes(batch=8):
    mask = torch.zeros(batch, 1, 16, 16, dtype=torch.bool)
    mask[:, :, 4:11, 5:12] = True
    return mask


def test_no_seam_in_a_ramp_and_in_noise():
    ramp = torch.arange(16.0).expand(8, 3, 16, 16)
    steep = ramp + ramp.mT
    torch.testing.assert_close(seam_gradient(steep, holes()), torch.tensor(1.0))
    noise = torch.randn(400, 1, 16, 16)
    torch.testing.assert_close(
        seam_gradient(noise, holes(400)), torch.tensor(1.0), rtol=0.02, atol=0
    )


def test_seam_of_a_shifted_hole():
    """On a ramp of slope 1 in both directions, a hole raised by 10 has steps of 9 and 11 at its border."""
    ramp = torch.arange(16.0).expand(8, 3, 16, 16)
    raised = ramp + ramp.mT + 10 * holes()
    torch.testing.assert_close(seam_gradient(raised, holes()), torch.tensor(10.0))


def test_seam_by_brute_force():
    image, mask = torch.randn(2, 2, 5, 6), torch.rand(2, 1, 5, 6) > 0.5
    across, within = [], []
    for b in range(2):
        for i in range(5):
            for j in range(6):
                for k, l in ((i + 1, j), (i, j + 1)):
                    if k < 5 and l < 6:
                        steps = (image[b, :, i, j] - image[b, :, k, l]).abs().tolist()
                        missing = int(mask[b, 0, i, j]) + int(mask[b, 0, k, l])
                        {0: [], 1: across, 2: within}[missing].extend(steps)
    expected = (sum(across) / len(across)) / (sum(within) / len(within))
    torch.testing.assert_close(seam_gradient(image, mask).item(), expected)


def test_diversity_is_the_standard_deviation_in_the_hole():
    mask = holes(64)
    known = torch.randn(64, 1, 3, 16, 16)
    fills = torch.where(mask.unsqueeze(1), 0.3 * torch.randn(64, 4, 3, 16, 16), known)
    torch.testing.assert_close(fill_diversity(fills, mask), torch.tensor(0.3), rtol=0.02, atol=0)
    assert fill_diversity(known.expand(-1, 4, -1, -1, -1), mask) == 0


def test_a_true_posterior_is_calibrated():
    """The error of one filling is the root of two times the deviation between fillings."""
    mask = holes(64)
    truth, *fills = torch.randn(5, 64, 3, 16, 16)
    error = 2 * 10 ** (-hole_psnr(fills[0], truth, mask) / 20)
    spread = fill_diversity(torch.stack(fills, 1), mask)
    torch.testing.assert_close(error / spread, torch.tensor(math.sqrt(2)), rtol=0.02, atol=0)


def test_one_mask_for_all_images():
    image, mask = torch.randn(8, 3, 16, 16), holes()
    one = mask[:1]
    torch.testing.assert_close(seam_gradient(image, one), seam_gradient(image, mask))
    fills = torch.randn(8, 3, 3, 16, 16)
    torch.testing.assert_close(fill_diversity(fills, one), fill_diversity(fills, mask))


def test_a_mask_of_numbers_is_refused(untyped):
    image, mask = torch.randn(8, 1, 16, 16), holes().long()
    with pytest.raises(TypeError, match="`mask` must be bool with True = missing"):
        seam_gradient(image, mask)
    with pytest.raises(TypeError, match="`mask` must be bool with True = missing"):
        fill_diversity(image.unsqueeze(1).expand(-1, 2, -1, -1, -1), mask)
    with pytest.raises(ValueError, match="`mask` must have as many axes as `image`"):
        seam_gradient(image, holes()[:3])


def test_errors():
    with pytest.raises(ValueError, match="`image` must change at the border of its holes"):
        seam_gradient(torch.zeros(8, 1, 16, 16), holes())
    assert seam_gradient(holes().float(), holes()) == torch.inf
    image, mask = torch.randn(8, 1, 16, 16), holes()
    single = torch.zeros_like(mask)
    single[:, :, 3, 3] = True
    for bad in (torch.zeros_like(mask), torch.ones_like(mask), single):
        with pytest.raises(ValueError, match="`mask` must have holes with a border and with two"):
            seam_gradient(image, bad)
    with pytest.raises(ValueError, match=r"`fills` must hold at least 2 fillings.*got 1"):
        fill_diversity(image.unsqueeze(1), mask)
    with pytest.raises(ValueError, match="`mask` must have missing pixels"):
        fill_diversity(image.unsqueeze(1).expand(-1, 2, -1, -1, -1), torch.zeros_like(mask))
