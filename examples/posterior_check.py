"""Do the methods of `InpaintingSolver` draw from the posterior? On Gaussian data the answer is a number.

    python examples/posterior_check.py                          # some minutes on one core
AR(1) data with correlation 0.97 in 32 dimensions, of which 12 in a row are missing; the exact velocity is the model.
Prints the distance of 400 fills to the true posterior, means over 30 observations, for every method and three
schedules; what each reaches at equal cost; what an asymmetric derivative does, and fresh noise. Saves a picture.
"""

import os
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from flow_matching.path.scheduler import CondOTScheduler
from plots import save_figure
from torch import nn

from fm_ext.path.scheduler import CosineScheduler, VPScheduler
from fm_ext.solver import InpaintingSolver

SMOKE = os.environ.get("FM_EXT_SMOKE") == "1"
SCHEDULES = {"straight": CondOTScheduler(), "cosine": CosineScheduler(), "VP": VPScheduler()}
METHODS = [
    "replace",
    "repaint",
    "restora",
    "ot_ode",
    "pnp",
    "flower",
    "ding",
    "moment_matching",
    "twisted_smc",
    "d_flow",
]
PICTURED = ["replace", "flower", "ot_ode", "moment_matching"]
STEPS = 2 if SMOKE else 50
FILLS = 20 if SMOKE else 400
OBSERVATIONS = 2 if SMOKE else 30
COSTS = (8,) if SMOKE else (25, 50, 100, 250)  # evaluations and gradients, together
PER_STEP = {
    "ding": 2,
    "restora": 3,
    "ot_ode": 2,
    "moment_matching": 5,
    "repaint": 10,
    "twisted_smc": 6,
}
BEFORE = {"ot_ode": 1, "moment_matching": 1}  # the mean of the data, at t = 0
ERRORS = (0.0, 0.003, 0.01, 0.03)  # of the derivative of E[X_1 | x_t]
index = torch.arange(32)
covariance = 0.97 ** (index[:, None] - index).abs().double() + 1e-3 * torch.eye(32)
known, mask = (index < 10) | (index >= 22), (index >= 10) & (index < 22)


class Exact(nn.Module):
    """The velocity for data N(0, covariance), with an error of its derivative if one is asked for."""

    def __init__(self, scheduler, error=0.0):
        super().__init__()
        self.scheduler = scheduler
        self.values, self.vectors = torch.linalg.eigh(covariance)
        self.error = error * torch.randn(32, 32) / 32**0.5

    def forward(self, x, t):
        out = self.scheduler(t.double())
        gain = out.alpha_t * out.d_alpha_t * self.values + out.sigma_t * out.d_sigma_t
        gain /= out.alpha_t**2 * self.values + out.sigma_t**2
        return x @ ((self.vectors * gain @ self.vectors.T).float() + self.error / (1 - t))


