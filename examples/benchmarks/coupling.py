"""Optimal transport between two batches: fm_ext against torchcfm's `OTPlanSampler`.

    pip install torchcfm
    python examples/benchmarks/coupling.py                     # one thread, some minutes
    python examples/benchmarks/coupling.py --batch-size 64 256 --rounds 31

In the plane from 8 Gaussians to two moons; at 784 from noise to MNIST digits, at 3072 from noise to 32-pixel pieces of
portraits. They take turns; counted is the processor's time, so that a busy machine does not matter. Printed are the
medians: torchcfm's time, how many times as fast ours are, and the transport cost of what each finds above the least
cost that any of them found. "exact" is `OptimalTransport`, "greedy" is `GreedyTransport`. torchcfm's cost is its
plan's, before it draws pairs from it with replacement; "used" is the fraction of sources that this leaves in the batch.
"""

import argparse
import statistics
import time
import warnings

import torch
from torchcfm.optimal_transport import OTPlanSampler

from fm_ext.coupling import GreedyTransport, OptimalTransport
from fm_ext.coupling.optimal_transport import squared_distance
from fm_ext.data import load_images

SIZES = [64, 128, 256, 512, 1024, 2048, 4096]
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--batch-size", type=int, nargs="*", default=SIZES)
parser.add_argument("--rounds", type=int, help="default: 8192 / batch size, 3 to 31")
parser.add_argument("--data", nargs="*", default=["plane", "digits", "portraits"])
args = parser.parse_args()
torch.set_num_threads(1)
torch.manual_seed(0)
warnings.simplefilter("ignore")  # POT's, when it stops at its cap of iterations

DIGITS = load_images("examples/data/mnist", split="train")[0].flatten(1)
PORTRAITS = load_images("examples/data/portraits", split="train")[0]


def plane(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    angle = torch.randint(8, (n,)) * (torch.pi / 4)
    x_0 = 5 * torch.stack([angle.cos(), angle.sin()], 1) + 0.3 * torch.randn(n, 2)
    half, lower = torch.pi * torch.rand(n), torch.rand(n) < 0.5
    x = torch.where(lower, 1 - half.cos(), half.cos())
    y = torch.where(lower, 0.5 - half.sin(), half.sin())
    return x_0, torch.stack([3 * x - 1.5, 3 * y - 0.75], 1) + 0.2 * torch.randn(n, 2)


def digits(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(n, 784), DIGITS[torch.randperm(len(DIGITS))[:n]]


def portraits(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    rows, top, left = (torch.randint(high, (n,)) for high in (len(PORTRAITS), 33, 33))
    pieces = PORTRAITS.unfold(2, 32, 1).unfold(3, 32, 1)[rows, :, top, left]
    return torch.randn(n, 3072), pieces.flatten(1)


def timed(call, *batches):
    start = time.process_time()
    result = call(*batches)
    return time.process_time() - start, result


sampler = OTPlanSampler("exact", warn=False)
exact, greedy = OptimalTransport(), GreedyTransport()
print(f"torch {torch.__version__}; time, then times as fast, then cost above the least")
print(
    "dimension  batch   torchcfm    exact   greedy   torchcfm's cost    exact   greedy  identity   used"
)
for batches in (globals()[name] for name in args.data):
    for n in args.batch_size:
        rounds = args.rounds or min(31, max(3, 8192 // n))
        times: dict[str, list[float]] = {"torchcfm": [], "exact": [], "greedy": []}
        excess: dict[str, list[float]] = {name: [] for name in (*times, "identity")}
        used = []
        for number in range(rounds + 1):
            x_0, x_1 = batches(n)
            seconds = {}
            seconds["torchcfm"], (drawn, _) = timed(sampler.sample_plan, x_0, x_1)
            seconds["exact"], (best, _) = timed(exact, x_0, x_1)
            seconds["greedy"], (near, _) = timed(greedy, x_0, x_1)
            if number == 0:  # the warm-up
                continue
            for name in times:
                times[name].append(seconds[name])
            if number <= 3:
                plan = torch.from_numpy(sampler.get_map(x_0, x_1)).double()
                costs = {"torchcfm": (plan * squared_distance(x_0, x_1).double()).sum().item()}
                for name, x in {"exact": best, "greedy": near, "identity": x_0}.items():
                    costs[name] = (x - x_1).double().square().sum(1).mean().item()
                for name in excess:
                    excess[name].append(costs[name] / min(costs.values()) - 1)
                used.append(len(drawn.unique(dim=0)) / n)
        speed = {
            name: statistics.median(
                a / b for a, b in zip(times["torchcfm"], times[name], strict=True)
            )
            for name in times
        }
        cost = {name: statistics.median(values) for name, values in excess.items()}
        print(
            f"{x_1.shape[1]:9} {n:6} {statistics.median(times['torchcfm']) * 1e3:8.1f} ms "
            f"{speed['exact']:7.2f}x {speed['greedy']:7.2f}x {cost['torchcfm']:16.3%} {cost['exact']:8.3%} "
            f"{cost['greedy']:8.2%} {cost['identity']:9.1%} {statistics.median(used):6.0%}",
            flush=True,
        )
