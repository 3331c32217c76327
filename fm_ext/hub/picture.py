"""Pictures as people have them, of any size and mode, filled and translated by a flow of one size."""

import io
import os
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fm_ext.data.pixels import to_float, to_grey_or_rgb
from fm_ext.hub.flow import FlowModel
from fm_ext.hub.folder import shipped_shapes
from fm_ext.sampling import to_uint8

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # none that starts a program
MOST_PIXELS = 64_000_000


def open_picture(file: str | os.PathLike[str] | io.IOBase) -> PIL.Image.Image:
    """A picture, upright, of 8 bits: mode L or RGB, or LA or RGBA where it has transparency.

    A palette, CMYK and other colour spaces become RGB; EXIF rotation is applied.

    Args:
        file: a path, or an open file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for what is no picture of a known format, or is damaged, animated, of more than 8 bits, or too
            large.
    """
    try:
        picture = PIL.Image.open(cast(Any, file), formats=FORMATS)
    except PIL.UnidentifiedImageError as error:
        raise ValueError(
            f"{_name(file)} is no picture of a known format ({', '.join(FORMATS)})."
        ) from error
    except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning) as error:
        raise ValueError(
            f"{_name(file)} has more than {MOST_PIXELS:,} pixels: scale it down."
        ) from error
    with picture:
        width, height = picture.size
        if width * height > MOST_PIXELS:
            raise ValueError(
                f"{_name(file)} has {width}x{height} pixels, more than {MOST_PIXELS:,}: scale it down."
            )
        if (
            getattr(picture, "is_animated", False) and picture.format != "MPO"
        ):  # a phone's JPEG with a preview
            raise ValueError(
                f"{_name(file)} is animated or has several pages: save one of them as PNG."
            )
        if picture.mode[0] in "IF" or ";16" in str(picture.tile):
            raise ValueError(
                f"{_name(file)} has more than 8 bits a channel (mode {picture.mode}): save it with 8."
            )
        try:
            upright = PIL.ImageOps.exif_transpose(picture)
            grey = upright.mode in ("1", "L", "LA", "La")
            if upright.mode == "La":
                upright = upright.convert("LA")
            clear = upright.has_transparency_data
            mode = ("L" if grey else "RGB") + ("A" if clear else "")
            result = upright if upright.mode == mode else upright.convert(mode)
            result.load()
        except (
            Exception
        ) as error:  # decoders raise OSError, SyntaxError, struct.error, EOFError, ...
            raise ValueError(
                f"{_name(file)} is damaged: {type(error).__name__}: {error}."
            ) from error
    result.info = {k: v for k, v in picture.info.items() if k == "icc_profile" and not grey}
    return result


def open_mask(
    file: str | os.PathLike[str] | io.IOBase, size: tuple[int, int]
) -> Bool[Tensor, "height width"]:
    """The mask that a picture of a mask shows: white, or lighter than the middle, is missing.

    Args:
        file: a path, or an open file.
        size: height and width of the picture that it is for.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: as `open_picture`; for another size, and a mask without a hole or without a known pixel.
    """
    picture = to_grey_or_rgb(open_picture(file)).convert("L")
    if (picture.height, picture.width) != tuple(size):
        raise ValueError(
            f"{_name(file)} is {picture.width}x{picture.height} pixels and must have the picture's "
            f"{size[1]}x{size[0]}: draw the mask on the picture."
        )
    mask = torch.from_numpy(np.array(picture)) > 127
    if not mask.any() or mask.all():
        raise ValueError(
            f"{_name(file)} must be white where the picture is missing and black elsewhere; got "
            f"{'all white' if mask.any() else 'no white'}."
        )
    return mask


