"""The frontier of quality against counted evaluations: what each way to few steps is worth, at equal training seconds.

    OMP_NUM_THREADS=1 python examples/benchmarks/frontier.py --dataset <folder of MNIST>
Class-conditional MNIST, one network for all, a small one of the kind of examples/generate.py, in turns on one core:

    flow            straight path, velocity
    OT              the same, sources exchanged within the classes of a batch
    semidiscrete    the same, noise sent to the rows of the data set; its fit takes at most a quarter of the budget
    reflow          half of the budget as a flow, then on its own pairs, whose making is a part of the budget
    distilled       half as a flow, a quarter as reflow, and the last quarter on t = 0 alone
    MeanFlow        straight path, average velocity (improved form); half of the budget with r = t alone
    guided MeanFlow the same with the scale of guidance as an input, in its second half from 1 to 3
    diffusion path  the flow's loss on the path of DDPM's table of 1000 betas
    DDPM            that path, noise, its plain loss (Ho et al., arXiv 2006.11239, equation 14)
Samplers: Euler, midpoint and Heun of equal steps; "grid", Euler on the times at which its steps err least; the
exponential step, which is DDIM, with the expected data in [-1, 1] ("clipped") and without; jumps; "ancestral", DDPM's
own; "guided" ones at a scale of 2, where a solver needs two evaluations for one and a jump does not. A point is the
Frechet distance to test images with its interval, coverage, right class and seconds a sample.

The rows of a table that courses give for a flow and a DDPM are measured too: what the loss holds in memory, how much
it varies, the quality along the training (`--marks`) and over seeds. Everything is kept in outputs/frontier, a line of
JSON each, so a run goes on with what is missing; tables and figure show all that is kept.
"""

import argparse
import os
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import matplotlib.pyplot as plt
import torch
from race import Log, Recipe, Result, Run, Weights, draw, judge, race, unet
from torch import Tensor, nn
from torchvision.utils import make_grid

from fm_ext.coupling import OptimalTransport, SemidiscreteTransport
from fm_ext.data import load_images
from fm_ext.loss import LogitNormalTime, TimePairs, TimeSampler, UniformTime, mean_flow_loss
from fm_ext.models import MeanFlowModel
from fm_ext.path.scheduler import BetaTableScheduler
from fm_ext.solver import simulate_pairs

SMOKE = os.environ.get("FM_EXT_SMOKE") == "1"
DIGITS = str(Path(__file__).parents[1] / "data" / "mnist")
TABLE = BetaTableScheduler(torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64))
WIDTH = 8 if SMOKE else 16
SMALL = {"channels": WIDTH, "head_channels": WIDTH, "attention": ()}
FLOW = Recipe(net=unet(**SMALL), batch_size=32, times=LogitNormalTime())
FEW, MORE = (1, 2, 4, 8, 16), (1, 2, 4, 8, 16, 50)

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--dataset", default=DIGITS)
parser.add_argument("--seconds", type=float, default=0.05 if SMOKE else 90, help="of each curve")
parser.add_argument("--seeds", type=int, nargs="*", default=[0])
parser.add_argument(
    "--samples", type=int, default=200 if SMOKE else 500, help="of a point, and test images"
)
parser.add_argument("--pairs", type=int, default=16 if SMOKE else 3000, help="of reflow")
parser.add_argument(
    "--curves", nargs="*", help="names of curves, or of trials of MeanFlow's choices"
)
parser.add_argument(
    "--methods",
    nargs="*",
    default=["euler", "guided euler", "guided jumps", "ancestral"] if SMOKE else None,
    help="some of the samplers; default: all but ancestral",
)
parser.add_argument("--evaluations", type=int, nargs="*", default=[2] if SMOKE else None)
parser.add_argument("--marks", action="store_true", help="quality after each quarter, too")
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
            self.transport = self._fitted()
        x_0, _, label = super().pairs(rows)
        return x_0, self.images[self.transport.assign(x_0, label)], label

    def _fitted(self) -> SemidiscreteTransport:
        start, transport = self.clock(), SemidiscreteTransport(self.images, label=self.labels)
        worst, tolerance = float("inf"), 0.05
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that the tolerance is not reached
            while worst > tolerance and self.clock() - start < self.budget / 4:
                worst = max(transport.fit(tolerance=tolerance, epochs=1, check_every=1).values())
        seconds = self.clock() - start
        print(f"semidiscrete: chi squared {worst:.2f} at worst, after {seconds:.0f} seconds")
        return transport


