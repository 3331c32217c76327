"""Semidiscrete transport from noise to digits: seconds to fit it, and its cost beside exact transport of batches.

    OMP_NUM_THREADS=1 python examples/benchmarks/semidiscrete.py --dataset <folder of MNIST> --classes
Printed are the processor's seconds of `fit` and the chi squared that it comes to, epoch by epoch; then the mean squared
distance of pairs, as a percentage below that of independent ones, for exact transport of batches and for the
semidiscrete one, with the dual's bound. Pairs stay within classes with --classes. The potential is kept in
outputs/semidiscrete.
"""

import argparse
import os
import time
import warnings
from pathlib import Path

import torch

from fm_ext.coupling import OptimalTransport, SemidiscreteTransport
from fm_ext.data import load_images

SMOKE = os.environ.get("FM_EXT_SMOKE") == "1"
DIGITS = str(Path(__file__).parents[1] / "data" / "mnist")
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--dataset", default=DIGITS)
parser.add_argument("--rows", type=int, default=200 if SMOKE else None, help="default: all")
parser.add_argument("--classes", action="store_true", help="a potential for each class")
parser.add_argument("--tolerance", type=float, default=0.05)
parser.add_argument("--epochs", type=float, default=1 if SMOKE else 60)
parser.add_argument("--check-every", type=float, default=1 if SMOKE else 5)
sizes = [64] if SMOKE else [64, 256, 1024, 4096]
parser.add_argument("--batch-size", type=int, nargs="*", default=sizes)
parser.add_argument("--pairs", type=int, default=256 if SMOKE else 8192, help="to judge by")
parser.add_argument("--output", type=Path, default=Path("outputs/semidiscrete"))
args = parser.parse_args()
warnings.simplefilter("ignore", UserWarning)  # chi squared above the tolerance: printed
torch.manual_seed(0)

images, labels = load_images(args.dataset, split="train", limit=args.rows)
label = labels if args.classes else None
args.output.mkdir(parents=True, exist_ok=True)
kept = args.output / f"{len(images)} {'classes' if args.classes else 'all'}.pt"
transport = SemidiscreteTransport(images, label=label)
seconds = 0.0
if kept.exists():
    state = torch.load(kept)
    transport.load_state_dict(state["transport"])
    seconds = state["seconds"]

print(
    f"{len(images)} rows{' in classes' if args.classes else ''}; epochs, processor's seconds, chi squared"
)
while True:
    start = time.process_time()
    found = transport.fit(
        tolerance=args.tolerance, epochs=args.check_every, check_every=args.check_every
    )
    seconds += time.process_time() - start
    done = max(transport.epochs.values())
    worst = max(found.values())
    print(
        f"{done:6.1f} {seconds:8.1f} {sum(found.values()) / len(found):8.3f} worst {worst:.3f}",
        flush=True,
    )
    torch.save({"transport": transport.state_dict(), "seconds": seconds}, kept)
    if worst <= args.tolerance or done >= args.epochs:
        break


def cost(x_0: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return (x_0 - images[rows]).double().square().flatten(1).sum(1)


noise = torch.randn(args.pairs, *images.shape[1:])
rows = torch.randint(len(images), (args.pairs,))
own = None if label is None else label[rows]
independent = cost(noise, rows).mean()
print(f"independent pairs cost {independent:.2f}")
for n in args.batch_size:
    totals = []
    for part in torch.arange(args.pairs).split(n):
        given = {} if own is None else {"label": own[part]}
        x_0, _ = OptimalTransport()(noise[part], images[rows[part]], **given)
        totals.append(cost(x_0, rows[part]))
    print(f"exact, batches of {n:5}: {1 - torch.cat(totals).mean() / independent:7.2%} below")
start = time.process_time()
assigned = transport.assign(noise, own)
milliseconds = (time.process_time() - start) * 1e3 / args.pairs
print(
    f"semidiscrete: {1 - cost(noise, assigned).mean() / independent:15.2%} below, {milliseconds:.2f} ms a pair"
)
print(f"the dual's bound: {1 - transport.dual(noise, own).mean() / independent:11.2%} below")
