"""A batch of encoded rows to a batch of tensors."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from fm_ext.data.pixels import to_float
from fm_ext.data.randomness import uniform
from fm_ext.data.rows import RowDecoder, RowError


def flips(
    seed: int, epoch: Int64[np.ndarray, " batch"], row: Int64[np.ndarray, " batch"]
) -> np.ndarray:
    """Which rows are mirrored in which epoch: every second one."""
    return uniform(seed, epoch, row, draw=0) < 0.5


def decode_batch(
    decoder: RowDecoder,
    rows: Sequence[Mapping[str, Any]],
    epoch: Int64[np.ndarray, " batch"],
    row: Int64[np.ndarray, " batch"],
    *,
    seed: int,
    flip: bool,
    replace: Callable[[int, RowError], tuple[Mapping[str, Any], int]] | None,
) -> dict[str, Tensor]:
    """Decode, crop and flip; every random choice is a function of (seed, epoch, row).

    Args:
        decoder: what every image becomes.
        rows: values by column, images encoded.
        epoch: of each row.
        row: number of each row.
        seed: of the augmentations.
        flip: whether every second image, at random, is mirrored left to right.
        replace: given the number of a row and why it cannot be used, another row and its number;
            None raises the error.
    """
    images = np.empty((len(rows), *decoder.shape), np.uint8)
    labels = np.empty(len(rows), np.int64)
    places = np.full(len(rows), 0.5)
    if decoder.crop == "random":
        places = uniform(seed, epoch, row, draw=1)
    for k, values in enumerate(rows):
        number = int(row[k])
        while True:
            try:
                images[k], labels[k] = decoder(values, number, places[k])
                break
            except RowError as error:
                if replace is None:
                    raise
                values, number = replace(number, error)
    if flip:
        mirrored = flips(seed, epoch, row)
        images[mirrored] = images[mirrored, ..., ::-1]
    batch = {"image": to_float(torch.from_numpy(images))}
    if decoder.columns.label is not None:
        batch["label"] = torch.from_numpy(labels)
    return batch
