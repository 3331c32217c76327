"""Pairs of images: which source meets which target, and when."""

import warnings
from collections.abc import Callable
from typing import cast

import datasets
import numpy as np
import pytest
import torch
from accelerate import Accelerator

from fm_ext.data import image_pair_loader, image_pairs

WAYS = {
    "memory": {"in_memory": True},
    "lazy": {"in_memory": False, "num_workers": 0},
    "lazy, 2 workers": {"in_memory": False, "num_workers": 2},
}
ways = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
pytestmark = [
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]


@pytest.fixture
def rows_of(read_rows: Callable) -> Callable:
    """Row numbers of one side of some batches."""

    def rows_of(batches: list[dict], side: str) -> list[int]:
        return [row for batch in batches for row, _ in read_rows(batch[side])]

    return rows_of


@pytest.fixture
def both(numbered: Callable) -> Callable:
    """A data set of pairs: the input of row i is image i, its output is image rows - 1 - i."""

    def both(rows: int = 22) -> datasets.Dataset:
        data = numbered(rows)
        inputs = data.cast_column("image", datasets.Image(decode=False))["image"][:]
        columns = {"input": inputs, "output": inputs[::-1], "label": data["label"][:]}
        kind = datasets.Image()
        features = datasets.Features(input=kind, output=kind, label=data.features["label"])
        return datasets.Dataset.from_dict(columns, features=features)

    return both


@ways
def test_every_target_once_an_epoch_and_every_source_once_a_pass(way, numbered, rows_of):
    loader = image_pair_loader(numbered(22), numbered(30), batch_size=10, **way)
    epochs = [list(loader) for _ in range(3)]
    for epoch in epochs:
        assert [len(batch["image"]) for batch in epoch] == [10, 10, 10]
        assert sorted(rows_of(epoch, "image")) == list(range(30))
    # 90 sources are 4 passes over 22 rows, and 2 of a fifth
    counts = torch.tensor([row for epoch in epochs for row in rows_of(epoch, "source")]).bincount()
    assert set(counts.tolist()) == {4, 5} and (counts == 5).sum() == 2


@ways
def test_fewer_targets_than_sources_still_see_all_sources(way, numbered, rows_of):
    loader = image_pair_loader(numbered(30), numbered(10), batch_size=5, **way)
    seen = [row for _ in range(3) for row in rows_of(list(loader), "source")]
    assert sorted(seen) == list(range(30))


