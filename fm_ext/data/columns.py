"""Which columns of a data set are the image and the label, by their feature types."""

from dataclasses import dataclass
from typing import Literal

import datasets

_NUMBERS = ("int", "uint", "bool")


@dataclass(frozen=True)
class Columns:
    """The columns that are read.

    Args:
        image: name of the image column.
        feature: its type, which decodes one value to a PIL image.
        label: name of the label column; None if there is none.
        classes: names of the classes; None if the label column does not tell them.
    """

    image: str
    feature: datasets.Image
    label: str | None
    classes: list[str] | None

    @property
    def names(self) -> list[str]:
        return [self.image] if self.label is None else [self.image, self.label]


def find_columns(
    features: datasets.Features | None,
    image_column: str | None = None,
    label_column: str | Literal[False] | None = None,
) -> Columns:
    """Find the one `datasets.Image` column and the one `datasets.ClassLabel` column, if any.

    Args:
        features: the feature types of the data set.
        image_column: its name, where there are several image columns.
        label_column: its name, where there are several or where it is of type integer or bool; False
            reads no labels.

    Raises:
        ValueError: no or several candidates, an unknown name, or a column of the wrong type.
    """
    if features is None:
        raise ValueError(
            "`source` must tell the types of its columns, got a stream whose `features` is None. "
            "Fix: `stream.cast(features)`, or pass `features=` to the `map` or the generator that "
            "made it."
        )
    listing = ", ".join(f"{name}: {feature}" for name, feature in features.items()) or "none at all"
    image = _pick("image_column", image_column, datasets.Image, features, listing)
    if image is None:
        raise ValueError(
            f"`source` must have a column of type datasets.Image, got the columns {listing}. Fix: "
            "`source.cast_column(name, datasets.Image())` for a column of encoded images or paths."
        )
    label = None
    if label_column is not False:
        label = _pick("label_column", label_column, datasets.ClassLabel, features, listing)
    kind = features[label] if label is not None else None
    classes = kind.names if isinstance(kind, datasets.ClassLabel) else None
    return Columns(image, features[image], label, classes)


def _pick(
    argument: str, name: str | None, kind: type, features: datasets.Features, listing: str
) -> str | None:
    if name is None:
        found = [key for key, feature in features.items() if isinstance(feature, kind)]
        if len(found) > 1:
            raise ValueError(
                f"`{argument}` must be given when several columns are of type {kind.__name__}, got "
                f"{found} among the columns {listing}."
            )
        return found[0] if found else None
    if name not in features:
        raise ValueError(f"`{argument}` must be one of the columns {listing}; got {name!r}.")
    feature = features[name]
    integer = isinstance(feature, datasets.Value) and feature.dtype.startswith(
        ("int", "uint", "bool")
    )
    if not isinstance(feature, kind) and not (kind is datasets.ClassLabel and integer):
        wanted = (
            "datasets.Image" if kind is datasets.Image else "datasets.ClassLabel, integer or bool"
        )
        raise ValueError(
            f"`{argument}` must be of type {wanted}, got {name!r} of type {feature} among the "
            f"columns {listing}. Fix: `source.cast_column({name!r}, ...)`."
        )
    return name
