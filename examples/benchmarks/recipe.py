"""The search for a recipe: one change at a time, each trained for the same core-seconds, judged on a validation part.

    OMP_NUM_THREADS=1 python examples/benchmarks/recipe.py --dataset <folder of MNIST>
    OMP_NUM_THREADS=1 python examples/benchmarks/recipe.py --only base "lr 0.004" --seeds 0 1 2

Class-conditional MNIST. The last tenth of the training images is held out and is what samples are compared with; the
test images are not looked at. Seconds are those of one core (`time.process_time`), so that several of these can run
side by side; the caches that they share still cost some 10 % of the steps. A seed moves the figure by more than its
interval: run the base with several before believing a change. Results are appended to outputs/recipe.jsonl; what stands
there is not run again. The last lines print the table.
"""

import argparse
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import mean

import torch
from race import LEAN, Log, Recipe, Run, Weights, draw, judge, unet

from fm_ext.data import load_images
from fm_ext.models import SmallUNet, UNet, UNetWrapper
from fm_ext.path.scheduler import CosineScheduler
from fm_ext.training import LogitNormalTime, PowerTime, UniformTime

SMOKE = os.environ.get("FM_EXT_SMOKE") == "1"
DIGITS = str(Path(__file__).parents[1] / "data" / "mnist")

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--dataset", default=DIGITS)
parser.add_argument("--seconds", type=float, default=1 if SMOKE else 200)
parser.add_argument("--samples", type=int, default=400 if SMOKE else 2000)
parser.add_argument("--seeds", type=int, nargs="*", default=[0])
parser.add_argument("--output", type=Path, default=Path("outputs/recipe.jsonl"))


def start(change: Callable[[UNet], object]) -> Callable[[], torch.nn.Module]:
    """The base's network, changed before it is trained."""

    def make() -> torch.nn.Module:
        net = unet()()
        with torch.no_grad():
            change(net.model)
        return net

    return make


BASE = Recipe(net=unet(), batch_size=32)
CHANGES: dict[str, tuple[Recipe, dict[str, object]]] = {
    "base": (BASE, {}),
    **{f"batch {n}": (replace(BASE, batch_size=n), {}) for n in (16, 64, 128)},
    **{f"lr {lr:g}": (replace(BASE, lr=lr), {}) for lr in (5e-4, 1e-3, 4e-3)},
    **{
        f"channels {c}": (replace(BASE, net=unet(channels=c, head_channels=c)), {})
        for c in (16, 24, 48)
    },
    "no attention": (replace(BASE, net=unet(attention=())), {}),
    "24 channels, no attention": (replace(BASE, net=unet(**LEAN)), {}),
    "two levels": (replace(BASE, net=unet(multipliers=(1, 2), attention=(1,))), {}),
    "lowest level wider": (replace(BASE, net=unet(multipliers=(1, 2, 4))), {}),
    "S2's network": (replace(BASE, net=lambda: UNetWrapper(SmallUNet(1)), labels=False), {}),
    "label embedding 0.02": (
        replace(BASE, net=start(lambda net: net.label.weight.normal_(std=0.02))),
        {},
    ),
    **{
        f"time frequencies / {n}": (
            replace(BASE, net=start(lambda net, n=n: net.time.frequencies.div_(n))),
            {},
        )
        for n in (10, 30, 100)
    },
    "no label dropout": (replace(BASE, net=unet(0.0)), {}),
    "times independent": (replace(BASE, times=UniformTime(stratified=False)), {}),
    "times logit-normal": (replace(BASE, times=LogitNormalTime()), {}),
    "times towards source": (replace(BASE, times=PowerTime(power=0.5, towards="source")), {}),
    "times towards data": (replace(BASE, times=PowerTime(power=0.5)), {}),
    "predict x_1": (replace(BASE, prediction="x_1"), {}),
    "cosine path": (replace(BASE, scheduler=CosineScheduler()), {}),
    "no average": (replace(BASE, ema=None), {}),
    "average 0.995": (replace(BASE, ema=0.995), {}),
    "constant rate": (replace(BASE, decay=False), {}),
    "beta_2 0.99": (replace(BASE, betas=(0.9, 0.99)), {}),
    "weight decay 0.01": (replace(BASE, weight_decay=0.01), {}),
    "float32": (replace(BASE, bf16=False), {}),
    "guidance 1.5": (BASE, {"scale": 1.5}),
    "guidance 2": (BASE, {"scale": 2.0}),
    "5 steps": (BASE, {"steps": 5}),
    "25 steps": (BASE, {"steps": 25}),
}

parser.add_argument("--only", nargs="*", choices=CHANGES, default=list(CHANGES), metavar="CHANGE")
args = parser.parse_args()

images, labels = load_images(args.dataset, split="train", label_column="label")
assert labels is not None
held_out = len(images) - len(images) // 10
images, labels, reference = images[:held_out], labels[:held_out], images[held_out:]
count = min(args.samples, len(reference))
reference = reference[:count]
log = Log(args.output)
fixed = {"seconds": args.seconds, "images": len(images), "count": count}
weights: dict[tuple[str, int], tuple[Run, Weights]] = {}
for seed in args.seeds:
    for name in args.only:
        setting = {"change": name, "seed": seed, **fixed}
        if log.read(setting):
            continue
        recipe, sampling = CHANGES[name]
        key = "base" if recipe is BASE else name, seed  # changes in sampling share one training
        if key not in weights:
            run = Run(recipe, images, labels, args.seconds, seed)
            run.advance(args.seconds)
            weights[key] = run, run.weights()
        run, trained = weights[key]
        samples = draw(run, trained, count, **sampling)
        samples.save_grid(args.output.parent / "recipe" / f"{name} {seed}.png")
        found = judge(samples, reference)
        log.append({**setting, "steps": run.steps, "evaluations": samples.evaluations, **found})
        print(name, seed, run.steps, found["frechet"], found["accuracy"], flush=True)

print("change                      steps  coverage  imbalance  right class  Frechet, each seed")
for name, (recipe, _) in CHANGES.items():
    group = log.read({"change": name, **fixed})
    if not group:
        continue
    steps, coverage = mean(r["steps"] for r in group), mean(r["coverage"][0] for r in group)
    balance = mean(r["balance"] for r in group)
    right = mean(r["accuracy"] for r in group) if recipe.labels else float("nan")
    print(
        f"{name:26} {steps:6.0f}  {coverage:8.3f}  {balance:9.3f}  {right:11.1%}  "
        + ", ".join(
            f"{value:.2f} [{low:.2f}, {high:.2f}]"
            for value, low, high, *_ in (r["frechet"] for r in group)
        )
    )
