"""How a trained flow is asked to fill: the ODE against fresh noise in each step, at equal evaluations.

    OMP_NUM_THREADS=1 python examples/benchmarks/fill_samplers.py --dataset <folder of MNIST>
    OMP_NUM_THREADS=1 python examples/benchmarks/fill_samplers.py --flow portraits --dataset examples/data/portraits
No training: the flow is one that comes with the package, or a folder. "midpoint" is two evaluations a step of
`ODESolver`; "ancestral" is `ExponentialSolver` with eta = 1, one evaluation a step. Printed are means over the kinds of
mask: the share of fills that a classifier reads rightly (digits), PSNR, colour error and seam (1 for the truth) in the
hole, the spread of two fills, the error over sqrt(2) times that spread (1 for samples of the true posterior), and the
Frechet distance of all fills to the images; then the shares by kind.
"""

import argparse
import os
import time
from functools import partial
from pathlib import Path

import torch
from fills import judge_fills
from torch import Tensor

from fm_ext.data import load_images
from fm_ext.hub import FlowModel
from fm_ext.mask import CenterBox, FreeForm, Hybrid, Irregular, RandomBox
from fm_ext.metrics import classifier

SMOKE = os.environ.get("FM_EXT_SMOKE") == "1"
MASKS = {mask.__name__: mask() for mask in (CenterBox, RandomBox, FreeForm, Irregular, Hybrid)}
WAYS = {
    "midpoint, 4 steps": ("midpoint", 4),
    "ancestral, 8 steps": ("ancestral", 8),
    "midpoint, 8 steps": ("midpoint", 8),
    "ancestral, 16 steps": ("ancestral", 16),
    "midpoint, 16 steps": ("midpoint", 16),
    "ancestral, 32 steps": ("ancestral", 32),
}

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--flow", default="mnist", help="a shipped name or a folder")
parser.add_argument("--dataset", default=str(Path(__file__).parents[1] / "data" / "mnist"))
parser.add_argument("--images", type=int, default=2 if SMOKE else 300)
parser.add_argument("--only", nargs="*", default=list(WAYS)[:2] if SMOKE else list(WAYS))
args = parser.parse_args()

flow = FlowModel.from_pretrained(args.flow)
if not flow.masked:
    raise SystemExit(f"--flow must name a flow that was trained to fill; {args.flow} was not")
images, labels = load_images(args.dataset, size=flow.shape[-1], limit=args.images)
digits = flow.shape == (1, 28, 28) and Path(args.dataset).name == "mnist"
reader = classifier("mnist") if digits and not SMOKE else None
columns = ("read", "psnr", "colour", "seam", "spread", "ratio")
print(f"{len(images)} test images under {', '.join(MASKS)}, two fills of each")
print(f"{'':22} {'  '.join(f'{name:>6}' for name in columns)}  Frechet distance      ms a fill")


def asked(
    method: str, steps: int, images: Tensor, mask: Tensor, generator: torch.Generator
) -> Tensor:
    """Fills by one of the ways."""
    return flow.fill(images, mask, method=method, steps=steps, generator=generator)


for way in args.only:
    begin = time.process_time()
    found = judge_fills(partial(asked, *WAYS[way]), images, MASKS, labels=labels, reader=reader)
    cost = 1000 * (time.process_time() - begin) / (2 * len(images) * len(MASKS))
    figures = "  ".join(f"{found['mean'].get(name, float('nan')):6.3f}" for name in columns)
    frechet = "{:5.2f} [{:.2f}, {:.2f}]".format(*found.get("frechet", [float("nan")] * 3))
    print(f"{way:22} {figures}  {frechet}  {cost:9.1f}", flush=True)
    if reader:
        shares = [f"{name} {found[name]['read']:.3f}" for name in MASKS]
        print(f"{'':22} {', '.join(shares)}")
