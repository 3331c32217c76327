"""Three kinds of image data sets: decoded once and kept, decoded when asked for, and streams."""

import math
import os
import warnings
from abc import abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import datasets
import numpy as np
import torch
from datasets.utils import tqdm
from jaxtyping import Int64, UInt8
from torch import Tensor
from torch.utils.data import get_worker_info
from tqdm.contrib.concurrent import thread_map

from fm_ext.data.decode import RowError, RowReader, nothing_readable
from fm_ext.data.order import EpochDataset, Item, uniform
from fm_ext.data.pixels import to_float

Row = tuple[int, Mapping[str, Any]]  # its number, and values by column
Images = dict[str, UInt8[Tensor, "row channel height width"]]

_CHUNK = 64  # rows a task: one read of the arrow table, short enough for an early error


@dataclass(frozen=True)
class Recipe:
    """How rows become images: what all kinds of data sets share.

    Args:
        reader: of a row.
        seed: of order and augmentation.
        shuffle: whether the order is random.
        flip: whether every second image, at random, is mirrored left to right.
        skip: whether rows that cannot be used are left out or replaced; otherwise they are raised.
        fingerprint: of the source, see `fm_ext.data.source.fingerprint`.
    """

    reader: RowReader
    seed: int
    shuffle: bool
    flip: bool
    skip: bool
    fingerprint: str


class ImageDataset(EpochDataset):
    """Images a batch at a time: what `fm_ext.data.image_loader` puts into its loader.

    A batch is `{"image": float32 in [-1, 1], (batch, channel, height, width)}`, with more images of the row by their
    names, if there are, and `"label"`, int64 `(batch,)`, where the source has labels.

    Attributes:
        shape: channels, height and width of `"image"`.
        classes: names of the labels' classes; None without labels or names.
        in_memory: whether all images are kept.
    """

    in_memory = False

    def __init__(self, recipe: Recipe):
        super().__init__(seed=recipe.seed, shuffle=recipe.shuffle)
        self.recipe = recipe
        self.reader = recipe.reader
        self.shape = self.reader.shapes["image"]
        self.classes = self.reader.columns.classes

    @property
    @abstractmethod
    def skipped(self) -> int:
        """How many rows could not be used; always 0 with `on_error="raise"`."""

    @property
    def identity(self) -> dict[str, Any]:
        """See `EpochDataset.identity`: the rows, how they are read and augmented, and a hash of some of them."""
        reader, columns = self.reader, self.reader.columns
        return {
            "rows": len(self) if hasattr(self, "__len__") else None,  # pyright: ignore[reportArgumentType]
            "columns": columns.images | {"label": columns.label},
            "classes": self.classes,
            "shapes": {name: list(shape) for name, shape in reader.shapes.items()},
            "crop": reader.crop,
            "pixel_range": None if reader.pixel_range is None else list(reader.pixel_range),
            "flip": self.recipe.flip,
            "shuffle": self.shuffle,
            "seed": self.seed,
            "fingerprint": self.recipe.fingerprint,
        }

    def _flips(
        self, epoch: Int64[np.ndarray, " batch"], row: Int64[np.ndarray, " batch"]
    ) -> np.ndarray:
        """Which rows are mirrored in which epoch: every second one."""
        return uniform(self.seed, epoch, row, draw=0) < 0.5


class MemoryImageDataset(ImageDataset):
    """Images in memory: a batch is one gather and one conversion, whatever its augmentation.

    With `flip` every image is stored mirrored too, so that flipping is a choice of index.

    Args:
        recipe: what all kinds of data sets share.
        images: the decoded images.
        labels: their labels; None without.
        skipped: how many rows could not be decoded and are left out.
        device: where the images are kept, and so where the batches are.
    """

    in_memory = True

    def __init__(
        self,
        recipe: Recipe,
        images: Images,
        labels: Int64[Tensor, " row"] | None,
        *,
        skipped: int = 0,
        device: torch.device | str | None = None,
    ):
        super().__init__(recipe)
        self.rows = len(images["image"])
        self._skipped = skipped
        if recipe.flip:
            images = {name: torch.cat([image, image.flip(-1)]) for name, image in images.items()}
            labels = labels if labels is None else labels.repeat(2)
        self.images = {name: image.to(device) for name, image in images.items()}
        self.labels = labels if labels is None else labels.to(device)

    @property
    def skipped(self) -> int:
        return self._skipped

    def __len__(self) -> int:
        return self.rows

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        epoch, row = np.divmod(np.asarray(indices, np.int64), self.rows)
        if self.recipe.flip:
            row = row + self.rows * self._flips(epoch, row)
        at = torch.from_numpy(row).to(self.images["image"].device)
        batch = {name: to_float(image.index_select(0, at)) for name, image in self.images.items()}
        if self.labels is not None:
            batch["label"] = self.labels.index_select(0, at)
        return batch


