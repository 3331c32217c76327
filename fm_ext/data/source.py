"""From a hub name, a local folder or an object to one split, opened but not decoded."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import datasets

from fm_ext.data.columns import find_columns
from fm_ext.data.pixels import Crop
from fm_ext.data.rows import EMPTY, RowDecoder, fit_decoder

Source = str | os.PathLike | datasets.Dataset | datasets.IterableDataset | Mapping[Any, Any]


def open_source(
    source: Source, split: str, streaming: bool
) -> datasets.Dataset | datasets.IterableDataset:
    """Open one split.

    Args:
        source: hub name; folder of parquet or arrow files, of `save_to_disk`, or of images in one
            folder per class; data set or stream, or a dictionary of them by split.
        split: name of the split, with a slice (`"train[:10%]"`) where `source` is a name or a
            folder of files. A single data set has no splits: it is taken whole.
        streaming: whether to read it as a stream, without a copy on the disk.

    Raises:
        ValueError: no such folder or split, an empty split, or a data set with a transform set.
        TypeError: anything else.
    """
    if isinstance(source, str | os.PathLike):
        source = _load(source, split, streaming)
    if isinstance(source, Mapping):
        if split not in source:
            raise ValueError(f"`split` must be one of {sorted(source)}, got {split!r}.")
        source = source[split]
    if isinstance(source, datasets.IterableDataset):
        return source
    if not isinstance(source, datasets.Dataset):
        raise TypeError(
            "`source` must be a hub name, a folder, or a Dataset, IterableDataset or DatasetDict "
            f"of HuggingFace datasets, got {type(source).__name__}. Fix: "
            "`datasets.Dataset.from_dict` or `datasets.IterableDataset.from_generator`."
        )
    if source.format["type"] == "custom":
        raise ValueError(
            "`source` must have no transform set, got one that would be ignored. Fix: apply it "
            "with `source.map`, or pass `source.with_format(None)`."
        )
    if not len(source):
        raise ValueError(EMPTY)
    return source.to_iterable_dataset() if streaming else source


def open_rows(
    source: Source,
    *,
    split: str,
    size: int | tuple[int, int] | None,
    channels: int | None,
    crop: Crop,
    image_column: str | None,
    label_column: str | Literal[False] | None,
    on_error: str,
    streaming: bool,
) -> tuple[datasets.Dataset | datasets.IterableDataset, RowDecoder]:
    """One split with its images left encoded, and what decodes a row of it.

    For the arguments see `fm_ext.data.image_loader`.
    """
    size = (size, size) if isinstance(size, int) else size
    check("size", size, size is None or min(size) >= 1, "at least 1 pixel")
    check("channels", channels, channels in (None, 1, 3), "1, 3 or None")
    check("crop", crop, crop in (None, "center", "random"), '"center", "random" or None')
    check("on_error", on_error, on_error in ("raise", "skip"), '"raise" or "skip"')
    data = open_source(source, split, streaming)
    columns = find_columns(data.features, image_column, label_column)
    data = data.with_format(None).select_columns(columns.names)
    data = data.cast_column(columns.image, datasets.Image(decode=False))
    skip = on_error == "skip"
    decoder = fit_decoder(data, columns, size=size, channels=channels, crop=crop, skip=skip)
    return data, decoder


def check(argument: str, value: object, holds: bool, rule: str) -> None:
    """Raise a ValueError that names the argument, unless the rule holds."""
    if not holds:
        raise ValueError(f"`{argument}` must be {rule}, got {value!r}.")


def _load(source: str | os.PathLike, split: str, streaming: bool):
    path = Path(source).expanduser()
    if not path.is_dir():
        if not isinstance(source, str) or source.startswith((".", "/", "~")):
            raise ValueError(f"`source` must be an existing folder or a hub name, got {source}.")
        return datasets.load_dataset(source, split=split, streaming=streaming)
    if any((path / name).is_file() for name in ("dataset_dict.json", "state.json")):
        return datasets.load_from_disk(path)
    return datasets.load_dataset(str(path), split=split, streaming=streaming)
