# %% [markdown]
# # Fill holes
#
# First with a network that comes with the package, in digits and with masks of your own. Then a network is trained,
# which is how it is done for other images.

# %%
import importlib.util
import subprocess

if importlib.util.find_spec("fm_ext") is None:  # in Colab, for example
    subprocess.run("git clone --depth 1 https://github.com/fm-ext/fm_ext", shell=True, check=True)
    subprocess.run("pip install -q './fm_ext[train,hub,examples]'", shell=True, check=True)
    importlib.invalidate_caches()

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from flow_matching.path import CondOTProbPath

from fm_ext.data import image_loader, load_images
from fm_ext.hub import FlowModel, shipped_names, to_grid, to_pictures
from fm_ext.loss import velocity_loss
from fm_ext.mask import FreeForm, Hybrid, RandomBox
from fm_ext.models import SmallUNet, UNetWrapper
from fm_ext.path import MaskedProbPath
from fm_ext.training import Trainer, TrainerConfig, auto_accelerator

torch.manual_seed(0)
data = next(folder for folder in (Path("../data"), Path("fm_ext/examples/data")) if folder.exists())
digits = str(data / "mnist")

# %% smoke="steps, training_steps = 1, 2"
steps = 8  # of the solver
training_steps = 600


# %%
def show(*rows: torch.Tensor, titles: list[str]) -> None:
    """Rows of images, `(batch, channel, height, width)` in [-1, 1] each."""
    grid = to_grid(to_pictures(torch.cat(rows)), columns=len(rows[0]))
    plt.figure(figsize=(len(rows[0]), len(rows)))
    plt.imshow(grid, cmap="gray", extent=(0, len(rows[0]), len(rows), 0))
    plt.yticks([i + 0.5 for i in range(len(rows))], titles)
    plt.xticks([])
    plt.show()


# %% [markdown]
# ## A network that comes with the package
#
# A mask is bool, `(batch, 1, height, width)`, and `True` where a pixel is *missing*.

# %%
print("shipped:", ", ".join(shipped_names()))
flow = FlowModel.from_pretrained("mnist")
image, _ = load_images(digits, limit=8)
mask = FreeForm(area=(0.2, 0.3))(len(image), image.shape[-2:])
fills = flow.fill(image, mask, fills=3, steps=steps)  # three answers for each hole
show(
    image,
    image.masked_fill(mask, 0.0),
    *fills,
    titles=["truth", "hole", "fill", "fill", "fill"],
)
known = ~mask.expand_as(image)  # in every channel
assert torch.equal(fills[0][known], image[known])  # bit for bit

# %% [markdown]
# A fill is a draw: other noise, another fill. Where they differ is where the picture does not say what is missing:

# %%
spread = fills.std(0) * mask
show(image.masked_fill(mask, 0.0), 2 * spread - 1, titles=["hole", "spread"])

# %% [markdown]
# ## Masks
#
# The package draws boxes, strokes and mixtures. Any bool tensor does as well: here the lower half, and a grid of dots.

# %%
lower = torch.zeros_like(mask)
lower[..., 14:, :] = True
dots = torch.ones_like(mask)
dots[..., ::3, ::3] = False  # one pixel of nine is known
box = RandomBox(area=(0.2, 0.3))(len(image), image.shape[-2:])
rows, titles = [image], ["truth"]
for name, hole in {"box": box, "lower half": lower, "dots": dots}.items():
    rows += [image.masked_fill(hole, 0.0), flow.fill(image, hole, steps=steps)]
    titles += [name, "fill"]
show(*rows, titles=titles)

# %% [markdown]
# ## Train one
#
# `MaskedProbPath` holds the known pixels of any path: the state is noise in the hole only, and so is the velocity. The
# network sees the mask as one more channel. `velocity_loss` counts the missing pixels.

# %%
model = UNetWrapper(SmallUNet(1 + 1, 1), concat=("mask",))
path = MaskedProbPath(CondOTProbPath())


def loss(model, batch):
    x_1 = batch["image"]
    mask = Hybrid()(len(x_1), x_1.shape[-2:], device=x_1.device)
    t = torch.rand(len(x_1), device=x_1.device)
    sample = path.sample(x_0=torch.randn_like(x_1), x_1=x_1, t=t, mask=mask)
    return velocity_loss(model(x=sample.x_t, t=sample.t, mask=sample.mask), sample)


accelerator = auto_accelerator()
loader = image_loader(digits, batch_size=64, device=accelerator.device)
config = TrainerConfig(steps=training_steps, lr=2e-3, log_every=training_steps)
trainer = Trainer(model, loss, loader, config, accelerator)
trainer.fit()

# %% [markdown]
# A folder with `config.json` and `model.safetensors`, which `FlowModel.from_pretrained` loads, here and on the hub:

# %%
mine = FlowModel(trainer.ema_model, path, shape=(1, 28, 28))
mine.save_pretrained("outputs/digits")
mine = FlowModel.from_pretrained("outputs/digits")
show(
    image.masked_fill(mask, 0.0),
    mine.fill(image, mask, steps=steps),
    fills[0],
    titles=["hole", "mine", "shipped"],
)

# %% [markdown]
# ## Change one thing
#
# * your images: `image_loader("<folder of pictures>", size=64, batch_size=16)`, `SmallUNet(3 + 1, 3)` and
#   `shape=(3, 64, 64)`;
# * better fills: more steps, and `UNet.preset(28, in_channels=2, out_channels=1)`; `examples/inpainting.py` does both;
# * a flow that was never shown a mask: `flow.fill(image, mask, method="flower")`.
