"""Guidance in the plane, without a network: the exact flow of three classes that overlap, at four scales.

    python examples/guidance.py                        # seconds

Guidance moves samples away from the other classes. More of them are of the class that was asked for, and they differ
less from each other. Prints both, and draws the samples with their paths.
"""

import os
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from flow_matching.path.scheduler import CondOTScheduler

from fm_ext.models import EmpiricalVelocityModel, GuidedVelocityModel
from fm_ext.solver import ODESolver

SMOKE = os.environ.get("FM_EXT_SMOKE") == "1"
SAMPLES = 30 if SMOKE else 1500
SCALES = (0.0, 1.0, 2.0, 4.0)

# ---- data: three round classes, whose centres are 1.7 apart ---------------------------------
torch.manual_seed(0)
angle = 2 * torch.pi * torch.arange(3) / 3
centres = torch.stack([angle.cos(), angle.sin()], dim=1)
labels = torch.arange(3).repeat(300)
data = centres[labels] + 0.6 * torch.randn(len(labels), 2)

# ---- the velocity that a network would learn, with and without a class -----------------------
field = EmpiricalVelocityModel(data, CondOTScheduler(), bandwidth=0.2, labels=labels)


def sample(scale: float, label: torch.Tensor) -> torch.Tensor:
    """States at 21 times, `(21, count, 2)`."""
    guided = GuidedVelocityModel(field, guidance_scale=scale)  # 1: the class alone; 0: no class
    times = torch.linspace(0, 1, 21)
    noise = torch.randn(len(label), 2, generator=torch.Generator().manual_seed(1))
    return ODESolver(guided).sample(
        noise, method="midpoint", time_grid=times, return_intermediates=True, label=label
    )


asked = torch.arange(3).repeat(SAMPLES // 3)
figure, axes = plt.subplots(1, len(SCALES), figsize=(14, 3.8), layout="constrained")
print("scale   nearest to its own centre   standard deviation within a class")
for axis, scale in zip(axes, SCALES, strict=True):
    path = sample(scale, asked)
    end = path[-1]
    right = (torch.cdist(end, centres).argmin(dim=1) == asked).float().mean()
    spread = torch.stack([end[asked == c].std(dim=0).mean() for c in range(3)]).mean()
    print(f"{scale:5.1f}   {right:25.1%}   {spread:33.2f}")
    for c in range(3):
        axis.plot(*path[:, asked == c][:, :15].unbind(2), color=f"C{c}", linewidth=0.4, alpha=0.6)
        axis.plot(*end[asked == c].T, ".", color=f"C{c}", markersize=2)
    axis.plot(*centres.T, "k+", markersize=9)
    axis.set(title=f"guidance_scale={scale:g}", xlim=(-3.5, 3.5), ylim=(-3.5, 3.5), aspect="equal")

output = Path("outputs/guidance.png")
output.parent.mkdir(exist_ok=True)
figure.savefig(output, dpi=100)
print(f"wrote {output}")
