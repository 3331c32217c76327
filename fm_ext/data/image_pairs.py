"""Two image data sets, or two columns of one, as batches of source and target."""

from functools import lru_cache
from typing import Any

import numpy as np
from torch import Tensor

from fm_ext.data.images import ImageDataset, StreamImageDataset
from fm_ext.data.loader import ImageLoader, check_fills, image_loader
from fm_ext.data.order import EpochSampler
from fm_ext.data.source import Source


def image_pair_loader(
    source: Source,
    target: Source | None = None,
    *,
    batch_size: int,
    source_column: str | None = None,
    target_column: str | None = None,
    shuffle: bool = True,
    seed: int = 0,
    drop_last: bool | None = None,
    **options: Any,
) -> ImageLoader:
    """A loader of batches `{"source": ..., "image": ..., ...}` for image to image translation.

    * **Unpaired**, two data sets: an epoch is one pass over the targets. The sources are a second shuffled stream
      that runs on over the epochs, whatever the two lengths: numbering the target rows on over the epochs, each
      run of as many numbers as there are sources, from the first on, has each source once. So all are seen equally
      often; not in that order of time, since the targets of an epoch are shuffled too.
    * **Paired**, one data set (`target=None`) with two image columns: row by row, cropped and mirrored alike.

    `source` and `image` (the target) are float32 in [-1, 1], `(batch, channel, height, width)`; `label` is the
    target's, `source_label` that of an unpaired source, each absent where there is none. Order, pairs and
    augmentation are a function of (seed, epoch, row), and the loader goes to `accelerator.prepare`, `Trainer` and
    `set_epoch` as that of `image_loader` does: it shards over processes and resumes exactly.

    Args:
        source: the data set of sources, or of both; see `image_loader`.
        target: the data set of targets; None: it is in another column of `source`.
        batch_size: pairs a batch, on each process.
        source_column: name of the source's image column, where there are several.
        target_column: the same of the target's.
        shuffle: whether the order is random. If not, row i of the targets meets row i of the sources, which begin anew
            when they end, and with each epoch.
        seed: of order, pairs and augmentation, not negative.
        drop_last: whether the rows that do not fill the last batch are left out; None: when shuffling.
        **options: of `image_loader`, for both sides: `split`, `size`, `channels`, `flip`, `crop`, `pixel_range`,
            `label_column`, `in_memory`, `device`, `num_workers`, `on_error`, and `streaming` for paired data.

    Raises:
        ValueError: as `image_loader`; also for two data sets of which one is a stream, for paired data without two
            different columns, and for a pair of two aspect ratios that `crop` would cut apart.
        TypeError: as `image_loader`; also for `image_column`, which each side has of its own.
    """
    if "image_column" in options:
        raise TypeError(
            "`image_column` must be given once a side, as `source_column` and `target_column`; "
            f"got {options['image_column']!r}."
        )
    order = {"batch_size": batch_size, "shuffle": shuffle, "seed": seed}
    if target is None:
        if source_column is None or target_column is None or source_column == target_column:
            raise ValueError(
                "`source_column` and `target_column` must be two image columns of a data set of pairs; "
                f"got {source_column!r} and {target_column!r}. Fix: name both, or give a `target`."
            )
        columns = {"source": source_column, "image": target_column}
        return image_loader(source, image_column=columns, drop_last=drop_last, **order, **options)
    left, right = (
        image_loader(data, image_column=column, drop_last=False, **order, **options)
        for data, column in ((source, source_column), (target, target_column))
    )
    if any(isinstance(side.dataset, StreamImageDataset) for side in (left, right)):
        raise ValueError(
            "`streaming` must be False for two data sets, and neither a stream: their order needs the numbers of rows. "
            "Fix: `datasets.Dataset.from_generator`, or two `image_loader`s of streams."
        )
    dataset = ImagePairDataset(left.dataset, right.dataset)
    drop_last = shuffle if drop_last is None else drop_last
    check_fills(len(dataset), right.batch_size or 1, drop_last)
    return ImageLoader(
        dataset,
        EpochSampler(dataset),
        batch_size=right.batch_size or 1,
        drop_last=drop_last,
        num_workers=max(left.num_workers, right.num_workers),
    )


class ImagePairDataset(ImageDataset):
    """Targets by their own index, each with a source that is a function of that index.

    Target `row` of `epoch` is number `epoch * rows + row` of all; source number n is entry `n % sources` of the
    order of the pass `n // sources`, a shuffled one. So the numbers of one pass hold every source once. Without
    shuffling row i of the targets has source `i % sources` in every epoch.

    Args:
        source: the sources.
        target: the targets, whose seed, shape and classes are those of the pairs.
    """

    def __init__(self, source: ImageDataset, target: ImageDataset):
        super().__init__(target.recipe)
        self.in_memory = source.in_memory and target.in_memory
        self.source, self.target = source, target

    @property
    def skipped(self) -> int:
        return self.source.skipped + self.target.skipped

    @property
    def identity(self) -> dict[str, Any]:
        return {**self.target.identity, "source": self.source.identity}

    def __len__(self) -> int:
        return len(self.target)  # pyright: ignore[reportArgumentType]

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        numbers = np.asarray(indices, np.int64)
        sources = self.source.__getitems__(self._sources(numbers).tolist())
        batch = {"source": sources["image"], **self.target.__getitems__(indices)}
        if "label" in sources:
            batch["source_label"] = sources["label"]
        return batch

    def _sources(self, numbers: np.ndarray) -> np.ndarray:
        rows: int = len(self.source)  # pyright: ignore[reportArgumentType]
        if not self.shuffle:
            return numbers // len(self) * rows + numbers % len(self) % rows
        epochs, places = np.divmod(numbers, len(self))
        chosen = np.empty_like(numbers)
        for epoch in np.unique(epochs):
            of_epoch = _of_epoch(self.seed, int(epoch), len(self), rows)
            chosen[epochs == epoch] = of_epoch[places[epochs == epoch]]
        return chosen


@lru_cache(maxsize=4)
def _of_epoch(seed: int, epoch: int, targets: int, rows: int) -> np.ndarray:
    """The source of each target in an epoch, which lies within one pass over the sources or spans many."""
    first, last = epoch * targets, (epoch + 1) * targets
    parts = []
    for start in range(first // rows * rows, last, rows):
        order = _order(seed, start // rows, rows)
        parts.append(start + order[max(first - start, 0) : last - start])
    return np.concatenate(parts)


@lru_cache(maxsize=4)
def _order(seed: int, number: int, rows: int) -> np.ndarray:
    """The order of the sources in a pass; not that of targets of the same number in the epoch of that number."""
    return np.random.default_rng((seed, number, 1)).permutation(rows)
