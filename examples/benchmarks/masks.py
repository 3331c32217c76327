"""Masks drawn a batch at a time against generators that draw one per image with numpy and OpenCV.

    pip install opencv-python-headless
    python examples/benchmarks/masks.py                                  # one thread, a minute
    python examples/benchmarks/masks.py --size 512 1024 --batch-size 16 --rounds 9

All draw as many strokes, as long and as wide, from the same distributions, and end with a bool tensor
(batch, 1, height, width). "usual" is written as such code mostly is: float images, every number from
`numpy.random`. "lean" is the same with byte images and numbers from Python's `random`: the least that one image
at a time can cost. Where the area is bounded both draw until it fits, as such code does. The three take turns;
counted is the processor's time, so that a busy machine does not matter; printed are medians, in masks per
second, and how many times as fast as the other two ours are.
"""

import argparse
import math
import os
import random
import statistics
import time
from collections.abc import Callable

import cv2
import numpy as np
import torch

from fm_ext.mask import CenterBox, FreeForm, Hybrid, Irregular, Mask, RandomBox

SMOKE = os.environ.get("FM_EXT_SMOKE") == "1"

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--size", type=int, nargs="*", default=[28] if SMOKE else [28, 64, 256])
parser.add_argument("--batch-size", type=int, default=4 if SMOKE else 64)
parser.add_argument("--rounds", type=int, default=1 if SMOKE else 31)
args = parser.parse_args()
torch.set_num_threads(1)
cv2.setNumThreads(1)


class Usual:
    """Floats, and numbers from numpy."""

    dtype = np.float32
    uniform = staticmethod(np.random.uniform)

    @staticmethod
    def integer(low: int, high: int) -> int:
        return np.random.randint(low, high + 1)


class Lean:
    """Bytes, and numbers from Python."""

    dtype = np.uint8
    uniform = staticmethod(random.uniform)
    integer = staticmethod(random.randint)


Style = type[Usual] | type[Lean]


def box(mask: CenterBox | RandomBox, size: int, style: Style) -> np.ndarray:
    image = np.zeros((size, size), style.dtype)
    low, high = (round(side * size) for side in mask.side)
    height, width = style.integer(low, high), style.integer(low, high)
    if isinstance(mask, CenterBox):
        top, left = (size - height) // 2, (size - width) // 2
    else:
        top, left = style.integer(0, size - height), style.integer(0, size - width)
    image[top : top + height, left : left + width] = 1
    return image


def strokes(mask: FreeForm | Irregular, size: int, style: Style) -> np.ndarray:
    image = np.zeros((size, size), style.dtype)
    number, total = style.integer(*mask.strokes), style.integer(*mask.segments)
    for stroke in range(number):
        heading = style.uniform(0, math.tau)
        thickness = size * style.uniform(*mask.width)
        x, y = style.uniform(0, size), style.uniform(0, size)
        for segment in range(total * stroke // number, total * (stroke + 1) // number):
            if isinstance(mask, FreeForm):
                angle = heading + style.uniform(*mask.turn) * (-1) ** segment
            else:
                angle = heading + style.uniform(-mask.turn, mask.turn)
                thickness = size * style.uniform(*mask.width)
            length = size * style.uniform(*mask.length)
            end_x = min(max(x + length * math.cos(angle), 0), size)
            end_y = min(max(y + length * math.sin(angle), 0), size)
            line = (int(x), int(y)), (int(end_x), int(end_y))
            cv2.line(image, *line, color=1, thickness=max(1, round(thickness)))
            x, y = end_x, end_y
    return image


def one(mask: Mask, size: int, style: Style) -> np.ndarray:
    if isinstance(mask, Hybrid):
        return one(random.choice(mask.masks), size, style)
    while True:
        if isinstance(mask, CenterBox | RandomBox):
            image = box(mask, size, style)
        else:
            assert isinstance(mask, FreeForm | Irregular)
            image = strokes(mask, size, style)
        if mask.area == (0, 1) or mask.area[0] <= np.count_nonzero(image) / size**2 <= mask.area[1]:
            return image


def per_image(mask: Mask, size: int, style: Style) -> torch.Tensor:
    images = np.stack([one(mask, size, style) for _ in range(args.batch_size)])
    masks = torch.from_numpy(images)[:, None]
    return masks.view(torch.bool) if style is Lean else masks.bool()


def seconds(draw: Callable[[], torch.Tensor]) -> float:
    start = time.process_time()
    draw()
    return time.process_time() - start


BOUNDS = (0.2, 0.3)
MASKS = {kind.__name__: kind() for kind in (CenterBox, RandomBox, FreeForm, Irregular, Hybrid)}
MASKS |= {f"{kind.__name__}, area={BOUNDS}": kind(area=BOUNDS) for kind in (FreeForm, Irregular)}

print(f"batch {args.batch_size}, torch {torch.__version__}, cv2 {cv2.__version__}, one thread")
print(
    f"{'size':>4} {'mask':28}{'ours/s':>10}{'usual/s':>10}{'lean/s':>10}{'/usual':>8}{'/lean':>7}"
)
for size in args.size:
    for name, mask in MASKS.items():
        draws = (
            lambda mask=mask, size=size: mask(args.batch_size, (size, size)),
            lambda mask=mask, size=size: per_image(mask, size, Usual),
            lambda mask=mask, size=size: per_image(mask, size, Lean),
        )
        for draw in draws:
            draw()
        times = [[seconds(draw) for draw in draws] for _ in range(args.rounds)]
        rates = (args.batch_size / statistics.median(column) for column in zip(*times, strict=True))
        usual, lean = (statistics.median(row[i] / row[0] for row in times) for i in (1, 2))
        columns = "".join(f"{rate:10,.0f}" for rate in rates)
        print(f"{size:4} {name:28}{columns}{usual:8.1f}{lean:7.1f}", flush=True)
