"""The search for a recipe that fills holes: one change at a time, each trained for the same core-seconds.

    OMP_NUM_THREADS=1 python examples/benchmarks/filling.py --dataset <folder of MNIST>
    OMP_NUM_THREADS=1 python examples/benchmarks/filling.py --dataset examples/data/portraits --seconds 960
    OMP_NUM_THREADS=1 python examples/benchmarks/filling.py --only today "lean, base" --seeds 0 1
"today" is what examples/inpainting.py trained before the search, and "lean, base" what the search starts from. The last
tenth of the training images is held out and filled once; the test images are not looked at (of the shipped portraits 2
of the 20 designs that are held out have other skin tones among the rest). A recipe is trained for
seconds of its process (`time.process_time`), so that what else the machine does slows all alike. Weights and results
are kept in outputs/filling; what stands there is not done again. The last lines print the table.
"""

import argparse
import os
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import mean

import torch
import torch.nn.functional as F
from fills import judge_fills
from flow_matching.path import CondOTProbPath
from race import LEAN, Log, Recipe, Result, Run, Weights
from torch import Tensor

from fm_ext.data import load_images, turn_colours
from fm_ext.loss import LogitNormalTime, ShiftedTime, UniformTime, velocity_loss
from fm_ext.mask import CenterBox, FreeForm, Hybrid, Irregular, Mask, RandomBox
from fm_ext.metrics import classifier
from fm_ext.models import (
    GuidedVelocityModel,
    MaskedVelocityModel,
    PredictionVelocityModel,
    UNet,
    UNetWrapper,
)
from fm_ext.path import MaskedProbPath
from fm_ext.solver import ExponentialSolver, ODESolver

SMOKE = os.environ.get("FM_EXT_SMOKE") == "1"
DIGITS = str(Path(__file__).parents[1] / "data" / "mnist")

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--dataset", default=DIGITS)
parser.add_argument("--size", type=int, help="of the images, if not their own")
parser.add_argument(
    "--others", help="a data set of other images, for the changes that train on them, too"
)
parser.add_argument("--seconds", type=float, default=0.2 if SMOKE else 300)
parser.add_argument("--images", type=int, default=100 if SMOKE else 400, help="to fill")
parser.add_argument("--method", choices=("midpoint", "ancestral"), default="midpoint")
parser.add_argument("--solver-steps", type=int, default=1 if SMOKE else 4)
parser.add_argument("--seeds", type=int, nargs="*", default=[0])
parser.add_argument("--output", type=Path, default=Path("outputs/filling/results.jsonl"))
parser.add_argument("--only", nargs="*", metavar="CHANGE")
args = parser.parse_args()

images, labels = load_images(args.dataset, split="train", size=args.size, label_column="label")
assert labels is not None
held_out = len(images) - len(images) // 10
reference, truth = images[held_out:][: args.images], labels[held_out:][: args.images]
images, labels = images[:held_out], labels[:held_out]
channels, size = images.shape[1], images.shape[-1]
classes = int(labels.max()) + 1
digits = size == 28
if not digits:  # digits must not be mirrored
    images, labels = torch.cat([images, images.flip(-1)]), torch.cat([labels, labels])
MASKS: dict[str, Mask] = {
    "CenterBox": CenterBox(),
    "RandomBox": RandomBox(),
    "Irregular": Irregular(),
}


def net(*concat: str, dropout: float = 0.0, dropped: float = 0.5, **changes: object):
    """What makes a network that sees the mask and, among `concat`, further inputs of the images' channels."""

    def make() -> torch.nn.Module:
        kwargs = {"num_classes": classes, **changes} if "labels" in concat else changes
        seen = ("mask", *(name for name in concat if name != "labels"))
        c_in = channels + 1 + channels * (len(seen) - 1)
        preset = UNet.preset(size, c_in, channels, **kwargs)
        drop = dropped if "labels" in concat else 0.0
        return UNetWrapper(preset, concat=seen, mask_dropout=dropout, label_dropout=drop)

    return make


