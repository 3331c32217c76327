"""Train an inpainting flow on real images with accelerate, then fill holes in images that it has not seen.

    accelerate launch examples/inpainting.py                     # shipped MNIST digits, minutes on a CPU
    accelerate launch examples/inpainting.py --dataset examples/data/portraits --size 64 --flip --steps 20000 --lr 5e-4
    accelerate launch examples/inpainting.py --dataset <name or folder> --size 256 --steps 300000 --lr 1e-4
Prints PSNR and SSIM in the holes of every kind of mask, beside two classical answers; saves a picture and the weights.
Run again, it goes on from its last checkpoint; a finished run is only evaluated.
"""

import argparse
import json
import os
from pathlib import Path

import cv2
import matplotlib.pyplot as plt
import torch
from flow_matching.path import CondOTProbPath
from flow_matching.solver import ODESolver
from torchvision.utils import make_grid

from fm_ext.data import image_loader, load_images
from fm_ext.hub import FlowModel
from fm_ext.loss import UniformTime, velocity_loss
from fm_ext.mask import CenterBox, FreeForm, Hybrid, Irregular, RandomBox
from fm_ext.metrics import hole_psnr, hole_ssim
from fm_ext.models import MaskedVelocityModel, UNet, UNetWrapper
from fm_ext.path import MaskedProbPath
from fm_ext.sampling import to_uint8
from fm_ext.training import Trainer, TrainerConfig, auto_accelerator, leave_to_main

MASKS = {mask.__name__: mask() for mask in (CenterBox, RandomBox, FreeForm, Irregular, Hybrid)}
SMOKE = os.environ.get("FM_EXT_SMOKE") == "1"
DIGITS = str(Path(__file__).parent / "data" / "mnist")
FILLS = 4  # of each hole, each by 8 steps of the midpoint method

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--dataset", default=DIGITS)
parser.add_argument("--size", type=int, default=28)
parser.add_argument("--mask", choices=MASKS, default="Hybrid", help="the masks of training")
parser.add_argument("--steps", type=int, default=2 if SMOKE else 1100)
parser.add_argument("--batch-size", type=int, default=32)
parser.add_argument("--lr", type=float, default=2e-3)
parser.add_argument("--unet", type=json.loads, default={}, help="changes, '{\"channels\": 32}'")
parser.add_argument("--flip", action="store_true", help="mirror every second image; never digits")
parser.add_argument("--output", type=Path, default=Path("outputs/inpainting"))
args = parser.parse_args()

accelerator = auto_accelerator()

# ---- train ----------------------------------------------------------------------------------
data = {"source": args.dataset, "size": args.size, "device": accelerator.device}
loader = image_loader(**data, batch_size=args.batch_size, flip=args.flip)
images, _ = load_images(**data, limit=4 if SMOKE else 128)
channels = images.shape[1]
torch.manual_seed(0)
net = UNet.preset(args.size, channels + 1, channels, **args.unet)
model = UNetWrapper(net, concat=("mask",))
path, times = MaskedProbPath(CondOTProbPath()), UniformTime()


def loss(model, batch):
    x_1 = batch["image"]
    mask = MASKS[args.mask](len(x_1), x_1.shape[-2:], device=x_1.device)
    t = times(len(x_1), device=x_1.device)
    sample = path.sample(torch.randn_like(x_1), x_1, t, mask=mask)
    return velocity_loss(model(x=sample.x_t, t=sample.t, mask=sample.mask), sample)


config = TrainerConfig(
    steps=args.steps,
    lr=args.lr,
    warmup=args.steps // 20,
    ema_decay=0.999,
    log_every=min(50, args.steps),
    output_dir=args.output / "checkpoints",
)
trainer = Trainer(model, loss, loader, config, accelerator)
trainer.fit()
leave_to_main(accelerator)
flow = FlowModel(trainer.ema_model, path, shape=(channels, args.size, args.size))
flow.save_pretrained(args.output / "pretrained")

# ---- fill holes in the test images ----------------------------------------------------------
solver = ODESolver(MaskedVelocityModel(trainer.ema_model))
print(f"PSNR (dB) and SSIM in the holes of {len(images)} test images")
print("mask        missing      one fill  mean of fills          Telea      mean fill")
rows = []
for seed, (name, mask) in enumerate(MASKS.items()):
    torch.manual_seed(seed)
    m = mask(len(images), images.shape[-2:], device=images.device)
    fills = []
    for _ in range(FILLS):
        x_init = torch.where(m, torch.randn_like(images), images)
        with accelerator.autocast():
            fill = solver.sample(x_init, step_size=0.125, method="midpoint", mask=m)
        assert torch.equal(fill.masked_fill(m, 0), images.masked_fill(m, 0))  # bit for bit
        fills.append(fill.clamp(-1, 1))
    pixels = to_uint8(images).movedim(1, 3).squeeze(-1).cpu().numpy()
    pairs = zip(pixels, m[:, 0].byte().cpu().numpy(), strict=True)
    telea = [torch.from_numpy(cv2.inpaint(p, h, 3, cv2.INPAINT_TELEA)) for p, h in pairs]
    telea = torch.stack(telea).view(len(images), args.size, args.size, -1).movedim(3, 1)
    telea = telea.to(images.device) / 127.5 - 1
    mean = (images * ~m).sum((2, 3), keepdim=True) / (~m).sum((2, 3), keepdim=True)
    answers = fills[0], torch.stack(fills).mean(0), telea, torch.where(m, mean, images)
    scores = [f"{hole_psnr(a, images, m):8.2f} {hole_ssim(a, images, m):5.2f}" for a in answers]
    print(f"{name:<12}{m.float().mean():>6.0%} {' '.join(scores)}")
    pictures = torch.stack([images, images.masked_fill(m, 0), telea, *fills], dim=1).cpu()
    rows.append(pictures[2 * seed : 2 * seed + 2] if len(images) > 10 else pictures[:2])

grid = make_grid(torch.cat(rows).flatten(0, 1) / 2 + 0.5, 2 * (3 + FILLS))
titles = ["original", "masked", "Telea", *["ours"] * FILLS] * 2
plt.figure(figsize=(14, 5.4))
plt.imshow(grid.movedim(0, 2), extent=(0, len(titles), len(MASKS), 0), aspect="auto")
plt.xticks(torch.arange(len(titles)) + 0.5, titles)
plt.yticks(torch.arange(len(MASKS)) + 0.5, list(MASKS))
plt.tick_params(length=0, labeltop=True, labelbottom=False)
plt.savefig(args.output / "inpainting.png", dpi=100, bbox_inches="tight")
print(f"saved {args.output}/inpainting.png; the weights are in {args.output}/checkpoints")
