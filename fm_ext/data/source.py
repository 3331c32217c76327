"""From a hub name, a local folder or an object to one split with its columns, opened but not decoded."""

import math
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import datasets
from datasets.utils.file_utils import is_local_path

Source = str | os.PathLike | datasets.Dataset | datasets.IterableDataset | Mapping[Any, Any]

EMPTY = "`split` must have at least one row; got an empty split."

_SAMPLED = 16  # rows of a data set that its fingerprint reads


@dataclass(frozen=True)
class Columns:
    """The columns that are read.

    Args:
        images: names of the image columns, by their names in a batch.
        modes: what `datasets.Image(mode=...)` converts each to; None as it is.
        label: name of the label column; None if there is none.
        classes: names of the classes; None if the label column does not tell them.
    """

    images: dict[str, str]
    modes: dict[str, str | None]
    label: str | None
    classes: list[str] | None

    @property
    def names(self) -> list[str]:
        """Each column once."""
        label = () if self.label is None else (self.label,)
        return list(dict.fromkeys((*self.images.values(), *label)))


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
            raise ValueError(f"`split` must be one of {sorted(source)}; got {split!r}.")
        source = source[split]
    if isinstance(source, datasets.IterableDataset):
        return source
    if not isinstance(source, datasets.Dataset):
        raise TypeError(
            "`source` must be a hub name, a folder, or a Dataset, IterableDataset or DatasetDict "
            f"of HuggingFace datasets; got {type(source).__name__}. Fix: "
            "`datasets.Dataset.from_dict` or `datasets.IterableDataset.from_generator`."
        )
    if source.format["type"] == "custom":
        raise ValueError(
            "`source` must have no transform set; got one that would be ignored. Fix: apply it "
            "with `source.map`, or pass `source.with_format(None)`."
        )
    if not len(source):
        raise ValueError(EMPTY)
    return source.to_iterable_dataset() if streaming else source


def _load(source: str | os.PathLike, split: str, streaming: bool):
    path = Path(source).expanduser()
    if not path.is_dir():
        if not isinstance(source, str) or source.startswith((".", "/", "~")):
            raise ValueError(f"`source` must be an existing folder or a hub name; got {source}.")
        return datasets.load_dataset(source, split=split, streaming=streaming)
    if any((path / name).is_file() for name in ("dataset_dict.json", "state.json")):
        return datasets.load_from_disk(path)
    try:
        return datasets.load_dataset(str(path), split=split, streaming=streaming)
    except ValueError as error:
        names = datasets.get_dataset_split_names(str(path))
        if all(part.split("[")[0] in names for part in split.split("+")):
            raise
        raise ValueError(
            f"`split` must be one of {sorted(names)}, or a part of it; got {split!r}. A folder has a split for each "
            f"of its folders train, validation and test; without these, split='{names[0]}[-100:]' are its last images "
            f"and split='{names[0]}[:-100]' the others."
        ) from error


def find_columns(
    features: datasets.Features | None,
    image_column: str | Mapping[str, str] | None = None,
    label_column: str | Literal[False] | None = None,
) -> Columns:
    """Find the one `datasets.Image` column and the one `datasets.ClassLabel` column, if any.

    Args:
        features: the feature types of the data set.
        image_column: its name, where there are several image columns; or several names, by what a batch calls them.
        label_column: its name, where there are several or where it is of type integer or bool; False
            reads no labels.

    Raises:
        ValueError: no or several candidates, an unknown name, a column of the wrong type, or one called label or
            labels, or of lists of classes, that is not of type `ClassLabel`, unless `label_column` decides on it.
    """
    if features is None:
        raise ValueError(
            "`source` must tell the types of its columns; got a stream whose `features` is None. "
            "Fix: `stream.cast(features)`, or pass `features=` to the `map` or the generator that "
            "made it."
        )
    if isinstance(image_column, Mapping):
        if "image" not in image_column or "label" in image_column:
            raise ValueError(
                "`image_column` must name the columns by what a batch calls them, 'image' among them and not "
                f"'label'; got {dict(image_column)}."
            )
        images = {name: _image(features, column) for name, column in image_column.items()}
    else:
        images = {"image": _image(features, image_column)}
    label = None if label_column is False else _label(features, label_column)
    kind = None if label is None else features[label]
    classes = kind.names if isinstance(kind, datasets.ClassLabel) else None
    return Columns(
        images, {name: features[column].mode for name, column in images.items()}, label, classes
    )


def _image(features: datasets.Features, name: str | None) -> str:
    found = [key for key, feature in features.items() if isinstance(feature, datasets.Image)]
    if name is None and len(found) == 1:
        return found[0]
    if name is None and found:
        raise ValueError(
            f"`image_column` must be given when several columns are of type Image; got {found} among the columns "
            f"{_listing(features)}."
        )
    if name is None:
        advice = [_image_advice(key, feature) for key, feature in features.items()]
        advice.sort(
            key=lambda fix: ("map(" in fix) - ("for paths" in fix) + 2 * bool(fix)
        )  # surest last
        raise ValueError(
            f"`source` must have a column of type datasets.Image; got the columns {_listing(features)}."
            + "".join(advice[-1:])
        )
    _known("image_column", name, features)
    if name not in found:
        raise ValueError(
            f"`image_column` must be of type datasets.Image; got {name!r} of type {features[name]}."
            + _image_advice(name, features[name])
        )
    return name


