"""Data sets that are decoded when they are asked for, in the loader's workers."""

from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor

from fm_ext.data.batch import decode_batch
from fm_ext.data.dataset import ImageDataset, warn_skipped
from fm_ext.data.rows import RowDecoder, RowError


class LazyImageDataset(ImageDataset):
    """Images decoded a batch at a time, by whoever asks: the loader's workers.

    Args:
        data: images left encoded.
        decoder: what every image becomes.
        seed: of the augmentations, and of the order in which the loader reads.
        flip: whether every second image, at random, is mirrored left to right.
        skip: whether a row that cannot be decoded gives its place to the next one that can;
            otherwise it is raised.
    """

    def __init__(
        self, data: datasets.Dataset, decoder: RowDecoder, *, seed: int, flip: bool, skip: bool
    ):
        super().__init__(shape=decoder.shape, classes=decoder.columns.classes, seed=seed, flip=flip)
        self.data = data
        self.decoder = decoder
        # The rows known to be bad, shared with the workers. None: they are raised.
        self._bad = torch.zeros(len(data), dtype=torch.bool).share_memory_() if skip else None

    @property
    def skipped(self) -> int:
        return 0 if self._bad is None else int(self._bad.sum())

    def __len__(self) -> int:
        return len(self.data)

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        epoch, row = np.divmod(np.asarray(indices, np.int64), len(self))
        return decode_batch(
            self.decoder,
            self._read(row.tolist()),
            epoch,
            row,
            seed=self.seed,
            flip=self.flip,
            replace=None if self._bad is None else self._replace,
        )

    def _read(self, numbers: list[int]) -> list[dict[str, Any]]:
        columns = self.data[numbers]
        return [{name: columns[name][k] for name in columns} for k in range(len(numbers))]

    def _replace(self, number: int, error: RowError) -> tuple[dict[str, Any], int]:
        bad = self._bad
        assert bad is not None
        if not bad.any():
            warn_skipped(str(error), "such rows are replaced by the next readable one")
        bad[number] = True
        if bad.all():
            raise ValueError(f"`source` must have a readable image, got none; {error}")
        while bad[number]:
            number = (number + 1) % len(self)
        return self._read([number])[0], number
