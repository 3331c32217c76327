"""Data sets that are read once, front to back, and never as a whole."""

from collections.abc import Iterator
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler, get_worker_info

from fm_ext.data.batch import decode_batch
from fm_ext.data.dataset import ImageDataset, warn_skipped
from fm_ext.data.rows import RowDecoder, RowError

Item = tuple[int, int, dict[str, Any]]  # epoch, position in the stream, values by column


class StreamSampler(Sampler[Item]):
    """Reads a stream, still encoded, in the main process, and hands its rows out as "indices".

    Decoding is left to `StreamImageDataset` in the workers. So the order does not depend on the
    number of workers, a process decodes only what is its own, what is skipped is never decoded,
    and accelerate shards a stream as it shards anything else.

    Args:
        dataset: tells the epoch.
        stream: images left encoded; its own `set_epoch` makes the order of each epoch.
    """

    def __init__(self, dataset: "StreamImageDataset", stream: datasets.IterableDataset):
        self.dataset = dataset
        self.stream = stream

    def set_epoch(self, epoch: int) -> None:
        self.dataset.set_epoch(epoch)

    def __iter__(self) -> Iterator[Item]:
        epoch = self.dataset.epoch
        self.dataset.set_epoch(epoch + 1)
        self.stream.set_epoch(epoch)
        for position, values in enumerate(self.stream):
            yield epoch, position, values


class StreamImageDataset(ImageDataset):
    """Decodes the rows that a `StreamSampler` reads; it has no length.

    Args:
        decoder: what every image becomes.
        seed: of the augmentations, which depend on the position in the stream of the epoch.
        flip: whether every second image, at random, is mirrored left to right.
        skip: whether a row that cannot be decoded gives its place to the next row of its batch
            that can; otherwise it is raised.
        num_workers: of the loader.
    """

    def __init__(self, decoder: RowDecoder, *, seed: int, flip: bool, skip: bool, num_workers: int):
        super().__init__(shape=decoder.shape, classes=decoder.columns.classes, seed=seed, flip=flip)
        self.decoder = decoder
        self.skip = skip
        # One counter for the main process and one a worker, so that none waits for another.
        self._skipped = torch.zeros(1 + num_workers, dtype=torch.int64).share_memory_()

    @property
    def skipped(self) -> int:
        return int(self._skipped.sum())

    def __getitems__(self, indices: list[Item]) -> dict[str, Tensor]:
        epoch, position, rows = zip(*indices, strict=True)
        bad: set[int] = set()

        def replace(number: int, error: RowError) -> tuple[dict[str, Any], int]:
            if number not in bad:
                bad.add(number)
                self._count(error)
            if len(bad) == len(set(position)):
                raise ValueError(f"every row of a batch is unreadable; the last error: {error}")
            place = (position.index(number) + 1) % len(rows)
            return rows[place], position[place]

        return decode_batch(
            self.decoder,
            rows,
            np.asarray(epoch, np.int64),
            np.asarray(position, np.int64),
            seed=self.seed,
            flip=self.flip,
            replace=replace if self.skip else None,
        )

    def _count(self, error: RowError) -> None:
        if self.skipped == 0:
            warn_skipped(str(error), "such rows are replaced by another of their batch")
        worker = get_worker_info()
        self._skipped[0 if worker is None else 1 + worker.id] += 1
