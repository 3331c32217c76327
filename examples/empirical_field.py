"""Compute exactly the velocity that a flow-matching network estimates, for a finite data set.

    python examples/empirical_field.py                  # some minutes on one core
The data are 3,000 handwritten digits of 16x16 pixels. Their exact velocity, `EmpiricalVelocityModel`, is compared with
a small network that was trained on them. Prints what each section found; saves outputs/empirical_field.png and
outputs/empirical_field.gif, on which both fields carry the same noise to digits.
"""

import os
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from flow_matching.path import CondOTProbPath
from flow_matching.path.scheduler import CondOTScheduler
from flow_matching.solver import ODESolver
from PIL import Image
from plots import save_figure
from torch import Tensor, nn

from fm_ext.data import load_images
from fm_ext.metrics import memorisation, nearest_distance
from fm_ext.models import EmpiricalVelocityModel, SmallUNet

SMOKE = os.environ.get("FM_EXT_SMOKE") == "1"
IMAGES = 60 if SMOKE else 3000
SAMPLES = 16 if SMOKE else 128
STEPS = 10 if SMOKE else 100  # of the solver
PAIRS, GROUP = (512, 32) if SMOKE else (16384, 256)  # of the two losses, and how many at a time
TRAINING_STEPS, BATCH = (3, 16) if SMOKE else (1500, 128)
CHOSEN, ITERATIONS = (8, 3) if SMOKE else (64, 15)  # states and power iterations of section 5
DATA = Path(__file__).parent / "data" / "mnist"
torch.manual_seed(0)


