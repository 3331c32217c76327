import pickle
import tracemalloc
import warnings
from collections.abc import Callable

import datasets
import numpy as np
import PIL.Image
import pytest
import torch

from fm_ext.data import image_loader, load_images
from fm_ext.data.decode import RowError
from fm_ext.data.pixels import to_float

pytestmark = [
    # Python 3.12 says so at each fork, a machine with one core at the second worker.
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]

WAYS = {
    "memory": {"in_memory": True},
    "lazy": {"in_memory": False, "num_workers": 0},
    "lazy, 2 workers": {"in_memory": False, "num_workers": 2},
    "stream": {"streaming": True, "num_workers": 0},
    "stream, 2 workers": {"streaming": True, "num_workers": 2},
}
ways = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
BAD = (2, 3, 9)


@ways
def test_a_corrupt_image_is_named(way: dict, numbered: Callable) -> None:
    message = "nothing raised"
    try:
        list(image_loader(numbered(bad=(9,)), batch_size=4, shuffle=False, **way))
    except ValueError as error:
        message = str(error)
        error.__traceback__ = None  # while it lives, torch waits 5 s for each worker to stop
    assert "row 9, column 'image': the image cannot be decoded: OSError" in message


def test_a_missing_file_is_named(encode: Callable, tmp_path) -> None:
    values = [{"path": str(tmp_path / "gone.png"), "bytes": None}]
    data = datasets.Dataset.from_dict(
        {"photo": values}, features=datasets.Features(photo=datasets.Image())
    )
    with pytest.raises(ValueError, match=r"row 0, column 'photo'.*gone\.png.*FileNotFoundError"):
        load_images(data)


@ways
def test_corrupt_images_are_skipped_and_counted(
    way: dict, numbered: Callable, read_rows: Callable
) -> None:
    """In memory they are left out; otherwise a readable row takes their place."""
    data = numbered(bad=BAD)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loader = image_loader(data, batch_size=4, shuffle=False, on_error="skip", **way)
        batches = list(loader)
        assert loader.dataset.skipped == 3
        list(loader)
    numbers = [number for batch in batches for number, _ in read_rows(batch["image"])]
    readable = [row for row in range(22) if row not in BAD]
    if way.get("in_memory"):
        assert numbers == readable
    else:
        assert len(numbers) == 22
        assert [number for k, number in enumerate(numbers) if k not in BAD] == readable
        after = {2: 4, 3: 4, 9: 10} if "in_memory" in way else {2: 0, 3: 0, 9: 10}
        assert {row: numbers[row] for row in BAD} == after
    labels = torch.cat([batch["label"] for batch in batches]).tolist()
    assert labels == [number % 3 for number in numbers]
    if way.get("num_workers", 0) == 0:  # a worker's warning goes to its standard error
        (message,) = [str(w.message) for w in caught if "on_error='skip'" in str(w.message)]
        assert "row 2, column 'image'" in message and "loader.dataset.skipped" in message


@ways
def test_nothing_readable_is_an_error(way: dict, numbered: Callable) -> None:
    with pytest.raises(ValueError, match="`source` must have a readable row; got none"):
        image_loader(numbered(4, bad=(0, 1, 2, 3)), batch_size=4, on_error="skip", **way)


def test_a_stream_may_not_fill_a_batch_from_nothing(numbered: Callable) -> None:
    data = numbered(8, bad=(4, 5, 6, 7))
    loader = image_loader(
        data, batch_size=4, shuffle=False, streaming=True, num_workers=0, on_error="skip"
    )
    with (
        pytest.warns(UserWarning, match="row 4"),
        pytest.raises(ValueError, match="every row of a batch is unreadable"),
    ):
        list(loader)


