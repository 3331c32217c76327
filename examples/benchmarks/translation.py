"""The search for a recipe that turns garments into digits: each change trained for the same core-seconds.

    OMP_NUM_THREADS=1 python examples/benchmarks/translation.py
    OMP_NUM_THREADS=1 python examples/benchmarks/translation.py --seconds 1200 --seeds 0 1 2 --only "shifted times"
The lean network of examples/image_to_image.py. In each step 256 garments are paired with 256 digits by optimal
transport, and the first few pairs are trained on ("transport of 1,024" trains on all of its pairs, a few at a time).
Printed for 1,000 test garments: the share of outputs that a classifier is more than 90 % sure of, the entropy of the
digits that it reads, the mean squared distance from garment to digit, and the Frechet distance to the test digits.
Results are kept in outputs/translation; what stands there is not done again.
"""

import argparse
import os
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import torch
from race import BF16, LEAN, Log, Recipe, Result, Run
from torch import Tensor

from fm_ext.coupling import OptimalTransport
from fm_ext.data import load_images
from fm_ext.loss import LogitNormalTime, ShiftedTime, TimeSampler, velocity_loss
from fm_ext.metrics import class_entropy, classifier, frechet_distance, jackknife
from fm_ext.models import UNet, UNetWrapper
from fm_ext.solver import ODESolver

SMOKE = os.environ.get("FM_EXT_SMOKE") == "1"
DATA = Path(__file__).parents[1] / "data"

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--source", default=str(DATA / "fashion_mnist"))
parser.add_argument("--target", default=str(DATA / "mnist"))
parser.add_argument("--seconds", type=float, default=0.2 if SMOKE else 300)
parser.add_argument("--images", type=int, default=200 if SMOKE else 1000)
parser.add_argument("--solver-steps", type=int, default=1 if SMOKE else 12, help="of midpoint")
parser.add_argument("--seeds", type=int, nargs="*", default=[0])
parser.add_argument("--only", nargs="*", metavar="CHANGE")
parser.add_argument("--output", type=Path, default=Path("outputs/translation/results.jsonl"))
args = parser.parse_args()


@dataclass(frozen=True, kw_only=True)
class Way:
    """How garments are shown with digits."""

    noise: float = 1.0  # of the source, in units of the images in [-1, 1]
    batch_size: int = 16
    paired: int = 256
    whole: bool = False  # all that are paired are trained on, over several steps
    sees: bool = False  # the network sees the garment without noise, too
    times: TimeSampler = field(default_factory=LogitNormalTime)


WAYS = {
    "noise 0.5, batches of 32": Way(noise=0.5, batch_size=32),
    "batches of 32": Way(batch_size=32),
    "batches of 32, garment seen": Way(batch_size=32, sees=True),
    "batches of 16": Way(),
    "transport of 1,024": Way(paired=1024, whole=True),
    "shifted times": Way(times=ShiftedTime(shift=2.0, times=LogitNormalTime())),
}

sources, _ = load_images(args.source, split="train", size=28, channels=1)
targets, _ = load_images(args.target, split="train")
garments, _ = load_images(args.source, size=28, channels=1, limit=args.images)
digits, _ = load_images(args.target, limit=args.images)
judge = classifier("mnist")


class Translation(Run):
    """From garments with noise to digits."""

    def __init__(self, way: Way, seed: int):
        self.way, self.transport = way, OptimalTransport()
        self.rest = targets[:0], targets[:0]
        seen = ("garment",) if way.sees else ()

        def net() -> UNetWrapper:
            return UNetWrapper(UNet.preset(28, 1 + len(seen), 1, **LEAN), concat=seen)

        recipe = Recipe(
            net=net, batch_size=way.batch_size, labels=False, times=way.times, ema=0.999
        )
        none = torch.zeros(len(targets), dtype=torch.long)
        super().__init__(recipe, targets, none, args.seconds, seed)

    def pairs(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The next pairs; `rows` are not used."""
        few = self.way.batch_size
        if len(self.rest[0]) < few:
            garment = sources[torch.randint(len(sources), (self.way.paired,))]
            digit = targets[torch.randint(len(targets), (self.way.paired,))]
            self.rest = self.transport(garment, digit)[0], digit
        x_0, x_1 = (side[:few] for side in self.rest)
        self.rest = tuple(side[few:] if self.way.whole else side[:0] for side in self.rest)
        return x_0, x_1, rows

    def loss(self, x_0: Tensor, x_1: Tensor, label: Tensor) -> Tensor:
        noisy = x_0 + self.way.noise * torch.randn_like(x_0)
        sample = self.path.sample(noisy, x_1, self.recipe.times(len(x_1)))
        extras = {"garment": x_0} if self.way.sees else {}
        with torch.autocast("cpu", torch.bfloat16, enabled=BF16):
            output = self.net(x=sample.x_t, t=sample.t, **extras)
        return velocity_loss(output.float(), sample)

    @torch.no_grad()
    def worth(self) -> Result:
        """The figures of the translations of all test garments."""
        net = self.recipe.net().eval()
        net.load_state_dict(self.weights())
        solver, outputs = ODESolver(net), []
        torch.manual_seed(0)
        for part in garments.split(100):
            noisy = part + self.way.noise * torch.randn_like(part)
            extras = {"garment": part} if self.way.sees else {}
            with torch.autocast("cpu", torch.bfloat16, enabled=BF16):
                x_1 = solver.sample(noisy, steps=args.solver_steps, method="midpoint", **extras)
            outputs.append(x_1.float().clamp(-1, 1))
        output = torch.cat(outputs)
        sure, found = judge(output).softmax(1).max(1)
        distance = jackknife(frechet_distance, judge.features(output), judge.features(digits))
        return {
            "clear": float((sure > 0.9).double().mean()),
            "entropy": float(class_entropy(found, 10)),
            "cost": float((output - garments).square().flatten(1).sum(1).mean()),
            "frechet": [distance.value, distance.low, distance.high],
        }


log = Log(args.output)
print(f"{'':30} steps  clear  entropy   cost  Frechet distance")
for seed, name in product(args.seeds, args.only or WAYS):
    setting = {"change": name, "seed": seed, "seconds": args.seconds, "images": len(garments)}
    if not log.read(setting):
        run = Translation(WAYS[name], seed)
        run.advance(args.seconds)
        log.append(setting | {"steps": run.steps} | run.worth())
    row = log.read(setting)[-1]
    value, low, high = row["frechet"]
    print(
        f"{name:30} {row['steps']:5}  {row['clear']:5.1%}  {row['entropy']:7.2f}  {row['cost']:5.1f}  "
        f"{value:.2f} [{low:.2f}, {high:.2f}], seed {seed}",
        flush=True,
    )
