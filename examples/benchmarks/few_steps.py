"""The same network trained as a DDPM and as a flow: quality at few and at many evaluations.

    OMP_NUM_THREADS=1 python examples/benchmarks/few_steps.py --dataset <folder of MNIST>
Class-conditional MNIST, the network of examples/generate.py, the same seconds of one core for both, in turns:

    flow   straight path, velocity; sampled by Euler's and by the midpoint method
    DDPM   the linear table of 1000 betas, noise, its plain loss (Ho et al., arXiv 2006.11239, equation 14); sampled by
           DDIM, which is Euler's method in the coordinates of the straight path, with the expected data clipped to
           [-1, 1] at each step, as DDPM's own code does, and without
Prints the Frechet distance to test images, spread over the test set, and saves a figure with the first samples of each.
Trainings and results are kept in outputs/few_steps.
"""

import argparse
import os
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from race import LEAN, Log, Recipe, Run, draw, judge, race, unet
from torchvision.utils import make_grid

from fm_ext.data import load_images
from fm_ext.path.scheduler import BetaTableScheduler

SMOKE = os.environ.get("FM_EXT_SMOKE") == "1"
DIGITS = str(Path(__file__).parents[1] / "data" / "mnist")
EVALUATIONS = (1, 2, 4) if SMOKE else (1, 2, 4, 8, 16, 50, 200)
FLOW = Recipe(net=unet(**LEAN), batch_size=32)
TABLE = BetaTableScheduler(torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64))
DDPM = replace(FLOW, scheduler=TABLE, prediction="epsilon", space="epsilon")
CURVES = {
    "flow, Euler": (FLOW, "euler", 1),
    "flow, midpoint": (FLOW, "midpoint", 2),
    "DDPM, clipped": (DDPM, "clipped", 1),
    "DDPM": (DDPM, "ddim", 1),
}

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--dataset", default=DIGITS)
parser.add_argument("--seconds", type=float, default=2 if SMOKE else 600, help="of each training")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--samples", type=int, default=200 if SMOKE else 1000)
parser.add_argument("--output", type=Path, default=Path("outputs/few_steps"))
args = parser.parse_args()

device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
images, labels = load_images(args.dataset, split="train", label_column="label", device=device)
reference, _ = load_images(args.dataset, split="test", limit=args.samples)
assert labels is not None
fixed = {"seconds": args.seconds, "seed": args.seed, "images": len(images), "device": device.type}
folder = args.output / " ".join(map(str, fixed.values()))
folder.mkdir(parents=True, exist_ok=True)
runs = {
    name: Run(recipe, images, labels, args.seconds, args.seed)
    for name, recipe in {"flow": FLOW, "DDPM": DDPM}.items()
}
if not (folder / "weights.pt").exists():
    trained = {
        run.recipe.prediction: run.weights() for run, _ in race([*runs.values()], [args.seconds])
    }
    torch.save(trained, folder / "weights.pt")
    print({name: run.steps for name, run in runs.items()}, flush=True)
trained = torch.load(folder / "weights.pt", map_location=device)

log = Log(folder / "results.jsonl")
rows = []
for evaluations in EVALUATIONS:
    for name, (recipe, method, order) in CURVES.items():
        setting = {"curve": name, "evaluations": evaluations, "samples": len(reference)}
        picture = folder / f"{name} {evaluations} {len(reference)}.pt"
        if evaluations % order:
            continue
        if not (log.read(setting) and picture.exists()):
            run = runs["flow" if recipe is FLOW else "DDPM"]
            weights, steps = trained[recipe.prediction], evaluations // order
            samples = draw(run, weights, len(reference), steps=steps, method=method, bf16=False)
            assert samples.evaluations == evaluations
            torch.save(samples.images[:10], picture)
            log.append({**setting, **judge(samples, reference)})
        result = log.read(setting)[-1]
        value, low, high = result["frechet"][:3]
        print(
            f"{name:15} {evaluations:4} evaluations: Frechet {value:7.2f} [{low:.2f}, {high:.2f}], "
            f"right class {result['accuracy']:.1%}",
            flush=True,
        )
        rows.append((name, result, torch.load(picture)))

figure, (left, right) = plt.subplots(1, 2, figsize=(14, 6), layout="constrained")
for name in CURVES:
    found = [(r["evaluations"], *r["frechet"][:3]) for curve, r, _ in rows if curve == name]
    n, value, low, high = (torch.tensor(column) for column in zip(*found, strict=True))
    left.errorbar(n, value, [value - low, high - value], fmt="o-", ms=3, label=name)
left.set(xscale="log", yscale="log", xlabel="evaluations")
left.set_ylabel(f"Frechet distance to test images, n = {len(reference)}")
left.legend()
rows.sort(key=lambda row: list(CURVES).index(row[0]))
grid = make_grid(torch.cat([row[2] for row in rows]), 10)
right.imshow(grid.movedim(0, 2), extent=(0, 10, len(rows), 0), aspect="auto")
right.set_yticks(
    torch.arange(len(rows)) + 0.5, [f"{name}, {r['evaluations']}" for name, r, _ in rows]
)
right.tick_params(length=0, bottom=False, labelbottom=False)
figure.savefig(folder / "few_steps.png", dpi=110, bbox_inches="tight")