def test_a_full_memory_is_no_corrupt_image(
    numbered: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode_example(self, value):
        raise MemoryError

    monkeypatch.setattr(datasets.Image, "decode_example", decode_example)
    with pytest.raises(MemoryError):
        load_images(numbered(), on_error="skip")


def odd(encode: Callable, *, size: bool, colour: bool, label: bool) -> datasets.Dataset:
    """Six grey images, of which row 4 is larger, or RGB, or without a label."""
    images = [np.full((8, 8), 9, np.uint8)] * 6
    if size:
        images[4] = np.full((8, 12), 9, np.uint8)
    if colour:
        images[4] = np.full((8, 8, 3), 9, np.uint8)
    labels = [0, 1, 0, 1, None if label else 0, 1]
    features = datasets.Features(image=datasets.Image(), kind=datasets.ClassLabel(names=["a", "b"]))
    values = [encode(image) for image in images]
    return datasets.Dataset.from_dict({"image": values, "kind": labels}, features=features)


@ways
@pytest.mark.parametrize(
    ("what", "message", "cure"),
    [
        ("size", r"row 4, column 'image': .*8x12 pixels .* 8x8\. Fix: `size=`", {"size": 8}),
        ("colour", r"row 4, column 'image': .*RGB .* grey\. Fix: `channels", {"channels": 3}),
        ("label", r"row 4, column 'kind': the label is missing", {"label_column": False}),
    ],
)
def test_odd_rows_are_named_skipped_or_cured(
    way: dict, what: str, message: str, cure: dict, encode: Callable
) -> None:
    flags = {name: name == what for name in ("size", "colour", "label")}
    arguments = {"batch_size": 6, "shuffle": False, **way, "num_workers": 0}
    with pytest.raises(ValueError, match=message):
        list(image_loader(odd(encode, **flags), **arguments))
    (batch,) = image_loader(odd(encode, **flags), **arguments, **cure)
    assert len(batch["image"]) == 6
    with pytest.warns(UserWarning, match=message):
        loader = image_loader(odd(encode, **flags), **arguments, on_error="skip")
        list(loader)
    assert loader.dataset.skipped == 1


def test_grey_images_may_stand_among_rgb(encode: Callable) -> None:
    images = [np.full((8, 8, 3), (255, 0, 0), np.uint8), np.full((8, 8), 255, np.uint8)]
    data = datasets.Dataset.from_dict(
        {"image": [encode(image) for image in images]},
        features=datasets.Features(image=datasets.Image()),
    )
    images, _ = load_images(data)
    assert images.shape == (2, 3, 8, 8)
    assert images[0, :, 0, 0].tolist() == [1, -1, -1] and (images[1] == 1).all()


@pytest.mark.parametrize("way", [{"in_memory": False}, {"streaming": True}], ids=str)
def test_data_sets_travel_to_spawned_workers(way: dict, numbered: Callable) -> None:
    loader = image_loader(numbered(), batch_size=4, num_workers=0, **way)
    copy = pickle.loads(pickle.dumps(loader.dataset))
    indices = next(iter(loader.batch_sampler))
    first, second = copy.__getitems__(indices), loader.dataset.__getitems__(indices)
    assert torch.equal(first["image"], second["image"])


def stored(
    encode: Callable, *images: np.ndarray, labels: np.ndarray | None = None
) -> datasets.Dataset:
    """A data set of these images, without loss."""
    columns: dict = {"image": [encode(image, "tiff") for image in images]}
    features = datasets.Features(image=datasets.Image())
    data = datasets.Dataset.from_dict(columns, features=features)
    return data if labels is None else data.add_column("label", labels)


@ways
@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.int64])
def test_integers_are_not_taken_for_16_bits(way: dict, dtype, encode: Callable) -> None:
    """numpy's integers in 0..255, through HuggingFace's own encoder; a range must be declared."""
    levels = np.arange(256).reshape(16, 16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        value = datasets.Image().encode_example(levels.astype(dtype))
    features = datasets.Features(image=datasets.Image())
    data = datasets.Dataset.from_dict({"image": [value] * 4}, features=features)
    arguments = {"batch_size": 4, "shuffle": False, **way, "num_workers": 0}
    with pytest.raises(ValueError, match=r"row 0, column 'image': .*0\.\.255\. Fix: `pixel_range="):
        image_loader(data, **arguments)
    (batch,) = image_loader(data, **arguments, pixel_range=(0, 255))
    assert torch.equal(batch["image"][0, 0], to_float(torch.from_numpy(levels.astype(np.uint8))))
    (batch,) = image_loader(data, **arguments, pixel_range=(0, 4095))
    assert batch["image"].max() < -0.8


def test_the_mode_of_a_column_converts_what_has_a_range(encode: Callable) -> None:
    """`Image(mode="L")` alone would cut 16 bits off at 255."""
    grey = (np.arange(256).reshape(16, 16) * 257).astype(np.uint16)
    data = stored(encode, grey).cast_column("image", datasets.Image(mode="RGB"))
    with pytest.raises(ValueError, match="does not tell what white is"):
        load_images(data)
    images, _ = load_images(data, pixel_range=(0, 65535))
    assert images.shape == (1, 3, 16, 16) and len(images.unique()) == 256
    colour = stored(encode, np.full((4, 4, 3), (255, 0, 0), np.uint8))
    images, _ = load_images(colour.cast_column("image", datasets.Image(mode="L")))
    assert images.shape == (1, 1, 4, 4)


def test_columns_that_are_left_encoded_are_read(numbered: Callable) -> None:
    data = numbered().cast_column("image", datasets.Image(decode=False))
    assert torch.equal(load_images(data)[0], load_images(numbered())[0])


@ways
def test_failures_after_opening_are_row_errors_too(
    way: dict, encode: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A label that is no int64, an image that a later step cannot take: named, and skipped."""
    images = [np.full((8, 8), 9, np.uint8)] * 5 + [np.full((8, 12), 9, np.uint8)]
    data = stored(encode, *images, labels=np.array([0, 1, 2**64 - 1, 0, 1, 0], np.uint64))
    resize = PIL.Image.Image.resize

    def failing(self, *args, **kwargs):
        if self.width == 12:
            raise OSError("a later step")
        return resize(self, *args, **kwargs)

    monkeypatch.setattr(PIL.Image.Image, "resize", failing)
    arguments = {"batch_size": 6, "shuffle": False, **way, "num_workers": 0, "size": 8}
    arguments["label_column"] = "label"
    with pytest.raises(
        RowError, match=r"row 2, column 'label': the label is no whole number of 64"
    ):
        list(image_loader(data, **arguments))
    with pytest.raises(RowError, match=r"row 5, column 'image': .*OSError: a later step"):
        list(image_loader(data, **{**arguments, "label_column": False}))
    with pytest.warns(UserWarning, match="row 2, column 'label'|2 of 6 rows"):
        loader = image_loader(data, **arguments, on_error="skip")
        batches = list(loader)
    assert loader.dataset.skipped == 2
    assert sum(len(batch["image"]) for batch in batches) == (4 if way.get("in_memory") else 6)


@pytest.mark.parametrize("size", [(20_000, 1), (1, 20_000)])
def test_a_thin_image_costs_no_more_than_what_is_kept(size, encode: Callable) -> None:
    value = encode(PIL.Image.new("RGB", size, (7, 8, 9)))
    features = datasets.Features(image=datasets.Image())
    data = datasets.Dataset.from_dict({"image": [value]}, features=features)
    tracemalloc.start()
    images, _ = load_images(data, size=64)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert images.shape == (1, 3, 64, 64) and peak < 10e6
    assert torch.equal(images[0, :, 0, 0], to_float(torch.tensor([7, 8, 9], dtype=torch.uint8)))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_stream_shorter_than_a_batch_is_an_error(numbered: Callable, num_workers: int) -> None:
    loader = image_loader(numbered(5), batch_size=8, streaming=True, num_workers=num_workers)
    with pytest.raises(ValueError, match=r"must not exceed the 5 rows .* got 8\. Fix: a smaller"):
        list(loader)
    for cure in ({"batch_size": 5}, {"batch_size": 8, "drop_last": False}):
        (batch,) = image_loader(numbered(5), streaming=True, num_workers=num_workers, **cure)
        assert len(batch["image"]) == 5


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"size": 8.0},
            TypeError,
            r"`size` must be a whole number of at least 1; got 8\.0 of type flo",
        ),
        (
            {"size": (3, 8, 8)},
            ValueError,
            r"`size` must be pixels, one number or .*got \(3, 8, 8\)",
        ),
        ({"size": "8"}, ValueError, r"`size` must be pixels"),
        ({"size": True}, TypeError, "`size` must be a whole number"),
        ({"channels": 2}, ValueError, "`channels` must be 1, 3, None; got 2"),
        ({"channels": True}, ValueError, "`channels` must be 1, 3, None; got True"),
        ({"crop": "left"}, ValueError, "`crop` must be 'center', 'random', None; got 'left'"),
        ({"on_error": "ignore"}, ValueError, "`on_error` must be 'raise', 'skip'; got 'ignore'"),
        ({"in_memory": 1}, ValueError, "`in_memory` must be True, False, 'auto'; got 1"),
        ({"batch_size": 4.0}, TypeError, "`batch_size` must be a whole number"),
        ({"batch_size": None}, TypeError, "`batch_size` must be a whole number"),
        ({"seed": 0.5}, TypeError, "`seed` must be a whole number"),
        ({"num_workers": 1.0}, TypeError, "`num_workers` must be a whole number"),
        ({"pixel_range": 255}, ValueError, r"`pixel_range` must be \(black, white\)"),
        ({"pixel_range": (255, 0)}, ValueError, r"`pixel_range` must be \(black, white\)"),
        ({"pixel_range": (0, float("nan"))}, ValueError, r"`pixel_range` must be \(black, white\)"),
    ],
)
def test_arguments_of_another_kind_are_named(arguments, error, message, numbered, untyped) -> None:
    with pytest.raises(error, match=message):
        image_loader(numbered(), **{"batch_size": 4, **arguments})


def test_sizes_of_any_integer_type(numbered: Callable, untyped) -> None:
    for size in (np.int64(6), [6, 6], torch.Size((6, 6)), np.array([6, 6])):
        assert image_loader(numbered(), batch_size=4, size=size).dataset.shape == (1, 6, 6)
