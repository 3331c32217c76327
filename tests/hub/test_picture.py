"""Pictures as people have them: each mode and size keeps its known pixels, what cannot be used is told."""

import io
import struct
import zlib

import numpy as np
import PIL.Image
import pytest
import torch

from fm_ext.hub import (
    FlowModel,
    fill_picture,
    fitting_model,
    open_mask,
    open_picture,
    to_grid,
    to_pictures,
    translate_picture,
)


def picture(mode: str, width: int, height: int) -> PIL.Image.Image:
    bands = len(PIL.Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, bands), np.uint8)
    return PIL.Image.frombytes(mode, (width, height), pixels.tobytes())


def saved(image: PIL.Image.Image, kind: str = "PNG", **how) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, kind, **how)
    file.seek(0)
    return file


def box(image: PIL.Image.Image, *window: float) -> torch.Tensor:
    """A hole over these fractions of the width and height: left, top, right, bottom."""
    mask = torch.zeros(image.height, image.width, dtype=torch.bool)
    left, top, right, bottom = window
    mask[round(top * image.height) : round(bottom * image.height)][
        :, round(left * image.width) : round(right * image.width)
    ] = True
    return mask


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
@pytest.mark.parametrize("size", [(32, 32), (100, 61), (40, 200), (9, 7), (1, 50)])
@pytest.mark.parametrize("window", [(0, 0, 1, 0.5), (0.1, 0.8, 0.3, 1.0)])
def test_known_pixels_are_kept_and_the_hole_is_filled(mode, size, window, portraits):
    image = picture(mode, *size)
    mask = box(image, *window)
    if not mask.any():
        mask[0, 0] = True
    before = np.asarray(image).copy()
    generator = torch.Generator().manual_seed(0)
    filled = fill_picture(portraits, image, mask, fills=2, generator=generator)
    assert len(filled) == 2 and (np.asarray(image) == before).all()
    for result in filled:
        assert (result.mode, result.size) == (image.mode, image.size)
        after = np.asarray(result)
        assert (after[~mask.numpy()] == before[~mask.numpy()]).all()
        if mode.endswith("A"):
            assert (after[mask.numpy()][..., -1] == 255).all()
    assert (np.asarray(filled[0]) != np.asarray(filled[1])).any()


def test_a_picture_of_the_models_size_is_seen_as_it_is(portraits):
    image = picture("RGB", 32, 32)
    mask = box(image, 0.25, 0.25, 0.75, 0.5)
    (result,) = fill_picture(portraits, image, mask, generator=torch.Generator().manual_seed(0))
    tensor = torch.from_numpy(np.array(image)).movedim(-1, 0)[None] / 127.5 - 1
    by_hand = portraits.fill(tensor, mask[None, None], generator=torch.Generator().manual_seed(0))
    assert (np.asarray(result) == np.asarray(to_pictures(by_hand)[0])).all()


@pytest.mark.parametrize("size", [(32, 32), (75, 75), (50, 100)])
def test_what_is_in_the_hole_has_no_influence(size, portraits):
    image = picture("RGB", *size)
    mask = box(image, 0.3, 0.3, 0.6, 0.5)
    hidden = image.copy()
    hidden.paste("magenta", mask=PIL.Image.fromarray(mask.numpy()))
    results = [
        fill_picture(portraits, shown, mask, generator=torch.Generator().manual_seed(0))[0]
        for shown in (image, hidden)
    ]
    assert (np.asarray(results[0])[mask.numpy()] == np.asarray(results[1])[mask.numpy()]).all()


def test_what_is_seen_is_the_window_that_holds_the_hole(portraits, monkeypatch):
    seen = {}

    def look(image, mask, **_):
        seen.update(image=image, mask=mask)
        return image[None]

    monkeypatch.setattr(portraits, "fill", look)
    ramp = PIL.Image.fromarray(np.tile(np.arange(96, dtype=np.uint8), (32, 1)))  # grey = column
    for left, right, first in ((0.4, 0.6, 32), (0.02, 0.1, 2), (0.9, 1.0, 64)):
        mask = box(ramp, left, 0.2, right, 0.6)
        fill_picture(portraits, ramp, mask)
        pixels = (seen["image"][0, 0] + 1) * 127.5
        known = ~seen["mask"][0, 0]
        assert known.sum() == 32 * 32 - mask.sum()
        expected = torch.arange(first, first + 32.0).expand(32, 32)
        torch.testing.assert_close(pixels[known], expected[known])
    fill_picture(portraits, ramp, box(ramp, 0.1, 0.2, 0.9, 0.6))  # too wide for a window
    assert seen["mask"][0, 0, :10].all() and seen["mask"][0, 0, 22:].all()  # above and below
    assert not seen["mask"][0, 0, 11, :3].any()


