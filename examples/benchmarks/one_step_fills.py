"""Holes filled by one evaluation of a MeanFlow, beside a plain flow's fills, after the same seconds of training.

    OMP_NUM_THREADS=1 python examples/benchmarks/one_step_fills.py --dataset <folder of MNIST>
The lean network of examples/generate.py on `MaskedProbPath`, trained for seconds of its process (`time.process_time`):

    flow            the velocity, `velocity_loss`
    MeanFlow        the average velocity, `mean_flow_loss`
    flow, MeanFlow  half of the budget as a flow, the same network at r = t, whose steps cost less; then MeanFlow
Test images are filled twice under each kind of mask. Printed for each way and number of evaluations: the share that a
classifier reads rightly, PSNR in the hole, the spread of the two fills, the error of a fill over the square root of 2
times the spread (1 for samples of the true posterior, above it for fills that are too alike), and the Frechet
distance of all fills to the originals. Draws a picture. Weights and figures are kept in outputs/one_step_fills, so a
run that was stopped goes on with what is missing.
"""

import argparse
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from fills import judge_fills
from race import BF16, Log, Recipe, Result, Run
from torch import Tensor, nn
from torchvision.utils import make_grid

from fm_ext.data import load_images
from fm_ext.loss import LogitNormalTime, TimePairs, mean_flow_loss
from fm_ext.mask import CenterBox, FreeForm, Hybrid, Irregular, RandomBox
from fm_ext.metrics import classifier
from fm_ext.models import MaskedVelocityModel, MeanFlowModel, UNet, UNetWrapper
from fm_ext.solver import MeanFlowSolver, ODESolver

SMOKE = os.environ.get("FM_EXT_SMOKE") == "1"
DIGITS = str(Path(__file__).parents[1] / "data" / "mnist")
MASKS = {mask.__name__: mask() for mask in (CenterBox, RandomBox, FreeForm, Irregular, Hybrid)}
FILLS = 2  # of each hole

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--dataset", default=DIGITS)
parser.add_argument("--seconds", type=float, default=0.5 if SMOKE else 300, help="of each training")
parser.add_argument("--images", type=int, default=40 if SMOKE else 200, help="to fill")
parser.add_argument("--only", nargs="*", help="some of the names above; default: all")
parser.add_argument("--seeds", type=int, nargs="*", default=[0])
parser.add_argument("--output", type=Path, default=Path("outputs/one_step_fills"))
args = parser.parse_args()


class MeanFlow(Run):
    """Average velocities of the missing pixels, after a share of the budget as a flow."""

    flow_first = 0.0

    def loss(self, x_0: Tensor, x_1: Tensor, label: Tensor) -> Tensor:
        if self.seconds < self.flow_first * self.budget:
            return super().loss(x_0, x_1, label)
        t, r = TimePairs()(len(x_1), device=x_1.device)
        mask = MASKS["Hybrid"](len(x_1), x_1.shape[-2:], device=x_1.device)
        sample = self.path.sample(x_0, x_1, t, mask=mask)
        with torch.autocast(x_1.device.type, torch.bfloat16, enabled=self.recipe.bf16):
            return mean_flow_loss(self.net, sample, r, mask=mask)


class FlowFirst(MeanFlow):
    flow_first = 0.5


def one_time() -> nn.Module:
    return MaskedVelocityModel(UNetWrapper(UNet.preset(28, 2, 1, lean=True), concat=("mask",)))


def two_times() -> nn.Module:
    net = UNet.preset(28, 2, 1, second_time=True, lean=True)
    return MeanFlowModel(UNetWrapper(net, concat=("mask",)))


FLOW = Recipe(
    net=one_time, batch_size=32, ema=0.999, times=LogitNormalTime(), labels=False,
    mask=MASKS["Hybrid"],
)  # fmt: skip
AVERAGE = replace(FLOW, net=two_times)
WAYS: dict[str, tuple[Callable[..., Run], Recipe]] = {
    "flow": (Run, FLOW),
    "MeanFlow": (MeanFlow, AVERAGE),
    "flow, MeanFlow": (FlowFirst, AVERAGE),
}
# How a network is asked: the method, its steps, and the evaluations that these take.
FLOW_ASKED = [("euler", 1, 1), ("midpoint", 1, 2), ("midpoint", 2, 4), ("midpoint", 8, 16)]
JUMPS = [("jumps", 1, 1), ("jumps", 2, 2), ("jumps", 4, 4)]
if SMOKE:
    FLOW_ASKED, JUMPS = FLOW_ASKED[:1], JUMPS[:1]

images, labels = load_images(args.dataset, split="train", label_column="label")
reference, truth = load_images(args.dataset, split="test", limit=args.images, label_column="label")
assert labels is not None and truth is not None
folder = args.output / f"{args.seconds:g} {len(images)}"
folder.mkdir(parents=True, exist_ok=True)
log, judge = Log(folder / "results.jsonl"), classifier("mnist")


