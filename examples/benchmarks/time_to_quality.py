"""Quality against seconds of training: fm_ext's recipe beside the recipes that people start from.

    OMP_NUM_THREADS=1 python examples/benchmarks/time_to_quality.py --dataset <folder of MNIST>
    OMP_NUM_THREADS=1 python examples/benchmarks/time_to_quality.py --dataset <folder of MNIST> --seeds 1
Two recipes need torchcfm (`pip install "fm_ext[peers]"`), and are left out where it is missing. MNIST; recipes that are
started together train in turns of ten seconds in one process, and are judged by the same midpoint steps against the
first `--samples` test images. On a CPU seconds are those of one core (`time.process_time`), so that seeds can run side
by side. Finished trainings and results are kept in outputs/time_to_quality, and what stands there is not done again.
Prints a table and saves a figure.

    fm_ext     the network and recipe of examples/generate.py, in bfloat16 where the hardware has it
    preset     the same with UNet.preset(28) as it comes: 32 channels instead of 24, and attention
    torchcfm   its MNIST notebook: UNetModel(num_channels=32, num_res_blocks=1), Adam, batch 128, float32
    upstream   flow_matching's image example: the settings of its CIFAR-10 network at torchcfm's width and depth, and
               the defaults of its loop, float32. Both are the guided-diffusion U-Net; torchcfm's copy stands in (with
               convolutions where that network pools), for upstream ships its own in no package
    exercise   the Sorbonne exercise's network without classes (`SmallUNet`), Adam, batch 64, float32
"""

import argparse
import os
from importlib.util import find_spec
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from race import Log, Recipe, Run, Weights, draw, judge, race, unet
from torch import Tensor, nn

from fm_ext.data import load_images
from fm_ext.loss import LogitNormalTime, UniformTime
from fm_ext.models import SmallUNet, UNetWrapper

SMOKE = os.environ.get("FM_EXT_SMOKE") == "1"
DIGITS = str(Path(__file__).parents[1] / "data" / "mnist")
BUDGET = 0.4 if SMOKE else 600


class GuidedDiffusion(nn.Module):
    """torchcfm's U-Net, called by name; in training a share of the labels is replaced by the null class."""

    def __init__(self, label_dropout: float = 0.0, **config: object):
        from torchcfm.models.unet import UNetModel

        super().__init__()
        self.label_dropout = label_dropout
        config = {"num_channels": 32, "num_res_blocks": 1, "class_cond": True, **config}
        self.net = UNetModel(dim=(1, 28, 28), num_classes=11 if label_dropout else 10, **config)

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        if self.training and self.label_dropout:
            dropped = torch.rand(len(label), device=x.device) < self.label_dropout
            label = label.masked_fill(dropped, 10)
        return self.net(t.expand(len(x)), x, y=label)


def upstream() -> nn.Module:
    return GuidedDiffusion(
        label_dropout=0.2,
        dropout=0.3,
        channel_mult=(2, 2, 2),
        attention_resolutions="14",
        use_scale_shift_norm=True,
        use_new_attention_order=True,
    )


as_it_comes = {
    "ema": None,
    "decay": False,
    "warmup": 0.0,
    "clip": None,
    "times": UniformTime(stratified=False),
    "bf16": False,
}
best = {"batch_size": 32, "times": LogitNormalTime(), "ema": 0.999}
RECIPES = {
    "fm_ext": Recipe(net=unet(lean=True), **best),
    "preset": Recipe(net=unet(), **best),
    "torchcfm": Recipe(net=GuidedDiffusion, batch_size=128, lr=1e-3, **as_it_comes),
    "upstream": Recipe(
        net=upstream, batch_size=32, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.01, **as_it_comes
    ),
    "exercise": Recipe(net=lambda: UNetWrapper(SmallUNet(1)), labels=False, lr=1e-3, **as_it_comes),
}
THEIRS = ("torchcfm", "upstream")

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--dataset", default=DIGITS)
parser.add_argument("--seconds", type=float, nargs="*", help="of training, at which to judge")
parser.add_argument("--seeds", type=int, nargs="*", default=[0] if SMOKE else [0, 1, 2])
INSTALLED = [name for name in RECIPES if name not in THEIRS or find_spec("torchcfm")]
parser.add_argument("--only", nargs="*", choices=RECIPES, default=INSTALLED)
parser.add_argument("--samples", type=int, default=200 if SMOKE else 10_000)
parser.add_argument("--solver-steps", type=int, default=1 if SMOKE else 10, help="of midpoint")
parser.add_argument("--output", type=Path, default=Path("outputs/time_to_quality"))
args = parser.parse_args()
points = args.seconds or [BUDGET / 8, BUDGET / 4, BUDGET / 2, BUDGET]
if sorted(set(points)) != points:
    parser.error(f"--seconds must rise; got {points}")

