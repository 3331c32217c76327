"""Inpainting in latent space: an autoencoder, the data set encoded once, a masked flow on latents, pixels pasted back.

    accelerate launch examples/latent_inpainting.py               # shipped portraits at 64 pixels, on a CPU
    accelerate launch examples/latent_inpainting.py --dataset <name or folder> --size 256 --vae <name or folder>
Without --vae it trains a small autoencoder of 4x4 pixels a cell on the spot; with it, diffusers' AutoencoderKL of that
name is used (pip install 'fm_ext[diffusers]'); --pixels is the same flow without an autoencoder, to compare with.
Prints how wrong known latents are at 1, 2, ... cells from a hole, what the autoencoder loses, and PSNR, SSIM and the
seam of the fills, pasted and blended; saves a picture. Run again, it goes on.
"""

import argparse
import os
import time
from pathlib import Path

import torch
from flow_matching.path import CondOTProbPath
from plots import save_rows
from torch import nn

from fm_ext.data import image_loader, latent_loader, load_images, write_latents
from fm_ext.hub import FlowModel, register
from fm_ext.loss import ShiftedTime, UniformTime, velocity_loss
from fm_ext.mask import CenterBox, FreeForm, Hybrid, Irregular, RandomBox
from fm_ext.metrics import hole_psnr, hole_ssim, seam_gradient
from fm_ext.models import (
    LatentCodec,
    MaskedVelocityModel,
    PredictionVelocityModel,
    UNet,
    UNetWrapper,
)
from fm_ext.path import MaskedProbPath
from fm_ext.solver import ODESolver
from fm_ext.training import Trainer, TrainerConfig, auto_accelerator, leave_to_main

SMOKE = os.environ.get("FM_EXT_SMOKE") == "1"
MASKS = {mask.__name__: mask() for mask in (CenterBox, RandomBox, FreeForm, Irregular, Hybrid)}
PORTRAITS = str(Path(__file__).parent / "data" / "portraits")

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--dataset", default=PORTRAITS)
parser.add_argument("--size", type=int, default=16 if SMOKE else 64)
parser.add_argument("--vae", help="a name or folder of diffusers' AutoencoderKL")
parser.add_argument("--pixels", action="store_true", help="no autoencoder")
parser.add_argument("--vae-steps", type=int, default=2 if SMOKE else 2000)
parser.add_argument("--steps", type=int, default=2 if SMOKE else 4000)
parser.add_argument(
    "--batch-size", type=int, default=16, help="of the flow; the autoencoder's is half"
)
parser.add_argument("--channels", type=int, default=16 if SMOKE else 64, help="of the flow's U-Net")
parser.add_argument("--dilation", type=int, default=1, help="rim of latents given up around a hole")
parser.add_argument("--images", type=int, default=4 if SMOKE else 90, help="to fill")
parser.add_argument(
    "--masks", nargs="+", choices=MASKS, default=list(MASKS), help="of the holes to fill"
)
parser.add_argument(
    "--solver-steps", type=int, default=2 if SMOKE else 16, help="of the midpoint method"
)
parser.add_argument("--output", type=Path, default=Path("outputs/latent_inpainting"))
args = parser.parse_args()
accelerator = auto_accelerator()
data = {"source": args.dataset, "size": args.size, "channels": 3}
sample_of_data, _ = load_images(**data, split="train", limit=8 if SMOKE else 256)


# ---- the autoencoder ------------------------------------------------------------------------
@register("small_autoencoder")  # so that a folder can name it
class Autoencoder(nn.Module):
    """Sixteen pixels to four numbers, by strided convolutions."""

    def __init__(self, width=24, latent=4):
        super().__init__()
        self.width, self.latent = width, latent
        conv, act = nn.Conv2d, nn.SiLU
        self.encode = nn.Sequential(
            *(conv(3, width, 3, padding=1), act(), conv(width, width, 4, 2, 1), act()),
            *(conv(width, 2 * width, 4, 2, 1), act(), conv(2 * width, latent, 3, padding=1)),
        )
        self.decode = nn.Sequential(
            *(
                conv(latent, 2 * width, 3, padding=1),
                act(),
                conv(2 * width, 2 * width, 3, padding=1),
            ),
            *(act(), conv(2 * width, 4 * width, 3, padding=1), nn.PixelShuffle(2), act()),
            *(conv(width, 4 * width, 3, padding=1), nn.PixelShuffle(2), act()),
            conv(width, 3, 3, padding=1),
        )

    def forward(self, images):
        latents = self.encode(images)
        noisy = latents + 0.05 * torch.randn_like(latents)  # so that near latents decode alike
        return self.decode(noisy), latents


def reconstruction_loss(model, batch):
    images, latents = model(batch["image"])
    return (images - batch["image"]).abs().mean() + 1e-3 * latents.square().mean()


class Pixels(nn.Identity):
    encode = decode = nn.Identity.forward


if args.pixels:
    codec = LatentCodec(Pixels(), factor=1).to(accelerator.device)
