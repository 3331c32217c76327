"""Samples are rounded, saved and read back without a change."""

import pytest
import torch
from PIL import Image

from fm_ext.data import load_images
from fm_ext.data.pixels import to_float
from fm_ext.sampling import Samples, to_uint8


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))


def drawn(channels=1, label=True):
    images = torch.randint(0, 256, (23, channels, 6, 5), dtype=torch.uint8)
    return Samples(images, torch.arange(23) % 7 if label else None, 1.0, None)


def test_rounding_inverts_the_loaders_and_rounds_to_nearest():
    pixels = torch.arange(256).to(torch.uint8)
    assert torch.equal(to_uint8(to_float(pixels)), pixels)
    assert torch.equal(to_uint8(to_float(pixels).double()), pixels)
    nudged = (to_float(pixels) + 0.49 / 127.5).clamp(max=1)
    assert torch.equal(to_uint8(nudged), pixels)
    assert to_uint8(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]
    assert to_uint8(torch.tensor([1.0], dtype=torch.bfloat16)).tolist() == [255]


@pytest.mark.parametrize("channels", [1, 3])
def test_saved_is_read_back(tmp_path, channels):
    samples = drawn(channels)
    samples.save(tmp_path / "samples")
    images, labels = load_images(tmp_path / "samples")
    assert torch.equal(images, samples.to_float()) and torch.equal(labels, samples.label)


def test_without_labels(tmp_path):
    drawn(label=False).save(tmp_path / "samples")
    assert load_images(tmp_path / "samples")[1] is None


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_holds_the_first_images(tmp_path, channels):
    samples = drawn(channels)
    samples.save_grid(tmp_path / "new" / "grid.png", rows=2, columns=4)
    picture = Image.open(tmp_path / "new" / "grid.png")
    assert picture.size == (4 * 6 + 1, 2 * 7 + 1)  # images and lines between them
    first = picture.convert("RGB").getpixel((1, 1))
    assert first == tuple(samples.images[0, :, 0, 0].expand(3).tolist())


def test_what_does_not_come_back_is_not_saved(tmp_path, untyped):
    images = torch.zeros(3, 4, 6, 5, dtype=torch.uint8)
    with pytest.raises(ValueError, match="`images` must have 1 or 3 channels to be saved; got 4"):
        Samples(images, None, 0.0, None).save(tmp_path / "samples")
    for label in (torch.eye(3), torch.zeros(3)):
        with pytest.raises(ValueError, match="`label` must be one integer a sample"):
            Samples(images[:, :3], label, 0.0, None).save(tmp_path / "samples")


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
def test_what_is_no_image_in_minus_1_to_1_is_refused(untyped, dtype):
    with pytest.raises(TypeError, match="`images` must be floating point"):
        to_uint8(torch.ones(3, dtype=dtype))


def test_not_finite():
    with pytest.raises(ValueError, match="`images` must be finite"):
        to_uint8(torch.tensor([torch.nan]))
