"""Sentences of a flow on characters beside those of n-gram models of the same text: written, and filled.

    OMP_NUM_THREADS=1 python examples/benchmarks/text.py --seeds 0 1 2

Runs examples/text.py once a seed (its weights are kept, and a finished training is only evaluated), and scores what it
wrote and filled by the same functions as what character n-gram models write and fill. Those are interpolated by Witten
and Bell's method, and fill by what is known on both sides (ngram.py). Prints both tables, as means over the seeds and
their standard deviations, and the first sentences.
"""

import argparse
import os
import runpy
import sys
import time
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import torch
from ngram import NGramModel

SMOKE = os.environ.get("FM_EXT_SMOKE") == "1"
LESSON = Path(__file__).parents[1] / "text.py"

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1] if SMOKE else [0, 1, 2])
parser.add_argument("--steps", type=int, help="of training; the example's by default")
parser.add_argument("--orders", type=int, nargs="*", default=[3] if SMOKE else [3, 4, 5, 6, 7, 8])
parser.add_argument("--fillers", type=int, nargs="*", default=[3] if SMOKE else [4, 6])
parser.add_argument("--keep", type=int, default=30 if SMOKE else 300, help="states a place")
parser.add_argument("--shown", type=int, default=8, help="sentences printed of each")
parser.add_argument("--output", type=Path, default=Path("outputs/text"))
args = parser.parse_args()

lessons = []
for seed in args.seeds:
    sys.argv = ["text.py", "--seed", str(seed), "--output", str(args.output / str(seed))]
    if args.steps is not None:
        sys.argv += ["--steps", str(args.steps)]
    began = time.process_time()
    lessons.append(runpy.run_path(str(LESSON)))
    print(f"seed {seed}: {(time.process_time() - began) / 60:.1f} minutes of the processor\n")
lesson = lessons[0]
shares, right, sentences = lesson["shares"], lesson["right"], lesson["sentences"]
passages, masks = lesson["passages"], lesson["masks"]


def line(name: str, rows: list[list[float]]) -> None:
    """A row of a table, in percent: the mean over the seeds, and their standard deviation."""
    cells = []
    for values in zip(*rows, strict=True):
        spread = f" ± {100 * stdev(values):.1f}" if len(values) > 1 else ""
        cells.append(f"{100 * mean(values):.1f}{spread}")
    print(f"| {name} | {' | '.join(cells)} |", flush=True)


def fills_of(model: NGramModel, mask: torch.Tensor) -> list[torch.Tensor]:
    """All passages with their holes filled, likeliest and drawn."""
    generator = np.random.default_rng(0)
    rows = zip(passages.cpu().numpy(), mask[..., 0].cpu().numpy(), strict=True)
    fills = [model.fill(row, hole, 0, generator, keep=args.keep) for row, hole in rows]
    return [torch.from_numpy(np.stack(fill)).to(mask.device) for fill in zip(*fills, strict=True)]


models = {
    order: NGramModel(lesson["train"].numpy(), order, len(lesson["ALPHABET"]))
    for order in sorted({*args.orders, *args.fillers})
}
texts = {}
for order in args.orders:
    drawn = [
        models[order].sample(*passages.shape, 0, np.random.default_rng(seed)) for seed in args.seeds
    ]
    texts[f"{order}-gram"] = [sentences(one) for one in drawn]
texts["flow"] = [sentences(one["written"]) for one in lessons]
texts["flow, with noise"] = [sentences(one["rewritten"]) for one in lessons]

print("| written by | real words | seen pairs of words | 16 characters copied | distinct words |")
print("|---|---|---|---|---|")
line("people (held-out text)", [shares(sentences(passages))])
for name, seeds in texts.items():
    line(name, [shares(one) for one in seeds])

heads = [f"{name}, {way}" for name in masks for way in ("likeliest", "drawn")]
print(f"\n| filled by | {' | '.join(heads)} |\n|{'---|' * (len(heads) + 1)}")
for order in args.fillers:
    fills = [(fill, mask) for mask in masks.values() for fill in fills_of(models[order], mask)]
    line(f"{order}-gram", [[right(*one) for one in fills]])
rows = []
for one in lessons:
    fills = [(one[way][name], one["masks"][name]) for name in masks for way in ("guessed", "drawn")]
    rows.append([right(*fill) for fill in fills])
line("flow", rows)

for name, seeds in texts.items():
    print(f"\n{name}:", *seeds[0][: args.shown], sep="\n    ")
