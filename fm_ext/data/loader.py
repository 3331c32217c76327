"""Loaders of images, and whole splits as tensors, from any HuggingFace data set."""

import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import chain
from typing import Any, Literal

import datasets
import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from fm_ext.data.decode import fit_reader
from fm_ext.data.images import (
    ImageDataset,
    LazyImageDataset,
    MemoryImageDataset,
    Recipe,
    StreamImageDataset,
    available_cores,
    decode_rows,
)
from fm_ext.data.order import EpochDataset, EpochSampler, StreamSampler, too_few
from fm_ext.data.pixels import Crop, PixelRange, to_float
from fm_ext.data.source import (
    Source,
    choice,
    find_columns,
    fingerprint,
    interval,
    open_source,
    sampled_rows,
)
from fm_ext.utils.inputs import check_size, check_whole

logger = logging.getLogger(__name__)

MEMORY_LIMIT = 2**30
"""Bytes of decoded images up to which `in_memory="auto"` keeps them in memory: 1 GiB."""

SHUFFLE_BUFFER = 1000
"""Rows of a stream, still encoded, among which the next one is drawn."""


class EpochLoader(DataLoader[dict[str, Tensor]]):
    """A DataLoader of whole batches whose order is its data set's.

    Args:
        dataset: returns whole batches.
        sampler: of that data set.
        batch_size: indices of a batch, on each process.
        drop_last: whether an incomplete last batch is left out.
        num_workers: processes that read batches.
    """

    def __init__(
        self,
        dataset: EpochDataset,
        sampler: Sampler[Any],
        *,
        batch_size: int,
        drop_last: bool,
        num_workers: int = 0,
    ):
        super().__init__(
            dataset,
            batch_size=batch_size,
            sampler=sampler,
            drop_last=drop_last,
            collate_fn=as_is,
            generator=torch.Generator().manual_seed(0),  # else torch draws from the global one
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=num_workers > 0 and torch.cuda.is_available(),
        )


class ImageLoader(EpochLoader):
    """A loader that says of what kind its data set is."""

    dataset: ImageDataset  # pyright: ignore[reportIncompatibleVariableOverride]


