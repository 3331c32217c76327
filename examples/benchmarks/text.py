"""Sentences of a flow on characters beside those of n-gram models of the same text: written, and filled.

    OMP_NUM_THREADS=1 python examples/benchmarks/text.py --seeds 0 1 2

Runs examples/text.py once a seed (its weights are kept, and a finished training is only evaluated), and scores what it
wrote and filled by the same functions as what character n-gram models write and fill. Those are interpolated by Witten
and Bell's method, and fill by what is known on both sides (ngram.py). Prints both tables, as means over the seeds and
their standard deviations, and the first sentences. "Likeliest" takes the most probable character at each place,
"drawn" one fill by the model's law.
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
from ngram import CharacterModel

SMOKE = os.environ.get("FM_EXT_SMOKE") == "1"
LESSON = Path(__file__).parents[1] / "text.py"

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1] if SMOKE else [0, 1, 2])
parser.add_argument("--orders", type=int, nargs="*", default=[3] if SMOKE else [3, 4, 5, 6, 7, 8])
parser.add_argument("--fillers", type=int, nargs="*", default=[3] if SMOKE else [4, 6])
parser.add_argument("--keep", type=int, default=50 if SMOKE else 500, help="states a place")
parser.add_argument("--shown", type=int, default=8, help="sentences printed of each")
parser.add_argument("--output", type=Path, default=Path("outputs/text"))
args = parser.parse_args()


def line(name: str, rows: list[list[float]]) -> None:
    """A row of a table, in percent: the mean over the seeds, and their standard deviation."""
    cells = []
    for values in zip(*rows, strict=True):
        spread = f" ± {100 * stdev(values):.1f}" if len(values) > 1 else ""
        cells.append(f"{100 * mean(values):.1f}{spread}")
    print(f"| {name} | {' | '.join(cells)} |", flush=True)


lessons = []
for seed in args.seeds:
    sys.argv = ["text.py", "--seed", str(seed), "--output", str(args.output / str(seed))]
    began = time.process_time()
    lessons.append(runpy.run_path(str(LESSON)))
    print(f"seed {seed}: {(time.process_time() - began) / 60:.1f} minutes of the processor\n")

lesson = lessons[0]
shares, right, sentences = lesson["shares"], lesson["right"], lesson["sentences"]
passages, tests = lesson["passages"].cpu().numpy(), lesson["tests"]
models = {
    order: CharacterModel(lesson["train"].numpy(), order, len(lesson["ALPHABET"]))
    for order in sorted({*args.orders, *args.fillers})
}

print("| written by | real words | seen pairs of words | 16 characters copied |\n|---|---|---|---|")
line("people (held-out text)", [shares(sentences(lesson["passages"]))])
texts = {}
for order in args.orders:
    drawn = [
        models[order].sample(*passages.shape, 0, np.random.default_rng(seed)) for seed in args.seeds
    ]
    texts[f"{order}-gram"] = [sentences(torch.from_numpy(one)) for one in drawn]
texts["flow"] = [sentences(one["written"]) for one in lessons]
for name, seeds in texts.items():
    line(name, [shares(one) for one in seeds])

heads = [f"{name}: letters | passages" for name in tests]
print(f"\n| filled by | {' | '.join(heads)} |\n|{'---|' * (2 * len(heads) + 1)}")
for order in args.fillers:
    generator = np.random.default_rng(0)
    rows = {"likeliest": [], "drawn": []}
    for mask in tests.values():
        fills = models[order].fill(passages, mask[..., 0].cpu().numpy(), 0, generator, args.keep)
        for row, filled in zip(rows.values(), fills, strict=True):
            row.extend(right(torch.from_numpy(filled).to(mask.device), mask))
    for name, row in rows.items():
        line(f"{order}-gram, {name}", [row])
for name in ("likeliest", "drawn"):
    rows = [
        [share for hole, mask in tests.items() for share in right(one[name][hole], mask)]
        for one in lessons
    ]
    line(f"flow, {name}", rows)

for name, seeds in texts.items():
    print(f"\n{name}:", *seeds[0][: args.shown], sep="\n    ")
