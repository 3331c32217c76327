"""Tiny data sets whose pixels tell their row, and a HuggingFace cache that is thrown away."""

import io
from collections.abc import Callable

import datasets
import huggingface_hub
import numpy as np
import PIL.Image
import pytest
from torch import Tensor

ROWS = 22


@pytest.fixture(autouse=True)
def offline(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path_factory.mktemp("huggingface")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(cache))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    # datasets 5 waits so long after each shuffled parquet stream.
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0, raising=False)
    monkeypatch.setattr(datasets.utils.tqdm, "__init__", _quiet(datasets.utils.tqdm.__init__))


def _quiet(init: Callable) -> Callable:
    return lambda self, *args, **kwargs: init(self, *args, **{**kwargs, "disable": True})


@pytest.fixture
def encode() -> Callable[..., dict]:
    """A PIL image or an array to the value of an image column."""

    def encode(image, format="png", **options) -> dict:
        if isinstance(image, np.ndarray):
            image = PIL.Image.fromarray(image)
        image.save(file := io.BytesIO(), format, **options)
        return {"bytes": file.getvalue(), "path": None}

    return encode


@pytest.fixture
def numbered(encode: Callable[..., dict]) -> Callable[..., datasets.Dataset]:
    """Row i is an 8x8 image with left half 2 i and right half 255; its label is i modulo 3."""

    def numbered(rows: int = ROWS, bad: tuple[int, ...] = ()) -> datasets.Dataset:
        images = np.full((rows, 8, 8), 255, np.uint8)
        images[:, :, :4] = 2 * np.arange(rows)[:, None, None]
        values = [encode(image) for image in images]
        for row in bad:
            values[row] = {"bytes": values[row]["bytes"][:50], "path": None}
        return datasets.Dataset.from_dict(
            {"image": values, "label": np.arange(rows) % 3, "note": ["x"] * rows},
            features=datasets.Features(
                image=datasets.Image(),
                label=datasets.ClassLabel(names=["a", "b", "c"]),
                note=datasets.Value("string"),
            ),
        )

    return numbered


@pytest.fixture
def read_rows() -> Callable[[Tensor], list[tuple[int, bool]]]:
    """From a batch of `numbered` images to row numbers, and whether they are mirrored."""

    def read_rows(image: Tensor) -> list[tuple[int, bool]]:
        pixels = (image[:, 0, 0].float() + 1).mul(127.5).round().int()
        flipped = pixels[:, 0] == 255
        numbers = pixels[:, -1].where(flipped, pixels[:, 0]) // 2
        return list(zip(numbers.tolist(), flipped.tolist(), strict=True))

    return read_rows