def image_loader(
    source: Source,
    *,
    split: str = "train",
    size: int | tuple[int, int] | None = None,
    channels: Literal[1, 3] | None = None,
    batch_size: int,
    shuffle: bool = True,
    seed: int = 0,
    drop_last: bool | None = None,
    flip: bool = False,
    crop: Crop = "center",
    pixel_range: PixelRange | None = None,
    image_column: str | Mapping[str, str] | None = None,
    label_column: str | Literal[False] | None = None,
    in_memory: bool | Literal["auto"] = "auto",
    device: torch.device | str | None = None,
    num_workers: int | None = None,
    on_error: Literal["raise", "skip"] = "raise",
    streaming: bool = False,
) -> ImageLoader:
    """A loader of batches `{"image": ..., "label": ...}` from any HuggingFace image data set.

    `image` is float32 in [-1, 1], `(batch, channel, height, width)`; `label` is int64 `(batch,)`
    and absent where the source has none.

    The order and the augmentation of an epoch are a function of (seed, epoch, row): not of the
    global random state, which is not touched, nor of the number of workers, nor of what was read
    before. `accelerator.prepare(loader)` shards the rows over processes, `prepared.set_epoch(e)`
    goes to an epoch, and `accelerator.skip_first_batches(prepared, n)` skips without decoding.
    Without accelerate, `loader.dataset.set_epoch(e)`, or just the next `for` loop.

    `loader.dataset` tells `shape` (channels, height, width), `classes`, `in_memory`, `skipped` and `identity`, a
    dictionary that is equal where the rows and their order are.

    Args:
        source: name on the hub; folder of parquet or arrow files, of `save_to_disk`, or of images
            in one folder per class; `Dataset`, `IterableDataset`, or a dictionary of them by
            split. For more options (a configuration, a revision, a token), call
            `datasets.load_dataset` and pass its result.
        split: name of the split; `"train[:10%]"` works for names and folders.
        size: pixels, one number or (height, width); None: as the first image.
        channels: 1 (grey) or 3 (RGB); None: as the first image. Transparent pixels become white.
        batch_size: images a batch, on each process.
        shuffle: whether the order is random, another one each epoch. A stream is shuffled through
            a buffer of 1,000 rows, as its own `shuffle` does.
        seed: of order and augmentation, not negative.
        drop_last: whether the rows that do not fill the last batch are left out; None: when
            shuffling.
        flip: whether every second image, at random, is mirrored left to right.
        crop: how an image of another aspect ratio becomes `size`: "center" and "random" scale it
            until it covers `size`, and cut there; None squeezes it. "random" is not for images
            in memory, which are cropped but once.
        pixel_range: black and white of images of more than 8 bits (PIL's modes I, I;16 and F), which do not tell
            them: `(0, 4095)` for 12 bits. Without it such an image is an error, as is a pixel outside of it.
        image_column: name of the image column, where there are several. Or the names of several, by what a batch
            calls them: `{"image": "photo", "source": "sketch"}`; they are cropped and mirrored alike.
        label_column: name of the label column, where there are several of type `ClassLabel` or
            where it is of type integer or bool; False reads no labels. A column called label or labels of another
            type must be decided on.
        in_memory: whether all images are decoded once, to uint8, and kept; "auto": if this takes
            at most `MEMORY_LIMIT`, 1 GiB (twice the pixels with `flip`). Each process keeps its
            own copy.
        device: where images in memory are kept, and so where their batches are: pass
            `accelerator.device`. A GPU keeps them if they take at most a quarter of its free
            memory; otherwise they stay on the host, and a warning is logged. Batches of images
            that are not in memory are on the CPU.
        num_workers: processes that decode images that are not in memory; None: as many as there
            are cores for this process, at most 8. Images in memory need none.
        on_error: "raise", or "skip" rows that cannot be used (an unreadable image, a missing
            label, another size where `size` is None) with one warning. In memory they are left
            out; otherwise another row takes their place, so that batches stay full.
        streaming: whether to read the source as a stream, from front to back; an `IterableDataset`
            always is.

    Raises:
        ValueError: an argument out of range; no such folder, split or column; several columns that
            could be meant; an empty split; a row that cannot be used, by number and column; while reading, a stream
            that does not fill one batch.
        TypeError: a source of another kind, or a number that is not whole.
    """
    batch_size = check_whole("batch_size", batch_size, 1)
    workers = min(8, available_cores())
    if num_workers is not None:
        workers = check_whole("num_workers", num_workers, 0)
    choice("in_memory", in_memory, (True, False, "auto"))
    data, recipe = _open(
        source,
        split=split,
        size=size,
        channels=channels,
        crop=crop,
        pixel_range=pixel_range,
        image_column=image_column,
        label_column=label_column,
        on_error=on_error,
        streaming=streaming,
    )
    recipe = replace(recipe, seed=check_whole("seed", seed, 0), shuffle=shuffle, flip=flip)
    drop_last = shuffle if drop_last is None else drop_last
    if isinstance(data, datasets.IterableDataset):
        if in_memory is True:
            raise ValueError(
                "`in_memory=True` must be given a data set of known length; got a stream. Fix: "
                "`streaming=False`, or `datasets.Dataset.from_generator`."
            )
        if shuffle:
            data = data.shuffle(seed=recipe.seed, buffer_size=SHUFFLE_BUFFER)
        dataset = StreamImageDataset(recipe, workers)
        sampler = StreamSampler(dataset, data, least=batch_size if drop_last else 0)
    else:
        dataset = _map_style(data, recipe, in_memory, device)
        sampler = EpochSampler(dataset)
        check_fills(len(dataset), batch_size, drop_last)
        workers = 0 if dataset.in_memory else workers
        how = (
            "decoded into memory" if dataset.in_memory else f"decoded as read, by {workers} workers"
        )
        shapes = " and ".join("x".join(map(str, s)) for s in recipe.reader.shapes.values())
        logger.info("%d images of %s are %s", len(dataset), shapes, how)
    return ImageLoader(
        dataset, sampler, batch_size=batch_size, drop_last=drop_last, num_workers=workers
    )


