"""Guidance on digits: away from no class, from what an earlier checkpoint says, and CFG-Zero*; then on known pixels.

    OMP_NUM_THREADS=1 python examples/benchmarks/guidance.py --dataset <folder of MNIST>
    OMP_NUM_THREADS=1 python examples/benchmarks/guidance.py --dataset <folder of MNIST> --task holes
Trains the lean network of examples/generate.py for seconds of its process, and keeps the average of its weights after
a quarter of them, which is what autoguidance moves away from. Task "classes": a tenth of the labels is dropped; printed
are the Frechet distance to the first test images, coverage, and the share of samples that a classifier takes for the
class that was asked for. Task "holes": `MaskedProbPath`, known pixels hidden from a tenth; printed are the share of
fills that is read rightly, PSNR in the hole, the spread of two fills, and the Frechet distance to the originals.
All rows start from the same noise. Weights and figures are kept in outputs/guidance: a run that was stopped goes on.
"""

import argparse
import os
from pathlib import Path
from typing import Any

import torch
from fills import judge_fills
from race import BF16, Log, Recipe, Result, Run, judge, unet
from torch import Tensor, nn

from fm_ext.data import load_images
from fm_ext.loss import LogitNormalTime
from fm_ext.mask import CenterBox, Hybrid, Irregular, RandomBox
from fm_ext.metrics import classifier
from fm_ext.models import GuidedVelocityModel, MaskedVelocityModel, UNet, UNetWrapper
from fm_ext.sampling import draw_samples
from fm_ext.solver import ODESolver

SMOKE = os.environ.get("FM_EXT_SMOKE") == "1"
DIGITS = str(Path(__file__).parents[1] / "data" / "mnist")
MASKS = {mask.__name__: mask() for mask in (CenterBox, RandomBox, Irregular)}

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--dataset", default=DIGITS)
parser.add_argument("--task", choices=["classes", "holes"], default="classes")
parser.add_argument("--seconds", type=float, default=0.5 if SMOKE else 180, help="of training")
parser.add_argument("--early", type=float, default=0.25, help="share of them that autoguidance has")
parser.add_argument("--scales", type=float, nargs="*", default=[2] if SMOKE else [1.5, 2, 3])
parser.add_argument("--samples", type=int, default=200 if SMOKE else 1000)
parser.add_argument("--images", type=int, default=35 if SMOKE else 80, help="to fill")
parser.add_argument("--solver-steps", type=int, default=1 if SMOKE else 3, help="of midpoint")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--output", type=Path, default=Path("outputs/guidance"))
args = parser.parse_args()
holes = args.task == "holes"


def masked_unet() -> nn.Module:
    return UNetWrapper(UNet.preset(28, 2, 1, lean=True), concat=("mask",), mask_dropout=0.1)


common: dict[str, Any] = {"batch_size": 32, "ema": 0.999, "times": LogitNormalTime()}
recipe = Recipe(net=unet(lean=True), **common)
if holes:
    recipe = Recipe(net=masked_unet, labels=False, mask=Hybrid(), **common)

images, labels = load_images(args.dataset, split="train", label_column="label")
count = args.images if holes else args.samples
reference, truth = load_images(args.dataset, split="test", limit=count, label_column="label")
assert labels is not None and truth is not None
folder = args.output / f"{args.task} {args.seconds:g} {len(images)}"
folder.mkdir(parents=True, exist_ok=True)
log = Log(folder / "results.jsonl")

# ---- train; an early average is kept ----------------------------------------------------------
kept = folder / f"{args.seed} {args.early:g}.pt"
if not kept.exists():
    run = Run(recipe, images, labels, args.seconds, args.seed)
    run.advance(args.early * args.seconds)
    early, early_steps = run.weights(), run.steps
    run.advance(args.seconds)
    states = {"early": early, "early_steps": early_steps, "last": run.weights(), "steps": run.steps}
    torch.save(states, kept)
states = torch.load(kept)
print(f"{states['steps']} training steps, {states['early_steps']} of the early average")


def network(name: str) -> nn.Module:
    net = recipe.net().eval()
    net.load_state_dict(states[name])
    return net


# ---- what is compared ---------------------------------------------------------------------------
last, worse = network("last"), network("early")
without: dict[str, Any] = {"hide_known": True} if holes else {"null": {"label": 10}}
first = 0.5 / args.solver_steps  # zero_init that holds the first evaluation of midpoint only


def guided(scale: float, **how: Any) -> nn.Module:
    return GuidedVelocityModel(last, scale, **how)


WAYS: dict[tuple[str, float], nn.Module] = {("none", 1.0): last, ("the early average", 1.0): worse}
for scale in args.scales:
    WAYS["no condition", scale] = guided(scale, **without)
    WAYS["optimized scale", scale] = guided(scale, optimized_scale=True, **without)
    WAYS["autoguidance", scale] = guided(scale, against=worse)
scale = args.scales[0]
both = {"optimized_scale": True, "zero_init": first}
WAYS["optimized scale, zero init", scale] = guided(scale, **both, **without)
if SMOKE:
    WAYS = dict(list(WAYS.items())[-2:])


def integrate(model: nn.Module, x: Tensor, **extras: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=BF16):
        solver = ODESolver(model)
        return solver.sample(x, steps=args.solver_steps, method="midpoint", **extras).float()


def generate(model: nn.Module) -> Result:
    """Digits of every class, as many of each."""

    def sample(noise: Tensor, label: Tensor) -> Tensor:
        return integrate(model, noise, label=label)

    label = torch.arange(args.samples) % 10
    shape = images.shape[1:]
    drawn = draw_samples(
        sample, args.samples, shape, label=label, batch_size=100, network=model, seed=args.seed
    )
    return judge(drawn, reference)


def fill(model: nn.Module) -> Result:
    """Two fills of every hole."""
    whole = MaskedVelocityModel(model)

    def one(truth: Tensor, mask: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.randn(truth.shape, generator=generator)
        return integrate(whole, torch.where(mask, noise, truth), mask=mask)

    found = judge_fills(one, reference, MASKS, labels=truth, reader=classifier("mnist"))
    return found["mean"] | {"frechet": found["frechet"]}


columns = ("read", "psnr", "spread") if holes else ("accuracy", "coverage")
print(f"{'away from':28} scale  Frechet distance       {'  '.join(columns)}")
for (way, scale), model in WAYS.items():
    setting = {"way": way, "scale": scale, "seed": args.seed, "samples": count}
    setting |= {"early": args.early, "solver_steps": args.solver_steps, "judge": 3}
    if not log.read(setting):
        log.append(setting | (fill(model) if holes else generate(model)))
    row = log.read(setting)[-1]
    value, low, high = row["frechet"][:3]
    figures = [row[name] if isinstance(row[name], float) else row[name][0] for name in columns]
    line = "  ".join(f"{figure:8.3f}" for figure in figures)
    print(f"{way:28} {scale:5g}  {value:.2f} [{low:.2f}, {high:.2f}]  {line}", flush=True)
print(f"saved {folder}/results.jsonl")
