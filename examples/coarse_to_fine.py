"""Fill and generate large images in two steps: a small image first, then its details. Super-resolution on the way.

    accelerate launch examples/coarse_to_fine.py                  # shipped portraits, 16 pixels and then 64
    accelerate launch examples/coarse_to_fine.py --dataset <name or folder> --size 128
    accelerate launch examples/coarse_to_fine.py --single 4000    # one network at once, to compare with
The coarse flow paints images of a quarter of the side, in holes or from nothing. The fine one sees such an image,
enlarged, as another input of its network, and paints the pixels that are missing; where all are, that is
super-resolution. Prints what enlarged test images and filled holes are worth, and saves a picture of both and of images
from nothing. Run again, it goes on from its last checkpoint.
"""

import argparse
import os
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from flow_matching.path import CondOTProbPath
from plots import save_rows

from fm_ext.data import image_loader, load_images
from fm_ext.loss import ShiftedTime, UniformTime, velocity_loss
from fm_ext.mask import CenterBox, FreeForm, Hybrid, Irregular, RandomBox
from fm_ext.metrics import colour_error, fill_diversity, hole_psnr, hole_ssim, seam_gradient
from fm_ext.models import PredictionVelocityModel, UNet, UNetWrapper
from fm_ext.path import MaskedProbPath
from fm_ext.solver import ExponentialSolver
from fm_ext.training import Trainer, TrainerConfig, auto_accelerator, leave_to_main

SMOKE = os.environ.get("FM_EXT_SMOKE") == "1"
PORTRAITS = str(Path(__file__).parent / "data" / "portraits")
MASKS = {mask.__name__: mask() for mask in (CenterBox, RandomBox, FreeForm, Irregular, Hybrid)}
FACTOR = 4  # from the large side to the small one
# Of the small images that the fine network sees: those of the coarse flow have errors, too.
NOISE = 0.05

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--dataset", default=PORTRAITS)
parser.add_argument("--size", type=int, default=32 if SMOKE else 64)
parser.add_argument("--coarse-steps", type=int, default=2 if SMOKE else 6000)
parser.add_argument("--fine-steps", type=int, default=2 if SMOKE else 2000)
parser.add_argument("--batch-size", type=int, default=16)
parser.add_argument("--channels", type=int, default=32, help="of each network")
parser.add_argument("--single", type=int, metavar="STEPS", help="of one flow instead of the two")
parser.add_argument("--images", type=int, default=4 if SMOKE else 90, help="to fill")
parser.add_argument("--solver-steps", type=int, default=2 if SMOKE else 16)
parser.add_argument("--output", type=Path, default=Path("outputs/coarse_to_fine"))
args = parser.parse_args()
accelerator = auto_accelerator()
data = {"source": args.dataset, "size": args.size, "device": accelerator.device}


def shrink(images):
    """The means of squares of pixels."""
    return F.avg_pool2d(images, FACTOR)


def enlarge(small):
    """As many pixels again, between those of a small image."""
    return F.interpolate(small, scale_factor=FACTOR, mode="bilinear")


def shrink_mask(mask):
    """Of a square whose pixels are not all known the mean is not known."""
    return F.max_pool2d(mask.float(), FACTOR).bool()


# ---- one training for each flow: masked, and all missing in a third of the images ------------
path = MaskedProbPath(CondOTProbPath())