class DecodingImageDataset(ImageDataset):
    """Images decoded a batch at a time, by whoever asks: the loader's workers.

    Every random choice is a function of (seed, epoch, row). A row that cannot be used gives its place to another.
    """

    def _decode(self, items: Sequence[Item]) -> dict[str, Tensor]:
        reader = self.reader
        epoch, number = np.array([item[:2] for item in items], np.int64).T
        places = np.full(len(items), 0.5)
        if reader.crop == "random":
            places = uniform(self.seed, epoch, number, draw=1)
        images, labels = _empty(reader, len(items))
        failed = _decode_into(reader, [item[1:] for item in items], places, images, labels)
        for k, error in failed.items():
            if not self.recipe.skip:
                raise error
            self._count(items[k][1], error)
        for k, error in failed.items():
            there = slice(k, k + 1)
            target = {name: image[there] for name, image in images.items()}
            for other in self._others(items, k, failed):
                bad = _decode_into(reader, [other], places[there], target, labels[there])
                if not bad:
                    break
                self._count(other[0], bad[0])
            else:
                raise ValueError(f"every row of a batch is unreadable; the last error: {error}")
        if self.recipe.flip:
            mirrored = self._flips(epoch, number)
            for image in images.values():
                image[mirrored] = image[mirrored, ..., ::-1]
        batch = {name: to_float(torch.from_numpy(image)) for name, image in images.items()}
        if reader.columns.label is not None:
            batch["label"] = torch.from_numpy(labels)
        return batch

    def _count(self, number: int, error: RowError) -> None:
        if self.skipped == 0:
            _warn_skipped(str(error), "another row takes the place of such a one")
        self._note(number)

    @abstractmethod
    def _others(self, items: Sequence[Item], place: int, failed: Collection[int]) -> Iterator[Row]:
        """Rows that may take the place of this one, the first choice first; `failed` are places too."""

    @abstractmethod
    def _note(self, number: int) -> None:
        """Remember that a row cannot be used."""


class LazyImageDataset(DecodingImageDataset):
    """Images of a data set of known length, decoded when they are asked for; the next row replaces a bad one.

    Args:
        recipe: what all kinds of data sets share.
        data: images left encoded.
    """

    def __init__(self, recipe: Recipe, data: datasets.Dataset):
        super().__init__(recipe)
        self.data = data
        self._bad = torch.zeros(len(data), dtype=torch.bool).share_memory_()  # with the workers

    @property
    def skipped(self) -> int:
        return int(self._bad.sum())

    def __len__(self) -> int:
        return len(self.data)

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        places = [divmod(index, len(self)) for index in indices]
        rows = read_rows(self.data, [row for _, row in places])
        return self._decode([(*place, row) for place, row in zip(places, rows, strict=True)])

    def _others(self, items: Sequence[Item], place: int, failed: Collection[int]) -> Iterator[Row]:
        number = items[place][1]
        for other in chain(range(number + 1, len(self)), range(number)):
            if not self._bad[other]:
                yield other, read_rows(self.data, [other])[0]

    def _note(self, number: int) -> None:
        self._bad[number] = True