def fill_picture(
    flow: FlowModel,
    picture: PIL.Image.Image,
    mask: Bool[Tensor, "height width"],
    *,
    fills: int = 1,
    **sampling: Any,
) -> list[PIL.Image.Image]:
    """Fills the hole of a picture of any size; known pixels of the results equal the picture's.

    The model sees the picture at its own size: the largest window of its shape that holds the hole, or the whole
    picture with what is around it missing. The fill is brought back to the picture's size, so a large picture's hole is
    as sharp as the model is, and no sharper. A pixel of the model is missing if any of the picture's pixels in it is.
    What is transparent is shown to the model on white; what is filled is opaque.

    Args:
        flow: a model that fills.
        picture: of `open_picture`.
        mask: bool, True = missing.
        fills: how many.
        **sampling: for `FlowModel.fill`: `label`, `method`, `steps`, `guidance_scale`, `generator`, `callback`.

    Returns:
        `fills` pictures of the size and mode of `picture`.

    Raises:
        TypeError: for a mask that is not bool.
        ValueError: for a mask of another size, or without a hole; for a flow of another kind than images.
    """
    channels, *size = _image_shape(flow)
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        raise TypeError(
            f"`mask` must be a bool tensor, True = missing; got {getattr(mask, 'dtype', type(mask))}."
        )
    if tuple(mask.shape) != (picture.height, picture.width):
        raise ValueError(
            f"`mask` must be ({picture.height}, {picture.width}), the picture's height and width; got "
            f"{tuple(mask.shape)}."
        )
    if not mask.any():
        raise ValueError("`mask` must have a hole, True = missing; got none.")
    hole = mask.numpy(force=True)
    window = _window(hole, size)
    seen = np.asarray(_as_mode(picture, channels)).reshape(picture.height, picture.width, channels)
    small, gap = _shrink(seen, hole, window, size)
    image = to_float(torch.from_numpy(small).movedim(-1, 0)[None])
    missing = torch.from_numpy(gap)[None, None]
    answer = flow.fill(image, missing, fills=fills, **sampling)[:, 0]
    return [_paste(picture, hole, window, filled) for filled in to_uint8(answer).cpu()]


def translate_picture(
    flow: FlowModel, picture: PIL.Image.Image, **sampling: Any
) -> PIL.Image.Image:
    """A picture's translation, of the model's size.

    Args:
        flow: a model that translates.
        picture: of `open_picture`; the largest window of the model's shape in its middle is taken.
        **sampling: for `FlowModel.translate`.
    """
    channels, *size = _image_shape(flow)
    nothing = np.zeros((picture.height, picture.width), bool)
    seen = np.asarray(_as_mode(picture, channels)).reshape(picture.height, picture.width, channels)
    small, _ = _shrink(seen, nothing, _window(nothing, size), size)
    image = to_float(torch.from_numpy(small).movedim(-1, 0)[None])
    return to_pictures(flow.translate(image, **sampling))[0]


def to_pictures(images: Float[Tensor, "batch channel height width"]) -> list[PIL.Image.Image]:
    """Images in [-1, 1], of 1 or 3 channels, as pictures of mode L or RGB."""
    arrays = to_uint8(images).movedim(1, -1).cpu().numpy()
    return [PIL.Image.fromarray(a[..., 0] if a.shape[-1] == 1 else a) for a in arrays]


