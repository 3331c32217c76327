"""The frontier of quality against counted evaluations: what each way to few steps is worth, at equal training seconds.

    OMP_NUM_THREADS=1 python examples/benchmarks/frontier.py --dataset <folder of MNIST> --seeds 0 1 2
Class-conditional MNIST, the network of examples/generate.py for all, in turns on one core:

    flow            straight path, velocity
    OT              the same, sources exchanged within the classes of a batch
    semidiscrete    the same, noise sent to the rows of the data set; the seconds of its fit are part of its budget
    reflow          half of the budget as flow, then on its own pairs; the seconds that make them are part of it
    distilled       half as flow, a quarter as reflow, and the last quarter on t = 0 alone
    MeanFlow        straight path, average velocity (improved form)
    diffusion path  the flow's loss on the path of DDPM's table of 1000 betas
    DDPM            that path, noise, its plain loss; by DDIM with the expected data in [-1, 1] and without
Prints and keeps, one line of JSON a point, the Frechet distance, coverage and right class of each sampler at counted
evaluations, with seconds a sample; and draws the best sampler of each curve. Everything is kept in outputs/frontier, so
a run that was stopped goes on with what is missing.
"""

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from race import LEAN, Log, Recipe, Run, Weights, draw, judge, race, unet
from torch import Tensor, nn

from fm_ext.coupling import OptimalTransport, SemidiscreteTransport
from fm_ext.data import load_images
from fm_ext.loss import LogitNormalTime, TimePairs, UniformTime, mean_flow_loss
from fm_ext.models import MeanFlowModel
from fm_ext.path.scheduler import BetaTableScheduler
from fm_ext.solver import simulate_pairs

SMOKE = os.environ.get("FM_EXT_SMOKE") == "1"
DIGITS = str(Path(__file__).parents[1] / "data" / "mnist")
TABLE = BetaTableScheduler(torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64))
FLOW = Recipe(net=unet(**LEAN), batch_size=32, times=LogitNormalTime())

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--dataset", default=DIGITS)
parser.add_argument("--seconds", type=float, default=0.5 if SMOKE else 400, help="of each curve")
parser.add_argument("--seeds", type=int, nargs="*", default=[0])
parser.add_argument("--samples", type=int, default=200 if SMOKE else 2000)
parser.add_argument("--pairs", type=int, default=64 if SMOKE else 10000, help="of reflow")
evaluations = [1, 2] if SMOKE else [1, 2, 4, 8, 16, 50]
parser.add_argument("--evaluations", type=int, nargs="*", default=evaluations)
parser.add_argument("--curves", nargs="*", help="some of the names above; default: all")
parser.add_argument("--output", type=Path, default=Path("outputs/frontier"))
args = parser.parse_args()


