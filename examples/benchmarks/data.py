"""Images per second of `fm_ext.data` against HuggingFace's `with_transform` and a DataLoader.

    python examples/benchmarks/data.py               # the shipped data sets, a minute on a CPU
    python examples/benchmarks/data.py --rounds 15

Every way yields shuffled batches of float images in [-1, 1], without workers. The ways take turns,
so that a busy machine slows all of them alike; printed are medians of the ratios to
"with_transform, torch", which decodes and converts image by image, as HuggingFace's documentation
shows it.
"""

import argparse
import itertools
import logging
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from fm_ext.data import image_loader

SMOKE = os.environ.get("FM_EXT_SMOKE") == "1"

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--rounds", type=int, default=1 if SMOKE else 9)
parser.add_argument("--batch-size", type=int, default=128)
parser.add_argument(
    "--seconds", type=float, default=0.01 if SMOKE else 0.3, help="of each way in each round"
)
args = parser.parse_args()
DATA = Path(__file__).resolve().parents[1] / "data"


def huggingface(data: datasets.Dataset, convert: Callable[[Any], Any]) -> DataLoader:
    def transform(rows: dict[str, list]) -> dict[str, list]:
        return {"image": [convert(image) for image in rows["image"]], "label": rows["label"]}

    rows: Any = data.with_transform(transform)
    return DataLoader(
        rows,
        batch_size=args.batch_size,
        shuffle=True,
        drop_last=True,
    )


def ways(name: str, flip: bool) -> dict[str, DataLoader]:
    data = datasets.load_dataset(str(DATA / name), split="train")
    assert isinstance(data, datasets.Dataset)
    steps = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5], [0.5])]
    compose = v2.Compose([v2.RandomHorizontalFlip(), *steps] if flip else steps)

    def by_numpy(image: Any) -> np.ndarray:
        pixels = np.asarray(image, np.float32) / 127.5 - 1
        pixels = pixels.reshape(*pixels.shape[:2], -1).transpose(2, 0, 1)
        return pixels[..., ::-1].copy() if flip and np.random.rand() < 0.5 else pixels

    ours: dict[str, Any] = dict(batch_size=args.batch_size, flip=flip, num_workers=0)
    return {
        "with_transform, torch": huggingface(data, compose),
        "with_transform, numpy": huggingface(data, by_numpy),
        "image_loader, decoding": image_loader(data, in_memory=False, **ours),
        "image_loader, in memory": image_loader(data, **ours),
    }


def endless(loader: DataLoader) -> Iterator[dict]:
    return itertools.chain.from_iterable(itertools.repeat(loader))


def rate(batches: Iterator[dict]) -> float:
    images, start = 0, time.perf_counter()
    while time.perf_counter() < start + args.seconds:
        images += len(next(batches)["image"])
    return images / (time.perf_counter() - start)


logging.disable(logging.INFO)
datasets.disable_progress_bars()
print(f"{torch.get_num_threads()} threads, batches of {args.batch_size}")
print(f"{'data':<10}{'flip':<7}{'way':<26}{'images/s':>10}{'ratio':>8}")
for name, flip in itertools.product(("mnist", "portraits"), (False, True)):
    batches = {way: endless(loader) for way, loader in ways(name, flip).items()}
    for iterator in batches.values():  # warm up: files in memory
        rate(iterator)
    rates: dict[str, list[float]] = {way: [] for way in batches}
    for _ in range(args.rounds):
        for way, iterator in batches.items():
            rates[way].append(rate(iterator))
    first = next(iter(rates.values()))
    for way, values in rates.items():
        ratio = statistics.median(v / f for v, f in zip(values, first, strict=True))
        print(f"{name:<10}{flip!s:<7}{way:<26}{statistics.median(values):>10,.0f}{ratio:>8.1f}")
