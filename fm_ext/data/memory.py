"""Data sets decoded once and kept as uint8."""

import logging
import math
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import datasets
import numpy as np
import torch
from datasets.utils import tqdm
from jaxtyping import Int64, UInt8
from torch import Tensor

from fm_ext.data.batch import flips
from fm_ext.data.dataset import ImageDataset, warn_skipped
from fm_ext.data.pixels import to_float
from fm_ext.data.rows import RowDecoder, RowError

logger = logging.getLogger(__name__)

_CHUNK = 64  # rows a task: one read of the arrow table, short enough for an early error


class MemoryImageDataset(ImageDataset):
    """Images in memory: a batch is one gather and one conversion, whatever its augmentation.

    With `flip` every image is stored mirrored too, so that flipping is a choice of index.

    Args:
        images: the decoded images.
        labels: their labels; None without.
        classes: names of the labels' classes; None without labels or names.
        seed: of the flips, and of the order in which the loader reads.
        flip: whether every second image, at random, is mirrored left to right.
        skipped: how many rows could not be decoded and are left out.
        device: where the images are kept, and so where the batches are.
    """

    in_memory = True

    def __init__(
        self,
        images: UInt8[Tensor, "row channel height width"],
        labels: Int64[Tensor, " row"] | None,
        *,
        classes: list[str] | None = None,
        seed: int = 0,
        flip: bool = False,
        skipped: int = 0,
        device: torch.device | str | None = None,
    ):
        rows, channels, height, width = images.shape
        super().__init__(shape=(channels, height, width), classes=classes, seed=seed, flip=flip)
        self.rows = rows
        self._skipped = skipped
        if flip:
            images = torch.cat([images, images.flip(-1)])
            labels = labels if labels is None else labels.repeat(2)
        self.images = images.to(device)
        self.labels = labels if labels is None else labels.to(device)

    @property
    def skipped(self) -> int:
        return self._skipped

    def __len__(self) -> int:
        return self.rows

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        epoch, row = np.divmod(np.asarray(indices, np.int64), self.rows)
        if self.flip:
            row = row + self.rows * flips(self.seed, epoch, row)
        at = torch.from_numpy(row).to(self.images.device)
        batch = {"image": to_float(self.images.index_select(0, at))}
        if self.labels is not None:
            batch["label"] = self.labels.index_select(0, at)
        return batch


def decode_rows(
    data: datasets.Dataset, rows: Sequence[int], decoder: RowDecoder, *, skip: bool
) -> tuple[UInt8[Tensor, "row channel height width"], Int64[Tensor, " row"] | None, int]:
    """Decode rows into one tensor, on as many threads as there are cores.

    Args:
        data: images left encoded.
        rows: which, in this order.
        decoder: what every image becomes.
        skip: whether rows that cannot be decoded are left out, with one warning; otherwise the
            first of them is raised.

    Returns:
        Images, labels (None where the decoder reads none), and how many rows were left out.

    Raises:
        RowError: a row that cannot be decoded and `skip` is false.
        ValueError: not one row could be decoded.
    """
    started = time.perf_counter()
    images = np.empty((len(rows), *decoder.shape), np.uint8)
    labels = np.empty(len(rows), np.int64)

    def decode(start: int) -> list[tuple[int, RowError]]:
        failed = []
        numbers = rows[start : start + _CHUNK]
        values = data[numbers]
        for k, number in enumerate(numbers):
            try:
                row = {name: column[k] for name, column in values.items()}
                images[start + k], labels[start + k] = decoder(row, number)
            except RowError as error:
                if not skip:
                    raise
                failed.append((start + k, error))
        return failed

    # A thread pays for itself only where decoding outweighs the interpreter's lock.
    threads = available_cores() if math.prod(decoder.shape) >= 64 * 64 else 1
    pool = ThreadPoolExecutor(threads)
    bar = tqdm(total=len(rows), desc="Decoding", unit=" images", delay=3, leave=False)
    failed: list[tuple[int, RowError]] = []
    try:
        for part in pool.map(decode, range(0, len(rows), _CHUNK)):
            failed += part
            bar.update(_CHUNK)
    finally:
        pool.shutdown(cancel_futures=True)
        bar.close()
    if failed:
        if len(failed) == len(rows):
            raise ValueError(f"`source` must have a readable image, got none; {failed[0][1]}")
        warn_skipped(
            f"{len(failed)} of {len(rows)} rows cannot be used, first: {failed[0][1]}",
            "they are left out",
        )
        places = [k for k, _ in failed]
        images, labels = np.delete(images, places, axis=0), np.delete(labels, places)
    logger.info(
        "%d images of %dx%dx%d decoded into memory: %.1f MB in %.2f s",
        *images.shape,
        images.nbytes / 1e6,
        time.perf_counter() - started,
    )
    labelled = decoder.columns.label is not None
    return torch.from_numpy(images), torch.from_numpy(labels) if labelled else None, len(failed)


def available_cores() -> int:
    """Cores that this process may use: its affinity, shared with the other local processes."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, (cores or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
