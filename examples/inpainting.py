"""Train an inpainting flow on real images with accelerate, then fill holes in images that it has not seen.

    accelerate launch examples/inpainting.py                     # shipped MNIST digits, 5 minutes on 2 CPU cores
    accelerate launch examples/inpainting.py --dataset examples/data/portraits --size 64 --flip --steps 6000
    accelerate launch examples/inpainting.py --dataset <name or folder> --size 256 --steps 300000 --lr 1e-4
Prints what the fills of every kind of mask are worth, beside two classical answers; saves a picture and the weights.
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
from tqdm import tqdm

from fm_ext.data import image_loader, load_images
from fm_ext.hub import FlowModel
from fm_ext.loss import LogitNormalTime, ShiftedTime, UniformTime, velocity_loss
from fm_ext.mask import CenterBox, FreeForm, Hybrid, Irregular, RandomBox
from fm_ext.metrics import (
    classifier,
    colour_error,
    fill_diversity,
    frechet_distance,
    hole_psnr,
    hole_ssim,
    seam_gradient,
)
from fm_ext.models import MaskedVelocityModel, UNet, UNetWrapper
from fm_ext.path import MaskedProbPath
from fm_ext.sampling import to_uint8
from fm_ext.training import Trainer, TrainerConfig, auto_accelerator, leave_to_main

MASKS = {mask.__name__: mask() for mask in (CenterBox, RandomBox, FreeForm, Irregular, Hybrid)}
SMOKE = os.environ.get("FM_EXT_SMOKE") == "1"
DIGITS = str(Path(__file__).parent / "data" / "mnist")
# For minutes of training (docs/content/guides/inpainting.md); digits that are only filled take UNet's own preset.
LEAN = {
    28: {"channels": 24, "head_channels": 24, "attention": ()},
    64: {"channels": 32, "multipliers": (1, 2, 2), "patch_size": 2},
}

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--dataset", default=DIGITS)
parser.add_argument("--size", type=int, default=28)
parser.add_argument("--mask", choices=MASKS, default="Hybrid", help="the masks of training")
parser.add_argument("--steps", type=int, help="1100 by default, 4000 of the lean networks")
parser.add_argument("--batch-size", type=int, help="32 by default, 16 for the lean networks")
parser.add_argument("--lr", type=float, default=2e-3)
parser.add_argument("--unet", type=json.loads, help="changes of the preset, '{\"channels\": 64}'")
parser.add_argument("--flip", action="store_true", help="mirror every second image; never digits")
parser.add_argument("--generate", action="store_true", help="learn classes and whole images, too")
parser.add_argument("--evaluate", type=int, help="number of test images to fill; 0 for none")
parser.add_argument("--fills", type=int, default=2 if SMOKE else 4, help="of each hole")
parser.add_argument("--output", type=Path, default=Path("outputs/inpainting"))
args = parser.parse_args()
lean = args.size in LEAN and (args.generate or args.size >= 64)
if args.steps is None:
    args.steps = 2 if SMOKE else 4000 if lean else 1100
if args.batch_size is None:
    args.batch_size = 16 if lean else 32
if args.evaluate is None:  # as many pixels at any size
    args.evaluate = 4 if SMOKE else max(16, 160_000 // args.size**2)
if args.fills < 2:
    raise SystemExit("--fills must be at least 2, for their spread")

accelerator = auto_accelerator()

# ---- train ----------------------------------------------------------------------------------
data = {"source": args.dataset, "size": args.size, "device": accelerator.device}
loader = image_loader(**data, batch_size=args.batch_size, flip=args.flip)
channels, classes = loader.dataset.shape[0], loader.dataset.classes
if args.generate and not classes:
    raise SystemExit(f"--generate needs class labels; {args.dataset} has none")
torch.manual_seed(0)
changes = LEAN[args.size] if lean and args.unet is None else args.unet or {}
if args.generate:
    changes = {**changes, "num_classes": len(classes)}
net = UNet.preset(args.size, channels + 1, channels, **changes)
model = UNetWrapper(net, concat=("mask",), label_dropout=0.5 if args.generate else 0)
path = MaskedProbPath(CondOTProbPath())
times = ShiftedTime(shift=3.0) if args.size >= 64 else UniformTime()
if args.generate and args.size < 64:
    times = LogitNormalTime()


def loss(model, batch):
    x_1, label = batch["image"], batch["label"] if args.generate else None
    mask = MASKS[args.mask](len(x_1), x_1.shape[-2:], device=x_1.device)
    if args.generate:  # nothing is known of a third of the images
        mask = mask | (torch.rand(len(x_1), 1, 1, 1, device=x_1.device) < 1 / 3)
    t = times(len(x_1), device=x_1.device)
    sample = path.sample(torch.randn_like(x_1), x_1, t, mask=mask)
    return velocity_loss(model(x=sample.x_t, t=sample.t, mask=mask, label=label), sample)


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
flow = FlowModel(
    trainer.ema_model,
    path,
    shape=(channels, args.size, args.size),
    classes=classes if args.generate else None,
    tasks=("sample", "fill") if args.generate else None,
)
flow.save_pretrained(args.output / "pretrained")
print(f"the network is in {args.output}/pretrained")
if args.evaluate == 0:
    raise SystemExit

# ---- fill holes in the test images ----------------------------------------------------------
images, labels = load_images(**data, limit=args.evaluate)
name = Path(args.dataset).name.lower().replace("-", "_")
judge = None
if name in ("mnist", "fashion_mnist") and images.shape[1:] == (1, 28, 28):
    judge = classifier(name).to(images.device)
solver = ODESolver(MaskedVelocityModel(trainer.ema_model))


def telea(images, mask):
    """OpenCV's inpainting, for comparison."""
    pixels = to_uint8(images).movedim(1, 3).squeeze(-1).cpu().numpy()
    holes = mask[:, 0].byte().cpu().numpy()
    pairs = zip(pixels, holes, strict=True)
    filled = [torch.from_numpy(cv2.inpaint(p, h, 3, cv2.INPAINT_TELEA)) for p, h in pairs]
    filled = torch.stack(filled).view(len(images), args.size, args.size, -1).movedim(3, 1)
    return filled.to(images.device) / 127.5 - 1


