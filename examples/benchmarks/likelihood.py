"""Bits per dimension of test images under a shipped flow, with what the steps and the probes add to it.

    OMP_NUM_THREADS=1 python examples/benchmarks/likelihood.py --dataset <folder of MNIST>
8-bit test images are dequantised with uniform noise of one level, so the figures bound code lengths from above
(`bits_per_dimension`). First some images by several solvers and grids, from the same noise and probes: what the steps
cost. Then all of them given their classes, and half of them given none, with the standard error over images and the
part of it that is the probes'. For scale: independent histograms of the 256 levels of each pixel, from the training
images, and the size of an optimised PNG file, in bits a pixel.
"""

import argparse
import io
import math
import os
import time
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.distributions import Normal

from fm_ext.data import load_images
from fm_ext.hub import FlowModel
from fm_ext.sampling import to_uint8
from fm_ext.solver import ODESolver, bits_per_dimension

SMOKE = os.environ.get("FM_EXT_SMOKE") == "1"
DIGITS = str(Path(__file__).parents[1] / "data" / "mnist")
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--dataset", default=DIGITS)
parser.add_argument("--model", default="mnist", help="shipped name, folder or name on the hub")
parser.add_argument("--images", type=int, default=4 if SMOKE else 200)
parser.add_argument("--compared", type=int, default=2 if SMOKE else 6, help="by several solvers")
parser.add_argument("--steps", type=int, default=2 if SMOKE else 25, help="of midpoint")
parser.add_argument("--probes", type=int, default=2)
args = parser.parse_args()

flow = FlowModel.from_pretrained(args.model)
classes = len(flow.classes or ())
solver = ODESolver(flow.velocity_model)
images, labels = load_images(
    args.dataset, split="test", limit=args.images, size=flow.shape[-1], label_column="label"
)
assert labels is not None and images.shape[1:] == flow.shape
dimensions = images[0].numel()
noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(0))
dequantised = images + noise / 127.5


def log_p0(x: Tensor) -> Tensor:
    return Normal(0.0, 1.0).log_prob(x).flatten(1).sum(1)


def bits(x: Tensor, label: Tensor, **how: object) -> tuple[Tensor, Tensor]:
    """Bits per dimension of each image, and the standard error of the probes in each."""
    extras = {"label": label} if classes else {}
    if flow.masked:  # everything is missing
        extras["mask"] = torch.ones_like(x[:, :1], dtype=torch.bool)
    _, log_p, error = solver.compute_likelihood(
        x, log_p0, probes=args.probes, return_error=True, batch_size=50,
        generator=torch.Generator().manual_seed(1), **how, **extras,
    )  # fmt: skip
    return bits_per_dimension(log_p, dimensions), error / (dimensions * math.log(2))


def towards_data(steps: int, power: float) -> Tensor:
    """Times from 1 to 0, closer together at the data, where the velocity changes fastest."""
    return 1 - torch.linspace(0, 1, steps + 1) ** power


n = args.steps
SOLVERS = {
    f"midpoint, {n} equal steps": {"method": "midpoint", "steps": n},
    f"midpoint, {4 * n} equal steps": {"method": "midpoint", "steps": 4 * n},
    f"midpoint, {n} steps, t = 1 - u^2": {"method": "midpoint", "time_grid": towards_data(n, 2)},
    f"midpoint, {n} steps, t = 1 - u^3": {"method": "midpoint", "time_grid": towards_data(n, 3)},
    "dopri5, tolerance 1e-2": {"method": "dopri5", "atol": 1e-2, "rtol": 1e-2},
    "dopri5, tolerance 1e-3": {"method": "dopri5", "atol": 1e-3, "rtol": 1e-3},
}
if SMOKE:
    SOLVERS = dict(list(SOLVERS.items())[:1])
some, label = dequantised[: args.compared], labels[: args.compared]
print(f"{len(some)} images, {args.probes} probes: evaluations, bits per dimension, seconds a image")
for name, how in SOLVERS.items():
    start = time.process_time()
    found, _ = bits(some, label, **how)
    seconds = (time.process_time() - start) / len(some)
    print(f"{name:34} {solver.nfe:5} {found.mean():8.4f} {seconds:6.2f}", flush=True)

print(f"\n{len(images)} images, midpoint, {n} steps, t = 1 - u^3: bits per dimension")
found, error = bits(dequantised, labels, method="midpoint", time_grid=towards_data(n, 3))
deviation, probes = found.std() / len(found) ** 0.5, error.square().sum().sqrt() / len(found)
print(
    f"{'the flow':34} {found.mean():.4f} +- {deviation:.4f}, of which probes {probes:.4f}",
    flush=True,
)
if classes:
    half = len(images) // 2
    none = torch.full((half,), classes)
    without, _ = bits(dequantised[:half], none, method="midpoint", time_grid=towards_data(n, 3))
    gain = (without - found[:half]) * dimensions
    print(
        f"{f'{half} of them given no class':34} {without.mean():.4f}; the class saves an image "
        f"{gain.mean():.1f} +- {gain.std() / half**0.5:.1f} bits"
    )

train, _ = load_images(args.dataset, split="train", size=flow.shape[-1])
train, levels = to_uint8(train).flatten(1), to_uint8(images).flatten(1).long()
counts = torch.zeros(dimensions, 256)
counts.scatter_add_(1, train.T.long(), torch.ones(dimensions, len(train)))
shares = (counts + 1) / (counts + 1).sum(1, keepdim=True)
independent = -shares.gather(1, levels.T).log2().mean(0)
error = independent.std() / len(images) ** 0.5
print(f"{'independent pixels':34} {independent.mean():.4f} +- {error:.4f}")
sizes = []
for picture in to_uint8(images).movedim(1, 3).squeeze(-1).numpy():
    file = io.BytesIO()
    Image.fromarray(picture).save(file, format="png", optimize=True)
    sizes.append(8 * len(file.getvalue()) / dimensions)
print(f"{'PNG':34} {sum(sizes) / len(sizes):.4f}")