@torch.no_grad()
def fill(
    model: nn.Module, noise: Tensor, given: Tensor, mask: Tensor, method: str, steps: int
) -> Tensor:
    """One fill of each image."""
    solver = MeanFlowSolver(model) if method == "jumps" else ODESolver(model)  # pyright: ignore[reportArgumentType]
    extras = {} if method == "jumps" else {"method": method}
    with torch.autocast("cpu", torch.bfloat16, enabled=BF16):
        ends = solver.sample(torch.where(mask, noise, given), steps=steps, mask=mask, **extras)
    assert torch.equal(ends.masked_fill(mask, 0), given.masked_fill(mask, 0))  # bit for bit
    return ends.float().clamp(-1, 1)


def worth(model: nn.Module, method: str, steps: int) -> Result:
    """The figures of one way of asking one network."""

    def one(given: Tensor, mask: Tensor, generator: torch.Generator) -> Tensor:
        return fill(
            model, torch.randn(given.shape, generator=generator), given, mask, method, steps
        )

    return judge_fills(
        one, reference, MASKS, labels=truth, reader=judge, count=FILLS, batch_size=100
    )


generator = torch.Generator().manual_seed(0)
holes = [kind(2, reference.shape[-2:], generator=generator) for kind in MASKS.values()]
noises = torch.randn(FILLS + 1, len(holes), *reference[:2].shape, generator=generator)
shown: dict[str, list[Tensor]] = {}  # of each way of asking, the fills of two images a mask
originals = float((judge(reference).argmax(1) == truth).double().mean())
print(
    f"{len(reference)} test images under {', '.join(MASKS)}; {originals:.1%} of the originals are read rightly"
)
print(f"{'':26} evaluations   read   PSNR  spread  ratio  Frechet distance")  # fmt: skip
for seed in args.seeds:
    for way in args.only or WAYS:
        make, recipe = WAYS[way]
        kept = folder / f"{way} {seed}.pt"
        if not kept.exists():
            run = make(recipe, images, labels, args.seconds, seed)
            run.advance(args.seconds)
            torch.save({"weights": run.weights(), "steps": run.steps}, kept)
        state = torch.load(kept)
        model = recipe.net().eval()
        model.load_state_dict(state["weights"])
        for method, steps, evaluations in FLOW_ASKED if way == "flow" else JUMPS:
            setting = {"way": way, "method": method, "steps": steps, "seed": seed}
            setting |= {"images": len(reference), "judge": 3}
            if not log.read(setting):
                trained = {"training_steps": state["steps"]}
                log.append(setting | trained | worth(model, method, steps))
            row = log.read(setting)[-1]
            means = row["mean"]
            value, low, high = row["frechet"][:3]
            print(
                f"{way + ', ' + method:26} {evaluations:11} {means['read']:6.1%} {means['psnr']:6.2f} "
                f"{means['spread']:7.3f} {means['ratio']:6.2f}  {value:.2f} [{low:.2f}, {high:.2f}] "
                f"after {row['training_steps']} steps, seed {seed}",
                flush=True,
            )
            for name in MASKS:
                print(
                    f"    {name:22} {'':11} {row[name]['read']:6.1%} {row[name]['psnr']:6.2f} "
                    f"{row[name]['spread']:7.3f} {row[name]['ratio']:6.2f}"
                )
            if seed == args.seeds[0] and (method, steps) in [("euler", 1), ("midpoint", 8), ("jumps", 1)]:  # fmt: skip
                title = f"{way}: {evaluations} evaluation{'s' if evaluations > 1 else ''}"
                for k in range(FILLS + 1):
                    row_of = shown.setdefault(f"{title}{' ' * k}", [])
                    for noise, hole in zip(noises[k], holes, strict=True):
                        row_of.append(fill(model, noise, reference[:2], hole, method, steps))

top = {"original": [reference[:2]] * len(MASKS)}
top["hole"] = [reference[:2].masked_fill(hole, 0) for hole in holes]
rows = top | shown
grid = make_grid(torch.cat([torch.cat(part) for part in rows.values()]) / 2 + 0.5, 2 * len(MASKS))
figure, axes = plt.subplots(figsize=(8, 0.62 * len(rows) + 0.4), layout="constrained")
axes.imshow(grid.movedim(0, 2), extent=(0, len(MASKS), len(rows), 0), aspect="auto")
axes.set_xticks([k + 0.5 for k in range(len(MASKS))], [*MASKS])
titles = [title.strip() if not title.endswith(" ") else "" for title in rows]
axes.set_yticks([k + 0.5 for k in range(len(rows))], titles)
axes.tick_params(length=0, labeltop=True, labelbottom=False)
figure.savefig(folder / "one_step_fills.png", dpi=110)
print(f"saved {folder}/one_step_fills.png and results.jsonl")
