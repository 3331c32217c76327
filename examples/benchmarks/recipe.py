"""The search for a recipe: one change at a time, each trained for the same core-seconds, judged on a validation part.

    OMP_NUM_THREADS=1 python examples/benchmarks/recipe.py --dataset <folder of MNIST>
    OMP_NUM_THREADS=1 python examples/benchmarks/recipe.py --only base "lr 0.004" --seeds 0 1 2

Class-conditional MNIST. "base" is `UNet.preset(28)`; "lean, base" is the network of examples/generate.py, and changes
of it are called so, too. The last tenth of the training images is held out and is what samples are compared with; the
test images are not looked at. Recipes that are started together train in turns of ten seconds, those of one core
(`time.process_time`), so that what else the machine does slows all of them alike. A seed moves the figure by more than
its interval: run the base with several before believing a change. Weights and results are kept in outputs/recipe; what
stands there is not done again. The last lines print the table.
"""

import argparse
import os
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import mean

import torch
from race import LEAN, Log, Recipe, Run, draw, judge, race, unet

from fm_ext.data import load_images
from fm_ext.loss import LogitNormalTime, PowerTime, UniformTime
from fm_ext.models import SmallUNet, UNet, UNetWrapper
from fm_ext.path.scheduler import CosineScheduler

SMOKE = os.environ.get("FM_EXT_SMOKE") == "1"
DIGITS = str(Path(__file__).parents[1] / "data" / "mnist")
GUIDANCE = (1.25, 1.5, 2.0)

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--dataset", default=DIGITS)
parser.add_argument("--seconds", type=float, default=0.2 if SMOKE else 200)
parser.add_argument("--samples", type=int, default=200 if SMOKE else 2000)
parser.add_argument("--seeds", type=int, nargs="*", default=[0])
parser.add_argument("--output", type=Path, default=Path("outputs/recipe/results.jsonl"))


def start(
    net: Callable[[], torch.nn.Module], change: Callable[[UNet], object]
) -> Callable[[], torch.nn.Module]:
    """A network, changed before it is trained."""

    def make() -> torch.nn.Module:
        made = net()
        with torch.no_grad():
            change(made.model)
        return made

    return make


def slower(n: float) -> Callable[[UNet], None]:
    """The frequencies of the time's sines and cosines, divided by this."""

    def change(net: UNet) -> None:
        net.time.scale /= n

    return change


def around(base: Recipe, **net: object) -> dict[str, tuple[Recipe, dict[str, object]]]:
    """What can be changed of the base, whose network has these changes from the preset: a recipe, and how to sample."""

    def change(**settings: object) -> tuple[Recipe, dict[str, object]]:
        return replace(base, **settings), {}

    return {
        "base": (base, {}),
        **{f"batch {n}": change(batch_size=n) for n in (16, 64, 128)},
        **{f"lr {lr:g}": change(lr=lr) for lr in (5e-4, 1e-3, 4e-3)},
        **{
            f"channels {c}": change(net=unet(**(net | {"channels": c, "head_channels": c})))
            for c in (16, 24, 48)
        },
        "no attention": change(net=unet(**(net | {"attention": ()}))),
        "two levels": change(net=unet(**({"attention": (1,)} | net | {"multipliers": (1, 2)}))),
        "lowest level wider": change(net=unet(**(net | {"multipliers": (1, 2, 4)}))),
        "two blocks a level": change(net=unet(**(net | {"blocks": 2}))),
        "label embedding 0.02": change(
            net=start(base.net, lambda net: net.label.weight.normal_(std=0.02))
        ),
        **{
            f"time frequencies / {n}": change(net=start(base.net, slower(n))) for n in (10, 30, 100)
        },
        "no label dropout": change(net=unet(0.0, **net)),
        "times independent": change(times=UniformTime(stratified=False)),
        "times logit-normal": change(times=LogitNormalTime()),
        "times towards source": change(times=PowerTime(power=0.5, towards="source")),
        "times towards data": change(times=PowerTime(power=0.5)),
        "predict x_1": change(prediction="x_1"),
        "cosine path": change(scheduler=CosineScheduler()),
        "no average": change(ema=None),
        **{f"average {decay:g}": change(ema=decay) for decay in (0.98, 0.995, 0.999)},
        "constant rate": change(decay=False),
        "beta_2 0.99": change(betas=(0.9, 0.99)),
        "weight decay 0.01": change(weight_decay=0.01),
        "float32": change(bf16=False),
        **{f"guidance {scale:g}": (base, {"scale": scale}) for scale in GUIDANCE},
        **{f"{steps} steps": (base, {"steps": steps}) for steps in (1, 2, 5, 25)},
        **{f"{n} steps of Euler": (base, {"steps": n, "method": "euler"}) for n in (4, 10, 20)},
    }


BASE = Recipe(net=unet(), batch_size=32)
CHANGES = around(BASE)
CHANGES["S2's network"] = replace(BASE, net=lambda: UNetWrapper(SmallUNet(1)), labels=False), {}
CHANGES |= {
    f"lean, {name}": change
    for name, change in around(replace(BASE, net=unet(**LEAN)), **LEAN).items()
}
BEST = "lean, times logit-normal"
CHANGES |= {f"{BEST}, guidance {s:g}": (CHANGES[BEST][0], {"scale": s}) for s in GUIDANCE}

FEW = ["base", "label embedding 0.02", "time frequencies / 10", "predict x_1", "guidance 1.5"]
parser.add_argument(
    "--only",
    nargs="*",
    choices=CHANGES,
    default=FEW if SMOKE else list(CHANGES),
    metavar="CHANGE",
)
args = parser.parse_args()


def as_file(name: str) -> str:
    return name.replace("/", "over")


images, labels = load_images(args.dataset, split="train", label_column="label")
assert labels is not None
held_out = len(images) - len(images) // 10
images, labels, reference = images[:held_out], labels[:held_out], images[held_out:]
count = min(args.samples, len(reference))
reference = reference[:count]
log = Log(args.output)
fixed = {"seconds": args.seconds, "images": len(images), "count": count}
folder = args.output.parent
runs: dict[Path, Run] = {}  # by the file of the weights, which changes of the sampling share
todo: list[tuple[str, int, Path]] = []
for seed, name in product(args.seeds, args.only):
    if log.read({"change": name, "seed": seed, **fixed}):
        continue
    recipe, _ = CHANGES[name]
    training = next(name for name, (other, _) in CHANGES.items() if other is recipe)
    file = folder / f"{as_file(training)} {seed} {args.seconds:g} {len(images)}.pt"
    if file not in runs:
        runs[file] = Run(recipe, images, labels, args.seconds, seed)
    todo.append((name, seed, file))
untrained = {run: file for file, run in runs.items() if not file.exists()}
for run, _ in race(list(untrained), [args.seconds]):
    torch.save((run.steps, run.weights()), untrained[run])
for name, seed, file in todo:
    steps, weights = torch.load(file)
    how = {"steps": 1 if SMOKE else 10} | CHANGES[name][1]
    samples = draw(runs[file], weights, count, **how)
    samples.save_grid(folder / f"{as_file(name)} {seed}.png")
    found = judge(samples, reference)
    result = {"change": name, "seed": seed, **fixed, "steps": steps}
    log.append({**result, "evaluations": samples.evaluations, **found})
    print(name, seed, steps, found["frechet"], found["accuracy"], flush=True)

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
