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
from torch import nn

from fm_ext.coupling import IndependentCoupling, OptimalTransport
from fm_ext.data import pair_loader, write_pairs
from fm_ext.loss import velocity_loss
from fm_ext.models import MLP
from fm_ext.path import CoupledProbPath
from fm_ext.solver import simulate_pairs

SMOKE = os.environ.get("FM_EXT_SMOKE") == "1"
TRAINING_STEPS, SAMPLES, PAIRS = (20, 100, 512) if SMOKE else (3000, 2000, 40 * 512)
BATCH, LR, STEPS = 256, 2e-3, (1, 2, 4, 8, 16)


class Classes(nn.Module):  # an MLP of (x, class) whose velocity does not leave the class
    def __init__(self):
        super().__init__()
        self.net = MLP(dim=3)

    def forward(self, x, t, label):
        return self.net(torch.cat([x, 2.0 * label[:, None] - 1], 1), t)[:, :2]


def gaussians(n):
    angle = torch.randint(8, (n,)) * (torch.pi / 4)
    return 2 * torch.stack([angle.cos(), angle.sin()], 1) + 0.2 * torch.randn(n, 2)


def moons(n):
    angle, label = torch.pi * torch.rand(n), torch.randint(2, (n,))
    x = torch.where(label == 1, 1 - angle.cos(), angle.cos())
    y = torch.where(label == 1, 0.5 - angle.sin(), angle.sin())
    return torch.stack([1.5 * x - 0.75, 1.5 * y - 0.375], 1) + 0.05 * torch.randn(n, 2), label


def train(batch):
    """Trains on path samples with their classes, `batch()`; returns the mean transport cost of its pairs, too."""
    model, paid = Classes(), 0.0
    optimizer = torch.optim.Adam(model.parameters(), LR)
    for i in range(TRAINING_STEPS):
        optimizer.param_groups[0]["lr"] = LR * (1 - i / TRAINING_STEPS)
        sample, label = batch()
        paid += cost(sample.x_0, sample.x_1).item() / TRAINING_STEPS
        optimizer.zero_grad()
        velocity_loss(model(sample.x_t, sample.t, label), sample).backward()
        optimizer.step()
    return model.eval(), paid


def report(name, model, paid):
    """Prints a line; the error is W2 to the moon that was asked for, mean over both."""
    solver, few = ODESolver(model), lambda n: torch.linspace(0, 1, n + 1)
    start = {"x_init": noise, "step_size": None, "label": classes}
    x = solver.sample(**start, time_grid=few(32), return_intermediates=True, method="midpoint")
    bend = cost((x[1:] - x[:-1]) * 32, x[-1] - x[0])  # Liu et al., arXiv 2209.03003
    ends = [solver.sample(**start, time_grid=few(n)) for n in STEPS]
    errors = [sum(w2(end[m], truth[m]) for m in (classes == 0, classes == 1)) / 2 for end in ends]
    print(f"{name:<18}{paid:13.2f}{bend:14.3f}" + "".join(f"{e:8.3f}" for e in errors))
    return errors, x


torch.manual_seed(0)
cost = lambda a, b: (a - b).square().sum(-1).mean()
w2 = lambda a, b: cost(OptimalTransport()(a, b)[0], b).sqrt().item()
noise, (truth, classes) = gaussians(SAMPLES), moons(SAMPLES)

# ---- three couplings ------------------------------------------------------------------------
print(f"{'coupling':<18}  pairs' cost  straightness    W2 after {STEPS} Euler steps")
results, flows = {}, {}
for name in ("independent", "OT, class ignored", "OT within classes"):
    coupling = IndependentCoupling() if name == "independent" else OptimalTransport()
    path = CoupledProbPath(CondOTProbPath(), coupling)

    def batch(path=path, within="within" in name):
        x_1, label = moons(BATCH)
        conditions = {"label": label} if within else {}  # a condition that is given is obeyed
        return path.sample(gaussians(BATCH), x_1, torch.rand(BATCH), **conditions), label

    flows[name], paid = train(batch)
    results[name] = report(name, flows[name], paid)

# ---- reflow: train on (x_0, ODE(x_0)) of the independent flow --------------------------------
with tempfile.TemporaryDirectory() as folder:
    sources = [{"x_0": gaussians(512), "label": moons(512)[1]} for _ in range(PAIRS // 512)]
    write_pairs(simulate_pairs(flows["independent"], sources), folder)
    (pairs,) = pair_loader(folder, batch_size=PAIRS)  # few enough for one batch

again = lambda i: (
    CondOTProbPath().sample(pairs["x_0"][i], pairs["x_1"][i], torch.rand(BATCH)),
    pairs["label"][i],
)
reflow = train(lambda: again(torch.randint(PAIRS, (BATCH,))))
results["reflow"] = report("reflow", *reflow)
before, after = results["independent"][0][0], results["reflow"][0][0]
print(f"one Euler step: W2 {before:.3f} before reflow, {after:.3f} after")

# ---- one picture ----------------------------------------------------------------------------
figure, axes = plt.subplots(1, 5, figsize=(20, 4), layout="constrained")
for ax, (name, (errors, x)) in zip(axes, results.items(), strict=False):
    ax.plot(*x[:, :150].unbind(2), color="0.7", linewidth=0.5)
    ax.scatter(*x[-1, :1000].T, c=classes[:1000], s=2, cmap="coolwarm")
    ax.set(title=name, xlim=(-3, 3), ylim=(-3, 3), aspect="equal")
    axes[-1].loglog(STEPS, errors, marker=".", label=name)
axes[-1].legend(title="W2 to the class asked for, by Euler steps")
Path("outputs").mkdir(exist_ok=True)
figure.savefig("outputs/optimal_transport.png", dpi=80)