class StreamImageDataset(DecodingImageDataset):
    """Decodes the rows that a `StreamSampler` reads; it has no length. The next row of a batch replaces a bad one.

    Args:
        recipe: what all kinds of data sets share.
        num_workers: of the loader.
    """

    def __init__(self, recipe: Recipe, num_workers: int):
        super().__init__(recipe)
        # One counter for the main process and one a worker, so that none waits for another.
        self._skipped = torch.zeros(1 + num_workers, dtype=torch.int64).share_memory_()

    @property
    def skipped(self) -> int:
        return int(self._skipped.sum())

    def __getitems__(self, indices: list[Item]) -> dict[str, Tensor]:
        return self._decode(indices)

    def _others(self, items: Sequence[Item], place: int, failed: Collection[int]) -> Iterator[Row]:
        places = chain(range(place + 1, len(items)), range(place))
        return (items[k][1:] for k in places if k not in failed)

    def _note(self, number: int) -> None:
        worker = get_worker_info()
        self._skipped[0 if worker is None else 1 + worker.id] += 1


def decode_rows(
    data: datasets.Dataset, rows: Sequence[int], reader: RowReader, *, skip: bool
) -> tuple[Images, Int64[Tensor, " row"] | None, int]:
    """Decode rows into one tensor an image column, on as many threads as there are cores.

    Args:
        data: images left encoded.
        rows: which, in this order.
        reader: of a row.
        skip: whether rows that cannot be used are left out, with one warning; otherwise the
            first of them is raised.

    Returns:
        Images, labels (None where the reader reads none), and how many rows were left out.

    Raises:
        RowError: a row that cannot be used and `skip` is false.
        ValueError: not one row can be used.
    """
    images, labels = _empty(reader, len(rows))
    middle = np.full(_CHUNK, 0.5)

    def decode(start: int) -> dict[int, RowError]:
        numbers = rows[start : start + _CHUNK]
        part = {name: image[start:] for name, image in images.items()}
        values = list(zip(numbers, read_rows(data, numbers), strict=True))
        failed = _decode_into(reader, values, middle, part, labels[start:])
        for error in failed.values() if not skip else ():
            raise error
        return {start + k: error for k, error in failed.items()}

    # A thread pays for itself only where decoding outweighs the interpreter's lock.
    large = sum(math.prod(shape) for shape in reader.shapes.values()) >= 64 * 64
    starts, threads = range(0, len(rows), _CHUNK), available_cores() if large else 1
    bar = {"tqdm_class": tqdm, "desc": "Decoding", "unit_scale": _CHUNK, "delay": 3, "leave": False}
    parts = thread_map(decode, starts, max_workers=threads, unit=" images", **bar)
    failed = dict(chain.from_iterable(part.items() for part in parts))
    if failed:
        first = next(iter(failed.values()))
        if len(failed) == len(rows):
            raise ValueError(nothing_readable(first))
        reason = f"{len(failed)} of {len(rows)} rows cannot be used, first: {first}"
        _warn_skipped(reason, "they are left out")
        images = {name: np.delete(image, [*failed], axis=0) for name, image in images.items()}
        labels = np.delete(labels, [*failed])
    tensors = {name: torch.from_numpy(image) for name, image in images.items()}
    labelled = reader.columns.label is not None
    return tensors, torch.from_numpy(labels) if labelled else None, len(failed)


def _empty(reader: RowReader, rows: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    images = {name: np.empty((rows, *shape), np.uint8) for name, shape in reader.shapes.items()}
    return images, np.empty(rows, np.int64)


def _decode_into(
    reader: RowReader,
    rows: Iterable[Row],
    places: np.ndarray,
    images: Mapping[str, np.ndarray],
    labels: np.ndarray,
) -> dict[int, RowError]:
    """Read rows, each to its place in the arrays; returns the errors of those that cannot be used, by place."""
    failed = {}
    for k, (number, values) in enumerate(rows):
        try:
            decoded, labels[k] = reader(values, number, places[k])
        except RowError as error:
            failed[k] = error
            continue
        for name, image in decoded.items():
            images[name][k] = image
    return failed


def read_rows(data: datasets.Dataset, numbers: Sequence[int]) -> list[dict[str, Any]]:
    """Values by column of each of these rows, by one read of the table."""
    columns: dict[str, list[Any]] = data[list(numbers)]
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def available_cores() -> int:
    """Cores that this process may use: its affinity, shared with the other local processes."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, (cores or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def _warn_skipped(reason: str, consequence: str) -> None:
    warnings.warn(
        f"{reason} `on_error='skip'`: {consequence}; `loader.dataset.skipped` counts.",
        stacklevel=2,
    )
