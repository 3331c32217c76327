import re
from collections.abc import Callable

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

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
    image = to_grey_or_rgb(picture(mode), (0, 65535))
    assert image.mode == ("L" if isinstance(left, int) else "RGB")
    pixels = np.asarray(image).astype(int)
    np.testing.assert_allclose(pixels[0, 0], left, atol=2 if mode == "YCbCr" else 0)
    np.testing.assert_array_equal(pixels[:, 2:], 255)  # transparent is white


def test_half_transparent_is_half_white() -> None:
    image = PIL.Image.fromarray(np.full((2, 2, 4), (100, 0, 0, 128), np.uint8))
    np.testing.assert_allclose(np.asarray(to_grey_or_rgb(image))[0, 0], (177, 127, 127), atol=1)


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_the_declared_range_becomes_black_to_white(bits: int, encode: Callable[..., dict]) -> None:
    white = 2**bits - 1
    levels = np.arange(256).reshape(16, 16) * white / 255
    for dtype in (np.uint16, np.int32, np.float32):
        image = PIL.Image.fromarray(np.rint(levels).astype(dtype))
        image = datasets.Image().decode_example(encode(image, "tiff"))
        expected = np.arange(256).reshape(16, 16)
        np.testing.assert_array_equal(to_grey_or_rgb(image, (0, white)), expected)
    image = PIL.Image.fromarray((levels / white * 2 - 1).astype(np.float32))
    np.testing.assert_array_equal(to_grey_or_rgb(image, (-1, 1)), expected)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_a_mode_without_a_range_is_refused_and_the_advice_works(dtype) -> None:
    image = PIL.Image.fromarray(np.arange(4, dtype=dtype).reshape(2, 2) + 7)
    with pytest.raises(
        ValueError, match=r"mode (I|F).*they lie in 7\.\.10\. Fix: `pixel_range="
    ) as got:
        to_grey_or_rgb(image)
    for advice in re.findall(r"\((\d+), (\d+)\)", str(got.value)):
        black, white = map(int, advice)
        assert to_grey_or_rgb(image, (black, white)).getextrema()[1] == round(10 * 255 / white)


@pytest.mark.parametrize("value", [np.nan, np.inf, -1, 4096])
def test_pixels_outside_of_the_declared_range_are_errors(value: float) -> None:
    pixels = np.array([[0, 5], [7, value]], np.float32)
    with pytest.raises(ValueError, match=r"mode F outside of `pixel_range`, 0\.\.4095; got"):
        to_grey_or_rgb(PIL.Image.fromarray(pixels), (0, 4095))


def constant(width: int, height: int) -> PIL.Image.Image:
    return PIL.Image.new("RGB", (width, height), (93, 94, 95))


@pytest.mark.parametrize("crop", ["center", "random", None])
@pytest.mark.parametrize("size", [(8, 8), (5, 9), (32, 20)])
def test_fit_gives_the_size_and_keeps_a_constant(crop, size: tuple[int, int]) -> None:
    fitted = fit(constant(7, 12), size, crop)
    assert fitted.tobytes() == constant(size[1], size[0]).tobytes()
    assert fitted.size == (size[1], size[0])


def test_center_crop_keeps_the_middle_and_the_aspect_ratio() -> None:
    pixels = np.tile(np.arange(8, 248, 10, dtype=np.uint8), (8, 1))
    image = PIL.Image.fromarray(pixels)
    np.testing.assert_array_equal(fit(image, (8, 8), "center"), pixels[:, 8:16])
    np.testing.assert_array_equal(fit(image, (8, 8), "random", 0.0), pixels[:, :8])
    np.testing.assert_array_equal(fit(image, (8, 8), "random", 0.99), pixels[:, 16:])
    squeezed = np.asarray(fit(image, (8, 8), None)).astype(int)[0]
    assert np.diff(squeezed).min() > 20 and squeezed[0] < 30 and squeezed[-1] > 220


@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    source=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    crop=st.sampled_from(["center", "random", None]),
    place=st.floats(0, 1, exclude_max=True),
)
def test_the_window_is_that_of_scaling_first(size, source, crop, place) -> None:
    pixels = np.random.default_rng(0).uniform(0, 255, source).astype(np.float32)
    scale = max(size[0] / source[0], size[1] / source[1])
    scaled = [max(n, round(m * scale)) for n, m in zip(size, source, strict=True)]
    scaled = list(size) if crop is None else scaled
    whole = PIL.Image.fromarray(pixels).resize(scaled[::-1], PIL.Image.Resampling.BICUBIC)
    top, left = (int(place * (m - n + 1)) for m, n in zip(scaled, size, strict=True))
    expected = np.asarray(whole)[top : top + size[0], left : left + size[1]]
    fitted = np.asarray(fit(PIL.Image.fromarray(pixels), size, crop, place))
    np.testing.assert_allclose(fitted, expected, atol=0.01)


@pytest.mark.parametrize("source", [(20_000, 1), (1, 20_000)])
@pytest.mark.parametrize("crop", ["center", "random", None])
def test_no_image_is_scaled_beyond_what_is_kept(source, crop, monkeypatch) -> None:
    """Of 20,000x1 pixels, one covers the square; Pillow is asked for nothing larger than the result."""
    asked = []
    resize = PIL.Image.Image.resize

    def counting(self, size, *args, **kwargs):
        asked.append(size)
        return resize(self, size, *args, **kwargs)

    monkeypatch.setattr(PIL.Image.Image, "resize", counting)
    assert fit(constant(*source), (64, 64), crop, 0.3).tobytes() == constant(64, 64).tobytes()
    assert asked == [(64, 64)]


def test_resizing_is_antialiased() -> None:
    """Noise averages out where many pixels become one; without antialiasing it stays."""
    noise = np.random.default_rng(0).integers(0, 256, (128, 128), np.uint8)
    small = np.asarray(fit(PIL.Image.fromarray(noise), (17, 17), "center"))
    assert small.std() < noise.std() / 3
