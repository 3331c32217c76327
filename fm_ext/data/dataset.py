"""What the three kinds of image data sets have in common."""

import warnings
from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset


class ImageDataset(Dataset[dict[str, Tensor]], ABC):
    """Images a batch at a time: what `fm_ext.data.image_loader` puts into its loader.

    A batch is `{"image": float32 in [-1, 1], (batch, channel, height, width)}`, with `"label"`,
    int64 `(batch,)`, where the source has labels.

    An index carries its epoch: the data set itself never changes, so that workers need not be told
    of a new epoch and a batch is a function of its indices, whoever asks, whenever.

    Args:
        shape: channels, height and width of an image.
        classes: names of the labels' classes; None without labels or names.
        seed: of the augmentations, and of the order in which the loader reads.
        flip: whether every second image, at random, is mirrored left to right.
    """

    in_memory = False

    def __init__(
        self, *, shape: tuple[int, int, int], classes: list[str] | None, seed: int, flip: bool
    ):
        self.shape = shape
        self.classes = classes
        self.seed = seed
        self.flip = flip
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch the next iteration over the loader is; accelerate calls this."""
        self.epoch = epoch

    @property
    @abstractmethod
    def skipped(self) -> int:
        """How many rows could not be used; always 0 with `on_error="raise"`."""

    @abstractmethod
    def __getitems__(self, indices: list[Any]) -> dict[str, Tensor]:
        """The batch of these indices, as the loader's sampler yields them."""

    def __getitem__(self, index: Any) -> dict[str, Tensor]:
        """One image and its label, without the batch axis."""
        return {name: values[0] for name, values in self.__getitems__([index]).items()}


def warn_skipped(reason: str, consequence: str) -> None:
    """Warn, once a data set, that rows are skipped."""
    warnings.warn(
        f"{reason} `on_error='skip'`: {consequence}; `loader.dataset.skipped` counts.",
        stacklevel=2,
    )
