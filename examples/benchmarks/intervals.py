"""The coverage of the intervals of `jackknife`, beside that of the usual bootstrap's percentiles.

    OMP_NUM_THREADS=1 python examples/benchmarks/intervals.py

Two sets of 400 points in 8 dimensions, 100 times anew; "held" is the fraction of intervals that contain the mean of the
figure over all repetitions, 0.95 at best; "width" is the interval's over that which the figures' own spread asks for.
"""

import argparse
import os

import torch
from torch import Tensor

from fm_ext.metrics import (
    coverage,
    density,
    energy_distance,
    frechet_distance,
    jackknife,
    kernel_distance,
    precision,
    sliced_wasserstein,
)

SMOKE = os.environ.get("FM_EXT_SMOKE") == "1"
POINTS, DIMENSION, RESAMPLES = (60, 8, 3) if SMOKE else (400, 8, 50)
FIGURES = {
    "mean of the first feature": lambda x, y: x[:, 0].mean(),
    "frechet_distance": frechet_distance,
    "kernel_distance": kernel_distance,
    "energy_distance": energy_distance,
    "sliced_wasserstein": sliced_wasserstein,
    "precision": precision,
    "density": density,
    "coverage": coverage,
}

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--repetitions", type=int, default=2 if SMOKE else 100)
args = parser.parse_args()


def percentiles(statistic, x: Tensor, y: Tensor) -> tuple[float, float]:
    """The usual bootstrap: as many rows, drawn with replacement."""
    draws = [
        statistic(*(rows[torch.randint(len(rows), (len(rows),))] for rows in (x, y)))
        for _ in range(RESAMPLES)
    ]
    return tuple(
        torch.stack(draws).double().quantile(torch.tensor([0.025, 0.975]).double()).tolist()
    )


for shift in (0.0, 0.3):
    print(f"distributions {shift} standard deviations apart in each dimension")
    print("                            halves: held  width    with replacement: held  width")
    for name, statistic in FIGURES.items():
        torch.manual_seed(0)
        values, halves, usual = [], [], []
        for _ in range(args.repetitions):
            x, y = torch.randn(2, POINTS, DIMENSION)
            estimate = jackknife(statistic, x + shift, y, resamples=RESAMPLES)
            values.append(estimate.value)
            halves.append(estimate[1:3])
            usual.append(percentiles(statistic, x + shift, y))
        value = torch.tensor(values, dtype=torch.float64)
        row = f"{name:27}"
        for ends in (halves, usual):
            low, high = torch.tensor(ends, dtype=torch.float64).T
            held = ((low <= value.mean()) & (value.mean() <= high)).double().mean()
            row += f" {held:13.2f} {(high - low).mean() / (2 * 1.96 * value.std()):6.2f}      "
        print(row, flush=True)
