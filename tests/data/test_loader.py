from collections.abc import Callable

import datasets
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from fm_ext.data import image_loader
from fm_ext.data import loader as loader_module
from fm_ext.data.order import EpochDataset, EpochSampler

# How a data set is held, and by how many workers it is decoded.
WAYS = {
    "memory": {"in_memory": True},
    "lazy": {"in_memory": False, "num_workers": 0},
    "lazy, 2 workers": {"in_memory": False, "num_workers": 2},
    "stream": {"streaming": True, "num_workers": 0},
    "stream, 2 workers": {"streaming": True, "num_workers": 2},
}
ways = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
pytestmark = [
    # Python 3.12 says so at each fork, a machine with one core at the second worker.
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]


def equal(first: list[dict], second: list[dict]) -> bool:
    return len(first) == len(second) and all(
        a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
        for a, b in zip(first, second, strict=True)
    )


@ways
def test_batches(way: dict, numbered: Callable, read_rows: Callable) -> None:
    loader = image_loader(numbered(), batch_size=8, shuffle=False, **way)
    assert isinstance(loader, DataLoader)
    batches = list(loader)
    assert [len(batch["image"]) for batch in batches] == [8, 8, 6]
    for batch in batches:
        assert list(batch) == ["image", "label"]
        assert batch["image"].dtype == torch.float32 and batch["label"].dtype == torch.int64
        assert batch["image"].shape[1:] == loader.dataset.shape == (1, 8, 8)
        assert batch["image"].min() >= -1 and batch["image"].max() == 1
    numbers = [row for batch in batches for row in read_rows(batch["image"])]
    assert numbers == [(row, False) for row in range(22)]
    assert torch.cat([batch["label"] for batch in batches]).tolist() == [n % 3 for n in range(22)]
    assert [len(batch["image"]) for batch in image_loader(numbered(), batch_size=8, **way)] == [
        8,
        8,
    ]


@ways
def test_an_epoch_is_a_function_of_seed_and_epoch(
    way: dict, numbered: Callable, read_rows: Callable
) -> None:
    """Not of what was read before, of the global state, or of how images are held."""
    fresh = image_loader(numbered(), batch_size=5, seed=3, flip=True, **way)
    fresh.sampler.set_epoch(2)
    wanted = list(fresh)
    used = image_loader(numbered(), batch_size=5, seed=3, flip=True, **way)
    torch.manual_seed(99), np.random.seed(99)
    list(used), next(iter(used))
    used.sampler.set_epoch(2)
    assert equal(list(used), wanted)
    plain = dict(way, num_workers=0) if "streaming" in way else {"in_memory": True}
    loader = image_loader(numbered(), batch_size=5, seed=3, flip=True, **plain)
    assert not equal(list(loader), wanted)
    list(loader)
    assert equal(list(loader), wanted)  # the third iteration is epoch 2
    other = image_loader(numbered(), batch_size=5, seed=4, flip=True, **way)
    other.sampler.set_epoch(2)
    assert not equal(list(other), wanted)
    orders = [
        [number for batch in batches for number, _ in read_rows(batch["image"])]
        for batches in (wanted, list(fresh))
    ]
    for order in orders:
        assert len(set(order)) == 20 and order != sorted(order)
    assert orders[0] != orders[1]


@ways
def test_the_global_random_state_is_not_touched(way: dict, numbered: Callable) -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    loader = image_loader(numbered(), batch_size=5, flip=True, **way)
    list(loader), list(loader)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    # Python's own generator is drawn from by beartype: test_processes.py looks at that one.


@ways
def test_half_of_the_images_are_mirrored_anew_each_epoch(
    way: dict, numbered: Callable, read_rows: Callable
) -> None:
    way = {**way, "num_workers": 0}
    loader = image_loader(numbered(100), batch_size=50, flip=True, **way)
    epochs = [dict(row for batch in loader for row in read_rows(batch["image"])) for _ in range(4)]
    assert all(30 < sum(epoch.values()) < 70 for epoch in epochs)
    changes = sum(epochs[0][row] != epochs[1][row] for row in range(100))
    assert 30 < changes < 70


class Numbers(EpochDataset):
    """So many rows, and nothing in them."""

    def __init__(self, rows: int):
        super().__init__(seed=0, shuffle=True)
        self.rows = rows

    def __len__(self) -> int:
        return self.rows

    @property
    def identity(self) -> dict:
        return {"rows": self.rows}

    def __getitems__(self, indices: list[int]) -> dict:
        return {"index": torch.tensor(indices)}