device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
images, labels = load_images(args.dataset, split="train", label_column="label", device=device)
reference, _ = load_images(args.dataset, split="test")
reference = reference[: args.samples]
assert labels is not None
runs = {
    (name, seed): Run(RECIPES[name], images, labels, points[-1], seed)
    for seed in args.seeds
    for name in args.only
}
folder = args.output / "weights"
folder.mkdir(parents=True, exist_ok=True)
times = "-".join(f"{point:g}" for point in points)
file = {
    run: folder / f"{name} {seed} {len(images)} {device.type} {times}.pt"
    for (name, seed), run in runs.items()
}
kept: dict[Run, dict[float, tuple[int, Weights]]] = {run: {} for run in runs.values()}
for run, point in race([run for run in runs.values() if not file[run].exists()], points):
    kept[run][point] = run.steps, run.weights()
    print(f"{file[run].stem}: {point:g} s, {run.steps} steps", flush=True)
    if point == points[-1]:  # in one piece, or not at all
        torch.save(kept[run], file[run].with_suffix(".part"))
        file[run].with_suffix(".part").rename(file[run])

log = Log(args.output / "results.jsonl")
fixed = {"budget": points[-1], "images": len(images), "device": device.type}
fixed |= {"samples": len(reference), "solver_steps": args.solver_steps}
for point in reversed(points):  # the ends first
    for (name, seed), run in runs.items():
        setting = {"recipe": name, "seed": seed, "seconds": point, **fixed}
        if log.read(setting):
            continue
        steps, weights = torch.load(file[run], map_location=device)[point]
        samples = draw(run, weights, len(reference), steps=args.solver_steps)
        samples.save_grid(args.output / f"{file[run].stem} {point:g}.png")
        log.append({**setting, "steps": steps, **judge(samples, reference)})

header = "recipe    seconds seeds   steps  Frechet (each seed's interval)  imbalance  right class"
print(header)
for name, recipe in RECIPES.items():
    curve = []
    for point in points:
        group = log.read({"recipe": name, "seconds": point, **fixed})
        if not group:
            continue
        mean = {key: sum(r[key] for r in group) / len(group) for key in ("steps", "balance")}
        frechet = [r["frechet"][:3] for r in group]
        curve.append((point, frechet))
        right = sum(r["accuracy"] for r in group) / len(group) if recipe.labels else float("nan")
        print(
            f"{name:9} {point:7g} {len(group):5} {mean['steps']:7.0f}  "
            + " ".join(f"{value:.2f} [{low:.2f}, {high:.2f}]" for value, low, high in frechet)
            + f"  {mean['balance']:.3f}  {right:.1%}"
        )
    if curve:
        seconds, means = zip(*[(p, sum(f[0] for f in g) / len(g)) for p, g in curve], strict=True)
        (line,) = plt.loglog(seconds, means, label=name)
        for point, group in curve:
            for value, low, high in group:
                bars = [[value - low], [high - value]]
                plt.errorbar(point, value, bars, fmt="o", ms=3, color=line.get_color())
plt.xticks(points, [f"{point:g}" for point in points])
plt.minorticks_off()
plt.xlabel("seconds of training, " + ("GPU" if device.type == "cuda" else "one CPU core"))
plt.ylabel(f"Frechet distance to test images, n = {len(reference)}")
plt.legend()
plt.savefig(args.output / "time_to_quality.png", dpi=150, bbox_inches="tight")
