# %% [markdown]
# # A network of your own
#
# A flow asks one thing of a network: a velocity `v(x, t)`. Here it is diffusers' `UNet2DModel`, which wants other
# names, times of 0 to 1000, and returns an object. `UNetWrapper` stands between. Then it is trained on digits of ten
# classes, samples are drawn with guidance, holes are filled without training for them, and all is saved as a folder.

# %%
import importlib.util
import subprocess

if importlib.util.find_spec("fm_ext") is None:  # in Colab, for example
    subprocess.run("git clone --depth 1 https://github.com/fm-ext/fm_ext", shell=True, check=True)
    subprocess.run(
        "pip install -q './fm_ext[train,hub,diffusers,examples]'", shell=True, check=True
    )
    importlib.invalidate_caches()

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from diffusers import UNet2DModel
from flow_matching.path import CondOTProbPath

from fm_ext.data import image_loader, load_images
from fm_ext.hub import FlowModel, register, to_grid, to_pictures
from fm_ext.loss import velocity_loss
from fm_ext.mask import FreeForm
from fm_ext.models import GuidedVelocityModel, UNetWrapper
from fm_ext.solver import InpaintingSolver, ODESolver
from fm_ext.training import Trainer, TrainerConfig, auto_accelerator

torch.manual_seed(0)
data = next(folder for folder in (Path("../data"), Path("fm_ext/examples/data")) if folder.exists())
digits = str(data / "mnist")

# %% smoke="training_steps, channels, steps, each = 2, 8, 2, 1"
training_steps = 800
channels = 24
steps = 10  # of the solver
each = 8  # samples of every class

# %% [markdown]
# ## The network
#
# `label_dropout` hides the class from a tenth of the images, so that the network learns the velocity with and without;
# guidance needs both. The label 10 stands for "no class".

# %%
net = UNet2DModel(
    sample_size=28,
    in_channels=1,
    out_channels=1,
    layers_per_block=1,
    block_out_channels=(channels, 2 * channels),
    norm_num_groups=8,
    down_block_types=("DownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "UpBlock2D"),
    num_class_embeds=11,
)
model = UNetWrapper(net, time_scale=1000, label_dropout=0.1, null_label=10)
print(f"{sum(p.numel() for p in model.parameters()):,} weights")

# %% [markdown]
# ## Train
#
# `Trainer` knows no path and no network: it takes a loss. With `output_dir` it writes checkpoints, and goes on from the
# last one when it is started again.

# %%
path = CondOTProbPath()


def loss(model, batch):
    x_1 = batch["image"]
    t = torch.rand(len(x_1), device=x_1.device)
    sample = path.sample(x_0=torch.randn_like(x_1), x_1=x_1, t=t)
    return velocity_loss(model(x=sample.x_t, t=sample.t, label=batch["label"]), sample)


accelerator = auto_accelerator()
loader = image_loader(digits, batch_size=32, device=accelerator.device)
config = TrainerConfig(
    steps=training_steps, lr=2e-3, warmup=training_steps // 20, log_every=training_steps
)
trainer = Trainer(model, loss, loader, config, accelerator)
trainer.fit()


# %%
def show(images: torch.Tensor, columns: int) -> None:
    """Images in [-1, 1], side by side."""
    plt.figure(figsize=(0.7 * columns, 0.7 * len(images) / columns))
    plt.imshow(to_grid(to_pictures(images.cpu().clamp(-1, 1)), columns=columns), cmap="gray")
    plt.axis("off")
    plt.show()


# %% [markdown]
# ## Sample, with guidance
#
# Columns are classes. Guidance moves samples away from the other classes: clearer digits, less variety.

# %%
label = torch.arange(10).repeat(each).to(accelerator.device)
noise = torch.randn(len(label), 1, 28, 28, device=accelerator.device)
for scale in (1.0, 3.0):
    solver = ODESolver(GuidedVelocityModel(trainer.ema_model, guidance_scale=scale))
    show(solver.sample(noise, steps=steps, method="midpoint", label=label), columns=10)

# %% [markdown]
# ## Fill holes with it
#
# It never saw a mask. `InpaintingSolver` steers a flow that was trained on whole images, by one of nine methods.

# %%
image, classes = load_images(digits, limit=10, device=accelerator.device)
mask = FreeForm(area=(0.2, 0.3))(len(image), image.shape[-2:], device=accelerator.device)
solver = InpaintingSolver(trainer.ema_model, scheduler=path.scheduler, method="flower")
filled = solver.sample(image, mask=mask, steps=3 * steps, label=classes)
show(torch.cat([image, image.masked_fill(mask, 0.0), filled]), columns=10)

# %% [markdown]
# ## Save and share
#
# A folder holds names and numbers, no code, so a class that is not fm_ext's is registered under a name first.
# `flow.push_to_hub("you/digits")` puts the folder on the hub.

# %%
register(
    "diffusers_unet_2d",
    arguments=lambda net: {k: v for k, v in net.config.items() if not k.startswith("_")},
)(UNet2DModel)
flow = FlowModel(
    trainer.ema_model, path, shape=(1, 28, 28), classes=[str(digit) for digit in range(10)]
)
flow.save_pretrained("outputs/own_model")
again = FlowModel.from_pretrained("outputs/own_model")
show(again.sample(10, label=list(range(10)), steps=steps, guidance_scale=2.0), columns=10)