def worth(answers, mask):
    """Figures over one or several answers to each hole; the seam is relative to that of the true images."""
    answer, times = torch.cat(answers), len(answers)
    truth, mask = images.repeat(times, 1, 1, 1), mask.repeat(times, 1, 1, 1)
    figures = [hole_psnr(answer, truth, mask), hole_ssim(answer, truth, mask)]
    figures += [colour_error(answer, truth, mask)]
    figures += [seam_gradient(answer, mask) / seam_gradient(truth, mask)]
    line = "{:6.2f} {:5.2f} {:7.3f} {:5.2f}".format(*figures)
    if judge:
        line += f" {(judge(answer).argmax(1) == labels.repeat(times)).float().mean():6.1%}"
        features = judge.features(answers[0]), judge.features(images)  # equal counts in all rows
        line += f" {frechet_distance(*features):8.2f}" if len(images) > 96 else f" {'-':>8}"
    return line


print(
    f"{len(images)} test images; PSNR (dB), SSIM, colour error in the holes; seam, 1 for the truth"
)
if judge:
    right = (judge(images).argmax(1) == labels).float().mean()
    print(f"read rightly by a classifier ({right:.1%} of the originals); Frechet in its features")
header = f"{'':26} {'PSNR':>6} {'SSIM':>5} {'colour':>7} {'seam':>5}"
print(header + f" {'read':>6} {'Frechet':>8}" * bool(judge))
rows = []
bar = tqdm(total=len(MASKS) * args.fills, unit="fill of all", leave=False)
for seed, (name, mask) in enumerate(MASKS.items()):
    torch.manual_seed(seed)
    m = mask(len(images), images.shape[-2:], device=images.device)
    fills = []
    for _ in range(args.fills):
        x_init = torch.where(m, torch.randn_like(images), images)
        with accelerator.autocast():
            fill = solver.sample(x_init, step_size=0.125, method="midpoint", mask=m)
        assert torch.equal(fill.masked_fill(m, 0), images.masked_fill(m, 0))  # bit for bit
        fills.append(fill.clamp(-1, 1))
        bar.update()
    classical = telea(images, m)
    mean = (images * ~m).sum((2, 3), keepdim=True) / (~m).sum((2, 3), keepdim=True)
    answers = {
        "one fill": fills,  # of each, and so averages over all
        f"mean of {args.fills}": [torch.stack(fills).mean(0)],
        "Telea": [classical],
        "known mean": [torch.where(m, mean, images)],
    }
    spread = fill_diversity(torch.stack(fills, 1), m)
    bar.write(f"{name}: {m.float().mean():.0%} missing, spread of the fills {spread:.2f}")
    for answer, filled in answers.items():
        bar.write(f"  {answer:24} {worth(filled, m)}")
    shown = torch.stack([images, images.masked_fill(m, 0), classical, *fills], dim=1).cpu()
    rows.append(shown[2 * seed : 2 * seed + 2] if len(images) > 10 else shown[:2])
bar.close()

grid = make_grid(torch.cat(rows).flatten(0, 1) / 2 + 0.5, 2 * (3 + args.fills))
titles = ["original", "masked", "Telea", *["ours"] * args.fills] * 2
plt.figure(figsize=(14, 5.4))
plt.imshow(grid.movedim(0, 2), extent=(0, len(titles), len(MASKS), 0), aspect="auto")
plt.xticks(torch.arange(len(titles)) + 0.5, titles)
plt.yticks(torch.arange(len(MASKS)) + 0.5, list(MASKS))
plt.tick_params(length=0, labeltop=True, labelbottom=False)
plt.savefig(args.output / "inpainting.png", dpi=100, bbox_inches="tight")
print(f"saved {args.output}/inpainting.png")