def train(name, steps, small=False, sees_small=False):
    """A flow of small images, or of large ones whose network may see the small image."""
    loader = image_loader(**data, batch_size=args.batch_size, flip=True)
    channels = loader.dataset.shape[0]
    concat = ("mask", "small") if sees_small else ("mask",)
    torch.manual_seed(0)
    net = UNet(
        in_channels=channels + 1 + sees_small * channels,
        out_channels=channels,
        channels=args.channels,
        multipliers=(1, 2) if sees_small else (1, 2, 2),  # details are near by
        attention=() if sees_small else None,
        patch_size=2 if small else FACTOR,
    )
    times = UniformTime() if sees_small else ShiftedTime(shift=3.0)  # the small image has colours
    predicts = "velocity" if small else "x_1"  # the noise of 4x4 pixels does not pass the network

    def loss(model, batch):
        x_1 = batch["image"]
        mask = MASKS["Hybrid"](len(x_1), x_1.shape[-2:], device=x_1.device)
        mask = mask | (torch.rand(len(x_1), 1, 1, 1, device=x_1.device) < 1 / 3)
        extras = {}
        if small:
            x_1, mask = shrink(x_1), shrink_mask(mask)
        elif sees_small:
            coarse = shrink(x_1)
            extras["small"] = enlarge(coarse + NOISE * torch.randn_like(coarse))
        t = times(len(x_1), device=x_1.device)
        sample = path.sample(torch.randn_like(x_1), x_1, t, mask=mask)
        answer = model(x=sample.x_t, t=sample.t, mask=mask, **extras)
        return velocity_loss(answer, sample, prediction=predicts, scheduler=path.scheduler)

    config = TrainerConfig(
        steps=steps,
        lr=2e-3,
        warmup=steps // 20,
        ema_decay=0.999 if steps > 2000 else 0.99,
        log_every=min(50, steps),
        output_dir=args.output / name,
    )
    trainer = Trainer(UNetWrapper(net, concat=concat), loss, loader, config, accelerator)
    trainer.fit()
    accelerator.free_memory()  # for the next training
    print(f"{name}: {time.process_time():.0f} seconds of the processor from the start")
    return ExponentialSolver(
        PredictionVelocityModel(trainer.ema_model, path.scheduler, prediction=predicts)
    )


if args.single:
    single = train("single", args.single)
else:
    coarse = train("coarse", args.coarse_steps, small=True)
    fine = train("fine", args.fine_steps, sees_small=True)
leave_to_main(accelerator)


# ---- both in a row ----------------------------------------------------------------------------
def integrate(solver, images, mask, **extras):
    """The missing pixels of images, from fresh noise."""
    x_0 = torch.where(mask, torch.randn_like(images), images)
    with accelerator.autocast():
        x_1 = solver.sample(x_0, step_size=1 / args.solver_steps, eta=1.0, mask=mask, **extras)
    return x_1.float().clamp(-1, 1)


def refine(small, images, mask):
    """The missing pixels of large images, of which small ones are known."""
    small = small + NOISE * torch.randn_like(small)
    return integrate(fine, images, mask, small=enlarge(small))


def fill(images, mask):
    """The missing pixels of images: coarse, then fine."""
    if args.single:
        return integrate(single, images, mask)
    small = integrate(coarse, shrink(images), shrink_mask(mask))
    return refine(small, images, mask)


images, _ = load_images(**data, limit=args.images)
everything = torch.ones_like(images[:, :1], dtype=torch.bool)
rows, titles = [images[:10]], ["test images"]
print(f"{len(images)} test images:      PSNR  SSIM  colour  seam  spread")


def report(name, answers, mask):
    """One answer, and how much two differ."""
    answer, seam = answers[0], "    -"
    if not mask.all():
        seam = f"{seam_gradient(answer, mask) / seam_gradient(images, mask):5.2f}"
    figures = f"{hole_psnr(answer, images, mask):6.2f} {hole_ssim(answer, images, mask):5.2f}"
    figures += f" {colour_error(answer, images, mask):7.3f} {seam}"
    spread = fill_diversity(torch.stack(answers, 1), mask) if len(answers) > 1 else 0.0
    print(f"{name:<24} {figures} {spread:7.3f}", flush=True)


torch.manual_seed(0)
if not args.single:
    small = shrink(images)
    enlarged = [refine(small, images, everything) for _ in range(2)]
    report("bilinear", [enlarge(small)], everything)
    report("the fine flow", enlarged, everything)
    rows += [enlarge(small)[:10], *(answer[:10] for answer in enlarged)]
    titles += ["bilinear", *["the fine flow"] * 2]
for seed, (name, kind) in enumerate(MASKS.items()):
    torch.manual_seed(seed)
    mask = kind(len(images), images.shape[-2:], device=images.device)
    fills = [fill(images, mask) for _ in range(2)]
    assert torch.equal(fills[0].masked_fill(mask, 0), images.masked_fill(mask, 0))  # bit for bit
    report(name, fills, mask)
    if name in ("CenterBox", "Hybrid"):
        rows += [images[:10].masked_fill(mask[:10], 0), *(answer[:10] for answer in fills)]
        titles += [name, *["filled"] * 2]
rows.append(fill(images[:10], everything[:10]))
titles.append("from nothing")
save_rows(args.output / "coarse_to_fine.png", rows, titles, inches=0.9)