class Transported(Run):
    """Sources exchanged within the classes of each batch."""

    def pairs(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x_0, x_1, label = super().pairs(rows)
        return OptimalTransport()(x_0, x_1, label=label)[0], x_1, label


class Semidiscrete(Run):
    """Rows that the noise is sent to, within the class of the row that was next."""

    transport: SemidiscreteTransport | None = None

    def pairs(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.transport is None:  # a part of the first step, so of the budget
            self.transport = SemidiscreteTransport(self.images, label=self.labels)
            self.transport.fit(tolerance=1.0 if SMOKE else 0.05)
        x_0, _, label = super().pairs(rows)
        return x_0, self.images[self.transport.assign(x_0, label)], label


class Reflowed(Run):
    """A flow for half of its budget, then on its own pairs; the last quarter at t = 0 alone if it is distilled."""

    distilled = False
    made: tuple[Tensor, Tensor, Tensor] | None = None

    def pairs(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.seconds < self.budget / 2:
            return super().pairs(rows)
        if self.made is None:
            self.made = self._simulate()
        chosen = rows % args.pairs
        return tuple(part[chosen] for part in self.made)  # pyright: ignore[reportReturnType]

    def _simulate(self) -> tuple[Tensor, Tensor, Tensor]:
        net = self.recipe.net().to(self.images.device)
        net.load_state_dict(self.weights())
        x_0 = torch.randn(args.pairs, *self.images.shape[1:], device=self.images.device)
        label = torch.arange(args.pairs, device=x_0.device) % 10
        sources = [
            {"x_0": x_0[k : k + 250], "label": label[k : k + 250]} for k in range(0, len(x_0), 250)
        ]
        with torch.autocast(x_0.device.type, torch.bfloat16, enabled=self.recipe.bf16):
            ends = [
                pair["x_1"]
                for pair in simulate_pairs(net, sources, step_size=0.5 if SMOKE else 0.2)
            ]
        return x_0, torch.cat(ends), label

    def loss(self, x_0: Tensor, x_1: Tensor, label: Tensor) -> Tensor:
        self.recipe = replace(self.recipe, times=UniformTime() if self.made else FLOW.times)
        if self.distilled and self.seconds > 0.75 * self.budget:
            self.recipe = replace(
                self.recipe, times=lambda n, device: torch.zeros(n, device=device)
            )
        return super().loss(x_0, x_1, label)


class Distilled(Reflowed):
    distilled = True


class MeanFlow(Run):
    """Average velocities, a share of the labels dropped."""

    def loss(self, x_0: Tensor, x_1: Tensor, label: Tensor) -> Tensor:
        t, r = TimePairs()(len(x_1), device=x_1.device)
        label = label.masked_fill(torch.rand(len(label), device=label.device) < 0.1, 10)
        with torch.autocast(x_1.device.type, torch.bfloat16, enabled=self.recipe.bf16):
            return mean_flow_loss(self.net, self.path.sample(x_0, x_1, t), r, label=label)


def two_times() -> nn.Module:
    return MeanFlowModel(unet(dropout=0.0, second_time=True, **LEAN)())


DIFFUSION = replace(FLOW, scheduler=TABLE, times=UniformTime())
DDPM = replace(DIFFUSION, prediction="epsilon", space="epsilon")
STRAIGHT = {"euler": 1, "midpoint": 2, "heun2": 2}  # evaluations a step
CURVES: dict[str, tuple[Callable[..., Run], Recipe, dict[str, int]]] = {
    "flow": (Run, FLOW, STRAIGHT),
    "OT": (Transported, FLOW, STRAIGHT),
    "semidiscrete": (Semidiscrete, FLOW, STRAIGHT),
    "reflow": (Reflowed, FLOW, STRAIGHT),
    "distilled": (Distilled, FLOW, {"euler": 1}),
    "MeanFlow": (MeanFlow, replace(FLOW, net=two_times), {"jumps": 1, "midpoint": 2}),
    "diffusion path": (Run, DIFFUSION, STRAIGHT),
    "DDPM": (Run, DDPM, {"ddim": 1, "clipped": 1}),
}
names = args.curves or [*CURVES]
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
images, labels = load_images(args.dataset, split="train", label_column="label", device=device)
reference, _ = load_images(args.dataset, split="test", limit=args.samples)
assert labels is not None
fixed = f"{args.seconds:g} {len(images)} {device.type}"
folder = args.output / fixed
folder.mkdir(parents=True, exist_ok=True)
log, points = Log(folder / "results.jsonl"), []

for seed in args.seeds:
    runs = {
        name: make(recipe, images, labels, args.seconds, seed)
        for name, (make, recipe, _) in CURVES.items()
        if name in names
    }
    kept = {name: folder / f"{name} {seed}.pt" for name in runs}
    missing = [name for name in runs if not kept[name].exists()]
    for run, _ in race([runs[name] for name in missing], [args.seconds]):
        name = next(name for name in missing if runs[name] is run)
        torch.save({"weights": run.weights(), "steps": run.steps}, kept[name])
    for name, run in runs.items():
        found = torch.load(kept[name], map_location=device)
        weights: Weights = found["weights"]
        for method, order in CURVES[name][2].items():
            for n in args.evaluations:
                if n % order:
                    continue
                setting = {"curve": name, "method": method, "evaluations": n, "seed": seed}
                setting["samples"] = len(reference)
                if not log.read(setting):
                    start = time.process_time()
                    drawn = draw(run, weights, len(reference), steps=n // order, method=method)
                    seconds = (time.process_time() - start) / len(reference)
                    assert drawn.evaluations == n, (setting, drawn.evaluations)
                    cost = {"seconds_a_sample": seconds, "training_steps": found["steps"]}
                    log.append(setting | cost | judge(drawn, reference))
                point = log.read(setting)[-1]
                points.append(point)
                value, low, high = point["frechet"][:3]
                print(
                    f"{name:15}{method:9}{n:4} evaluations, seed {seed}: Frechet {value:7.2f} [{low:.2f}, {high:.2f}], "
                    f"right class {point['accuracy']:.1%}",
                    flush=True,
                )

figure, axes = plt.subplots(figsize=(8, 6), layout="constrained")
for name in names:
    best: dict[int, list[float]] = {}
    for n in args.evaluations:
        by_method: dict[str, list[float]] = {}
        for point in points:
            if point["curve"] == name and point["evaluations"] == n:
                by_method.setdefault(point["method"], []).append(point["frechet"][0])
        if by_method:
            best[n] = min(by_method.values(), key=lambda values: sum(values) / len(values))
    mean = [sum(values) / len(values) for values in best.values()]
    (line,) = axes.plot([*best], mean, "o-", ms=4, label=name)
    for n, values in best.items():
        axes.plot([n] * len(values), values, "_", color=line.get_color())
axes.set(xscale="log", yscale="log", xlabel="evaluations")
axes.set_xticks(args.evaluations, [str(n) for n in args.evaluations])
axes.minorticks_off()
axes.set_ylabel(f"Frechet distance to {len(reference)} test images, the best sampler of each")
axes.legend()
figure.savefig(folder / "frontier.png", dpi=110)
print(f"saved {folder}/frontier.png and results.jsonl")