elif args.vae is None:
    config = TrainerConfig(steps=args.vae_steps, lr=1e-3, output_dir=args.output / "autoencoder")
    loader = image_loader(**data, batch_size=args.batch_size // 2)
    trainer = Trainer(Autoencoder(), reconstruction_loss, loader, config, accelerator)
    trainer.fit()
    codec = LatentCodec(trainer.ema_model, factor=4, dilation=args.dilation, batch_size=64)
    codec = codec.to(accelerator.device).standardized(sample_of_data.to(accelerator.device))
    accelerator.free_memory()
else:
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(args.vae).to(accelerator.device)
    codec = LatentCodec(vae, dilation=args.dilation, batch_size=8).to(accelerator.device)

print(f"autoencoder: {time.process_time():.0f} seconds of the processor from the start")

# ---- the latents, encoded once; each process writes its share -------------------------------
write_latents(codec=codec, folder=args.output / "latents", device=accelerator.device, **data)
accelerator.wait_for_everyone()
latents = latent_loader(args.output / "latents", batch_size=args.batch_size)

# ---- the flow: the masked path, with the latents' masks -------------------------------------
width = next(iter(latents))["latent"].shape[1]
patch = max(1, args.size // 32) if args.pixels else 1  # the same network, at 32x32 in both spaces
net = UNet.preset(32, width + 1, width, channels=args.channels, patch_size=patch)
path = MaskedProbPath(CondOTProbPath())
times = ShiftedTime(shift=3.0) if args.pixels else UniformTime()  # pixels decide colours early
# The noise of a patch has more numbers than the network has channels, an image of it has not: predict that.
predicts = "x_1" if args.pixels else "velocity"


def loss(model, batch):
    z_1 = batch["latent"]
    pixels = MASKS["Hybrid"](len(z_1), (args.size, args.size), device=z_1.device)
    t = times(len(z_1), device=z_1.device)
    sample = path.sample(torch.randn_like(z_1), z_1, t, mask=codec.mask(pixels))
    answer = model(x=sample.x_t, t=sample.t, mask=sample.mask)
    return velocity_loss(answer, sample, prediction=predicts, scheduler=path.scheduler, t_eps=0.05)


config = TrainerConfig(
    steps=args.steps,
    lr=2e-3,
    warmup=args.steps // 20,
    ema_decay=0.99 if args.steps < 2000 else 0.999,
    output_dir=args.output / "flow",
)
trainer = Trainer(UNetWrapper(net, concat=("mask",)), loss, latents, config, accelerator)
trainer.fit()
leave_to_main(accelerator)
velocity_model = PredictionVelocityModel(
    trainer.ema_model, path.scheduler, prediction=predicts, t_eps=(0.05, 0.05)
)
flow = FlowModel(
    velocity_model,
    path,
    shape=(3, args.size, args.size),
    codec=None if args.pixels else codec,
)
flow.save_pretrained(args.output / "pretrained")
print(f"the network and its autoencoder are in {args.output}/pretrained")
print(f"flow: {time.process_time():.0f} seconds of the processor from the start")

# ---- fill holes in the test images ----------------------------------------------------------
images, _ = load_images(**data, split="test", limit=args.images, device=accelerator.device)
solver = ODESolver(MaskedVelocityModel(velocity_model))
autoencoded = codec.decode(codec.encode(images)).clamp(-1, 1)
blended = LatentCodec(codec.vae, factor=codec.factor, blend=True)
rows, titles = [], []
for seed, (name, mask) in enumerate(MASKS.items()):
    if name not in args.masks:
        continue
    torch.manual_seed(seed)
    m = mask(len(images), images.shape[-2:], device=images.device)
    cells, known = codec.mask(m), codec.encode(images, m)
    with accelerator.autocast():
        z_0 = torch.where(cells, torch.randn_like(known), known)
        z_1 = solver.sample(z_0, steps=args.solver_steps, method="midpoint", mask=cells)
    decoded = codec.decode(z_1.float()).clamp(-1, 1)
    fills = {
        "pasted": codec.paste(decoded, images, m),
        "blended": blended.paste(decoded, images, m),
    }
    answers = {"true image": images, "autoencoded": torch.where(m, autoencoded, images), **fills}
    reach = " ".join(f"{error:.3f}" for error in codec.contamination(images, m))
    print(
        f"{name}: {m.float().mean():.0%} missing; error of known latents {reach};   PSNR  SSIM  seam"
    )
    for what, answer in answers.items():
        assert torch.equal(answer.masked_fill(m, 0), images.masked_fill(m, 0))  # bit for bit
        figures = f"{hole_psnr(answer, images, m):6.2f} {hole_ssim(answer, images, m):5.2f}"
        print(f"    {what:<12} {figures} {seam_gradient(answer, m):5.2f}", flush=True)
    rows += [images[:8], images[:8].masked_fill(m[:8], 0), *(fill[:8] for fill in fills.values())]
    titles += [f"{name}: {what}" for what in ("original", "masked", *fills)]

save_rows(args.output / "latent_inpainting.png", rows, titles)
