"""The one reader of a row: encoded images and a label in, pixels out, errors that name row and column."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import PIL.Image
from jaxtyping import UInt8

from fm_ext.data.pixels import BrokenRule, Crop, PixelRange, fit, to_grey_or_rgb
from fm_ext.data.source import EMPTY, Columns

Pixels = UInt8[np.ndarray, "channel height width"]


class RowError(ValueError):
    """A row that cannot be used; the message names row and column."""


@dataclass(frozen=True)
class RowReader:
    """Decodes, converts and resizes the images of a row, all of a row by the same window.

    Args:
        columns: what to read.
        shapes: by the names in a batch, channels (1 or 3), height and width of every image that comes out.
        resize: whether images of another size are resized; otherwise they are errors.
        convert: whether RGB images are converted to grey; otherwise they are errors where
            `shapes` is grey. Grey images become RGB without loss, so they always may.
        crop: see `fm_ext.data.pixels.fit`.
        pixel_range: see `fm_ext.data.pixels.to_grey_or_rgb`.
    """

    columns: Columns
    shapes: dict[str, tuple[int, int, int]]
    resize: bool
    convert: bool
    crop: Crop
    pixel_range: PixelRange | None

    def __call__(
        self, row: Mapping[str, Any], number: int, place: float = 0.5
    ) -> tuple[dict[str, Pixels], int]:
        """Pixels by the names in a batch, and the label (0 where none is read).

        Args:
            row: values by column, images encoded: `{"bytes": ..., "path": ...}`.
            number: of the row, for the errors.
            place: of the window that `crop` cuts.

        Raises:
            RowError: whatever is wrong with the row.
        """
        pictures = open_images(row, number, self.columns, self.pixel_range)
        images = {}
        for name, column in self.columns.images.items():
            with _naming(number, column, row[column]):
                images[name] = self._fit(pictures, name, place)
        if self.columns.label is None:
            return images, 0
        label = row[self.columns.label]
        try:
            return images, int(np.int64(label))
        except (TypeError, ValueError, OverflowError) as error:
            reason = "missing" if label is None else f"no whole number of 64 bits, {label!r}"
            raise RowError(
                f"row {number}, column {self.columns.label!r}: the label is {reason}."
            ) from error

    def _fit(self, pictures: dict[str, PIL.Image.Image], name: str, place: float) -> Pixels:
        picture, (channels, *size) = pictures[name], self.shapes[name]
        if channels == 1 and picture.mode == "RGB" and not self.convert:
            raise BrokenRule(
                "is RGB in a data set whose first image is grey. Fix: `channels=1` or `channels=3`"
            )
        if [picture.height, picture.width] != size:
            if not self.resize:
                raise BrokenRule(
                    f"is {picture.height}x{picture.width} pixels in a data set whose first "
                    f"image is {size[0]}x{size[1]}. Fix: `size=`"
                )
            if self.crop is not None:
                _check_window(picture, pictures["image"])
            picture = fit(picture, (size[0], size[1]), self.crop, place)
        mode = "L" if channels == 1 else "RGB"
        image = np.asarray(picture if picture.mode == mode else picture.convert(mode))
        return image[None] if channels == 1 else image.transpose(2, 0, 1)


def fit_reader(
    rows: Iterable[Any],
    columns: Columns,
    *,
    size: tuple[int, int] | None,
    channels: int | None,
    crop: Crop,
    pixel_range: PixelRange | None,
    skip: bool,
) -> RowReader:
    """Make the reader of a data set; what is not given is what its first row has.

    Args:
        rows: the data set or stream; read up to the first row whose images can be decoded.
        columns: what to read.
        size: height and width; None: the first image's.
        channels: 1 or 3; None: the first image's.
        crop: see `fm_ext.data.pixels.fit`.
        pixel_range: see `fm_ext.data.pixels.to_grey_or_rgb`.
        skip: whether rows that cannot be decoded are passed over.

    Raises:
        RowError: the first row cannot be decoded and `skip` is false.
        ValueError: there is no row, or none that can be decoded.
    """
    last = None
    for number, row in enumerate(rows):
        try:
            pictures = open_images(row, number, columns, pixel_range)
        except RowError as error:
            if not skip:
                raise
            last = error
            continue
        shapes = {
            name: (
                channels or len(image.getbands()),
                *(size or (image.height, image.width)),
            )
            for name, image in pictures.items()
        }
        return RowReader(columns, shapes, size is not None, channels is not None, crop, pixel_range)
    raise ValueError(EMPTY if last is None else nothing_readable(last))


def nothing_readable(last: RowError) -> str:
    """The message for a split without a single row that can be used."""
    return f"`source` must have a readable row; got none. The last error: {last}"


def open_images(
    row: Mapping[str, Any], number: int, columns: Columns, pixel_range: PixelRange | None
) -> dict[str, PIL.Image.Image]:
    """The images of a row in mode L or RGB, upright, by their names in a batch.

    Raises:
        RowError: a missing or unreadable image, or one of a mode without a range.
    """
    pictures = {}
    for name, column in columns.images.items():
        with _naming(number, column, row[column]):
            if row[column] is None:
                raise BrokenRule("is missing")
            picture = datasets.Image().decode_example(row[column])
            picture = to_grey_or_rgb(picture, pixel_range)
            if (mode := columns.modes[name]) is not None:
                picture = to_grey_or_rgb(picture.convert(mode), pixel_range)
            pictures[name] = picture
    return pictures


def _check_window(picture: PIL.Image.Image, first: PIL.Image.Image) -> None:
    """Raises unless both have one aspect ratio, to a pixel: else the same window shows other parts."""
    (w, h), (width, height) = picture.size, first.size
    if abs(w * height - h * width) > max(w, h, width, height):
        raise BrokenRule(
            f"is {h}x{w} pixels beside one of {height}x{width}, and a window of another aspect ratio does not show the "
            "same part. Fix: `crop=None` squeezes both"
        )


@contextmanager
def _naming(number: int, column: str, value: Any) -> Iterator[None]:
    """Turns whatever is raised inside into a `RowError`, but for what is not the row's fault."""
    try:
        yield
    except MemoryError:
        raise
    except BrokenRule as error:
        raise RowError(f"row {number}, column {column!r}: the image {error}.") from error
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, EOFError, ...
        path = value.get("path") if isinstance(value, dict) else None
        file = f" ({path})" if path else ""
        raise RowError(
            f"row {number}, column {column!r}: the image cannot be decoded{file}: {type(error).__name__}: {error}."
        ) from error