def test_a_long_epoch_has_each_row_once() -> None:
    rows = 150_000
    sampler = EpochSampler(Numbers(rows))
    list(sampler)
    second = np.array(list(sampler))
    assert (second // rows == 1).all() and len(np.unique(second)) == rows == len(sampler)


@pytest.mark.parametrize("flip", [False, True])
def test_a_batch_does_not_depend_on_its_neighbours(flip: bool, numbered: Callable) -> None:
    for way in ({"in_memory": True}, {"in_memory": False}):
        data = image_loader(numbered(), batch_size=5, flip=flip, **way).dataset
        batch = data.__getitems__([3, 40, 21, 66])
        for k, index in enumerate([3, 40, 21, 66]):
            assert torch.equal(data[index]["image"], batch["image"][k])
            assert torch.equal(data[index]["label"], batch["label"][k])


def test_sizes_and_channels(encode: Callable) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 20, 3), np.uint8)
    data = datasets.Dataset.from_dict(
        {"image": [encode(pixels), encode(pixels[:, :12])]},
        features=datasets.Features(image=datasets.Image()),
    )
    for size, channels in (((6, 8), None), (9, 1), ((15, 7), 3)):
        for way in ({"in_memory": True}, {"in_memory": False, "num_workers": 0}):
            for crop in ("center", None):
                (batch,) = image_loader(
                    data, size=size, channels=channels, crop=crop, batch_size=2, **way
                )
                height, width = (size, size) if isinstance(size, int) else size
                assert batch["image"].shape == (2, channels or 3, height, width)
                assert list(batch) == ["image"]


@pytest.mark.parametrize("way", [{"in_memory": False}, {"streaming": True}], ids=str)
def test_random_crops_move_and_are_repeatable(way: dict, encode: Callable) -> None:
    columns = np.arange(0, 240, 10, dtype=np.uint8)
    data = datasets.Dataset.from_dict(
        {"image": [encode(np.tile(columns, (8, 1)))] * 60},
        features=datasets.Features(image=datasets.Image()),
    )
    loader = image_loader(
        data, size=8, crop="random", batch_size=60, shuffle=False, num_workers=0, **way
    )
    first, second = next(iter(loader))["image"], next(iter(loader))["image"]
    left = (first[:, 0, 0, 0] + 1).mul(12.75).round().int()
    assert left.min() == 0 and left.max() == 16 and len(left.unique()) > 10
    assert not torch.equal(first, second)
    loader.sampler.set_epoch(0)
    assert torch.equal(next(iter(loader))["image"], first)


def test_auto_keeps_in_memory_what_fits(
    numbered: Callable, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pixels = 22 * 8 * 8
    monkeypatch.setattr(loader_module, "MEMORY_LIMIT", pixels)
    with caplog.at_level("INFO"):
        assert image_loader(numbered(), batch_size=4).dataset.in_memory
        assert not image_loader(numbered(), batch_size=4, flip=True).dataset.in_memory
        assert not image_loader(numbered(23), batch_size=4).dataset.in_memory
        assert not image_loader(numbered(), size=8, crop="random", batch_size=4).dataset.in_memory
    assert "22 images of 1x8x8 are decoded into memory" in caplog.text
    assert "23 images of 1x8x8 are decoded as read" in caplog.text


def test_images_in_memory_are_kept_on_the_device(
    numbered: Callable, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for flip in (False, True):  # the device that computes nothing stands in for a GPU
        (batch,) = image_loader(numbered(), batch_size=22, flip=flip, device="meta")
        assert batch["image"].is_meta and batch["label"].is_meta
    needed = 22 * 8 * 8
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (4 * needed - 1, 0))
    (batch,) = image_loader(numbered(), batch_size=22, device="cuda")
    assert batch["image"].device.type == "cpu"
    assert "stay on the host" in caplog.text


def test_processes_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    cores = loader_module.available_cores()
    for processes in (1, 2, 1000):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
        assert loader_module.available_cores() == max(1, cores // processes)


def test_workers_have_good_defaults(numbered: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader_module, "available_cores", lambda: 1)
    loader = image_loader(numbered(), batch_size=4, in_memory=False)
    assert loader.num_workers == 1 and loader.persistent_workers
    assert image_loader(numbered(), batch_size=4, num_workers=4).num_workers == 0  # in memory


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "`batch_size` must be a whole number of at least 1; got 0"),
        ({"batch_size": 23}, "`batch_size` must not exceed the 22 rows.*drop_last=False"),
        ({"seed": -1}, "`seed` must be a whole number of at least 0; got -1"),
        ({"num_workers": -1}, "`num_workers` must be a whole number of at least 0; got -1"),
        ({"size": 0}, "`size` must be a whole number of at least 1; got 0"),
        ({"streaming": True, "in_memory": True}, "`in_memory=True` must be given a data set"),
        ({"crop": "random", "in_memory": True}, '`crop="random"` must be given `in_memory=False`'),
    ],
)
def test_arguments_out_of_range(arguments: dict, message: str, numbered: Callable) -> None:
    with pytest.raises(ValueError, match=message):
        image_loader(numbered(), **{"batch_size": 4, **arguments})
