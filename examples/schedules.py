"""Schedules in two dimensions: what they do to the variance on the way, and to the number of steps.

    python examples/schedules.py                        # two minutes on one core
Learns the velocity from N(0, I) to two moons and to N((1, 1), I) on four schedules. Prints the variance of X_t beside
its formula, how far from the moons few steps end, and the exact error of few steps on Gaussian data; saves a picture.
"""

import os
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from flow_matching.path.scheduler import CondOTScheduler
from flow_matching.solver import ODESolver

from fm_ext.loss import velocity_loss
from fm_ext.models import MLP, PredictionVelocityModel
from fm_ext.path import AffineProbPath
from fm_ext.path.scheduler import CosineScheduler, IDDPMCosineScheduler, VPScheduler
from fm_ext.solver import ExponentialSolver

SMOKE = os.environ.get("FM_EXT_SMOKE") == "1"
SCHEDULES = {"linear": CondOTScheduler(), "cosine": CosineScheduler()}
SCHEDULES |= {"VP": VPScheduler(), "iDDPM": IDDPMCosineScheduler()}
TRAINING_STEPS, SAMPLES = (20, 100) if SMOKE else (4000, 4000)
BATCH, LR, TIMES = 512, 2e-3, torch.linspace(0, 1, 9)
STEPS, FEW = (1, 2, 4, 8, 16, 32, 64), 4  # the few are in the picture
gaussian = lambda n: torch.randn(n, 2) + 1


def moons(n):  # each coordinate has mean 0 and variance about 1
    angle, lower = torch.pi * torch.rand(n), torch.rand(n) < 0.5
    x = torch.where(lower, 1 - angle.cos(), angle.cos())
    y = torch.where(lower, 0.5 - angle.sin(), angle.sin())
    return torch.stack([(x - 0.5) / 0.87, (y - 0.25) / 0.5], 1) + 0.05 * torch.randn(n, 2)


def energy_distance(a, b):  # 0 if and only if the laws are equal
    return (2 * torch.cdist(a, b).mean() - torch.pdist(a).mean() - torch.pdist(b).mean()).item()


# ---- learn the velocity of every schedule towards both targets ------------------------------
torch.manual_seed(0)
models = {}
for name, scheduler in SCHEDULES.items():
    path = AffineProbPath(scheduler)
    for target in (moons, gaussian):
        model = MLP(dim=2)
        optimizer = torch.optim.Adam(model.parameters(), LR)
        for i in range(TRAINING_STEPS):
            optimizer.param_groups[0]["lr"] = LR * (1 - i / TRAINING_STEPS)
            x_1 = target(BATCH)
            sample = path.sample(torch.randn_like(x_1), x_1, torch.rand(BATCH))
            optimizer.zero_grad()
            velocity_loss(model(x=sample.x_t, t=sample.t), sample).backward()
            optimizer.step()
        models[name, target] = model.eval()

# ---- is the variance preserved? -------------------------------------------------------------
print("variance of X_t between N(0, I) and N((1, 1), I): formula / drawn / generated")
print("t        " + "".join(f"{t:^20.2f}" for t in TIMES[::2]))
variances = {}
for name, scheduler in SCHEDULES.items():
    formula = scheduler(TIMES).alpha_t ** 2 + scheduler(TIMES).sigma_t ** 2
    x_0, x_1 = torch.randn(SAMPLES, 2), gaussian(SAMPLES)
    drawn = [AffineProbPath(scheduler).sample(x_0, x_1, t.expand(SAMPLES)).x_t for t in TIMES]
    generated = ODESolver(models[name, gaussian]).sample(
        x_0, step_size=0.01, method="midpoint", time_grid=TIMES, return_intermediates=True
    )
    variances[name] = [formula, *(torch.stack([x.var() for x in xs]) for xs in (drawn, generated))]
    cells = (" / ".join(f"{v[i]:.2f}" for v in variances[name]) for i in range(0, 9, 2))
    print(f"{name:<9}" + "".join(f"{cell:^20}" for cell in cells))

# ---- how many steps? ------------------------------------------------------------------------
noise, truth = torch.randn(SAMPLES, 2), moons(SAMPLES)
print("1000 x energy distance to the moons")
print("steps        " + "".join(f"{n:>8}" for n in STEPS))
solvers: dict[str, Any] = {name: ODESolver(models[name, moons]) for name in SCHEDULES}
for name in ("cosine", "VP"):
    model = PredictionVelocityModel(models[name, moons], SCHEDULES[name])
    solvers[f"{name}, DDIM"] = ExponentialSolver(model)
distances = {}
for name, solver in solvers.items():
    distances[name] = [1000 * energy_distance(solver.sample(noise, 1 / n), truth) for n in STEPS]
    print(f"{name:<13}" + "".join(f"{d:8.1f}" for d in distances[name]))

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
    print(f"{name:<13}" + "".join(f"{e:8.3f}" for e in errors[name][::10]))

# ---- one picture ----------------------------------------------------------------------------
figure, (top, (v, d, e, m)) = plt.subplots(2, 4, figsize=(14, 7), layout="constrained")
stops = {"time_grid": TIMES[:: 8 // FEW], "return_intermediates": True}
for ax, name in zip(top, SCHEDULES, strict=True):
    path = solvers[name].sample(noise[:2000], None, **stops)
    ax.plot(*path[:, :60].unbind(2), color="0.8", linewidth=0.6)
    ax.plot(*path[-1].T, ".", markersize=2)
    ax.set(title=f"{name}, {FEW} Euler steps", xlim=(-3, 3), ylim=(-3, 3), aspect="equal")
    line = v.plot(TIMES, variances[name][0], label=name)[0]
    v.plot(TIMES, variances[name][2], "o", color=line.get_color(), markersize=4)
    e.loglog(spread, errors[name], label=name)
for name, values in distances.items():
    d.loglog(STEPS, values, ":" if "DDIM" in name else "-", marker=".", label=name)
v.set(title="variance of X_t: formula, generated (dots)", xlabel="t", ylim=(0, 1.3))
e.set(title=f"error of {FEW} Euler steps to N(0, s²)", xlabel="s", ylim=(1e-3, 1))
d.set(title="1000 x energy distance to the moons", xlabel="steps")
m.plot(*truth[:2000].T, ".", markersize=2)
m.set(title="the moons", xlim=(-3, 3), ylim=(-3, 3), aspect="equal")
d.legend()
Path("outputs").mkdir(exist_ok=True)
figure.savefig("outputs/schedules.png", dpi=100)
