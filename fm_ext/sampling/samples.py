"""Drawn samples, with their labels and costs, and how they are saved."""

import os
from dataclasses import dataclass
from pathlib import Path

import datasets
import PIL.Image
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor
from torchvision.utils import make_grid

from fm_ext.data.pixels import to_float


@dataclass(frozen=True, eq=False)
class Samples:
    """Images in the order of their numbers, with what they cost.

    Attributes:
        images: `(count, channel, height, width)`, uint8, on the CPU.
        label: the labels that they were drawn with, or None.
        seconds: wall-clock time in the sampler, to the last image on the CPU; of the slowest process.
        evaluations: network evaluations for each sample, on average; None where no network was named.
    """

    images: UInt8[Tensor, "count channel height width"]
    label: Int64[Tensor, " count"] | None
    seconds: float
    evaluations: float | None

    def to_float(self) -> Float32[Tensor, "count channel height width"]:
        """The images in [-1, 1], as `load_images` would give them."""
        return to_float(self.images)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes a HuggingFace data set with the columns `image` (PNG) and `label`, which `load_images` reads.

        On several processes call it on one, where `accelerator.is_main_process`.

        Args:
            folder: where to; what is there is overwritten.

        Raises:
            ValueError: for labels that are not one integer a sample, and images of other than 1 or 3 channels, which do
                not come back as they were.
        """
        if self.images.shape[1] not in (1, 3):
            raise ValueError(
                f"`images` must have 1 or 3 channels to be saved; got {self.images.shape[1]}."
            )
        if self.label is not None and (self.label.ndim != 1 or self.label.is_floating_point()):
            raise ValueError(
                f"`label` must be one integer a sample to be saved; got {tuple(self.label.shape)}, {self.label.dtype}."
            )
        columns: dict[str, object] = {"image": [_picture(image) for image in self.images]}
        features: dict[str, object] = {"image": datasets.Image()}
        if self.label is not None:
            columns["label"] = self.label.tolist()
            features["label"] = datasets.ClassLabel(num_classes=int(self.label.max()) + 1)
        data = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
        data.save_to_disk(folder)

    def save_grid(self, path: str | os.PathLike[str], *, rows: int = 10, columns: int = 10) -> None:
        """Writes the first images side by side, as a PNG.

        Args:
            path: of the file; its folder is made.
            rows: at most so many rows.
            columns: images in a row.
        """
        grid = make_grid(self.images[: rows * columns], columns, padding=1)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        _picture(grid).save(path)


def _picture(image: Tensor) -> PIL.Image.Image:
    pixels = image[0] if len(image) == 1 else image.movedim(0, -1)
    return PIL.Image.fromarray(pixels.numpy())
