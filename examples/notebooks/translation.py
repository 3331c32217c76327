# %% [markdown]
# # From images to images
#
# The source of a flow need not be noise. Between two sets without pairs, training decides which source goes to which
# target: a *coupling*. First in the plane, where it can be seen; then garments become digits.

# %%
import importlib.util
import subprocess

if importlib.util.find_spec("fm_ext") is None:  # in Colab, for example
    subprocess.run("git clone --depth 1 https://github.com/fm-ext/fm_ext", shell=True, check=True)
    subprocess.run("pip install -q './fm_ext[train,eval,hub,examples]'", shell=True, check=True)
    importlib.invalidate_caches()

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from flow_matching.path import CondOTProbPath

from fm_ext.coupling import IndependentCoupling, NoisySource, OptimalTransport
from fm_ext.data import load_images
from fm_ext.hub import FlowModel, to_grid, to_pictures
from fm_ext.loss import velocity_loss
from fm_ext.metrics import classifier
from fm_ext.models import MLP
from fm_ext.path import CoupledProbPath
from fm_ext.solver import ODESolver

torch.manual_seed(0)
data = next(folder for folder in (Path("../data"), Path("fm_ext/examples/data")) if folder.exists())

# %% smoke="training_steps, batch_size, garment_count = 2, 16, 12"
training_steps = 1500
batch_size = 256
garment_count = 200

# %% [markdown]
# ## Which source goes to which target
#
# Eight Gaussians on a circle, and two moons. A coupling returns the sources in another order; targets stay, and so do
# labels and masks that belong to them.


# %%
def gaussians(count: int) -> torch.Tensor:
    angle = torch.randint(8, (count,)) * (torch.pi / 4)
    return 2 * torch.stack([angle.cos(), angle.sin()], dim=1) + 0.2 * torch.randn(count, 2)


def moons(count: int) -> torch.Tensor:
    angle, lower = torch.pi * torch.rand(count), torch.rand(count) < 0.5
    x = torch.where(lower, 1 - angle.cos(), angle.cos())
    y = torch.where(lower, 0.5 - angle.sin(), angle.sin())
    return torch.stack([1.5 * x - 0.75, 1.5 * y - 0.375], dim=1) + 0.05 * torch.randn(count, 2)


couplings = {"independent": IndependentCoupling(), "optimal transport": OptimalTransport()}
x_0, x_1 = gaussians(batch_size), moons(batch_size)
figure, axes = plt.subplots(1, 2, figsize=(8, 4), layout="constrained")
for axis, (name, coupling) in zip(axes, couplings.items(), strict=True):
    paired, source_index = coupling(x_0, x_1)
    axis.plot(*torch.stack([paired, x_1]).unbind(2), color="0.7", linewidth=0.6)
    axis.plot(*paired.T, ".", markersize=3)
    axis.plot(*x_1.T, ".", markersize=3)
    cost = (paired - x_1).square().sum(1).mean()
    axis.set(title=f"{name}: mean squared distance {cost:.1f}", aspect="equal")
plt.show()

# %% [markdown]
# Short pairs do not cross, so the velocity hardly changes on the way, and few steps are enough.

# %%
flows = {}
for name, coupling in couplings.items():
    path = CoupledProbPath(CondOTProbPath(), coupling)
    model = MLP(dim=2)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(training_steps):
        sample = path.sample(gaussians(batch_size), moons(batch_size), torch.rand(batch_size))
        optimizer.zero_grad()
        velocity_loss(model(x=sample.x_t, t=sample.t), sample).backward()
        optimizer.step()
    flows[name] = ODESolver(model)

start = gaussians(500)
figure, axes = plt.subplots(2, 3, figsize=(10, 6.6), layout="constrained")
for row, (name, solver) in zip(axes, flows.items(), strict=True):
    for axis, steps in zip(row, (1, 2, 20), strict=True):
        times = torch.linspace(0, 1, steps + 1)
        states = solver.sample(start, time_grid=times, return_intermediates=True)
        axis.plot(*states[:, :80].unbind(2), color="0.7", linewidth=0.6)
        axis.plot(*states[-1].T, ".", markersize=2)
        axis.set(title=f"{name}, {steps} Euler steps", xlim=(-3, 3), ylim=(-3, 3), aspect="equal")
plt.show()

# %% [markdown]
# Do not expect as much of images: at hundreds of dimensions all pairs are nearly as far apart, and optimal transport
# gains 3 to 7 % of the cost between noise and images. Between garments and digits it gains 17 %.
#
# ## Garments to digits
#
# A network that comes with the package, trained by transport and with noise in the source. Noise makes the answer a
# draw.

# %%
garments, _ = load_images(str(data / "fashion_mnist"), limit=garment_count)
flow = FlowModel.from_pretrained("garments_to_digits")
translated = [flow.translate(garments) for _ in range(2)]
rows = [garments[:12], *(digits[:12] for digits in translated)]
plt.figure(figsize=(10, 2.6))
plt.imshow(to_grid(to_pictures(torch.cat(rows)), columns=12), cmap="gray")
plt.axis("off")
plt.show()

# %% [markdown]
# How many are digits? A classifier that was trained on digits says how sure it is; its label has no right answer here.

# %%
with torch.no_grad():
    sure, digit = classifier("mnist")(translated[0]).softmax(1).max(1)
print(
    f"{(sure > 0.9).float().mean():.0%} of {len(garments)} are read with more than 90 % certainty"
)
print("digits 0 to 9:", digit.bincount(minlength=10).tolist())

# %% [markdown]
# ## Train such a flow
#
# The path of that network. Sources are paired with targets in each batch, then noise is added to them:

# %%
path = CoupledProbPath(CoupledProbPath(CondOTProbPath(), NoisySource(std=0.5)), OptimalTransport())
digits, _ = load_images(str(data / "mnist"), limit=64)
sample = path.sample(garments[:12], digits[:12], torch.rand(12))
print(f"{(sample.source_index != torch.arange(12)).sum()} of 12 garments changed their digit")

# %% [markdown]
# The loop around it is the one of the plane, with images for points; `examples/image_to_image.py` compares five
# couplings and networks. With pairs, a sketch and its photograph, leave `OptimalTransport` out.