def root(matrix):
    """The symmetric square root."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp(min=0).sqrt() @ vectors.mT


# ---- observations, their posteriors, and the distance to these -------------------------------
torch.manual_seed(0)
image = (torch.randn(OBSERVATIONS, 32).double() @ root(covariance)).float()
gain = covariance[mask][:, known] @ torch.linalg.inv(covariance[known][:, known])
mean, spread = image[:, known].double() @ gain.T, covariance[mask][:, mask]
spread = spread - gain @ covariance[known][:, mask]


def compare(fills):
    """Means over the observations: W2 to the posterior, its deviation, bias, covariance ratio and seam."""
    hole = fills.double()[..., mask]
    rest = hole - hole.mean(0)
    cov = torch.einsum("noi,noj->oij", rest, rest) / (len(fills) - 1)
    traces = cov.diagonal(dim1=1, dim2=2).sum(1)
    bias = (hole.mean(0) - mean).square()
    cross = torch.linalg.eigvalsh(root(spread) @ cov @ root(spread)).clamp(min=0).sqrt().sum(1)
    w2 = (bias.sum(1) + traces + spread.trace() - 2 * cross).clamp(min=0).sqrt()
    seam = fills[..., [10, 21]] - fills[..., [9, 22]]
    rest = bias.mean(1).sqrt(), traces / spread.trace(), seam.square().mean((0, 2)).sqrt()
    return [w2.mean().item(), w2.std().item(), *(number.mean().item() for number in rest)]


def sample(method, schedule="straight", steps=STEPS, error=0.0, **options):
    model = Exact(SCHEDULES[schedule], error)
    solver = InpaintingSolver(model, SCHEDULES[schedule], method, **options)
    return solver.sample(image, mask=mask[None], steps=steps, fills=FILLS), solver


# ---- every method on every schedule ---------------------------------------------------------
print("method           schedule   W2 (sd)         bias   cov ratio  seam   NFE  gradients")
truth, noise = image.repeat(FILLS, 1, 1), torch.randn(FILLS, OBSERVATIONS, 12)
truth[..., mask] = (mean + noise.double() @ root(spread)).float()
line = "{:<16} {:<10} {:.3f} ({:.3f})   {:.3f}  {:.3f}      {:.3f}  {:>4}  {:>5}"
print(line.format("exact draws", "", *compare(truth), 0, 0))
shown = {"truth": truth}
for method in METHODS:
    for schedule in SCHEDULES:
        fills, run = sample(method, schedule)
        print(line.format(method, schedule, *compare(fills), run.nfe, run.gradients), flush=True)
    shown[method] = fills

# ---- W2 at equal cost -----------------------------------------------------------------------
print("W2 at equal cost   " + "".join(f"{cost:>8}" for cost in COSTS))
curves = {}
for method in METHODS:
    if method == "d_flow":  # its cost is that of its optimisation
        continue
    steps = [max(1, (cost - BEFORE.get(method, 0)) // PER_STEP.get(method, 1)) for cost in COSTS]
    curves[method] = [compare(sample(method, steps=n)[0])[0] for n in steps]
    print(f"{method:<19}" + "".join(f"{w2:8.3f}" for w2 in curves[method]), flush=True)
print("W2 of moment matching, errors of J " + ", ".join(map(str, ERRORS)) + "; eta 0, 0.5, 1")


def print_moment_matching(name, trials):
    w2s = (compare(sample("moment_matching", **options)[0])[0] for options in trials)
    print(f"{name:<19}" + "".join(f"{w2:8.2g}" for w2 in w2s), flush=True)


for linear_solver in ("gmres", "cg"):
    trials = [{"error": error, "linear_solver": linear_solver} for error in ERRORS]
    print_moment_matching(linear_solver, trials)
for steps in (25, 50):
    trials = [{"eta": eta, "steps": steps} for eta in (0, 0.5, 1)]
    print_moment_matching(f"eta, {steps} steps", trials)

# ---- one picture ----------------------------------------------------------------------------
figure, axes = plt.subplots(2, 3, figsize=(13, 6.5), layout="constrained")
width = 2 * spread.diagonal().sqrt()
for ax, name in zip(axes.flat, ["truth", *PICTURED], strict=False):
    ax.plot(index, shown[name][:15, 0].T, color="tab:orange", linewidth=0.7)
    ax.fill_between(index[mask], mean[0] - width, mean[0] + width, alpha=0.3, zorder=0)
    ax.plot(index, image[0].masked_fill(mask, torch.nan), "k.", markersize=4)
    ax.set(title=f"{name}: 15 fills; the posterior, 2 sd")
for method, w2s in curves.items():
    axes.flat[-1].semilogy([str(cost) for cost in COSTS], w2s, marker=".", label=method)
axes.flat[-1].set(title="W2 to the posterior", xlabel="evaluations and gradients", ylim=(0.03, 2))
axes.flat[-1].legend(fontsize=7, ncols=3, loc="lower left")
save_figure(figure, Path("outputs/posterior_check.png"), dpi=100)
