"""Translation of pairs with a right answer, four times as many pixels a side: what the flow starts from, compared.

    OMP_NUM_THREADS=1 python examples/benchmarks/paired.py --dataset <folder of portraits> --size 128
Images and their small ones, enlarged, which a network sees as another input in all rows; one network, and the same
seconds of its process for each:

    regression    no flow: the mean square
    noise         from Gaussian noise
    noisy source  from the enlarged image and noise of a standard deviation of 0.5, `NoisySource`
    bridge        from the enlarged image, `BridgeProbPath` with as much noise midway. Its velocity is infinite at the
                  start, from which an ODE has one answer: samples start at t = 0.01 with that time's noise, in steps
                  that grow

All predict the image, under the loss of the straight path's velocity. Printed are, over the test images, PSNR and SSIM
of one answer, PSNR of the mean of four, how much two differ, how sharp they are (mean square of differences of
neighbouring pixels, 1 for the truth), and PSNR of the small image of an answer. Weights and figures are kept in
outputs/paired; a picture is drawn.
"""

import argparse
import os
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from flow_matching.path import CondOTProbPath, ProbPath
from flow_matching.path.scheduler import CondOTScheduler
from race import Log, Recipe, Result, Run
from torch import Tensor, nn
from torchvision.utils import make_grid

from fm_ext.coupling import NoisySource
from fm_ext.data import load_images
from fm_ext.loss import velocity_loss
from fm_ext.metrics import fill_diversity, hole_psnr, hole_ssim
from fm_ext.models import PredictionVelocityModel, UNet, UNetWrapper
from fm_ext.path import BridgeProbPath
from fm_ext.solver import ODESolver

SMOKE = os.environ.get("FM_EXT_SMOKE") == "1"
PORTRAITS = str(Path(__file__).parents[1] / "data" / "portraits")
FACTOR, NOISE = 4, 0.5
STRAIGHT = CondOTScheduler()
Velocity = Callable[[Tensor, Tensor], Tensor]

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--dataset", default=PORTRAITS)
parser.add_argument("--size", type=int, default=32 if SMOKE else 64)
parser.add_argument("--seconds", type=float, default=0.3 if SMOKE else 360, help="of each row")
parser.add_argument("--images", type=int, default=4 if SMOKE else 90)
parser.add_argument("--solver-steps", type=int, default=1 if SMOKE else 8, help="of midpoint")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--output", type=Path, default=Path("outputs/paired"))
args = parser.parse_args()

options = {"source": args.dataset, "size": args.size}
images, _ = load_images(**options, split="train", limit=16 if SMOKE else None)
images = torch.cat([images, images.flip(-1)])
truth, _ = load_images(**options, split="test", limit=args.images)


def enlarged(images: Tensor) -> Tensor:
    """Images of which means of squares are known."""
    return F.interpolate(F.avg_pool2d(images, FACTOR), scale_factor=FACTOR, mode="bilinear")


def network() -> nn.Module:
    channels = images.shape[1]
    net = UNet(2 * channels, channels, channels=32, multipliers=(1, 2, 2), patch_size=FACTOR)
    return UNetWrapper(net, concat=("small",))


class Regression(Run):
    """The image by its mean square: no noise, no time."""

    def ask(self, net: nn.Module, x: Tensor, t: Tensor, small: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.recipe.bf16):
            return net(x=x, t=t, small=small).float()

    def loss(self, x_0: Tensor, x_1: Tensor, label: Tensor) -> Tensor:
        return (self.translate(self.net, enlarged(x_1)) - x_1).square().mean()

    def translate(self, net: nn.Module, small: Tensor) -> Tensor:
        return self.ask(net, torch.zeros_like(small), small.new_zeros(len(small)), small)


class Noise(Regression):
    """A flow from noise, of which the enlarged image is no part."""

    way: ProbPath = CondOTProbPath()
    start = 0.0

    def source(self, small: Tensor) -> Tensor:
        return torch.randn_like(small)

    def loss(self, x_0: Tensor, x_1: Tensor, label: Tensor) -> Tensor:
        small, t = enlarged(x_1), torch.rand(len(x_1)).clamp(1e-3, 1 - 1e-3)
        sample = self.way.sample(self.source(small), x_1, t)
        answer = self.ask(self.net, sample.x_t, t, small)
        return velocity_loss(answer, sample, prediction="x_1", scheduler=STRAIGHT)

    def velocity(self, net: nn.Module, small: Tensor) -> Velocity:
        straight = PredictionVelocityModel(net, STRAIGHT, prediction="x_1")
        return lambda x, t: straight(x=x, t=t, small=small)

    def translate(self, net: nn.Module, small: Tensor) -> Tensor:
        velocity, x = self.velocity(net, small), self.source(small)
        if self.start:
            x = self.way.sample(small, small, torch.full((len(small),), self.start)).x_t
        grid = torch.linspace(self.start**0.5, 1, args.solver_steps + 1) ** (2 if self.start else 1)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.recipe.bf16):
            solver = ODESolver(velocity)
            return solver.sample(x, None, method="midpoint", time_grid=grid).float()


