"""MeanFlow in the plane: which of its choices matter, at a thousandth of the cost of images.

    OMP_NUM_THREADS=1 python examples/benchmarks/mean_flow.py        # some minutes of one core
Noise to two moons. One network of two times for each choice, the same number of updates and rate; a plain flow of one
time beside them. Printed is the 2-Wasserstein distance of 2,000 samples to as many points of the moons, by jumps and by
Euler's method on the velocity (r = t), with that of other points of the moons for scale, and the processor's seconds.
"""

import argparse
import os
import time

import torch
from flow_matching.path import CondOTProbPath
from torch import nn

from fm_ext.loss import TimePairs, UniformTime, mean_flow_loss, velocity_loss
from fm_ext.metrics import wasserstein_distance
from fm_ext.models import MLP, MeanFlowModel
from fm_ext.solver import MeanFlowSolver, ODESolver

SMOKE = os.environ.get("FM_EXT_SMOKE") == "1"
EVALUATIONS = (1, 2, 4, 16)
CHOICES = {
    "improved, power 0": {"tangent": "marginal", "power": 0.0},
    "improved, power 0.75": {"tangent": "marginal", "power": 0.75},
    "improved, power 1": {"tangent": "marginal", "power": 1.0},
    "conditional tangent, power 0": {"tangent": "conditional", "power": 0.0},
    "conditional tangent, power 1": {"tangent": "conditional", "power": 1.0},
    "flow": None,
}
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--steps", type=int, default=5 if SMOKE else 3000)
parser.add_argument("--choices", nargs="*", default=[*CHOICES], choices=[*CHOICES])
parser.add_argument("--seeds", type=int, nargs="*", default=[0])
parser.add_argument("--samples", type=int, default=100 if SMOKE else 2000)
args = parser.parse_args()
path, times, pairs = CondOTProbPath(), UniformTime(), TimePairs(times=UniformTime())


def moons(n: int) -> torch.Tensor:
    angle, lower = torch.pi * torch.rand(n), torch.rand(n) < 0.5
    x = torch.where(lower, 1 - angle.cos(), angle.cos())
    y = torch.where(lower, 0.5 - angle.sin(), angle.sin())
    return torch.stack([1.5 * x - 0.75, 1.5 * y - 0.375], 1) + 0.1 * torch.randn(n, 2)


def train(choice: dict | None) -> nn.Module:
    net = MLP(2, 128, activation=nn.SiLU, second_time=choice is not None)
    model = net if choice is None else MeanFlowModel(net)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.steps)
    for _ in range(args.steps):
        x_1 = moons(256)
        t, r = pairs(256)
        if choice is None:
            sample = path.sample(torch.randn_like(x_1), x_1, times(256))
            loss = velocity_loss(model(x=sample.x_t, t=sample.t), sample)
        else:
            sample = path.sample(torch.randn_like(x_1), x_1, t)
            loss = mean_flow_loss(model, sample, r, **choice)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
    return model.eval()


torch.manual_seed(0)
noise, truth = torch.randn(args.samples, 2), moons(args.samples)
scale = wasserstein_distance(moons(args.samples), truth)
print(f"{args.steps} updates; other points of the moons are at {scale:.3f}")
print(f"{'':30} seconds  " + "  ".join(f"jumps {n:2}   Euler" for n in EVALUATIONS))
for name in args.choices:
    for seed in args.seeds:
        torch.manual_seed(seed)
        start = time.process_time()
        model = train(CHOICES[name])
        line = f"{name:30} {time.process_time() - start:7.0f}"
        for n in EVALUATIONS:
            jumped = "     -"
            if isinstance(model, MeanFlowModel):
                jumped = (
                    f"{wasserstein_distance(MeanFlowSolver(model).sample(noise, n), truth):6.3f}"
                )
            euler = wasserstein_distance(ODESolver(model).sample(noise, steps=n), truth)
            line += f"    {jumped}  {euler:6.3f}"
        print(line, flush=True)
