"""One row of a data set to pixels and a label, with errors that say which row."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
import torch
from jaxtyping import UInt8

from fm_ext.data.columns import Columns
from fm_ext.data.pixels import Crop, fit, to_grey_or_rgb

EMPTY = "`split` must have at least one row, got an empty split."


class RowError(ValueError):
    """A row that cannot be used; the message names row and column."""


@dataclass(frozen=True)
class RowDecoder:
    """Decodes, converts and resizes the image of a row.

    Args:
        columns: what to read.
        shape: channels (1 or 3), height and width of every image that comes out.
        resize: whether images of another size are resized; otherwise they are errors.
        convert: whether RGB images are converted to grey; otherwise they are errors where
            `shape` is grey. Grey images become RGB without loss, so they always may.
        crop: see `fm_ext.data.pixels.fit`.
    """

    columns: Columns
    shape: tuple[int, int, int]
    resize: bool
    convert: bool
    crop: Crop

    def __call__(
        self, row: Mapping[str, Any], number: int, place: float = 0.5
    ) -> tuple[UInt8[np.ndarray, "channel height width"], int]:
        """Pixels and label (0 where no label is read) of a row.

        Args:
            row: values by column, the image encoded: `{"bytes": ..., "path": ...}`.
            number: of the row, for the errors.
            place: of the window that `crop` cuts.

        Raises:
            RowError: a missing or unreadable image, an image of another size or colour than
                `shape` where these are not converted, a missing label.
        """
        picture = _open(self.columns, row, number)
        channels, size = self.shape[0], self.shape[1:]
        if channels == 1 and picture.mode == "RGB" and not self.convert:
            raise _error(
                self.columns,
                number,
                "is RGB in a data set whose first image is grey. Fix: `channels=1` or `channels=3`",
            )
        mode = "L" if channels == 1 else "RGB"
        image = np.asarray(picture if picture.mode == mode else picture.convert(mode))
        image = image[None] if channels == 1 else image.transpose(2, 0, 1)
        if image.shape[1:] != size:
            if not self.resize:
                raise _error(
                    self.columns,
                    number,
                    f"is {image.shape[1]}x{image.shape[2]} pixels in a data set whose first "
                    f"image is {size[0]}x{size[1]}. Fix: `size=`",
                )
            image = fit(torch.from_numpy(np.array(image)), size, self.crop, place).numpy()
        if self.columns.label is None:
            return image, 0
        label = row[self.columns.label]
        if label is None:
            raise RowError(f"row {number}, column {self.columns.label!r}: the label is missing.")
        return image, int(label)


def fit_decoder(
    rows: Iterable[Any],
    columns: Columns,
    *,
    size: tuple[int, int] | None,
    channels: int | None,
    crop: Crop,
    skip: bool,
) -> RowDecoder:
    """Make the decoder of a data set; what is not given is what its first image has.

    Args:
        rows: the data set or stream; read up to the first image that can be decoded.
        columns: what to read.
        size: height and width; None: the first image's.
        channels: 1 or 3; None: the first image's.
        crop: see `fm_ext.data.pixels.fit`.
        skip: whether rows that cannot be decoded are passed over.

    Raises:
        RowError: the first row cannot be decoded and `skip` is false.
        ValueError: there is no row, or none that can be decoded.
    """
    last = None
    for number, row in enumerate(rows):
        try:
            image = _open(columns, row, number)
        except RowError as error:
            if not skip:
                raise
            last = error
            continue
        height, width = size or (image.height, image.width)
        shape = (channels or len(image.getbands()), height, width)
        return RowDecoder(columns, shape, size is not None, channels is not None, crop)
    if last is not None:
        raise ValueError(f"`source` must have a readable image, got none; the last error: {last}")
    raise ValueError(EMPTY)


def _open(columns: Columns, row: Mapping[str, Any], number: int) -> PIL.Image.Image:
    value = row[columns.image]
    if value is None:
        raise _error(columns, number, "is missing")
    try:
        return to_grey_or_rgb(columns.feature.decode_example(value))
    except MemoryError:
        raise
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, EOFError, ...
        path = value.get("path") if isinstance(value, dict) else None
        file = f" ({path})" if path else ""
        reason = f"cannot be decoded{file}: {type(error).__name__}: {error}"
        raise _error(columns, number, reason) from error


def _error(columns: Columns, number: int, reason: str) -> RowError:
    return RowError(f"row {number}, column {columns.image!r}: the image {reason}.")
