"""Schedules in two dimensions: what they do to the variance on the way, and to the number of steps.

    python examples/schedules.py                        # two minutes on one core
Learns the velocity from N(0, I) to two moons and to N((1, 1), I) on four schedules. Prints the variance of X_t beside
its formula, how far from the moons few steps end, and the exact error of few steps on Gaussian data; saves a picture.
"""

import os
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from flow_matching.path.scheduler import CondOTScheduler
from flow_matching.solver import ODESolver
from plane import moons
from plots import save_figure, show_flow

from fm_ext.loss import velocity_loss
from fm_ext.models import MLP, PredictionVelocityModel
from fm_ext.path import AffineProbPath
from fm_ext.path.scheduler import CosineScheduler, IDDPMCosineScheduler, VPScheduler
from fm_ext.solver import ExponentialSolver

SMOKE = os.environ.get("FM_EXT_SMOKE") == "1"
SCHEDULES = {
    "linear": CondOTScheduler(),
    "cosine": CosineScheduler(),
    "VP": VPScheduler(),
    "iDDPM": IDDPMCosineScheduler(),
}
TRAINING_STEPS = 20 if SMOKE else 4000
SAMPLES = 100 if SMOKE else 4000
BATCH, LR = 512, 2e-3
TIMES = torch.linspace(0, 1, 9)
STEPS = (1, 2, 4, 8, 16, 32, 64)
FEW = 4  # steps in the picture


def draw_gaussian(count):
    return torch.randn(count, 2) + 1


def draw_moons(count):  # each coordinate has mean 0 and variance about 1
    return moons(count, scale=(1 / 0.87, 1 / 0.5))[0]


def energy_distance(a, b):  # 0 if and only if the laws are equal
    return (2 * torch.cdist(a, b).mean() - torch.pdist(a).mean() - torch.pdist(b).mean()).item()


def train(scheduler, draw):
    """The velocity from N(0, I) to what `draw` draws."""
    path, model = AffineProbPath(scheduler), MLP(dim=2)
    optimizer = torch.optim.Adam(model.parameters(), LR)
    for step in range(TRAINING_STEPS):
        optimizer.param_groups[0]["lr"] = LR * (1 - step / TRAINING_STEPS)
        x_1 = draw(BATCH)
        sample = path.sample(torch.randn_like(x_1), x_1, torch.rand(BATCH))
        optimizer.zero_grad()
        velocity_loss(model(x=sample.x_t, t=sample.t), sample).backward()
        optimizer.step()
    return model.eval()


torch.manual_seed(0)
to_moons, to_gaussian = {}, {}
for name, scheduler in SCHEDULES.items():
    to_moons[name] = train(scheduler, draw_moons)
    to_gaussian[name] = train(scheduler, draw_gaussian)

# ---- is the variance preserved? -------------------------------------------------------------
print("variance of X_t between N(0, I) and N((1, 1), I): formula / drawn / generated")
print("t        " + "".join(f"{t:^20.2f}" for t in TIMES[::2]))
variances = {}
for name, scheduler in SCHEDULES.items():
    out = scheduler(TIMES)
    formula = out.alpha_t**2 + out.sigma_t**2
    x_0, x_1 = torch.randn(SAMPLES, 2), draw_gaussian(SAMPLES)
    path = AffineProbPath(scheduler)
    drawn = torch.stack([path.sample(x_0, x_1, t.expand(SAMPLES)).x_t.var() for t in TIMES])
    states = ODESolver(to_gaussian[name]).sample(
        x_0, step_size=0.01, method="midpoint", time_grid=TIMES, return_intermediates=True
    )
    generated = torch.stack([state.var() for state in states])
    variances[name] = formula, generated
    rows = torch.stack([formula, drawn, generated], 1)[::2].tolist()
    cells = (" / ".join(f"{value:.2f}" for value in row) for row in rows)
    print(f"{name:<9}" + "".join(f"{cell:^20}" for cell in cells))

# ---- how many steps? ------------------------------------------------------------------------
noise, truth = torch.randn(SAMPLES, 2), draw_moons(SAMPLES)
solvers = {name: ODESolver(to_moons[name]) for name in SCHEDULES}
for name in ("cosine", "VP"):
    model = PredictionVelocityModel(to_moons[name], SCHEDULES[name])
    solvers[f"{name}, DDIM"] = ExponentialSolver(model)
print("1000 x energy distance to the moons")
print("steps        " + "".join(f"{steps:>8}" for steps in STEPS))
distances = {}
for name, solver in solvers.items():
    ends = [solver.sample(noise, step_size=1 / steps) for steps in STEPS]
    distances[name] = [1000 * energy_distance(end, truth) for end in ends]
    print(f"{name:<13}" + "".join(f"{distance:8.1f}" for distance in distances[name]))

# ---- the same without a network: data N(0, s^2), where the velocity is a number times x ------
spread = torch.logspace(-2, 0, 41)
print(f"error of the standard deviation after {FEW} Euler steps to data N(0, s^2)")
print("s            " + "".join(f"{s:8.2f}" for s in spread[::10]))
errors = {}
for name, scheduler in SCHEDULES.items():
    out = scheduler(torch.arange(FEW)[:, None] / FEW)
    rate = out.alpha_t * out.d_alpha_t * spread**2 + out.sigma_t * out.d_sigma_t
    rate = rate / (out.alpha_t**2 * spread**2 + out.sigma_t**2)
    errors[name] = ((1 + rate / FEW).prod(0).abs() - spread).abs()
    print(f"{name:<13}" + "".join(f"{error:8.3f}" for error in errors[name][::10]))

# ---- one picture ----------------------------------------------------------------------------
figure, (top, bottom) = plt.subplots(2, 4, figsize=(14, 7), layout="constrained")
variance, distance, error, target = bottom
for axis, name in zip(top, SCHEDULES, strict=True):
    times = torch.linspace(0, 1, FEW + 1)
    states = solvers[name].sample(
        noise[:2000], step_size=None, time_grid=times, return_intermediates=True
    )
    show_flow(axis, states, lines=60)
    axis.set(title=f"{name}, {FEW} Euler steps")
    formula, generated = variances[name]
    (line,) = variance.plot(TIMES, formula, label=name)
    variance.plot(TIMES, generated, "o", color=line.get_color(), markersize=4)
    error.loglog(spread, errors[name], label=name)
for name, values in distances.items():
    distance.loglog(STEPS, values, ":" if "DDIM" in name else "-", marker=".", label=name)
distance.legend()
variance.set(title="variance of X_t: formula, generated (dots)", xlabel="t", ylim=(0, 1.3))
error.set(title=f"error of {FEW} Euler steps to N(0, s²)", xlabel="s", ylim=(1e-3, 1))
distance.set(title="1000 x energy distance to the moons", xlabel="steps")
target.scatter(*truth[:2000].T, s=2)
target.set(title="the moons", xlim=(-3, 3), ylim=(-3, 3), aspect="equal")
save_figure(figure, Path("outputs/schedules.png"), dpi=100)