def push_pull(x: Tensor, mask: Tensor) -> Tensor:
    """Smooth images through the known pixels: in each hole the means of known pixels of ever larger blocks."""
    known = (~mask).to(x.dtype)
    if known.shape[-1] == 1 or not mask.any():
        return x * known
    total = F.avg_pool2d(x * known, 2, ceil_mode=True)
    weight = F.avg_pool2d(known, 2, ceil_mode=True)
    coarse = push_pull(total / weight.clamp(min=1e-3), weight == 0)
    coarse = F.interpolate(coarse, x.shape[-2:], mode="bilinear")
    return torch.where(mask, coarse, x)


def every_second(
    other: Callable[[Tensor], Tensor],
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """What makes every second image of a batch another one, and tells so by its label: 1 for 0."""

    def augment(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        some = torch.rand(len(images)) < 0.5
        mixed = torch.where(some[:, None, None, None], other(images), images)
        return mixed, torch.where(some, 1, torch.zeros_like(labels))

    return augment


HYBRID = Hybrid()
LARGE = Hybrid(masks=(RandomBox(area=(0.2, 0.6)), FreeForm(), Irregular()))


def some_whole(batch: int, size: torch.Size, device: torch.device) -> Tensor:
    """Hybrid masks, of which a third hide the whole image: what is learnt from them is to generate."""
    return HYBRID(batch, size, device=device) | (torch.rand(batch, 1, 1, 1, device=device) < 1 / 3)


if digits:
    small, times = LEAN, LogitNormalTime()
else:
    small, times = {"channels": 32, "multipliers": (1, 2, 2), "patch_size": 2}, ShiftedTime()
today = Recipe(
    net=net(**({} if digits else {"channels": 32})),
    batch_size=32 if digits else 16,
    ema=0.999,
    labels=False,
    mask=HYBRID,
)
base = replace(today, net=net(**small), batch_size=16, times=times)
half = {
    "channels": 48,
    "head_channels": 24,
    "multipliers": (1, 2),
    "attention": (1,),
    "patch_size": 2,
}
BOTTOM = {"multipliers": (1, 2, 4)}
hiding = replace(base, net=net(dropout=0.1, **small))
RECIPES: dict[str, Recipe] = {
    "today": today,
    "lean, base": base,
    "batch 8": replace(base, batch_size=8),
    "batch 32": replace(base, batch_size=32),
    "uniform times": replace(base, times=UniformTime()),
    "times shifted by 2": replace(base, times=ShiftedTime(shift=2.0)),
    "logit-normal, shifted by 2": replace(
        base, times=ShiftedTime(shift=2.0, times=LogitNormalTime())
    ),
    "half resolution": replace(base, net=net(**half)),
    "attention at the bottom": replace(base, net=net(**(small | {"attention": (2,)}))),
    "image beside the state": replace(
        base, net=net("image", **small), show=lambda x, mask: {"image": x}
    ),
    "smooth fill beside the state": replace(
        base, net=net("fill", **small), show=lambda x, mask: {"fill": push_pull(x, mask)}
    ),
    "known hidden from a tenth": hiding,
    "larger boxes": replace(base, mask=LARGE),
    "classes and whole images": replace(
        base, net=net("labels", **small), mask=some_whole, labels=True
    ),
    "average over 0.99": replace(base, ema=0.99),
    "average over 0.998": replace(base, ema=0.998),
    "rate 0.001": replace(base, lr=1e-3),
    "rate 0.004": replace(base, lr=4e-3),
    "x_1 predicted": replace(base, prediction="x_1"),
    "twice as wide at the bottom": replace(base, net=net(**(small | BOTTOM))),
    "the same, attention there": replace(base, net=net(**(small | BOTTOM | {"attention": (2,)}))),
    "the same, x_1 predicted": replace(
        base, net=net(**(small | BOTTOM | {"attention": (2,)})), prediction="x_1"
    ),
    "narrow at the top": replace(
        base, net=net(**(small | {"channels": 16, "head_channels": 16, "multipliers": (1, 3, 6)}))
    ),
}
if not digits:
    two = net("labels", **(small | {"num_classes": 2}), dropped=0.0)
    turned = replace(base, net=two, labels=True, augment=every_second(turn_colours))
    RECIPES["half with turned colours"] = turned
    if args.others:
        others, _ = load_images(args.others, split="train", size=size)
        RECIPES["half from another set"] = replace(
            turned,
            augment=every_second(lambda images: others[torch.randint(len(others), (len(images),))]),
        )
# What is trained, and how it is asked: the scale of guidance on the known pixels.
CHANGES = {name: (recipe, 1.0) for name, recipe in RECIPES.items()}
CHANGES |= {f"known hidden, guidance {s:g}": (hiding, s) for s in (1.25, 1.5, 2.0)}


@torch.no_grad()
def judge(recipe: Recipe, weights: Weights, scale: float) -> Result:
    """What one fill of each image and mask is worth, and the loss at fixed times, masks and noise."""
    network = recipe.net().eval()
    network.load_state_dict(weights)
    model: torch.nn.Module = network
    if recipe.prediction != "velocity":
        model = PredictionVelocityModel(network, recipe.scheduler, prediction=recipe.prediction)
    if scale != 1:
        model = GuidedVelocityModel(model, scale, hide_known=True)
    model = MaskedVelocityModel(model)
    ends = PredictionVelocityModel(model, recipe.scheduler, prediction="velocity")

    def told(truth: Tensor, mask: Tensor) -> dict[str, Tensor]:
        extras = recipe.show(truth, mask) if recipe.show else {}
        kind = torch.zeros(len(truth), dtype=torch.long)  # an image of the set, as it is
        return extras | ({"label": kind} if recipe.augment else {})

    def fill(truth: Tensor, mask: Tensor, generator: torch.Generator) -> Tensor:
        extras, steps = told(truth, mask), args.solver_steps
        start = torch.where(mask, torch.randn(truth.shape, generator=generator), truth)
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bf16):
            if args.method == "ancestral":
                solver, renewed = ExponentialSolver(ends), {"eta": 1.0, "generator": generator}
                return solver.sample(start, 1 / steps, **renewed, mask=mask, **extras)
            solver = ODESolver(model)
            return solver.sample(start, steps=steps, method="midpoint", mask=mask, **extras)

    reader = classifier("mnist") if digits else None
    found = judge_fills(fill, reference, MASKS, labels=truth, reader=reader, count=1)
    torch.manual_seed(0)
    mask, t = HYBRID(len(reference), reference.shape[-2:]), UniformTime()(len(reference))
    path = MaskedProbPath(CondOTProbPath())
    sample = path.sample(torch.randn_like(reference), reference, t, mask=mask)
    with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bf16):
        answer = network(x=sample.x_t, t=sample.t, mask=mask, **told(reference, mask))
    space = {"prediction": recipe.prediction, "scheduler": recipe.scheduler}
    return {**found, "loss": float(velocity_loss(answer.float(), sample, **space))}


