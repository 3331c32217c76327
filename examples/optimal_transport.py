"""Couplings in two dimensions: independent, optimal transport, within classes; and one round of reflow.

    python examples/optimal_transport.py                 # two minutes on one core
Learns flows from 8 Gaussians to two moons, each moon a class. Prints what the pairs cost, how straight the flow is and
how far from the moon asked for a few Euler steps end (W2), before and after reflow; saves a picture.
"""

import os
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from flow_matching.path import CondOTProbPath
from flow_matching.solver import ODESolver
from plane import eight_gaussians, moons
from plots import save_figure, show_flow
from torch import nn

from fm_ext.coupling import IndependentCoupling, OptimalTransport
from fm_ext.data import pair_loader, write_pairs
from fm_ext.loss import velocity_loss
from fm_ext.models import MLP
from fm_ext.path import CoupledProbPath
from fm_ext.solver import simulate_pairs

SMOKE = os.environ.get("FM_EXT_SMOKE") == "1"
TRAINING_STEPS = 20 if SMOKE else 3000
SAMPLES = 100 if SMOKE else 2000
PAIRS = 512 if SMOKE else 40 * 512  # of reflow
BATCH, LR = 256, 2e-3
STEPS = (1, 2, 4, 8, 16)


class Conditional(nn.Module):
    """An MLP of (x, class) whose velocity does not leave the class."""

    def __init__(self):
        super().__init__()
        self.net = MLP(dim=3)

    def forward(self, x, t, label):
        return self.net(torch.cat([x, 2.0 * label[:, None] - 1], 1), t)[:, :2]


def cost(a, b):
    return (a - b).square().sum(-1).mean()


def wasserstein(a, b):
    return cost(OptimalTransport()(a, b)[0], b).sqrt().item()


def train(batch):
    """Trains on the path samples and classes of `batch()`; returns the mean cost of the pairs, too."""
    model, paid = Conditional(), 0.0
    optimizer = torch.optim.Adam(model.parameters(), LR)
    for step in range(TRAINING_STEPS):
        optimizer.param_groups[0]["lr"] = LR * (1 - step / TRAINING_STEPS)
        sample, label = batch()
        paid += cost(sample.x_0, sample.x_1).item() / TRAINING_STEPS
        optimizer.zero_grad()
        velocity_loss(model(sample.x_t, sample.t, label), sample).backward()
        optimizer.step()
    return model.eval(), paid


def report(name, model, paid):
    """Prints a line; the error is W2 to the moon that was asked for, mean over both."""
    solver = ODESolver(model)
    states = solver.sample(
        noise,
        step_size=None,
        method="midpoint",
        time_grid=torch.linspace(0, 1, 33),
        return_intermediates=True,
        label=classes,
    )
    velocity = 32 * (states[1:] - states[:-1])
    bend = cost(velocity, states[-1] - states[0])  # straightness: Liu et al., arXiv 2209.03003
    errors = []
    for steps in STEPS:
        end = solver.sample(noise, step_size=1 / steps, label=classes)
        each = [wasserstein(end[classes == c], truth[classes == c]) for c in (0, 1)]
        errors.append(sum(each) / 2)
    print(f"{name:<18}{paid:13.2f}{bend:14.3f}" + "".join(f"{error:8.3f}" for error in errors))
    return errors, states


torch.manual_seed(0)
noise, (truth, classes) = eight_gaussians(SAMPLES), moons(SAMPLES)

# ---- three couplings ------------------------------------------------------------------------
independent = CoupledProbPath(CondOTProbPath(), IndependentCoupling())
transport = CoupledProbPath(CondOTProbPath(), OptimalTransport())


def independent_batch():
    x_1, label = moons(BATCH)
    return independent.sample(eight_gaussians(BATCH), x_1, torch.rand(BATCH)), label


def transport_batch():
    x_1, label = moons(BATCH)
    return transport.sample(eight_gaussians(BATCH), x_1, torch.rand(BATCH)), label


def conditional_batch():  # a condition that is given is obeyed
    x_1, label = moons(BATCH)
    return transport.sample(eight_gaussians(BATCH), x_1, torch.rand(BATCH), label=label), label


print(f"{'coupling':<18}  pairs' cost  straightness    W2 after {STEPS} Euler steps")
results = {}
flow, paid = train(independent_batch)
results["independent"] = report("independent", flow, paid)
results["OT, class ignored"] = report("OT, class ignored", *train(transport_batch))
results["OT within classes"] = report("OT within classes", *train(conditional_batch))

# ---- reflow: train on (x_0, ODE(x_0)) of the independent flow --------------------------------
with tempfile.TemporaryDirectory() as folder:
    sources = ({"x_0": eight_gaussians(512), "label": moons(512)[1]} for _ in range(0, PAIRS, 512))
    write_pairs(simulate_pairs(flow, sources), folder)
    (pairs,) = pair_loader(folder, batch_size=PAIRS)  # few enough for one batch


def reflow_batch():
    rows = torch.randint(PAIRS, (BATCH,))
    sample = CondOTProbPath().sample(pairs["x_0"][rows], pairs["x_1"][rows], torch.rand(BATCH))
    return sample, pairs["label"][rows]


results["reflow"] = report("reflow", *train(reflow_batch))
before, after = results["independent"][0][0], results["reflow"][0][0]
print(f"one Euler step: W2 {before:.3f} before reflow, {after:.3f} after")

# ---- one picture ----------------------------------------------------------------------------
figure, axes = plt.subplots(1, 5, figsize=(20, 4), layout="constrained")
for axis, (name, (errors, states)) in zip(axes, results.items(), strict=False):
    show_flow(axis, states[:, :1000], lines=150, c=classes[:1000], cmap="coolwarm")
    axis.set(title=name)
    axes[-1].loglog(STEPS, errors, marker=".", label=name)
axes[-1].legend(title="W2 to the class asked for, by Euler steps")
save_figure(figure, Path("outputs/optimal_transport.png"), dpi=80)
