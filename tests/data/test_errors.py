import pickle
import warnings
from collections.abc import Callable

import datasets
import numpy as np
import pytest
import torch

from fm_ext.data import image_loader, load_images

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
    with pytest.raises(ValueError, match="`source` must have a readable image, got none"):
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
