import datasets
import pytest
from datasets import ClassLabel, Features, Image, Value

from fm_ext.data.columns import find_columns

LABEL = ClassLabel(names=["a", "b"])


def test_columns_are_found_by_type_whatever_their_names() -> None:
    columns = find_columns(Features(id=Value("int64"), picture=Image(), kind=LABEL))
    assert (columns.image, columns.label, columns.classes) == ("picture", "kind", ["a", "b"])
    assert columns.names == ["picture", "kind"]


def test_labels_are_optional() -> None:
    assert find_columns(Features(image=Image(), id=Value("int64"))).label is None
    assert find_columns(Features(image=Image(), label=LABEL), label_column=False).names == ["image"]


def test_columns_by_name() -> None:
    features = Features(
        a=Image(), b=Image(), fine=LABEL, coarse=LABEL, age=Value("uint8"), smiling=Value("bool")
    )
    columns = find_columns(features, "b", "coarse")
    assert (columns.image, columns.label) == ("b", "coarse")
    for name in ("age", "smiling"):
        columns = find_columns(features, "a", name)
        assert (columns.label, columns.classes) == (name, None)


@pytest.mark.parametrize(
    ("features", "arguments", "message"),
    [
        (None, {}, r"`source` must tell the types.*cast\(features\)"),
        (
            Features(bytes=Value("binary"), y=LABEL),
            {},
            r"`source` must have a column of type datasets.Image.*bytes: Value\(.*'binary'.*"
            r"y: ClassLabel.*cast_column",
        ),
        (Features(), {}, "none at all"),
        (Features(a=Image(), b=Image()), {}, r"`image_column` must be given.*\['a', 'b'\]"),
        (
            Features(image=Image(), fine=LABEL, coarse=LABEL),
            {},
            r"`label_column` must be given.*\['fine', 'coarse'\]",
        ),
        (
            Features(image=Image()),
            {"image_column": "img"},
            r"`image_column` must be one of the columns image: Image.*got 'img'",
        ),
        (
            Features(image=Image(), y=LABEL),
            {"image_column": "y"},
            r"`image_column` must be of type datasets.Image, got 'y' of type ClassLabel",
        ),
        (
            Features(image=Image(), text=Value("string")),
            {"label_column": "text"},
            r"`label_column` must be of type datasets.ClassLabel, integer or bool, got 'text'",
        ),
    ],
)
def test_what_is_missing_or_ambiguous_is_named(
    features: datasets.Features | None, arguments: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        find_columns(features, **arguments)