log = Log(args.output)
fixed = {
    "size": size,
    "seconds": args.seconds,
    "images": len(images),
    "filled": len(reference),
    "judge": 3,
    "method": args.method,
    "solver_steps": args.solver_steps,
}
for seed, name in product(args.seeds, args.only or CHANGES):
    if log.read({"change": name, "seed": seed, **fixed}):
        continue
    recipe, scale = CHANGES[name]
    training = next(name for name, other in RECIPES.items() if other is recipe)
    file = args.output.parent / f"{training} {seed} {args.seconds:g} {size} {len(images)}.pt"
    if not file.exists():
        run = Run(recipe, images, labels, args.seconds, seed)
        run.advance(args.seconds)
        torch.save((run.steps, run.weights()), file)
    steps, weights = torch.load(file)
    result = {"change": name, "seed": seed, **fixed, "steps": steps}
    result |= judge(recipe, weights, scale)
    log.append(result)
    print(result, flush=True)

print("change                         seeds  steps    loss    read  Frechet   PSNR  colour  seam")
for name in CHANGES:
    group = log.read({"change": name, **fixed})
    if not group:
        continue

    def over(figure: str, group: list[Result] = group) -> float:
        """The mean over seeds, of what may be a mean over masks or have an interval."""
        values = [r["mean"].get(figure, r.get(figure, float("nan"))) for r in group]
        return mean(value[0] if isinstance(value, list) else value for value in values)

    print(
        f"{name:30} {len(group):5} {over('steps'):6.0f}  {over('loss'):.4f}  {over('read'):6.1%}  "
        f"{over('frechet'):7.2f}  {over('psnr'):5.2f}  {over('colour'):6.3f}  {over('seam'):4.2f}"
    )