def test_a_grey_model_fills_a_colour_picture_with_grey(digits):
    image = picture("RGB", 28, 28)
    mask = box(image, 0.5, 0, 1, 1)
    (result,) = fill_picture(digits, image, mask)
    hole = np.asarray(result)[mask.numpy()]
    assert (hole == hole[:, :1]).all()


def test_a_translation_is_of_the_models_size(translator):
    result = translate_picture(translator, picture("RGB", 40, 25))
    assert (result.mode, result.size) == ("L", (8, 8))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_upright(orientation):
    image = picture("RGB", 6, 4)
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    turned = open_picture(saved(image, exif=exif))
    assert turned.size == ((6, 4) if orientation < 5 else (4, 6))
    corners = {
        1: (0, 0),
        2: (5, 0),
        3: (5, 3),
        4: (0, 3),
        5: (0, 0),
        6: (0, 3),
        7: (5, 3),
        8: (5, 0),
    }
    assert turned.getpixel((0, 0)) == image.getpixel(corners[orientation])


RED = PIL.Image.new("RGB", (4, 4), "red")
GREY_ALPHA = PIL.Image.merge("LA", [PIL.Image.new("L", (4, 4), 9), PIL.Image.new("L", (4, 4), 99)])


@pytest.mark.parametrize(
    "file, mode",
    [
        (saved(PIL.Image.new("1", (4, 4), 1)), "L"),
        (saved(GREY_ALPHA), "LA"),
        (saved(PIL.Image.new("RGBA", (4, 4), (1, 2, 3, 4))), "RGBA"),
        (saved(PIL.Image.new("P", (4, 4), 1)), "RGB"),
        (saved(PIL.Image.new("P", (4, 4), 1), transparency=0), "RGBA"),
        (saved(PIL.Image.new("CMYK", (4, 4), (9, 8, 7, 6)), "JPEG"), "RGB"),
        (saved(PIL.Image.new("RGB", (4, 4)), "GIF"), "RGB"),
        (saved(PIL.Image.new("RGB", (4, 4)), "WEBP"), "RGB"),
        (saved(PIL.Image.new("LAB", (4, 4)), "TIFF"), "RGB"),
        (saved(RED, "MPO", save_all=True, append_images=[RED]), "RGB"),
    ],
)  # fmt: skip
def test_every_mode_is_read(file, mode):
    file.seek(0)
    assert open_picture(file).mode == mode


