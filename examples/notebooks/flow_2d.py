# %% [markdown]
# # Flow matching in the plane
#
# The notebook `2d_flow_matching.ipynb` of flow_matching, with the classes of fm_ext: a network learns the velocity that
# carries a Gaussian to a checkerboard, `ODESolver` draws samples, and the likelihood of every point is computed.
#
# Every object here is one of flow_matching's: the path is a `ProbPath`, the scheduler a `Scheduler`, the solver a
# subclass of its `ODESolver`. To use your own network or path, put it in.

# %%
import importlib.util
import subprocess

if importlib.util.find_spec("fm_ext") is None:  # in Colab, for example
    subprocess.run("git clone --depth 1 https://github.com/fm-ext/fm_ext", shell=True, check=True)
    subprocess.run("pip install -q './fm_ext[examples]'", shell=True, check=True)
    importlib.invalidate_caches()

# %%
import matplotlib.pyplot as plt
import torch

from fm_ext.loss import velocity_loss
from fm_ext.models import MLP
from fm_ext.path import AffineProbPath
from fm_ext.path.scheduler import get_scheduler
from fm_ext.solver import ODESolver

torch.manual_seed(0)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

# %% smoke="steps, batch_size, sample_count, grid_size = 2, 64, 100, 8"
steps = 4000
batch_size = 2048
sample_count = 50_000
grid_size = 100  # points a side, for the likelihood


# %% [markdown]
# ## Data
#
# A checkerboard of eight squares, each with sides of 2.


# %%
def checkerboard(count: int) -> torch.Tensor:
    column = 4 * torch.rand(count) - 2
    row = torch.rand(count) - 2 * torch.randint(0, 2, (count,)) + column.floor() % 2
    return 2 * torch.stack([column, row], dim=1).to(device)


points = checkerboard(sample_count).cpu()
plt.figure(figsize=(3, 3))
plt.hist2d(*points.T.numpy(), bins=150, range=[[-5, 5], [-5, 5]])
plt.gca().set_aspect("equal")
plt.show()

# %% [markdown]
# ## Train
#
# The path says where a sample is at time t, and how it moves: `path_sample.x_t` and `path_sample.dx_t`. The network
# learns the mean of `dx_t`. Schedules go by name; `"cosine"`, `"vp"` and `"cond_ot"` (straight lines) are three of ten.

# %%
path = AffineProbPath(get_scheduler("cond_ot"))
model = MLP(dim=2, hidden=256, activation=torch.nn.SiLU).to(device)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
losses = []
for _ in range(steps):
    x_1 = checkerboard(batch_size)
    x_0 = torch.randn_like(x_1)
    t = torch.rand(batch_size, device=device)
    path_sample = path.sample(x_0=x_0, x_1=x_1, t=t)
    loss = velocity_loss(model(x=path_sample.x_t, t=path_sample.t), path_sample)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
print(
    f"mean loss of the last {min(steps, 200)} steps: {sum(losses[-200:]) / len(losses[-200:]):.3f}"
)

# %% [markdown]
# The loss does not go to 0: many pairs cross at one point, and the network can only learn their mean.
#
# ## Sample
#
# `time_grid` asks for states on the way. Misspelt keywords are errors here; flow_matching's solver ignores them.

# %%
times = torch.linspace(0, 1, 6, device=device)
solver = ODESolver(model)
states = solver.sample(
    torch.randn(sample_count, 2, device=device),
    step_size=0.05,
    method="midpoint",
    time_grid=times,
    return_intermediates=True,
).cpu()
figure, axes = plt.subplots(1, len(times), figsize=(12, 2.3), layout="constrained")
for axis, t, state in zip(axes, times.tolist(), states, strict=True):
    axis.hist2d(*state.T.numpy(), bins=150, range=[[-5, 5], [-5, 5]])
    axis.set(title=f"t = {t:.1f}", xticks=[], yticks=[], aspect="equal")
plt.show()

# %% [markdown]
# ## Likelihood
#
# The flow is a map between densities, so each point has one. The divergence is computed exactly here; in many
# dimensions it is estimated (`exact_divergence=False`).

# %%
line = torch.linspace(-5, 5, grid_size)
grid = torch.cartesian_prod(line, line).to(device)
gaussian = torch.distributions.Independent(
    torch.distributions.Normal(torch.zeros(2, device=device), torch.ones(2, device=device)), 1
)
_, log_p = solver.compute_likelihood(
    x_1=grid, log_p0=gaussian.log_prob, step_size=0.05, method="midpoint", exact_divergence=True
)
density = log_p.exp().reshape(grid_size, grid_size).cpu()
plt.figure(figsize=(3.6, 3))
plt.imshow(density.T, origin="lower", extent=(-5, 5, -5, 5), vmax=1 / 24)
plt.colorbar(label="density; 1/32 in a square")
plt.show()
cell = (10 / (grid_size - 1)) ** 2
print(f"the density adds up to {density.sum() * cell:.3f}")

# %% [markdown]
# ## Change one thing
#
# * another schedule: `get_scheduler("cosine")`, above;
# * straighter paths, for fewer steps: `CoupledProbPath(path, OptimalTransport())`, in the notebook
#   [translation](translation.ipynb);
# * a network of your own: anything that is called as `model(x=x, t=t)`; `UNetWrapper` adapts what is not
#   ([your own model](own_model.ipynb)).