# ---- 1. an image is a vector -----------------------------------------------------------------
# 16 x 16 grey values are one point of a space of 256 dimensions. Neighbouring pixels agree, so the digits fill only a
# small part of that space; the flow has to find it.
train, _ = load_images(str(DATA), split="train", size=16, limit=IMAGES)
test, _ = load_images(str(DATA), split="test", size=16, limit=IMAGES // 6)
neighbours = torch.stack([train[..., 1:].flatten(), train[..., :-1].flatten()]).corrcoef()[0, 1]
variance = torch.linalg.svdvals(train.flatten(1) - train.flatten(1).mean(0)).square()
half = int((variance.cumsum(0) < 0.9 * variance.sum()).sum()) + 1
print(f"1. {len(train)} images, {train[0].numel()} pixels each")
print(
    f"   correlation of neighbouring pixels {neighbours:.2f}; 90 % of the variance lies in {half} directions"
)


# ---- 2. the exact flow memorises -------------------------------------------------------------
# The marginal velocity is the mean of the conditional ones, weighted by the probability of each image given the state.
# Its flow carries the noise exactly to the data: to the training images, and nowhere else.
field = EmpiricalVelocityModel(train, CondOTScheduler())
noise = torch.randn(SAMPLES, 1, 16, 16)
grid = torch.linspace(0, 1, STEPS + 1)


def flow(model: nn.Module) -> Tensor:
    """The states at all times of the grid, `(time, sample, 1, 16, 16)`."""
    with torch.no_grad():
        solver = ODESolver(model)
        return solver.sample(noise, None, time_grid=grid, return_intermediates=True)


states = flow(field)
exact_distance = nearest_distance(states[-1], train)
final = torch.cdist(states[-1].flatten(1), train.flatten(1)).argmin(1)
certainty = torch.stack(
    [
        field.posterior_weights(x, t)[torch.arange(SAMPLES), final]
        for x, t in zip(states, grid, strict=True)
    ]
)  # the probability, at each time, of the image that the flow will end at
committed = torch.tensor([float(grid[(c < 0.5).sum()]) for c in certainty.T])
print("2. the exact flow")
print(
    f"   distance to the nearest training image: median {exact_distance.median():.1e}, "
    f"largest {exact_distance.max():.1e}; of a test image {nearest_distance(test, train).median():.1f}"
)
print(f"   {len(final.unique())} different images from {SAMPLES} noises")
print(
    f"   its image has probability 1/2 from t = {committed.median():.2f} on "
    f"(first {committed.min():.2f}, last {committed.max():.2f})"
)


# ---- 3. marginalisation: two losses, one gradient --------------------------------------------
# Flow matching would regress on the exact velocity; conditional flow matching regresses on x_1 - x_0, which is cheap.
# Their gradients have the same mean, so their difference is an average of noise: it falls as 1 / sqrt(n).
path = CondOTProbPath()
network = SmallUNet()
parameters = list(network.parameters())


def gradient(velocity: Tensor, target: Tensor) -> Tensor:
    loss = (velocity - target).square().mean()
    parts = torch.autograd.grad(loss, parameters, retain_graph=True)
    return torch.cat([part.flatten() for part in parts])


marginal, difference = [], []
for _ in range(PAIRS // GROUP):
    x_1 = train[torch.randint(len(train), (GROUP,))]
    sample = path.sample(x_0=torch.randn_like(x_1), x_1=x_1, t=torch.rand(GROUP))
    velocity = network(sample.x_t, sample.t)
    with torch.no_grad():
        exact = field(x=sample.x_t, t=sample.t)
    marginal.append(gradient(velocity, exact))
    difference.append(marginal[-1] - gradient(velocity, sample.dx_t))
size = torch.stack(marginal).mean(0).norm()
pairs, gaps = [], []
while (count := GROUP * 4 ** len(pairs)) <= PAIRS / 4:
    means = torch.stack(difference).unflatten(0, (-1, count // GROUP)).mean(1)
    pairs.append(count)
    gaps.append(float(means.norm(dim=1).square().mean().sqrt() / size))
print("3. |gradient of the FM loss - gradient of the CFM loss| / |gradient of the FM loss|")
print("   " + ", ".join(f"{n} pairs {g:.4f}" for n, g in zip(pairs, gaps, strict=True)))
print(
    f"   each 4 times more pairs divide it by {(gaps[0] / gaps[-1]) ** (1 / (len(gaps) - 1)):.2f}"
)


# ---- 4. the network --------------------------------------------------------------------------
optimizer = torch.optim.Adam(parameters)
for step in range(TRAINING_STEPS):
    optimizer.param_groups[0]["lr"] = 2e-3 * (1 - step / TRAINING_STEPS)
    x_1 = train[torch.randint(len(train), (BATCH,))]
    sample = path.sample(x_0=torch.randn_like(x_1), x_1=x_1, t=torch.rand(BATCH))
    loss = (network(sample.x_t, sample.t) - sample.dx_t).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
network.eval().requires_grad_(False)


# ---- 5. does the ODE have a solution, and is it the only one? ---------------------------------
# Picard and Lindeloef: yes, where the velocity is Lipschitz in x. The exact field is smooth at every t < 1, so two
# flows never meet before 1. But its constant has no bound as t -> 1: 1 / (1 - t) near every image, for the flow
# contracts to it, and t d^2 / (4 (1 - t)^3) half-way between two images at the distance d, where flows part for good.
def lipschitz(model: nn.Module, x: Tensor, t: Tensor) -> float:
    """The largest singular value of the derivative at these states, by power iterations."""
    direction = torch.randn_like(x)
    x = x.detach().requires_grad_()
    velocity = model(x=x, t=t)
    for _ in range(ITERATIONS):
        direction = direction / direction.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        (direction,) = torch.autograd.grad(velocity, x, direction, retain_graph=True)
    return float(direction.flatten(1).norm(dim=1).max())


times = torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99])
chosen = train[torch.randperm(len(train))[:CHOSEN]]
distances = torch.cdist(train[:1].flatten(1), train.flatten(1))
pair = train[:1], train[distances.topk(2, largest=False).indices[0, 1:]]
constants: dict[str, list[float]] = {"exact": [], "exact, between two images": [], "network": []}
for t in times:
    x_t = path.sample(x_0=torch.randn_like(chosen), x_1=chosen, t=t.expand(len(chosen))).x_t
    constants["exact"].append(lipschitz(field, x_t, t))
    constants["exact, between two images"].append(lipschitz(field, t * (pair[0] + pair[1]) / 2, t))
    constants["network"].append(lipschitz(network, x_t, t))
print(f"5. largest |du/dx| at {CHOSEN} states of the path")
print(f"   {'t':<26}" + "".join(f"{t:9.2f}" for t in times))
for name, values in constants.items():
    print(f"   {name:<26}" + "".join(f"{value:9.1f}" for value in values))


# ---- 6. how far is the network from the exact field? ------------------------------------------
# On the training images the exact field has the least loss of all functions. On test images it has not: it leads them
# to training images. What the network does instead of the exact field is its generalisation.
def compare(images: Tensor) -> tuple[list[float], list[float], list[float]]:
    """Per time: mean squares of network - exact, and the CFM losses of the network and of the exact field."""
    gap, network_loss, exact_loss = [], [], []
    for t in times[:-2]:
        s = path.sample(x_0=torch.randn_like(images), x_1=images, t=t.expand(len(images)))
        learnt, exact = network(s.x_t, s.t), field(x=s.x_t, t=s.t)
        gap.append(float((learnt - exact).square().mean()))
        network_loss.append(float((learnt - s.dx_t).square().mean()))
        exact_loss.append(float((exact - s.dx_t).square().mean()))
    return gap, network_loss, exact_loss


results = {"training": compare(train[:500]), "test": compare(test)}
print("6. mean squares per pixel, on states of")
print("                               t" + "".join(f"{t:8.2f}" for t in times[:-2]))
for name, values in results.items():
    for what, row in zip(
        ("network - exact", "loss of network", "loss of exact"), values, strict=True
    ):
        print(f"   {name:<9} images: {what:<16}" + "".join(f"{value:8.4f}" for value in row))
learnt_states = flow(network)
learnt_distance = nearest_distance(learnt_states[-1], train)
score = memorisation(learnt_distance, nearest_distance(test, train))
print(
    f"   samples of the network: median distance to a training image {learnt_distance.median():.1f}; "
    f"nearer than a test image is with probability {score:.2f}"
)


# ---- the picture and the film (nothing of the lesson is below) ---------------------------------
def tiles(images: Tensor, columns: int) -> Tensor:
    """Images side by side, in [0, 1]."""
    images = (images.clamp(-1, 1) + 1) / 2
    rows = images.view(-1, columns, 16, 16)
    return rows.permute(0, 2, 1, 3).reshape(len(rows) * 16, columns * 16)


def show(ax: plt.Axes, images: Tensor, columns: int, title: str) -> None:
    ax.imshow(tiles(images, columns), cmap="gray", vmin=0, vmax=1)
    ax.set(title=title, xticks=[], yticks=[])


figure, axes = plt.subplots(2, 4, figsize=(20, 9.5), layout="constrained")
moments = (torch.tensor([0.0, 0.2, 0.4, 0.6, 0.8, 1.0]) * STEPS).round().long()
show(axes[0, 0], states[moments, :6].transpose(0, 1), 6, "exact flow, t = 0 to 1 in steps of 0.2")
believed = torch.stack([field.target(states[m, :6], grid[m]) for m in moments])  # E[X_1 | x_t]
show(axes[0, 1], believed.transpose(0, 1), 6, "what it expects to reach, E[X_1 | x_t]")
nearest = train[torch.cdist(learnt_states[-1].flatten(1), train.flatten(1)).argmin(1)]
compared = torch.stack([learnt_states[-1, :12], nearest[:12]]).view(2, 2, 6, 1, 16, 16)
show(
    axes[0, 2],
    compared.transpose(0, 1).reshape(-1, 1, 16, 16),
    6,
    "network's samples, each above its nearest training image",
)
axes[0, 3].plot(grid, certainty[:, :40], color="0.6", linewidth=0.6)
axes[0, 3].plot(grid, certainty.mean(1), color="C0", linewidth=2)
axes[0, 3].set(title="probability of the image it will end at", xlabel="t")
axes[1, 0].loglog(pairs, gaps, marker="o", label="measured")
axes[1, 0].loglog(
    pairs, [gaps[0] * (pairs[0] / n) ** 0.5 for n in pairs], "k:", label="1 / sqrt(n)"
)
axes[1, 0].set(title="FM against CFM gradient, relative difference", xlabel="pairs")
axes[1, 0].set_xticks(pairs, [str(n) for n in pairs])
axes[1, 0].minorticks_off()
for name, values in constants.items():
    axes[1, 1].loglog(1 - times, values, marker="o", label=name)
axes[1, 1].loglog(1 - times, 1 / (1 - times), "k:", label="1 / (1 - t)")
axes[1, 1].invert_xaxis()
axes[1, 1].set(title="largest |du/dx|", xlabel="1 - t")
for colour, (name, (gap, network_loss, exact_loss)) in zip(
    ("C0", "C1"), results.items(), strict=True
):
    axes[1, 2].semilogy(times[:-2], gap, marker="o", color=colour, label=f"{name} images")
    axes[1, 3].semilogy(times[:-2], network_loss, color=colour, label=f"network, {name}")
    axes[1, 3].semilogy(times[:-2], exact_loss, "--", color=colour, label=f"exact, {name}")
axes[1, 2].set(title="mean square of network - exact field", xlabel="t")
axes[1, 3].set(title="CFM loss", xlabel="t", ylim=(1e-4, 20))
for ax in axes[1]:
    ax.legend()
save_figure(figure, Path("outputs/empirical_field.png"), dpi=80)

frames = []
for exact, learnt in zip(states, learnt_states, strict=True):
    line = torch.ones(16 * 4, 4)  # between the exact field's digits and the network's
    frame = torch.cat([tiles(exact[:16], 4), line, tiles(learnt[:16], 4)], 1)
    picture = Image.fromarray((255 * frame).byte().numpy())
    frames.append(picture.resize((3 * picture.width, 3 * picture.height), Image.Resampling.NEAREST))
frames += [frames[-1]] * 20
frames[0].save(
    "outputs/empirical_field.gif", save_all=True, append_images=frames[1:], duration=60, loop=0
)
print("saved outputs/empirical_field.gif: left the exact field, right the network")
