"""Optimal transport between two batches: fm_ext against torchcfm's `OTPlanSampler` and torchebm's `ExactOTCoupling`.

    pip install torchcfm torchebm                              # what is absent is left out
    python examples/benchmarks/coupling.py                     # one thread, some minutes
    python examples/benchmarks/coupling.py --peers torchebm --batch-size 64 256 1024 --rounds 5

In the plane from 8 Gaussians to two moons; at 784 from noise to MNIST digits, at 3072 from noise to 32-pixel pieces of
portraits. They take turns; counted is the processor's time, so that a busy machine does not matter. Printed are the
medians: the peer's time, how many times as fast ours are, and the transport cost of what each finds above the least
cost that any of them found. "exact" is `OptimalTransport`, "greedy" is `GreedyTransport`. torchcfm's cost is its
plan's, before it draws pairs from it with replacement; "used" is the fraction of sources that this leaves in the batch.
torchebm's is an auction, in rounds of bids, and takes seconds from some 1,000 rows up: there it is left out.
"""

import argparse
import importlib.util
import os
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from fm_ext.coupling import GreedyTransport, OptimalTransport
from fm_ext.coupling.optimal_transport import squared_distance
from fm_ext.data import load_images

SMOKE = os.environ.get("FM_EXT_SMOKE") == "1"
SIZES = [16] if SMOKE else [64, 128, 256, 512, 1024, 2048, 4096]
MOST = {"torchcfm": 4096, "torchebm": 1024}  # rows
SHIPPED = Path(__file__).parents[1] / "data"
Pairs = tuple[Tensor, Tensor]
installed = [name for name in MOST if importlib.util.find_spec(name)]
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--batch-size", type=int, nargs="*", default=SIZES)
parser.add_argument("--rounds", type=int, help="default: 8192 / batch size, 3 to 31")
parser.add_argument("--data", nargs="*", default=["plane", "digits", "portraits"])
parser.add_argument("--peers", nargs="*", choices=[*MOST], default=installed)
args = parser.parse_args()
if SMOKE:
    args.rounds, args.data = 1, args.data[:1]
if absent := [name for name in args.peers if name not in installed]:
    raise SystemExit(f"pip install {' '.join(absent)}")
torch.set_num_threads(1)
torch.manual_seed(0)
warnings.simplefilter("ignore")  # POT's, when it stops at its cap of iterations


def plane(n: int) -> Pairs:
    angle = torch.randint(8, (n,)) * (torch.pi / 4)
    x_0 = 5 * torch.stack([angle.cos(), angle.sin()], 1) + 0.3 * torch.randn(n, 2)
    half, lower = torch.pi * torch.rand(n), torch.rand(n) < 0.5
    x = torch.where(lower, 1 - half.cos(), half.cos())
    y = torch.where(lower, 0.5 - half.sin(), half.sin())
    return x_0, torch.stack([3 * x - 1.5, 3 * y - 0.75], 1) + 0.2 * torch.randn(n, 2)


def digits(n: int) -> Pairs:
    return torch.randn(n, 784), DIGITS[torch.randperm(len(DIGITS))[:n]]


def portraits(n: int) -> Pairs:
    rows, top, left = (torch.randint(high, (n,)) for high in (len(PORTRAITS), 33, 33))
    pieces = PORTRAITS.unfold(2, 32, 1).unfold(3, 32, 1)[rows, :, top, left]
    return torch.randn(n, 3072), pieces.flatten(1)


if "digits" in args.data:
    DIGITS = load_images(str(SHIPPED / "mnist"), split="train")[0].flatten(1)
if "portraits" in args.data:
    PORTRAITS = load_images(str(SHIPPED / "portraits"), split="train")[0]


def cost_of(x_0: Tensor, x_1: Tensor) -> float:
    return (x_0 - x_1).double().square().sum(1).mean().item()


Call = Callable[[Tensor, Tensor], Pairs]


def torchcfm() -> tuple[Call, Callable[[Tensor, Tensor], float]]:
    """What draws pairs, and the cost of the plan they are drawn from."""
    from torchcfm.optimal_transport import OTPlanSampler

    sampler = OTPlanSampler("exact", warn=False)

    def cost(x_0: Tensor, x_1: Tensor) -> float:
        plan = torch.from_numpy(sampler.get_map(x_0, x_1)).double()
        return (plan * squared_distance(x_0, x_1).double()).sum().item()

    return sampler.sample_plan, cost


def torchebm() -> tuple[Call, Callable[[Tensor, Tensor], float]]:
    """What pairs, by another order of the targets, and the cost of these pairs."""
    from torchebm.couplings import ExactOTCoupling

    coupling = ExactOTCoupling()

    def pairs(x_0: Tensor, x_1: Tensor) -> Pairs:
        result = coupling(x_0, x_1)
        return result.x0, result.x1

    return pairs, lambda x_0, x_1: cost_of(*pairs(x_0, x_1))


def timed(call: Callable, *batches: Tensor) -> tuple[float, Pairs]:
    start = time.process_time()
    result = call(*batches)
    return time.process_time() - start, result


def compare(peer: str, make: Callable[[int], Pairs], n: int) -> None:
    """Prints one row of the table."""
    pairs, cost = {"torchcfm": torchcfm, "torchebm": torchebm}[peer]()
    exact, greedy = OptimalTransport(), GreedyTransport()
    rounds = args.rounds or min(31, max(3, 8192 // n))
    times: dict[str, list[float]] = {peer: [], "exact": [], "greedy": []}
    excess: dict[str, list[float]] = {name: [] for name in (*times, "identity")}
    used, dimension = [], 0
    for number in range(rounds + 1):
        x_0, x_1 = make(n)
        dimension, seconds = x_1.shape[1], {}
        seconds[peer], (drawn, _) = timed(pairs, x_0, x_1)
        seconds["exact"], (best, _) = timed(exact, x_0, x_1)
        seconds["greedy"], (near, _) = timed(greedy, x_0, x_1)
        if number == 0:  # the warm-up
            continue
        for name in times:
            times[name].append(seconds[name])
        if number <= 3:
            costs = {peer: cost(x_0, x_1)}
            for name, x in {"exact": best, "greedy": near, "identity": x_0}.items():
                costs[name] = cost_of(x, x_1)
            for name in excess:
                excess[name].append(costs[name] / min(costs.values()) - 1)
            used.append(len(drawn.unique(dim=0)) / n)
    speed = {
        name: statistics.median(a / b for a, b in zip(times[peer], times[name], strict=True))
        for name in times
    }
    above = {name: statistics.median(values) for name, values in excess.items()}
    print(
        f"{dimension:9} {n:6} {peer:9} {statistics.median(times[peer]) * 1e3:8.1f} ms "
        f"{speed['exact']:7.2f}x {speed['greedy']:7.2f}x {above[peer]:12.3%} {above['exact']:8.3%} "
        f"{above['greedy']:8.2%} {above['identity']:9.1%} {statistics.median(used):6.0%}",
        flush=True,
    )


if not args.peers:
    print("no peer is installed: pip install torchcfm torchebm")
print(f"torch {torch.__version__}; time, then times as fast, then cost above the least")
print(
    "dimension  batch peer          time    exact   greedy  peer's cost    exact   greedy  identity   used"
)
for name in args.data:
    for n in args.batch_size:
        for peer in args.peers:
            if n <= MOST[peer]:
                compare(peer, globals()[name], n)
