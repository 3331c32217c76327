"""The order of an epoch and every other random choice, as functions of (seed, epoch, row)."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

import datasets
import numpy as np
from jaxtyping import Float64, Int64
from torch import Tensor
from torch.utils.data import Dataset, Sampler

Item = tuple[int, int, Mapping[str, Any]]  # epoch, number of the row, values by column

_CHUNK = 2**16  # rows turned into Python's integers at a time
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def uniform(
    seed: int, epoch: Int64[np.ndarray, " batch"], row: Int64[np.ndarray, " batch"], *, draw: int
) -> Float64[np.ndarray, " batch"]:
    """Uniform numbers in [0, 1) that depend on (seed, epoch, row, draw) and on nothing else.

    So an augmentation is the same in the main process and in a worker, alone and in a batch,
    before and after a resume. The four words go one after the other through the output function
    of SplitMix64 (Steele, Lea and Flood 2014, https://doi.org/10.1145/2660193.2660195, Figure 16).

    Args:
        seed: any non-negative integer.
        epoch: pass over the data, from 0.
        row: row of the data set, or position in a stream.
        draw: which of the independent numbers of that row: 0, 1, 2, ...
    """
    state = np.zeros(1, np.uint64)
    for word in (np.uint64(seed % 2**64), epoch, row, np.uint64(draw)):
        state = (state ^ np.asarray(word).astype(np.uint64)) + _GOLDEN
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    return (state >> np.uint64(11)) * 2.0**-53


class EpochDataset(Dataset[dict[str, Tensor]], ABC):
    """Rows a batch at a time, by indices that carry their epoch.

    So workers need not be told of a new epoch, and a batch is a function of its indices, whoever asks, whenever. The
    epoch that the next iteration reads is kept here, since on several processes accelerate's `set_epoch` does not reach
    the sampler of a loader that `skip_first_batches` has made.

    Args:
        seed: of the order and of all augmentation.
        shuffle: whether the order is random.
    """

    def __init__(self, *, seed: int, shuffle: bool):
        self.seed = seed
        self.shuffle = shuffle
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch the next iteration over the loader is; accelerate calls this."""
        self.epoch = epoch

    def next_epoch(self) -> int:
        """The epoch of the iteration that begins now; the next one is the one after it."""
        self.epoch += 1
        return self.epoch - 1

    @property
    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What decides on the rows of every epoch, as JSON has it: equal where a resumed run is the same run."""

    @abstractmethod
    def __getitems__(self, indices: list[Any]) -> dict[str, Tensor]:
        """The batch of these indices, as the loader's sampler yields them."""

    def __getitem__(self, index: Any) -> dict[str, Tensor]:
        """One row, without the batch axis."""
        return {name: values[0] for name, values in self.__getitems__([index]).items()}


class EpochSampler(Sampler[int]):
    """Every row once an epoch, in an order that is a function of (seed, epoch) alone.

    Yields `epoch * rows + row`. Each iteration is the epoch after the last one's; `set_epoch` goes anywhere.

    Args:
        dataset: tells the number of rows, the seed, the epoch and whether the order is random.
    """

    def __init__(self, dataset: EpochDataset):
        self.dataset = dataset

    def set_epoch(self, epoch: int) -> None:
        self.dataset.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.dataset)  # pyright: ignore[reportArgumentType]

    def __iter__(self) -> Iterator[int]:
        epoch, rows = self.dataset.next_epoch(), len(self)
        order = np.arange(rows)
        if self.dataset.shuffle:
            order = np.random.default_rng((self.dataset.seed, epoch)).permutation(rows)
        for start in range(0, rows, _CHUNK):
            yield from (order[start : start + _CHUNK] + epoch * rows).tolist()


class StreamSampler(Sampler[Item]):
    """Reads a stream, still encoded, in the main process, and hands its rows out as "indices".

    Decoding is left to the data set in the workers. So the order does not depend on the number of workers, a process
    decodes only what is its own, what is skipped is never decoded, and accelerate shards a stream as it shards
    anything else.

    Args:
        dataset: tells the epoch.
        stream: images left encoded; its own `set_epoch` makes the order of each epoch.
        least: rows that an epoch must have.
    """

    def __init__(self, dataset: EpochDataset, stream: datasets.IterableDataset, least: int):
        self.dataset = dataset
        self.stream = stream
        self.least = least

    def set_epoch(self, epoch: int) -> None:
        self.dataset.set_epoch(epoch)

    def __iter__(self) -> Iterator[Item]:
        epoch, rows = self.dataset.next_epoch(), 0
        self.stream.set_epoch(epoch)
        for position, values in enumerate(self.stream):
            yield epoch, position, values
            rows += 1
        if rows < self.least:
            raise ValueError(too_few(rows, self.least))


def too_few(rows: int, batch_size: int) -> str:
    """The message for a split that does not fill one batch."""
    return (
        f"`batch_size` must not exceed the {rows} rows of the split when the last batch is dropped; got {batch_size}. "
        "Fix: a smaller one, or `drop_last=False`."
    )
