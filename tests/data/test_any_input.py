"""Whatever comes in, the public entries give what they promise or an error that names an argument, row or column.

1,000 cases each: `HYPOTHESIS_PROFILE=thousand pytest -n0 tests/data/test_any_input.py tests/mask/test_any_input.py`.
"""

import io
import re
import warnings
from collections.abc import Callable
from typing import Any

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fm_ext.data import image_loader, image_pair_loader, load_images, pair_loader

NAMED = re.compile(r"`\w+`|row \d+, column '|every row of a batch is unreadable")
pytestmark = pytest.mark.usefixtures("untyped")
cases = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

sides = st.integers(1, 12)
modes = st.sampled_from(
    ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I", "I;16", "F", "broken", "missing"]
)
sizes = st.sampled_from(
    [None, 0, 1, 5, 8, 8.0, "8", True, (6, 9), [4, 4], (3, 8, 8), (), (None, 4), np.int64(7)]
)
numbers = st.sampled_from([-1, 0, 1, 2, 3, 7, 2.0, None, "2", True, np.int64(2)])


@st.composite
def values(draw: st.DrawFn, mode: Any = modes) -> dict | None:
    """One encoded image of any mode and size."""
    kind = draw(mode)
    if kind == "missing":
        return None
    size = (draw(sides), draw(sides))
    pixels = np.random.default_rng(draw(st.integers(0, 99))).integers(0, 256, size[::-1])
    grey = PIL.Image.fromarray(pixels.astype(np.uint8))
    if kind in ("I", "F"):
        grey = PIL.Image.fromarray(pixels.astype(np.int32 if kind == "I" else np.float32))
    elif kind == "I;16":
        grey = PIL.Image.fromarray(pixels.astype(np.uint16))
    elif kind != "broken":
        grey = grey.convert("RGB").convert(kind)
    image_format = "tiff" if kind in ("CMYK", "YCbCr", "F", "I", "I;16") else "png"
    grey.save(file := io.BytesIO(), image_format)
    data = file.getvalue()
    return {"bytes": data[: len(data) // 2] if kind == "broken" else data, "path": None}


@st.composite
def sources(draw: st.DrawFn, columns: int = 1) -> datasets.Dataset:
    """A few rows, most of one mode, with labels of any kind."""
    rows = draw(st.integers(1, 5))
    mode = st.one_of(st.just(draw(modes)), modes)
    names = ["image", "other"][:columns]
    features = {name: datasets.Image() for name in names}
    table: dict[str, list] = {
        name: draw(st.lists(values(mode), min_size=rows, max_size=rows)) for name in names
    }
    labels = draw(st.sampled_from(["none", "class", "int64", "string", "float32", "list"]))
    if labels != "none":
        plain: dict[str, Any] = {
            "class": (datasets.ClassLabel(names=["a", "b"]), [1, 0, None, -1, 1]),
            "int64": (datasets.Value("int64"), [2**40, 0, None, -1, 1]),
            "string": (datasets.Value("string"), ["a", "b", None, "", "a"]),
            "float32": (datasets.Value("float32"), [0.5, 1.0, None, 2.0, 3.0]),
            "list": (datasets.List(datasets.Value("int64")), [[1], [], [0, 1], [2], [3]]),
        }
        features["label"], table["label"] = plain[labels][0], plain[labels][1][:rows]
    return datasets.Dataset.from_dict(table, features=datasets.Features(features))


arguments = st.fixed_dictionaries(
    {},
    optional={
        "size": sizes,
        "channels": st.sampled_from([None, 1, 3, 2, 3.0, True, "rgb"]),
        "crop": st.sampled_from(["center", None, "random", "left", 0]),
        "pixel_range": st.sampled_from(
            [None, (0, 255), (0, 65535), (1, 0), 255, (0.0, float("nan"))]
        ),
        "label_column": st.sampled_from([None, False, "label", "image", "none"]),
        "image_column": st.sampled_from(
            [None, "image", "label", {"image": "image"}, {"a": "image"}]
        ),
        "on_error": st.sampled_from(["raise", "skip", "ignore", None]),
        "streaming": st.booleans(),
    },
)
reading = st.fixed_dictionaries(
    {"batch_size": numbers},
    optional={
        "shuffle": st.booleans(),
        "seed": numbers,
        "drop_last": st.sampled_from([None, True, False]),
        "flip": st.booleans(),
        "in_memory": st.sampled_from(["auto", True, False, 1, None]),
    },
)


def named(call: Callable[[], Any]) -> Any:
    """What the call returns, or None after an error that says what is wrong."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*on_error='skip'")
        try:
            return call()
        except (ValueError, TypeError) as error:
            assert NAMED.search(str(error)), f"a foreign error: {type(error).__name__}: {error}"
            return None


def check(batches: list[dict[str, torch.Tensor]], sides: tuple[str, ...], shape: Any) -> None:
    for batch in batches:
        rows = len(batch["image"])
        assert rows > 0
        for side in sides:
            image = batch[side]
            assert image.dtype == torch.float32 and image.min() >= -1 and image.max() <= 1
        assert batch["image"].shape == (rows, *shape)
        if "label" in batch:
            assert batch["label"].dtype == torch.int64 and batch["label"].shape == (rows,)


@cases
@given(source=sources(), arguments=arguments, reading=reading)
def test_image_loader(source, arguments, reading) -> None:
    def epochs():
        loader = image_loader(source, num_workers=0, **arguments, **reading)
        first, second = list(loader), list(loader)
        loader.dataset.set_epoch(0)
        assert [b["image"].tolist() for b in loader] == [b["image"].tolist() for b in first]
        return loader, first + second

    if result := named(epochs):
        loader, batches = result
        assert batches
        check(batches, ("image",), loader.dataset.shape)


@cases
@given(source=sources(), arguments=arguments, limit=numbers)
def test_load_images(source, arguments, limit) -> None:
    result = named(lambda: load_images(source, limit=limit, **arguments))
    if result is not None:
        images, labels = result
        batch = {"image": images} if labels is None else {"image": images, "label": labels}
        check([batch], ("image",), images.shape[1:])
        assert len(images) <= min(len(source), limit or 99)


@cases
@given(source=sources(2), target=st.none() | sources(2), arguments=arguments, reading=reading)
def test_image_pair_loader(source, target, arguments, reading) -> None:
    arguments = {**arguments, "num_workers": 0} | reading
    arguments.pop("image_column", None)
    sides = {"source_column": "other", "target_column": "image"}

    def epochs():
        loader = image_pair_loader(source, target, **sides, **arguments)
        return loader, list(loader) + list(loader)

    if result := named(epochs):
        loader, batches = result
        check(batches, ("image", "source"), loader.dataset.shape)


@cases
@given(
    rows=st.integers(0, 4),
    kind=st.sampled_from(["numbers", "lists", "ragged", "nested", "string", "missing", "array"]),
    batch_size=numbers,
    drop_last=st.sampled_from([None, True, False]),
)
def test_pair_loader(rows, kind, batch_size, drop_last, tmp_path_factory) -> None:
    folder = tmp_path_factory.mktemp("pairs")
    column: Any = {
        "numbers": [1.0, 2.0, 3.0, 4.0],
        "lists": [[1.0, 2.0]] * 4,
        "ragged": [[1.0], [2.0, 3.0], [], [1.0]],
        "nested": [[[1, 2], [3, 4]]] * 4,
        "string": ["a", "b", "c", "d"],
        "missing": [1.0, None, 2.0, None],
        "array": [np.ones((2, 2), np.float32)] * 4,
    }[kind][:rows]
    features = None
    if kind == "array":
        features = datasets.Features(x_0=datasets.Array2D((2, 2), "float32"))
    datasets.Dataset.from_dict({"x_0": column}, features=features).to_parquet(folder / "a.parquet")

    def epoch():
        return list(pair_loader(folder, batch_size=batch_size, drop_last=drop_last))

    for batch in named(epoch) or []:
        assert kind not in ("string",) and batch["x_0"].isfinite().all()