@pytest.mark.parametrize(("sources", "targets"), [(4, 30), (7, 7), (30, 4), (5, 13)])
def test_a_source_is_a_function_of_its_number_and_each_pass_is_drawn_once(
    sources, targets, numbered
):
    loader = image_pair_loader(numbered(sources), numbered(targets), batch_size=3, seed=9)
    for cached in (image_pairs._order, image_pairs._of_epoch):
        cached.cache_clear()
    dataset = cast(image_pairs.ImagePairDataset, loader.dataset)
    numbers = np.arange(3 * targets)
    expected = [
        number // sources * sources
        + np.random.default_rng((9, number // sources, 1)).permutation(sources)[number % sources]
        for number in numbers
    ]
    shuffled = [np.random.permutation(epoch) for epoch in numbers.reshape(3, targets)]
    for batch in np.array_split(np.concatenate(shuffled), 17):
        assert dataset._sources(batch).tolist() == [expected[number] for number in batch]
    assert dataset._sources(numbers).tolist() == expected  # of several epochs at once
    passes = -(-3 * targets // sources)
    assert image_pairs._order.cache_info().misses <= passes + 2 * (targets % sources > 0)


def test_pairs_and_orders_change_with_the_epoch_and_the_seed(numbered, rows_of):
    loader = image_pair_loader(numbered(), numbered(), batch_size=11)
    pairs = []
    for _ in range(2):
        epoch = list(loader)
        pairs.append(dict(zip(rows_of(epoch, "image"), rows_of(epoch, "source"), strict=True)))
    other = list(image_pair_loader(numbered(), numbered(), batch_size=11, seed=1))
    pairs.append(dict(zip(rows_of(other, "image"), rows_of(other, "source"), strict=True)))
    for a in range(3):
        assert pairs[a] != {row: row for row in range(22)}
        for b in range(a):
            assert sum(pairs[a][row] == pairs[b][row] for row in range(22)) < 8


@ways
def test_a_batch_is_a_function_of_seed_epoch_and_place(way, numbered):
    def loader():
        return image_pair_loader(numbered(22), numbered(30), batch_size=10, flip=True, **way)

    whole = loader()
    batches = [batch for _ in range(3) for batch in whole]
    later = loader()
    later.sampler.set_epoch(2)
    for a, b in zip(batches[6:], later, strict=True):
        assert a.keys() == b.keys() == {"source", "source_label", "image", "label"}
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_labels_belong_to_their_images(numbered, rows_of):
    (batch,) = image_pair_loader(numbered(22), numbered(30), batch_size=30)
    assert batch["label"].tolist() == [row % 3 for row in rows_of([batch], "image")]
    assert batch["source_label"].tolist() == [row % 3 for row in rows_of([batch], "source")]


@ways
def test_paired_rows_stay_together_and_are_mirrored_alike(way, both, read_rows):
    loader = image_pair_loader(
        both(), batch_size=11, source_column="input", target_column="output", flip=True, **way
    )
    mirrored = set()
    for batch in list(loader) + list(loader):
        assert list(batch) == ["source", "image", "label"]
        sides = (read_rows(batch[side]) for side in ("source", "image"))
        for (i, left), (j, right), label in zip(*sides, batch["label"].tolist(), strict=True):
            assert i + j == 21 and left == right and label == i % 3
            mirrored.add(left)
    assert mirrored == {False, True}


@ways
def test_a_bad_row_takes_both_images_of_its_pair_with_it(way, both, read_rows):
    data = both()
    values = data.cast_column("output", datasets.Image(decode=False))["output"][:]
    values[5] = {"bytes": values[5]["bytes"][:50], "path": None}
    data = data.remove_columns("output").add_column("output", values, feature=datasets.Image())
    arguments = {"source_column": "input", "target_column": "output", "on_error": "skip"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loader = image_pair_loader(data, batch_size=11, shuffle=False, **arguments, **way)
        batches = list(loader)
    pairs = [
        (i, j)
        for batch in batches
        for (i, _), (j, _) in zip(*(read_rows(batch[s]) for s in ("source", "image")), strict=True)
    ]
    kept = [row for row in range(22) if row != 5]
    if not way["in_memory"]:
        kept.insert(5, 6)
    assert pairs == [(row, 21 - row) for row in kept] and loader.dataset.skipped == 1


def test_a_stream_of_pairs(both, read_rows):
    arguments = {"source_column": "input", "target_column": "output", "num_workers": 0}
    loader = image_pair_loader(both(), batch_size=11, streaming=True, flip=True, **arguments)
    for batch in loader:
        sides = (read_rows(batch[side]) for side in ("source", "image"))
        assert all(i + j == 21 and a == b for (i, a), (j, b) in zip(*sides, strict=True))


@pytest.mark.parametrize("crop", ["center", "random"])
def test_one_window_does_not_fit_two_aspect_ratios(crop, encode):
    """The images of a pair are cropped alike, or it is an error; of several sizes, but one ratio, they are."""
    ramp = np.tile(np.arange(0, 240, 10, dtype=np.uint8), (8, 1))  # 8x24

    def pairs(*values):
        kind = datasets.Image()
        columns = {"input": [encode(values[0])], "output": [encode(values[1])]}
        features = datasets.Features(input=kind, output=kind)
        return datasets.Dataset.from_dict(columns, features=features)

    arguments = {"source_column": "input", "target_column": "output", "batch_size": 1}
    arguments |= {"in_memory": False, "num_workers": 0, "size": 8}
    apart = pairs(ramp[:, :16], ramp)
    with pytest.raises(ValueError, match=r"row 0, column 'input'.*8x16 .* 8x24.*`crop=None`"):
        next(iter(image_pair_loader(apart, crop=crop, **arguments)))
    (batch,) = image_pair_loader(apart, crop=None, **arguments)
    assert batch["source"].shape == batch["image"].shape == (1, 1, 8, 8)
    doubled = np.kron(ramp, np.ones((2, 2), np.uint8))
    for _ in range(3):
        loader = image_pair_loader(pairs(doubled, ramp), crop=crop, **arguments)
        for _ in range(4):
            (batch,) = loader
            assert (batch["source"] - batch["image"]).abs().max() < 10 / 127.5


def test_without_shuffling_rows_meet_in_order(numbered, rows_of):
    loader = image_pair_loader(numbered(4), numbered(10), batch_size=4, shuffle=False)
    for batches in (list(loader), list(loader)):
        assert rows_of(batches, "image") == list(range(10))
        assert rows_of(batches, "source") == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
    loader = image_pair_loader(numbered(10), numbered(4), batch_size=4, shuffle=False)
    for batches in (list(loader), list(loader)):
        assert rows_of(batches, "image") == rows_of(batches, "source") == [0, 1, 2, 3]


def test_accelerate_goes_to_an_epoch_and_skips(numbered):
    def prepared():
        data = {"source": numbered(22), "target": numbered(30)}
        return Accelerator(cpu=True).prepare(image_pair_loader(**data, batch_size=10))

    first = prepared()
    first.set_epoch(1)
    batches = list(first)
    second = prepared()
    second.set_epoch(1)
    skipped = list(Accelerator(cpu=True).skip_first_batches(second, 1))
    for a, b in zip(batches[1:], skipped, strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source": "stream"}, "`streaming` must be False for two data sets, and neither a stream"),
        ({"target": "stream"}, "`streaming` must be False for two data sets, and neither a stream"),
        ({"streaming": True}, "`streaming` must be False for two data sets"),
        ({"target": None}, "`source_column` and `target_column` must be two image columns"),
        (
            {"target": None, "source_column": "image", "target_column": "image"},
            "must be two image columns of a data set of pairs; got 'image' and 'image'",
        ),
        ({"batch_size": 23}, "`batch_size` must not exceed the 22 rows"),
        ({"batch_size": 0}, "`batch_size` must be a whole number of at least 1"),
        ({"source_column": "none"}, "`image_column` must be one of the columns"),
    ],
)
def test_what_cannot_be_paired_is_refused(arguments, message, numbered):
    given = {"source": numbered(), "target": numbered(), "batch_size": 4, **arguments}
    for side in ("source", "target"):
        if given[side] == "stream":
            given[side] = numbered().to_iterable_dataset()
    with pytest.raises(ValueError, match=message):
        image_pair_loader(**given)


def test_the_image_columns_have_names_of_their_own(numbered):
    with pytest.raises(TypeError, match="`image_column` must be given once a side"):
        image_pair_loader(numbered(), numbered(), batch_size=4, image_column="image")
