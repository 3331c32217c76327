"""A loader under accelerate: shards, epochs and resuming, as two processes see them."""

from collections.abc import Callable, Iterator

import pytest
import torch
from accelerate import PartialState
from accelerate.data_loader import prepare_data_loader, skip_first_batches

from fm_ext.data import image_loader
from fm_ext.data.decode import RowReader

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
without_workers = pytest.mark.parametrize(
    "way", [way for name, way in WAYS.items() if "workers" not in name], ids=str
)
processes = pytest.mark.parametrize("processes", [1, 2])


@pytest.fixture
def shards(numbered: Callable) -> Iterator[Callable]:
    """Fresh loaders as `accelerator.prepare` makes them on each of a number of processes."""
    PartialState(cpu=True)

    def shards(processes: int, rows: int = 22, **arguments) -> list:
        arguments = {"batch_size": 3, "flip": True, "seed": 5, **arguments}
        return [
            prepare_data_loader(
                image_loader(numbered(rows), **arguments),
                num_processes=processes,
                process_index=index,
                rng_types=["generator"],
                put_on_device=True,
                device=torch.device("cpu"),
                use_seedable_sampler=True,
            )
            for index in range(processes)
        ]

    yield shards


def same(first: list[dict], second: list[dict]) -> bool:
    return len(first) == len(second) and all(
        a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
        for a, b in zip(first, second, strict=True)
    )


@ways
@processes
def test_an_epoch_can_be_repeated_and_resumed(way: dict, processes: int, shards: Callable) -> None:
    """`set_epoch(e)`, then skipping k batches, gives epoch e from batch k, whatever came before."""
    for used, fresh in zip(shards(processes, **way), shards(processes, **way), strict=True):
        history = [list(used), list(used)]
        next(iter(used))
        assert len(history[0]) == (7 if processes == 1 else 3)
        assert not same(*history)
        fresh.set_epoch(1)
        state = torch.get_rng_state()
        assert same(list(fresh), history[1])
        used.set_epoch(1)
        assert same(list(used), history[1])
        fresh.set_epoch(1)  # then skip, as the docs write it
        assert same(list(skip_first_batches(fresh, 2)), history[1][2:])
        fresh.set_epoch(0)
        skipping = skip_first_batches(fresh, 2)
        assert same(list(skipping), history[0][2:])
        skipping.set_epoch(1)
        assert same(list(skipping), history[1][2:])
        assert torch.equal(torch.get_rng_state(), state)


@ways
def test_two_processes_share_an_epoch(way: dict, shards: Callable, read_rows: Callable) -> None:
    """Together they read what one process reads, each row once."""
    (alone,) = shards(1, rows=24, **way)
    first, second = shards(2, rows=24, **way)
    for _ in range(2):
        single, parts = list(alone), [list(first), list(second)]
        merged = [batch for pair in zip(*parts, strict=True) for batch in pair]
        assert same(single, merged)
        numbers = [row for batch in merged for row, _ in read_rows(batch["image"])]
        assert sorted(numbers) == list(range(24))


@ways
def test_incomplete_batches(way: dict, shards: Callable, read_rows: Callable) -> None:
    """22 rows in batches of 3 on two processes: filled up from the first ones, or dropped."""
    for drop_last, each in ((False, 12), (True, 9)):
        numbers = [
            [row for batch in part for row, _ in read_rows(batch["image"])]
            for part in shards(2, drop_last=drop_last, **way)
        ]
        assert [len(part) for part in numbers] == [each, each]
        together = numbers[0] + numbers[1]
        assert len(set(together)) == (18 if drop_last else 22)
        assert not (drop_last and set(numbers[0]) & set(numbers[1]))


@without_workers
@processes
def test_skipped_batches_are_not_decoded(
    way: dict, processes: int, shards: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = shards(processes, **way)[-1]
    decoded = []
    decode = RowReader.__call__

    def counting(self, row, number, place=0.5):
        decoded.append(number)
        return decode(self, row, number, place)

    monkeypatch.setattr(RowReader, "__call__", counting)
    batches = list(skip_first_batches(loader, 2))
    held = way.get("in_memory", False)
    assert len(decoded) == (0 if held else sum(len(batch["image"]) for batch in batches))


def test_accelerate_knows_how_long_an_epoch_is(shards: Callable) -> None:
    for processes, batches in ((1, 7), (2, 3)):
        for loader in shards(processes):
            assert len(loader) == batches and loader.total_batch_size == 3 * processes
            assert loader.dataset.shape == (1, 8, 8)
            list(loader)
            assert loader.end_of_dataloader and loader.remainder == -1
    (stream,) = shards(1, streaming=True, num_workers=0)
    with pytest.raises(TypeError, match="has no len"):
        len(stream)