class FromNoisySource(Noise):
    """A flow from the enlarged image with noise."""

    def source(self, small: Tensor) -> Tensor:
        return NoisySource(NOISE).source(small)


class Bridge(Noise):
    """A bridge from the enlarged image, whose noise is what lies beside the straight line."""

    way, start = BridgeProbPath(2 * NOISE), 0.01

    def source(self, small: Tensor) -> Tensor:
        return small

    def velocity(self, net: nn.Module, small: Tensor) -> Velocity:
        def velocity(x: Tensor, t: Tensor) -> Tensor:
            t = t.clamp(self.start, 0.99)
            x_1 = net(x=x, t=t, small=small).float()  # of bfloat16 under autocast
            aside = x - torch.lerp(small, x_1, t)
            return x_1 - small + (1 - 2 * t) / (2 * t * (1 - t)) * aside

        return velocity


WAYS: dict[str, type[Regression]] = {
    "regression": Regression,
    "noise": Noise,
    "noisy source": FromNoisySource,
    "bridge": Bridge,
}
recipe = Recipe(net=network, batch_size=16, ema=0.999, labels=False)
folder = args.output / f"{args.seconds:g} {args.size} {len(images)}"
folder.mkdir(parents=True, exist_ok=True)
log = Log(folder / "results.jsonl")
small = enlarged(truth)


def sharpness(x: Tensor) -> Tensor:
    """The mean square of differences of neighbouring pixels."""
    return x.diff(dim=-1).square().mean() + x.diff(dim=-2).square().mean()


def psnr(x: Tensor, y: Tensor) -> float:
    """Of whole images."""
    return float(hole_psnr(x, y, torch.ones_like(x, dtype=torch.bool)))


def judge(answers: Tensor) -> Result:
    """What `(answer, image, ...)` are worth."""
    everywhere = torch.ones_like(truth[:, :1], dtype=torch.bool)
    return {
        "psnr": psnr(answers[0], truth),
        "ssim": float(hole_ssim(answers[0], truth, everywhere)),
        "mean of four": psnr(answers.mean(0), truth),
        "spread": float(fill_diversity(answers.movedim(0, 1), everywhere)),
        "sharpness": float(sharpness(answers[0]) / sharpness(truth)),
        "small": psnr(F.avg_pool2d(answers[0], FACTOR), F.avg_pool2d(truth, FACTOR)),
    }


rows = {"test images": truth, "enlarged": small}
found = {"enlarged": {"steps": 0, **judge(small.repeat(4, 1, 1, 1, 1))}}
for name, way in WAYS.items():
    run = way(recipe, images, torch.zeros(len(images)), args.seconds, args.seed)
    kept = folder / f"{name} {args.seed}.pt"
    if not kept.exists():
        run.advance(args.seconds)
        torch.save((run.steps, run.weights()), kept)
    steps, weights = torch.load(kept)
    net = network().eval()
    net.load_state_dict(weights)
    torch.manual_seed(0)
    with torch.no_grad():
        parts = [[run.translate(net, part) for part in small.split(30)] for _ in range(4)]
    answers = torch.stack([torch.cat(part) for part in parts]).clamp(-1, 1)
    found[name] = {"steps": steps, **judge(answers)}
    log.append({"way": name, "seed": args.seed, **found[name]})
    rows |= {name: answers[0], f"{name}, again": answers[1]}
    print(f"{name}: {found[name]}", flush=True)

print(
    "\n| | steps | PSNR | SSIM | PSNR, mean of 4 | spread | sharpness | PSNR of the small image |"
)
print("|---|---|---|---|---|---|---|---|")
for name, row in found.items():
    steps, *figures = row.values()
    print(f"| {name} | {steps} | {' | '.join(f'{figure:.2f}' for figure in figures)} |")
del rows["regression, again"]
figure, axis = plt.subplots(figsize=(8, 0.85 * len(rows)))
grid = make_grid(torch.cat([row[:8] for row in rows.values()]).clamp(-1, 1) / 2 + 0.5, 8)
axis.imshow(grid.movedim(0, 2), extent=(0, 8, len(rows), 0), aspect="auto")
axis.set_yticks(torch.arange(len(rows)) + 0.5, list(rows))
axis.tick_params(length=0, bottom=False, labelbottom=False)
figure.savefig(folder / "paired.png", dpi=100, bbox_inches="tight")
print(f"saved {folder}/paired.png and results.jsonl")