def load_images(
    source: Source,
    *,
    split: str = "test",
    size: int | tuple[int, int] | None = None,
    channels: Literal[1, 3] | None = None,
    limit: int | None = None,
    crop: Literal["center"] | None = "center",
    pixel_range: PixelRange | None = None,
    image_column: str | None = None,
    label_column: str | Literal[False] | None = None,
    device: torch.device | str | None = None,
    on_error: Literal["raise", "skip"] = "raise",
    streaming: bool = False,
) -> tuple[Float32[Tensor, "row channel height width"], Int64[Tensor, " row"] | None]:
    """Decode a split into memory: the images in [-1, 1], and their labels or None.

    Nothing is random: the same rows come in the same order, and every process gets all of them.

    Args:
        source: see `image_loader`, as for all that is not named here.
        split: name of the split.
        size: pixels, one number or (height, width); None: as the first image.
        channels: 1 (grey) or 3 (RGB); None: as the first image.
        limit: at most so many rows: a random choice that is always the same one, for a split may be sorted by class,
            and MNIST's rows come by turns from two groups of writers; more rows include the fewer. Of a stream the
            first ones.
        crop: "center" cuts the middle out of an image of another aspect ratio, None squeezes it.
        pixel_range: black and white of images of more than 8 bits.
        image_column: name of the image column, where there are several.
        label_column: name of the label column, where there are several; False reads no labels.
        device: where to put the tensors.
        on_error: "raise", or "skip" rows that cannot be used, with one warning.
        streaming: whether to read the source as a stream, no further than `limit`.

    Raises:
        ValueError: as `image_loader`.
        TypeError: as `image_loader`.
    """
    limit = None if limit is None else check_whole("limit", limit, 1)
    choice("crop", crop, ("center", None))
    data, recipe = _open(
        source,
        split=split,
        size=size,
        channels=channels,
        crop=crop,
        pixel_range=pixel_range,
        image_column=image_column,
        label_column=label_column,
        on_error=on_error,
        streaming=streaming,
    )
    if isinstance(data, datasets.IterableDataset):
        stream = data if limit is None else data.take(limit)
        data = datasets.Dataset.from_list(list(stream), features=data.features)
    chosen = np.random.default_rng(0).permutation(len(data))[:limit]
    rows = np.sort(chosen).tolist()
    images, labels, _ = decode_rows(data, rows, recipe.reader, skip=recipe.skip)
    labels = labels if labels is None else labels.to(device)
    return to_float(images["image"].to(device)), labels


def _open(
    source: Source,
    *,
    split: str,
    size: Any,
    channels: int | None,
    crop: Crop,
    pixel_range: PixelRange | None,
    image_column: str | Mapping[str, str] | None,
    label_column: str | Literal[False] | None,
    on_error: str,
    streaming: bool,
) -> tuple[datasets.Dataset | datasets.IterableDataset, Recipe]:
    """One split with its images left encoded, and how its rows become images."""
    size = None if size is None else check_size("size", size)
    pixel_range = interval("pixel_range", pixel_range)
    choice("channels", channels, (1, 3, None))
    choice("crop", crop, ("center", "random", None))
    choice("on_error", on_error, ("raise", "skip"))
    data = open_source(source, split, streaming)
    columns = find_columns(data.features, image_column, label_column)
    data = data.with_format(None).select_columns(columns.names)
    for column in columns.images.values():
        data = data.cast_column(column, datasets.Image(decode=False))
    if isinstance(data, datasets.Dataset):
        rows, sample = iter(data), sampled_rows(data)
    else:
        rows = iter(data)
        sample = [row for row in [next(rows, None)] if row is not None]
        rows = chain(sample, rows)
    skip = on_error == "skip"
    reader = fit_reader(
        rows,
        columns,
        size=size,
        channels=channels,
        crop=crop,
        pixel_range=pixel_range,
        skip=skip,
    )
    recipe = Recipe(
        reader, seed=0, shuffle=False, flip=False, skip=skip, fingerprint=fingerprint(sample)
    )
    return data, recipe


def _map_style(
    data: datasets.Dataset,
    recipe: Recipe,
    in_memory: bool | Literal["auto"],
    device: torch.device | str | None,
) -> MemoryImageDataset | LazyImageDataset:
    """In memory, where that is asked for or takes at most `MEMORY_LIMIT`, or decoded as it is read."""
    reader = recipe.reader
    pixels = sum(math.prod(shape) for shape in reader.shapes.values())
    needed = len(data) * pixels * (1 + recipe.flip)
    if in_memory == "auto":
        in_memory = reader.crop != "random" and needed <= MEMORY_LIMIT
    if not in_memory:
        return LazyImageDataset(recipe, data)
    if reader.crop == "random":
        raise ValueError(
            '`crop="random"` must be given `in_memory=False`; got True: images in memory are '
            "cropped only once."
        )
    if device is not None and torch.device(device).type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        if needed > free // 4:
            logger.warning(
                "%d MB of images stay on the host: over a quarter of %s", needed >> 20, device
            )
            device = None
    images, labels, skipped = decode_rows(data, range(len(data)), reader, skip=recipe.skip)
    return MemoryImageDataset(recipe, images, labels, skipped=skipped, device=device)


def check_fills(rows: int, batch_size: int, drop_last: bool) -> None:
    """Raise a ValueError unless an epoch has a batch."""
    if drop_last and rows < batch_size:
        raise ValueError(too_few(rows, batch_size))


def as_is(batch: Any) -> Any:
    """For loaders whose data set answers with whole batches."""
    return batch
