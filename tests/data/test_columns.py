import re
from collections.abc import Callable

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from datasets import Array2D, Array3D, ClassLabel, Features, Image, List, Value

from fm_ext.data import load_images
from fm_ext.data.pixels import to_float
from fm_ext.data.source import find_columns

LABEL = ClassLabel(names=["a", "b"])


def test_columns_are_found_by_type_whatever_their_names() -> None:
    columns = find_columns(Features(id=Value("int64"), picture=Image(), kind=LABEL))
    assert (columns.images, columns.label) == ({"image": "picture"}, "kind")
    assert columns.classes == ["a", "b"]
    assert columns.names == ["picture", "kind"]


def test_labels_are_optional() -> None:
    assert find_columns(Features(image=Image(), id=Value("int64"))).label is None
    assert find_columns(Features(image=Image(), label=LABEL), label_column=False).names == ["image"]


def test_several_columns_by_what_a_batch_calls_them() -> None:
    features = Features(photo=Image(mode="L"), sketch=Image(), label=LABEL)
    columns = find_columns(features, {"source": "sketch", "image": "photo"})
    assert columns.images == {"source": "sketch", "image": "photo"}
    assert columns.modes == {"source": None, "image": "L"}
    assert columns.names == ["sketch", "photo", "label"]
    for wrong in ({"source": "sketch"}, {"image": "photo", "label": "sketch"}):
        with pytest.raises(
            ValueError, match="`image_column` must name the columns by what a batch"
        ):
            find_columns(features, wrong)


def test_columns_by_name() -> None:
    features = Features(
        a=Image(), b=Image(), fine=LABEL, coarse=LABEL, age=Value("uint8"), smiling=Value("bool")
    )
    columns = find_columns(features, "b", "coarse")
    assert (columns.images, columns.label) == ({"image": "b"}, "coarse")
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
            r"`image_column` must be of type datasets.Image; got 'y' of type ClassLabel",
        ),
        (
            Features(image=Image(), text=Value("string")),
            {"label_column": "text"},
            r"`label_column` must be of type datasets.ClassLabel, integer or bool; got 'text'",
        ),
    ],
)
def test_what_is_missing_or_ambiguous_is_named(
    features: datasets.Features | None, arguments: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        find_columns(features, **arguments)


PIXELS = np.arange(3 * 6 * 5 * 3).reshape(3, 6, 5, 3) % 251
ARRAYS = {  # what people keep images in, and the type of such a column
    "Array2D": (PIXELS[..., 0], Array2D((6, 5), "uint8")),
    "Array2D of int64": (PIXELS[..., 0], Array2D((6, 5), "int64")),
    "Array3D, channels last": (PIXELS, Array3D((6, 5, 3), "uint8")),
    "Array3D, channels first": (PIXELS.transpose(0, 3, 1, 2), Array3D((3, 6, 5), "uint8")),
    "Array3D, one channel": (PIXELS[:, None, :, :, 0], Array3D((1, 6, 5), "uint8")),
    "Array3D, one channel last": (PIXELS[..., :1], Array3D((6, 5, 1), "float32")),
    "lists": (PIXELS[..., 0], List(List(Value("uint8")))),
}


@pytest.mark.parametrize("kind", ARRAYS)
@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("streaming", [False, True])
def test_the_advice_makes_a_column_of_images(kind: str, named: bool, streaming: bool) -> None:
    values, feature = ARRAYS[kind]
    features = Features(caption=Value("string"), pixels=feature)
    source = datasets.Dataset.from_dict(
        {"caption": ["x"] * 3, "pixels": values.tolist()}, features=features
    )
    if streaming:
        source = source.to_iterable_dataset()
    named_column = {"image_column": "pixels"} if named else {}
    with pytest.raises(ValueError, match=r"must .* of type datasets\.Image.*Fix: `") as got:
        load_images(source, **named_column)
    fix = str(got.value).split("Fix: `")[1].split("`,")[0]
    cured = eval(fix, {"source": source, "datasets": datasets, "numpy": np, "PIL": PIL})
    images, _ = load_images(cured, **named_column)
    colour = "3" in kind and "one" not in kind
    expected = PIXELS.transpose(0, 3, 1, 2) if colour else PIXELS[:, None, :, :, 0]
    assert torch.equal(images, to_float(torch.from_numpy(expected.astype(np.uint8))))


def test_a_column_of_encoded_images_or_paths_is_cast(encode: Callable, tmp_path) -> None:
    value = encode(np.full((4, 4), 7, np.uint8))["bytes"]
    (tmp_path / "a.png").write_bytes(value)
    for column in ([value], [str(tmp_path / "a.png")]):
        source = datasets.Dataset.from_dict({"file": column})
        with pytest.raises(ValueError, match=r"Fix: `source\.cast_column") as got:
            load_images(source)
        fix = str(got.value).split("Fix: `")[1].split("`,")[0]
        images, _ = load_images(eval(fix, {"source": source, "datasets": datasets}))
        assert images.shape == (1, 1, 4, 4)


LABELS = {
    "string": (["b", "a", "b"], Value("string"), [1, 0, 1]),
    "float": ([2.0, 0.0, 1.0], Value("float32"), [2, 0, 1]),
    "int64": ([2, 0, 1], Value("int64"), [2, 0, 1]),
    "bool": ([True, False, True], Value("bool"), [1, 0, 1]),
    "several": ([[0], [0, 1], []], List(LABEL), None),
    "one-hot": ([[0.0, 1.0]] * 3, List(Value("float32")), None),
}


@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("column", ["label", "labels", "class"])
def test_labels_of_another_type_are_decided_on(kind: str, column: str, encode: Callable) -> None:
    """They are not left out without a word where they are called labels; each advice works."""
    values, feature, expected = LABELS[kind]
    source = datasets.Dataset.from_dict(
        {"image": [encode(np.full((4, 4), 7, np.uint8))] * 3, column: values},
        features=Features({"image": Image(), column: feature}),
    )
    named = {"label_column": column}
    if column == "class" and kind != "several":
        assert load_images(source)[1] is None
    elif kind not in ("int64", "bool"):
        with pytest.raises(ValueError, match=r"`label_column` must be of type .* Fix: "):
            load_images(source, **named)
    for arguments in ({},) if column != "class" else (named,):
        if expected is not None and kind in ("int64", "bool"):
            labels = load_images(source, **named)[1]
            assert labels is not None and labels.tolist() == expected
            if column == "class":
                continue
        with pytest.raises(ValueError, match=r"`label_column` must .*`label_column=False`") as got:
            load_images(source, **arguments)
        assert load_images(source, label_column=False)[1] is None
        scope = {"source": source, "datasets": datasets}
        for advice in re.findall(r"`(source[^`]*)`", str(got.value)):
            if "names=..." in advice:
                stream = source.to_iterable_dataset()
                scope = {"source": stream, "datasets": datasets}
                advice = advice.replace("...", "['a', 'b']")
            labels = load_images(eval(advice, scope), **named)[1]
            assert labels is not None and labels.tolist() == expected
