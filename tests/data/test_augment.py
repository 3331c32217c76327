"""Colours that are turned around the greys."""

import torch

from fm_ext.data import turn_colours


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def test_greys_stay_and_colours_keep_their_mean_and_their_distance_from_grey():
    images = torch.rand(6, 3, 4, 5) - 0.5  # far from the ends of [-1, 1]
    turned = turn_colours(images)
    grey, still = images.mean(1, keepdim=True), turned.mean(1, keepdim=True)
    torch.testing.assert_close(still, grey)
    torch.testing.assert_close((turned - still).norm(dim=1), (images - grey).norm(dim=1))
    greys = torch.linspace(-1, 1, 24).expand(2, 3, 1, 24)
    torch.testing.assert_close(turn_colours(greys), greys)


def test_each_image_is_turned_by_an_angle_of_its_own_and_all_of_its_pixels_by_the_same():
    red = torch.tensor([1.0, 0.0, 0.0])[:, None, None].expand(2000, 3, 1, 2) / 2
    turned = turn_colours(red, generator=seeded())
    assert torch.equal(turned[..., 0], turned[..., 1])
    hue = torch.atan2(
        (turned[:, 1] - turned[:, 2]) * 3**0.5, 2 * turned[:, 0] - turned[:, 1] - turned[:, 2]
    )
    shares = torch.histc(hue[:, 0, 0], 8, -torch.pi, torch.pi) / len(hue)
    assert (shares - 1 / 8).abs().max() < 0.03  # four standard deviations
    assert torch.equal(turned, turn_colours(red, generator=seeded()))


def test_what_leaves_the_range_is_cut_and_the_dtype_stays():
    yellow = torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64)[:, None, None].expand(50, 3, 2, 2)
    turned = turn_colours(yellow)
    assert turned.dtype == torch.float64 and turned.abs().max() == 1