def to_grid(pictures: Sequence[PIL.Image.Image], columns: int) -> PIL.Image.Image:
    """Pictures of one size side by side, a black pixel between them."""
    width, height = pictures[0].size
    rows = -(-len(pictures) // columns)
    size = (columns * (width + 1) + 1, rows * (height + 1) + 1)
    grid = PIL.Image.new(pictures[0].mode, size)
    for i, picture in enumerate(pictures):
        grid.paste(picture, (i % columns * (width + 1) + 1, i // columns * (height + 1) + 1))
    return grid


def fitting_model(picture: PIL.Image.Image, task: str) -> str:
    """The shipped model for a picture: of its colour, then of the nearest size.

    Args:
        picture: of `open_picture`.
        task: what it must be able to do.

    Raises:
        ValueError: if no shipped model can do it, or none in colour for a picture in colour.
    """
    grey, shapes = _is_grey(picture), shipped_shapes(task)
    fitting = {name: shape for name, shape in shapes.items() if grey or shape[0] == 3}
    if not fitting:
        others = f"; {', '.join(shapes)} would in grey" if shapes else ""
        raise ValueError(
            f"no shipped model can {task} a picture in {'grey' if grey else 'colour'}{others}: give one by `--model`, "
            "FlowModel.from_pretrained in code."
        )

    def distance(name: str) -> tuple[bool, float]:
        channels, *size = fitting[name]
        return (channels == 1) != grey, abs(np.log(max(picture.size) / max(size)))

    return min(fitting, key=distance)


# Inside


def _name(file: Any) -> str:
    return repr(os.fspath(file)) if isinstance(file, (str, os.PathLike)) else "the file"


def _image_shape(flow: FlowModel) -> tuple[int, ...]:
    if len(flow.shape) != 3 or flow.shape[0] not in (1, 3) or flow.data_range != (-1.0, 1.0):
        raise ValueError(
            f"`flow` must be of images of 1 or 3 channels in [-1, 1]; got samples of shape {flow.shape} in "
            f"{flow.data_range}."
        )
    return flow.shape


def _as_mode(picture: PIL.Image.Image, channels: int) -> PIL.Image.Image:
    return to_grey_or_rgb(picture).convert("L" if channels == 1 else "RGB")


def _is_grey(picture: PIL.Image.Image) -> bool:
    """Whether a picture has no colour, a scanned digit saved as RGB for example."""
    if picture.mode in ("L", "LA"):
        return True
    low = np.asarray(picture.convert("RGB").resize((64, 64), PIL.Image.Resampling.NEAREST), int)
    return bool(np.ptp(low, axis=-1).max() <= 8)


def _window(hole: np.ndarray, size: Sequence[int]) -> tuple[int, int, int, int]:
    """Top, left, height and width of what the model sees; it may reach over the picture's edges."""
    lengths = np.array(hole.shape)
    scale = lengths / size
    cut = np.maximum(1, np.rint(np.array(size) * scale.min()).astype(int))
    first = last = lengths // 2
    if hole.any():
        ends = [np.flatnonzero(hole.any(axis))[[0, -1]] for axis in (1, 0)]
        first, last = np.array(ends).T
        last = last + 1
    if (last - first > cut).any():
        cut = np.maximum(lengths, np.rint(np.array(size) * scale.max()).astype(int))
        start = (lengths - cut) // 2
    else:
        start = np.clip((lengths - cut) // 2, last - cut, first)
        start = np.clip(start, 0, lengths - cut)
    return int(start[0]), int(start[1]), int(cut[0]), int(cut[1])


def _shrink(
    pixels: np.ndarray, hole: np.ndarray, window: tuple[int, int, int, int], size: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """The window at the model's size: means of known pixels, and what is missing in part or whole."""
    missing = _resized(hole.astype(np.float32), window, size, outside=1.0)
    known = np.maximum(1 - missing, 1e-6)
    small = np.empty((*size, pixels.shape[-1]), np.uint8)
    for channel in range(pixels.shape[-1]):
        plane = np.where(hole, 0, pixels[..., channel]).astype(np.float32)
        mean = _resized(plane, window, size, outside=0.0) / known
        small[..., channel] = np.clip(np.rint(mean), 0, 255)
    return small, missing > 1e-6


def _resized(
    plane: np.ndarray, window: tuple[int, int, int, int], size: Sequence[int], outside: float
) -> np.ndarray:
    top, left, height, width = window
    inside = plane[max(0, top) : top + height, max(0, left) : left + width]
    if inside.shape != (height, width):
        before = max(0, -top), max(0, -left)
        padding = [
            (b, n - b - m) for b, n, m in zip(before, (height, width), inside.shape, strict=True)
        ]
        inside = np.pad(inside, padding, constant_values=outside)
    picture = PIL.Image.fromarray(np.ascontiguousarray(inside))
    return np.asarray(picture.resize((size[1], size[0]), PIL.Image.Resampling.BOX))


def _paste(
    picture: PIL.Image.Image,
    hole: np.ndarray,
    window: tuple[int, int, int, int],
    filled: Tensor,
) -> PIL.Image.Image:
    """The picture with a fill of `(channel, height, width)` bytes in its hole."""
    top, left, height, width = window
    planes = []
    for plane in filled.float().numpy():
        large = PIL.Image.fromarray(plane).resize((width, height), PIL.Image.Resampling.BICUBIC)
        planes.append(np.clip(np.rint(np.asarray(large)), 0, 255).astype(np.uint8))
    planes = np.stack(planes, axis=-1)
    fill = PIL.Image.fromarray(planes[..., 0] if planes.shape[-1] == 1 else planes)
    painted = PIL.Image.new("RGB", picture.size)
    painted.paste(fill, (left, top))
    result = picture.copy()
    result.paste(painted.convert(picture.mode), mask=PIL.Image.fromarray(hole))
    return result
