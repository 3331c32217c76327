"""A whole split as two tensors, to judge a model on."""

from typing import Literal

import datasets
import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from fm_ext.data.memory import decode_rows
from fm_ext.data.pixels import to_float
from fm_ext.data.source import Source, check, open_rows


def load_images(
    source: Source,
    *,
    split: str = "test",
    size: int | tuple[int, int] | None = None,
    channels: Literal[1, 3] | None = None,
    limit: int | None = None,
    crop: Literal["center"] | None = "center",
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
        image_column: name of the image column, where there are several.
        label_column: name of the label column, where there are several; False reads no labels.
        device: where to put the tensors.
        on_error: "raise", or "skip" rows that cannot be used, with one warning.
        streaming: whether to read the source as a stream, no further than `limit`.

    Raises:
        ValueError: as `image_loader`.
        TypeError: a source of another kind.
    """
    check("limit", limit, limit is None or limit >= 1, "at least 1")
    data, decoder = open_rows(
        source,
        split=split,
        size=size,
        channels=channels,
        crop=crop,
        image_column=image_column,
        label_column=label_column,
        on_error=on_error,
        streaming=streaming,
    )
    if isinstance(data, datasets.IterableDataset):
        stream = data if limit is None else data.take(limit)
        data = datasets.Dataset.from_list(list(stream), features=data.features)
    count = len(data) if limit is None else min(limit, len(data))
    chosen = np.random.default_rng(0).permutation(len(data))[:count]
    rows = np.sort(chosen)
    images, labels, _ = decode_rows(data, rows.tolist(), decoder, skip=on_error == "skip")
    return to_float(images.to(device)), labels if labels is None else labels.to(device)
