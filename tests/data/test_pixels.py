from collections.abc import Callable

import datasets
import numpy as np
import PIL.Image
import pytest
import torch

from fm_ext.data.pixels import fit, to_float, to_grey_or_rgb


def test_to_float_is_exact_at_the_ends_and_invertible() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    values = to_float(levels)
    assert values.dtype == torch.float32
    assert values[0] == -1 and values[255] == 1
    torch.testing.assert_close(values, -values.flip(0), rtol=0, atol=0)
    assert torch.equal(values.add(1).mul(127.5).round().to(torch.uint8), levels)


def picture(mode: str) -> PIL.Image.Image:
    """Left half red or grey 80, right half transparent or white."""
    grey = np.full((4, 4), 80, np.uint8)
    colour = np.zeros((4, 4, 3), np.uint8)
    colour[..., 0] = 200
    alpha = np.full((4, 4), 255, np.uint8)
    grey[:, 2:], colour[:, 2:], alpha[:, 2:] = 255, 255, 0
    match mode:
        case "1":
            return PIL.Image.fromarray(grey).point(lambda v: 255 * (v > 100)).convert("1")
        case "L":
            return PIL.Image.fromarray(grey)
        case "LA":
            grey[:, 2:] = 3  # hidden
            return PIL.Image.merge("LA", [PIL.Image.fromarray(a) for a in (grey, alpha)])
        case "L+transparency":
            grey[:, 2:] = 3
            image = PIL.Image.fromarray(grey)
            image.info["transparency"] = 3
            return image
        case "I;16":
            return PIL.Image.fromarray(grey.astype(np.uint16) * 257)
        case "I;16+transparency":
            wide = grey.astype(np.uint16) * 257
            wide[:, 2:] = 77
            image = PIL.Image.fromarray(wide)
            image.info["transparency"] = 77
            return image
        case "I":
            return PIL.Image.fromarray(grey.astype(np.int32) * 257)
        case "RGB" | "CMYK" | "YCbCr":
            return PIL.Image.fromarray(colour).convert(mode)
        case "P":
            return PIL.Image.fromarray(colour).quantize(4)
        case "RGBA":
            colour[:, 2:] = 9
            return PIL.Image.fromarray(np.dstack([colour, alpha]))
        case _:  # a palette with an alpha channel
            return PIL.Image.fromarray(np.dstack([colour, alpha])).quantize(4)


@pytest.mark.parametrize(
    ("mode", "left"),
    [
        *[(mode, 80) for mode in ("L", "LA", "L+transparency", "I;16", "I;16+transparency", "I")],
        ("1", 0),
        *[(mode, (200, 0, 0)) for mode in ("RGB", "CMYK", "YCbCr", "P", "RGBA", "P with alpha")],
    ],
)
def test_every_mode_becomes_opaque_grey_or_rgb(mode: str, left: int | tuple) -> None:
    image = to_grey_or_rgb(picture(mode))
    assert image.mode == ("L" if isinstance(left, int) else "RGB")
    pixels = np.asarray(image).astype(int)
    np.testing.assert_allclose(pixels[0, 0], left, atol=2 if mode == "YCbCr" else 0)
    np.testing.assert_array_equal(pixels[:, 2:], 255)  # transparent is white


def test_half_transparent_is_half_white() -> None:
    image = PIL.Image.fromarray(np.full((2, 2, 4), (100, 0, 0, 128), np.uint8))
    np.testing.assert_allclose(np.asarray(to_grey_or_rgb(image))[0, 0], (177, 127, 127), atol=1)


def test_16_bits_survive_a_png(encode: Callable[..., dict]) -> None:
    levels = np.arange(256, dtype=np.uint16).reshape(16, 16)
    image = datasets.Image().decode_example(encode(levels * 257))
    np.testing.assert_array_equal(np.asarray(to_grey_or_rgb(image)), levels)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.full((2, 2), 70000, np.int32), r"mode I must lie in 0\.\.65535"),
        (np.ones((2, 2), np.float32), "no known range"),
    ],
)
def test_unknown_ranges_are_errors(pixels: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_grey_or_rgb(PIL.Image.fromarray(pixels))


@pytest.mark.parametrize("crop", ["center", "random", None])
@pytest.mark.parametrize("size", [(8, 8), (5, 9), (32, 20)])
def test_fit_gives_the_size_and_keeps_a_constant(crop, size: tuple[int, int]) -> None:
    image = torch.full((3, 12, 7), 93, dtype=torch.uint8)
    assert torch.equal(fit(image, size, crop), torch.full((3, *size), 93, dtype=torch.uint8))


def test_center_crop_keeps_the_middle_and_the_aspect_ratio() -> None:
    image = torch.arange(8, 248, 10, dtype=torch.uint8).expand(1, 8, 24)
    assert torch.equal(fit(image, (8, 8), "center"), image[..., 8:16])
    assert torch.equal(fit(image, (8, 8), "random", 0.0), image[..., :8])
    assert torch.equal(fit(image, (8, 8), "random", 0.99), image[..., 16:])
    squeezed = fit(image, (8, 8), None)[0, 0].float()
    assert squeezed.diff().min() > 20 and squeezed[0] < 30 and squeezed[-1] > 220


def test_resizing_is_antialiased() -> None:
    """Noise averages out where many pixels become one; without antialiasing it stays."""
    noise = torch.randint(0, 256, (1, 128, 128), dtype=torch.uint8)
    small = fit(noise, (17, 17), "center").float()
    assert small.std() < noise.float().std() / 3