def _image_advice(name: str, feature: Any) -> str:
    """How a column of this type becomes one of images; nothing where it cannot."""
    dtype, shape = getattr(feature, "dtype", None), getattr(feature, "shape", ())
    nested = getattr(getattr(feature, "feature", None), "feature", None) is not None
    if not shape and not nested:
        kinds = {"string": "paths", "binary": "encoded images"}
        if (kind := kinds.get(str(dtype).removeprefix("large_"))) is None:
            return ""
        return f" Fix: `source.cast_column({name!r}, datasets.Image())`, for {kind}."
    array = f"numpy.uint8(row[{name!r}])"
    if len(shape) == 3:
        first = shape[0] in (1, 3, 4) and shape[2] not in (1, 3, 4)
        array += ".transpose(1, 2, 0)" if first else ""
        array += ".squeeze(2)" if shape[0 if first else 2] == 1 else ""
    return (
        f" Fix: `source.map(lambda row: {{{name!r}: PIL.Image.fromarray({array})}}, "
        f"features=datasets.Features({{**source.features, {name!r}: datasets.Image()}}))`, for pixels in 0..255."
    )


def _label(features: datasets.Features, name: str | None) -> str | None:
    if name is None:
        found = [k for k, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
        if len(found) == 1:
            return found[0]
        if found:
            raise ValueError(
                f"`label_column` must be given when several columns are of type ClassLabel; got {found} among the "
                f"columns {_listing(features)}."
            )
        name = next(
            (
                key
                for key, feature in features.items()
                if key in ("label", "labels")
                or isinstance(getattr(feature, "feature", None), datasets.ClassLabel)
            ),
            None,
        )
        if name is None:
            return None
        fix = _label_advice(name, features[name])
        raise ValueError(
            f"`label_column` must say what to do with {name!r} of type {features[name]}, which is not of type "
            f"ClassLabel. Fix: {fix}`label_column=False` to read no labels."
        )
    _known("label_column", name, features)
    feature = features[name]
    if not isinstance(feature, datasets.ClassLabel) and not _whole_numbers(feature):
        raise ValueError(
            f"`label_column` must be of type datasets.ClassLabel, integer or bool; got {name!r} of type {feature}. "
            f"Fix: {_label_advice(name, feature)}`label_column=False` to read no labels."
        )
    return name


def _whole_numbers(feature: Any) -> bool:
    return isinstance(feature, datasets.Value) and feature.dtype.startswith(("int", "uint", "bool"))


def _label_advice(name: str, feature: Any) -> str:
    if _whole_numbers(feature):
        return f"`label_column={name!r}`, or "
    if not isinstance(feature, datasets.Value):
        return ""  # several labels an image: which of them is the class?
    if feature.dtype.startswith("float"):
        return f"`source.cast_column({name!r}, datasets.Value('int64'))` and `label_column={name!r}`, or "
    return (
        f"`source.class_encode_column({name!r})`, of a stream "
        f"`source.cast_column({name!r}, datasets.ClassLabel(names=...))`, or "
    )


def _known(argument: str, name: str, features: datasets.Features) -> None:
    if name not in features:
        raise ValueError(
            f"`{argument}` must be one of the columns {_listing(features)}; got {name!r}."
        )


def _listing(features: datasets.Features) -> str:
    return ", ".join(f"{name}: {feature}" for name, feature in features.items()) or "none at all"


def sampled_rows(data: datasets.Dataset) -> list[dict[str, Any]]:
    """The rows that the fingerprint of a data set reads: 16 over its whole length, or all."""
    count = min(_SAMPLED, len(data))
    return [data[k * (len(data) - 1) // max(1, count - 1)] for k in range(count)]


def fingerprint(rows: Iterable[Mapping[str, Any]]) -> str:
    """A hash of the content of rows, and of nothing else.

    HuggingFace's own fingerprint changes with the place and the time stamps of the cache. Here an image file is read,
    not named.

    Args:
        rows: with images left encoded.
    """
    total = blake2b(digest_size=16)
    for row in rows:
        for name in sorted(row):
            part = _content(row[name])
            total.update(repr((name, len(part))).encode() + part)
    return total.hexdigest()


def _content(value: Any) -> bytes:
    if not isinstance(value, dict) or not {"bytes", "path"} <= value.keys():
        return repr(value).encode()
    if value["bytes"] is None and value["path"] and is_local_path(value["path"]):
        path = Path(value["path"])
        return path.read_bytes() if path.is_file() else b""
    return value["bytes"] or repr(value["path"]).encode()


def choice(argument: str, value: Any, allowed: Collection[Any]) -> None:
    """Raise a ValueError unless the value is one of those allowed; 1 is not True here."""
    if not any(value is each or (value == each and type(value) is type(each)) for each in allowed):
        raise ValueError(f"`{argument}` must be {', '.join(map(repr, allowed))}; got {value!r}.")


def interval(argument: str, value: Any) -> tuple[float, float] | None:
    """Black and white as floats."""
    if value is None:
        return None
    try:
        black, white = map(float, value)
        fine = -math.inf < black < white < math.inf
    except (TypeError, ValueError):
        fine = False
    if not fine:
        raise ValueError(
            f"`{argument}` must be (black, white), finite, black first; got {value!r}."
        )
    return black, white  # pyright: ignore[reportPossiblyUnboundVariable]