def png(width: int, height: int, depth: int = 8, colour: int = 0) -> io.BytesIO:
    """A PNG of any claimed size, whose pixels are not there."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(8))) + chunk(b"IEND", b"")
    return io.BytesIO(b"\x89PNG\r\n\x1a\n" + body)


def animated(kind: str) -> io.BytesIO:
    frames = [PIL.Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    return saved(frames[0], kind, save_all=True, append_images=frames[1:])


NOISE = saved(picture("RGB", 64, 64), "JPEG").getvalue()
BAD = {
    "text called .png": (io.BytesIO(b"hello"), "is no picture of a known format"),
    "nothing": (io.BytesIO(b""), "is no picture of a known format"),
    "a program in PostScript": (
        io.BytesIO(b"%!PS-Adobe-3.0 EPSF-3.0\n"),
        "is no picture of a known",
    ),
    "a billion pixels": (png(31_623, 31_623), "has more than 64,000,000 pixels"),
    "a hundred million": (png(10_000, 10_000), "more than 64,000,000"),
    "seventy million": (png(10_000, 7_000), "has 10000x7000 pixels, more than 64,000,000"),
    "an animated GIF": (animated("GIF"), "is animated or has several pages"),
    "an animated WebP": (animated("WEBP"), "is animated or has several pages"),
    "pages": (animated("TIFF"), "is animated or has several pages"),
    "16 bits of grey": (saved(PIL.Image.new("I;16", (4, 4))), "has more than 8 bits a channel"),
    "16 bits of colour": (png(4, 4, 16, 2), "has more than 8 bits a channel"),
    "floats": (saved(PIL.Image.new("F", (4, 4)), "TIFF"), "has more than 8 bits a channel"),
    "a truncated JPEG": (io.BytesIO(NOISE[: len(NOISE) // 2]), "is damaged: OSError"),
    "a truncated PNG": (png(100, 100), "is damaged"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_used_is_told(case, tmp_path):
    file, message = BAD[case]
    (tmp_path / "picture.png").write_bytes(file.getvalue())
    for source in (file, tmp_path / "picture.png"):
        with pytest.raises(ValueError, match=message):
            open_picture(source)


def test_a_picture_that_is_not_there_is_told(tmp_path):
    with pytest.raises(FileNotFoundError):
        open_picture(tmp_path / "none.png")


def test_a_mask_is_white_where_the_picture_is_missing():
    shades = np.array([[0, 127, 128, 255]], np.uint8)
    expected = torch.tensor([[False, False, True, True]])
    assert torch.equal(open_mask(saved(PIL.Image.fromarray(shades)), (1, 4)), expected)
    assert torch.equal(
        open_mask(saved(PIL.Image.fromarray(shades).convert("RGB")), (1, 4)), expected
    )


@pytest.mark.parametrize(
    "image, message",
    [
        (PIL.Image.new("L", (4, 5), 255), "is 4x5 pixels and must have the picture's 4x4"),
        (PIL.Image.new("L", (4, 4), 255), "got all white"),
        (PIL.Image.new("L", (4, 4)), "got no white"),
    ],
)
def test_a_mask_that_cannot_be_used_is_told(image, message):
    with pytest.raises(ValueError, match=message):
        open_mask(saved(image), (4, 4))


@pytest.mark.parametrize(
    "mask, error, message",
    [
        (torch.ones(32, 32), TypeError, "`mask` must be a bool tensor"),
        (torch.ones(9, 32) > 0, ValueError, r"`mask` must be \(32, 32\)"),
        (torch.zeros(32, 32) > 0, ValueError, "`mask` must have a hole"),
    ],
)
def test_a_wrong_mask_is_told(mask, error, message, portraits, untyped):
    with pytest.raises(error, match=message):
        fill_picture(portraits, picture("RGB", 32, 32), mask)


def test_a_flow_of_no_images_is_told(whole):
    flow = FlowModel(whole.velocity_model, whole.path, shape=(1, 8, 8), data_range=None)
    image = picture("L", 8, 8)
    with pytest.raises(ValueError, match="`flow` must be of images of 1 or 3 channels"):
        fill_picture(flow, image, box(image, 0, 0, 0.5, 0.5))


def test_pictures_are_set_in_a_grid():
    grid = to_grid([PIL.Image.new("L", (3, 2), 10 * i) for i in range(1, 6)], 2)
    assert grid.size == (9, 10)
    assert [grid.getpixel(at) for at in ((0, 0), (1, 1), (5, 1), (1, 7))] == [0, 10, 20, 50]


def test_the_model_that_fits_is_of_the_pictures_colour_and_size(monkeypatch):
    shapes = {"small": (1, 28, 28), "large": (1, 64, 64), "colour": (3, 64, 64)}
    monkeypatch.setattr(
        "fm_ext.hub.picture.shipped_shapes", lambda task: shapes if task == "fill" else {}
    )
    assert fitting_model(PIL.Image.new("L", (30, 30)), "fill") == "small"
    assert fitting_model(PIL.Image.new("RGB", (100, 50), "grey"), "fill") == "large"
    assert fitting_model(PIL.Image.new("RGB", (28, 28), "red"), "fill") == "colour"
    del shapes["colour"]
    with pytest.raises(
        ValueError, match="in colour; small, large would in grey: give one by `--model`"
    ):
        fitting_model(PIL.Image.new("RGB", (28, 28), "red"), "fill")
    with pytest.raises(ValueError, match="no shipped model can translate"):
        fitting_model(PIL.Image.new("L", (28, 28)), "translate")