class Reflowed(Run):
    """A flow for half of its budget, then on its own pairs; the last quarter at t = 0 alone if it is distilled."""

    distilled = False
    made: tuple[Tensor, Tensor, Tensor] | None = None

    def pairs(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.seconds < self.budget / 2:
            return super().pairs(rows)
        if self.made is None:
            self.made = self._simulate()
        x_0, x_1, label = self.made
        chosen = rows % args.pairs
        return x_0[chosen], x_1[chosen], label[chosen]

    def _simulate(self) -> tuple[Tensor, Tensor, Tensor]:
        net = self.recipe.net().to(self.images.device)
        net.load_state_dict(self.weights())
        x_0 = torch.randn(args.pairs, *self.images.shape[1:], device=self.images.device)
        label = torch.arange(args.pairs, device=x_0.device) % 10
        sources = [
            {"x_0": noise, "label": kind}
            for noise, kind in zip(x_0.split(50), label.split(50), strict=True)
        ]
        with torch.autocast(x_0.device.type, torch.bfloat16, enabled=self.recipe.bf16):
            ends = [pair["x_1"] for pair in simulate_pairs(net, sources, step_size=0.5)]
        return x_0, torch.cat(ends).float(), label

    def loss(self, x_0: Tensor, x_1: Tensor, label: Tensor) -> Tensor:
        if self.distilled and self.seconds > 0.75 * self.budget:
            self.recipe = replace(
                self.recipe, times=lambda n, device: torch.zeros(n, device=device)
            )
        elif self.made:
            self.recipe = replace(self.recipe, times=UniformTime())
        return super().loss(x_0, x_1, label)


class Distilled(Reflowed):
    distilled = True


class MeanFlow(Run):
    """Average velocities, a share of the labels dropped; for a share of the budget the velocity alone."""

    alone = 0.5
    times_alone: TimeSampler = FLOW.times
    pairs_of_times = TimePairs(times=UniformTime())
    settings: ClassVar[dict[str, Any]] = {}  # of the loss
    guided = False

    def loss(self, x_0: Tensor, x_1: Tensor, label: Tensor) -> Tensor:
        pairs, first = self.pairs_of_times, self.seconds < self.alone * self.budget
        if first:
            pairs = TimePairs(times=self.times_alone, distinct=0.0)
        t, r = pairs(len(x_1), device=x_1.device)
        settings = self.settings
        if self.guided and not first:  # the loss drops labels
            settings = settings | {
                "guidance_scale": 1 + 2 * torch.rand(len(x_1), device=x_1.device)
            }
        else:
            label = label.masked_fill(torch.rand(len(label), device=label.device) < 0.1, 10)
        sample = self.path.sample(x_0, x_1, t)
        with torch.autocast(x_1.device.type, torch.bfloat16, enabled=self.recipe.bf16):
            return mean_flow_loss(self.net, sample, r, label=label, **settings)


class GuidedMeanFlow(MeanFlow):
    """The scale of guidance as an input, after the time with the velocity alone."""

    guided = True


class UniformMeanFlow(MeanFlow):
    times_alone = UniformTime()


class FromTheStart(MeanFlow):
    alone = 0.0


class LogitNormalMeanFlow(FromTheStart):
    pairs_of_times = TimePairs()


class PlainMeanFlow(UniformMeanFlow):
    settings: ClassVar[dict[str, Any]] = {"power": 0.0}


class ConditionalMeanFlow(UniformMeanFlow):
    settings: ClassVar[dict[str, Any]] = {"tangent": "conditional"}


class MorePairs(UniformMeanFlow):
    pairs_of_times = TimePairs(times=UniformTime(), distinct=0.75)


def two_times(**changes: object) -> nn.Module:
    return MeanFlowModel(unet(dropout=0.0, second_time=True, **SMALL, **changes)())


DIFFUSION = replace(FLOW, scheduler=TABLE, times=UniformTime())
AVERAGE = replace(FLOW, net=two_times)
GUIDED = replace(FLOW, net=partial(two_times, guidance_input=True))
DDPM = replace(DIFFUSION, prediction="epsilon", space="epsilon")
Samplers = dict[str, tuple[int, ...]]
STRAIGHT: Samplers = {"euler": (1, 2, 4, 8), "midpoint": (2, 4, 8)}
EVERY: Samplers = {
    "euler": MORE,
    "midpoint": (2, 4, 8, 16),
    "heun2": (4,),
    "grid": (2, 4, 8),
    "guided euler": (2, 4),
    "guided midpoint": (4, 8, 16),
}
CURVED: Samplers = {"euler": FEW, "midpoint": (2, 4, 8), "grid": (4, 8), "exponential": FEW}
DDIM: Samplers = {"clipped": MORE, "exponential": (4,), "ancestral": (2, 16, 50, 1000)}
# Evaluations a step, where they are not one.
ORDER = {"midpoint": 2, "heun2": 2, "guided euler": 2, "guided midpoint": 4}
SCALE = 2.0  # of guidance
CURVES: dict[str, tuple[Callable[..., Run], Recipe, Samplers]] = {
    "flow": (Run, FLOW, EVERY),
    "OT": (Transported, FLOW, STRAIGHT),
    "semidiscrete": (Semidiscrete, FLOW, STRAIGHT),
    "reflow": (Reflowed, FLOW, STRAIGHT),
    "distilled": (Distilled, FLOW, {"euler": (1, 2)}),
    "MeanFlow": (MeanFlow, AVERAGE, {"jumps": FEW, "midpoint": (4, 8)}),
    "guided MeanFlow": (GuidedMeanFlow, GUIDED, {"jumps": (1, 2, 4), "guided jumps": FEW}),
    "diffusion path": (Run, DIFFUSION, CURVED),
    "DDPM": (Run, DDPM, DDIM),
}
TRIED: dict[str, tuple[Callable[..., Run], Recipe, Samplers]] = {
    f"MeanFlow, {change}": (made, AVERAGE, {"jumps": (1, 2), "midpoint": (8,)})
    for change, made in {
        "uniform times": UniformMeanFlow,
        "power 0": PlainMeanFlow,
        "conditional tangent": ConditionalMeanFlow,
        "more pairs": MorePairs,
        "from the start": FromTheStart,
        "logit-normal pairs": LogitNormalMeanFlow,
    }.items()
}
ALONG = {"diffusion path": ("midpoint", 8), "DDPM": ("clipped", 16)}  # judged by along the training


EVERYTHING = CURVES | TRIED


def best_grid(run: Run, weights: Weights, steps: int, fine: int = 32, count: int = 50) -> Tensor:
    """Of `fine` equal steps those times at which `steps` of Euler's err least, summed, along the model's own ways."""
    net = run.recipe.net().to(run.images.device).eval()
    net.load_state_dict(weights)
    noise = torch.Generator().manual_seed(1)
    x = torch.randn(count, *run.images.shape[1:], generator=noise).to(run.images.device)
    label = torch.arange(count, device=x.device) % 10
    times = torch.arange(fine + 1) / fine
    states, velocities = [x], []
    with torch.no_grad(), torch.autocast(x.device.type, torch.bfloat16, enabled=run.recipe.bf16):
        for t in times[:-1]:
            velocities.append(net(x=x, t=t.to(x).expand(count), label=label).float())
            x = x + velocities[-1] / fine
            states.append(x)
    error = torch.full((fine + 1, fine + 1), float("inf"))
    for i in range(fine):
        for j in range(i + 1, fine + 1):
            arrived = states[i] + (j - i) / fine * velocities[i]
            error[i, j] = (arrived - states[j]).flatten(1).norm(dim=1).mean()
    least, back = error[0], []  # of one step to each time; then of one more
    for _ in range(steps - 1):
        least, best = (least[:, None] + error).min(0)
        back.append(best)
    chosen = [fine]
    for best in reversed(back):
        chosen.append(int(best[chosen[-1]]))
    return times[[0, *reversed(chosen)]]


def held(run: Run) -> float:
    """Megabytes that the loss of a batch keeps for its gradient, beside the weights."""
    own = {parameter.data_ptr() for parameter in run.net.parameters()}
    kept: dict[int, int] = {}

    def note(x: Tensor) -> Tensor:
        if x.data_ptr() not in own:
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    run.net.train()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        loss = run.loss(*run.pairs(torch.arange(run.recipe.batch_size)))
    del loss
    return sum(kept.values()) / 1e6


@torch.no_grad()
def spread(run: Run, weights: Weights, batches: int = 2 if SMOKE else 40) -> tuple[float, float]:
    """The mean of the loss over batches, and its standard deviation relative to it."""
    run.net.load_state_dict(weights)
    run.net.eval()
    n = run.recipe.batch_size
    losses = [run.loss(*run.pairs(torch.arange(k * n, k * n + n))) for k in range(batches)]
    found = torch.stack(losses)
    return found.mean().item(), (found.std() / found.mean()).item()


device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
images, labels = load_images(args.dataset, split="train", label_column="label", device=device)
reference, _ = load_images(args.dataset, split="test", limit=args.samples)
assert labels is not None
folder = args.output / f"{args.seconds:g} {len(images)} {device.type}"
(folder / "pictures").mkdir(parents=True, exist_ok=True)
log = Log(folder / "results.jsonl")
quarters = [args.seconds * k / 4 for k in (1, 2, 3, 4)]


def measure(run: Run, name: str, method: str, n: int, seed: int, mark: str) -> None:
    """Adds a point to the log, if it is missing, and prints it."""
    setting = {"curve": name, "method": method, "evaluations": n, "seed": seed, "trained": mark}
    setting |= {"samples": args.samples}
    if not log.read(setting):
        found = torch.load(folder / f"{name} {seed}.pt", map_location=device)
        weights, steps = found[mark]["weights"], n // ORDER.get(method, 1)
        grid = best_grid(run, weights, steps).tolist() if method == "grid" else None
        torch.manual_seed(seed)  # of the ancestral noise
        start = time.process_time()
        drawn = draw(
            run,
            weights,
            args.samples,
            steps=steps,
            method="euler" if method == "grid" else method.removeprefix("guided "),
            scale=SCALE if method.startswith("guided ") else 1.0,
            grid=grid,
            bf16=False if method == "exponential" else None,  # its first step multiplies errors
        )
        cost = {"seconds_a_sample": (time.process_time() - start) / args.samples}
        assert drawn.evaluations == n, (setting, drawn.evaluations)
        torch.save(drawn.images[:10], folder / "pictures" / f"{name} {method} {n} {seed} {mark}.pt")
        cost |= {"training_steps": found[mark]["steps"], "grid": grid}
        log.append(setting | cost | judge(drawn, reference))
    point = log.read(setting)[-1]
    value, low, high = point["frechet"][:3]
    print(
        f"{name:26}{method:12}{n:5} evaluations, seed {seed}, {mark:>4} of the training: Frechet {value:7.2f} "
        f"[{low:.2f}, {high:.2f}], right class {point['accuracy']:.1%}",
        flush=True,
    )


def wanted(name: str) -> list[tuple[str, int]]:
    """The points of a curve that are asked for."""
    points = []
    for method, evaluations in EVERYTHING[name][2].items():
        if method == "ancestral" if args.methods is None else method not in args.methods:
            continue
        points += [(method, n) for n in evaluations if n in (args.evaluations or evaluations)]
    return points


def train_and_measure(seed: int) -> None:
    runs = {
        name: EVERYTHING[name][0](EVERYTHING[name][1], images, labels, args.seconds, seed)
        for name in args.curves or CURVES
    }
    kept = {name: folder / f"{name} {seed}.pt" for name in runs}
    missing = [name for name in runs if not kept[name].exists()]
    states: dict[str, dict[str, Result]] = {name: {} for name in missing}
    for run, seconds in race([runs[name] for name in missing], quarters):
        name = next(name for name in missing if runs[name] is run)
        mark = f"{seconds / args.seconds:.0%}"
        states[name][mark] = {"weights": run.weights(), "steps": run.steps}
        if seconds == args.seconds:
            torch.save(states[name], kept[name])
            print(f"{name}, seed {seed}: {run.steps} steps", flush=True)
    for name, run in runs.items():
        for method, n in wanted(name):
            measure(run, name, method, n, seed, "100%")
        if args.marks:
            for mark in ("25%", "50%", "75%", "100%"):
                measure(run, name, *ALONG.get(name, ("midpoint", 4)), seed, mark)
        setting = {"curve": name, "seed": seed, "figure": "loss"}
        if name in ("flow", "OT", "MeanFlow", "diffusion path", "DDPM") and not log.read(setting):
            run.seconds = args.seconds  # MeanFlow's loss at the end of its training
            weights = torch.load(kept[name], map_location=device)["100%"]["weights"]
            torch.manual_seed(0)
            mean, relative = spread(run, weights)
            log.append(setting | {"mean": mean, "relative": relative, "megabytes": held(run)})


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def once(results: list[Result]) -> list[Result]:
    """The results by seed, each once: two processes may have measured the same."""
    names = "curve", "seed", "method", "evaluations", "samples", "trained"
    found = {tuple(result.get(name) for name in names): result for result in results}
    return sorted(found.values(), key=lambda result: result["seed"])


Best = dict[str, dict[int, list[Result]]]


def table_of_points() -> Best:
    """Prints all points; returns of each curve and count those of its best sampler with the first seed, a seed each."""
    by: dict[tuple[str, str, int, int], list[Result]] = defaultdict(list)
    for point in once(log.read({"trained": "100%"})):
        by[point["curve"], point["method"], point["evaluations"], point["samples"]].append(point)
    best: Best = defaultdict(dict)
    print("\n| curve | sampler | evaluations | Frechet distance | coverage | right | ms a sample |")
    print("|---|---|---|---|---|---|---|")
    for key in sorted(by, key=lambda key: ([*EVERYTHING].index(key[0]), *key[1:])):
        (name, method, n, samples), row = key, by[key]
        if (
            samples == args.samples
        ):  # others are not to be compared: fewer lie further from any truth
            first = best[name].setdefault(n, row)[0]
            best[name][n] = row if row[0]["frechet"][0] < first["frechet"][0] else best[name][n]
        else:
            method = f"{method}, {samples} samples"
        distances = ", ".join("{:.3g} [{:.3g}, {:.3g}]".format(*point["frechet"]) for point in row)
        cover = mean([point["coverage"][0] for point in row])
        right = mean([point["accuracy"] for point in row])
        cost = 1000 * mean([point["seconds_a_sample"] for point in row])
        line = f"| {name} | {method} | {n} | {distances} | {cover:.2f} | {right:.1%} | {cost:.1f} |"
        print(line)
    return best


def table_of_training() -> None:
    """Prints what was measured of the training of each curve and seed."""
    print("\n| curve | seed | loss | its spread | memory of the loss | steps: Frechet distance |")
    print("|---|---|---|---|---|---|")
    for row in once(log.read({"figure": "loss"})):
        name, seed = row["curve"], row["seed"]
        method, n = ALONG.get(name, ("midpoint", 4))
        setting = {"curve": name, "method": method, "evaluations": n, "seed": seed}
        along = sorted(once(log.read(setting)), key=lambda point: point["training_steps"])
        ways = ", ".join(f"{point['training_steps']}: {point['frechet'][0]:.3g}" for point in along)
        cells = name, seed, f"{row['mean']:.4f}", f"{row['relative']:.1%}"
        print(f"| {' | '.join(map(str, cells))} | {row['megabytes']:.1f} MB | {ways} |")


def draw_figure(best: Best) -> None:
    """The best sampler of each curve, and the first samples of its fewest and of four evaluations."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(14, 6.5), layout="constrained")
    rows = []
    for name in [name for name in CURVES if name in best] or [*best]:
        counts = sorted(best[name])
        middle = [mean([point["frechet"][0] for point in best[name][n]]) for n in counts]
        (line,) = left.plot(counts, middle, "o-", ms=4, label=name)
        for n in counts:
            for point in best[name][n]:
                _, low, high = point["frechet"][:3]
                left.plot([n, n], [max(low, 0.1), high], color=line.get_color(), alpha=0.5)
            if n in (counts[0], 4):
                point = best[name][n][0]
                method, seed = point["method"], point["seed"]
                file = folder / "pictures" / f"{name} {method} {n} {seed} 100%.pt"
                rows.append((f"{name}, {method}, {n}", torch.load(file)))
    left.set(xscale="log", yscale="log", xlabel="evaluations")
    ticks = sorted({n for points in best.values() for n in points})
    left.set_xticks(ticks, [str(n) for n in ticks])
    left.minorticks_off()
    left.set_ylabel(f"Frechet distance to {args.samples} test images, the best sampler of each")
    left.legend()
    grid = make_grid(torch.cat([samples for _, samples in rows]), 10)
    right.imshow(grid.movedim(0, 2), extent=(0, 10, len(rows), 0), aspect="auto")
    right.set_yticks(torch.arange(len(rows)) + 0.5, [name for name, _ in rows])
    right.tick_params(length=0, bottom=False, labelbottom=False)
    figure.savefig(folder / "frontier.png", dpi=110)


for seed in args.seeds:
    train_and_measure(seed)
best = table_of_points()
table_of_training()
if best:
    draw_figure(best)
    print(f"\nsaved {folder}/frontier.png and results.jsonl")
