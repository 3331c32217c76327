"""Fill holes with a flow that was trained on whole images, by every method, beside one that was trained with masks.

    accelerate launch examples/inpaint_pretrained.py                  # shipped MNIST digits, half an hour on a CPU
    accelerate launch examples/inpaint_pretrained.py --dataset examples/data/portraits --size 32 --flip --steps 4000
Prints in-hole PSNR and SSIM, how many filled digits a classifier reads as what they were, the spread of the fills of
one hole, and what a fill costs; saves a picture. Both networks are kept, and trained once.
"""

import argparse
import os
import time
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from flow_matching.path import CondOTProbPath
from flow_matching.path.scheduler import CondOTScheduler
from torchvision.utils import make_grid

from fm_ext.data import image_loader, load_images
from fm_ext.hub import FlowModel
from fm_ext.loss import UniformTime, velocity_loss
from fm_ext.mask import CenterBox, Hybrid, Irregular, RandomBox
from fm_ext.metrics import classifier, fill_diversity, hole_psnr, hole_ssim
from fm_ext.models import MaskedVelocityModel, UNet, UNetWrapper
from fm_ext.path import MaskedProbPath
from fm_ext.solver import InpaintingSolver, ODESolver
from fm_ext.training import Trainer, TrainerConfig, auto_accelerator, leave_to_main

METHODS = "twisted_smc moment_matching flower ot_ode pnp restora repaint replace d_flow".split()
MASKS = {mask.__name__: mask() for mask in (CenterBox, RandomBox, Irregular, Hybrid)}
SMOKE = os.environ.get("FM_EXT_SMOKE") == "1"
STEPS = {} if SMOKE else {"d_flow": 6}  # its graph holds them all; the others take --solver-steps
DIGITS = str(Path(__file__).parent / "data" / "mnist")

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--dataset", default=DIGITS)
parser.add_argument("--size", type=int, default=28)
parser.add_argument("--mask", choices=MASKS, default="CenterBox", help="the holes that are filled")
parser.add_argument("--methods", nargs="*", choices=METHODS, default=METHODS)
parser.add_argument("--steps", type=int, default=2 if SMOKE else 1300, help="of each training")
for flag, count in {"--images": 16, "--fills": 8, "--solver-steps": 50}.items():
    parser.add_argument(flag, type=int, default=2 if SMOKE else count)
parser.add_argument("--flip", action="store_true", help="mirror every second image; never digits")
parser.add_argument("--output", type=Path, default=Path("outputs/inpaint_pretrained"))
args = parser.parse_args()
if args.fills < 2:
    parser.error("--fills must be at least 2, for their spread")

accelerator = auto_accelerator()
data, here = {"source": args.dataset, "size": args.size}, accelerator.device
images, labels = load_images(**data, limit=args.images)
name, channels, times = Path(args.dataset).name, images.shape[1], UniformTime()
digits = name == "mnist" and images.shape[1:] == (1, 28, 28)


def train(masked):
    """The same network and recipe, with holes or without."""
    loader = image_loader(**data, device=here, batch_size=32, flip=args.flip)
    torch.manual_seed(0)
    path = MaskedProbPath(CondOTProbPath()) if masked else CondOTProbPath()

    def loss(model, batch):
        x_1 = batch["image"]
        hole = {"mask": Hybrid()(len(x_1), x_1.shape[-2:], device=x_1.device)} if masked else {}
        sample = path.sample(torch.randn_like(x_1), x_1, times(len(x_1), device=x_1.device), **hole)
        return velocity_loss(model(x=sample.x_t, t=sample.t, **hole), sample)

    folder = args.output / f"{name} {args.size} {args.steps} {'masked' if masked else 'whole'}"
    decay = 0.99 if args.steps < 5000 else 0.999
    rates = {"lr": 2e-3, "warmup": args.steps // 20, "ema_decay": decay}
    config = TrainerConfig(steps=args.steps, output_dir=folder, **rates)
    net = UNetWrapper(UNet.preset(args.size, channels + masked, channels), ("mask",) * masked)
    trainer = Trainer(net, loss, loader, config, accelerator)
    trainer.fit()
    accelerator.free_memory()  # for the next training
    return trainer.ema_model


whole, masked = train(False), train(True)
leave_to_main(accelerator)
flow = FlowModel(whole, CondOTProbPath(), shape=images.shape[1:])
flow.save_pretrained(args.output / "pretrained")
torch.manual_seed(0)
mask = MASKS[args.mask](len(images), images.shape[-2:])
judge = classifier("mnist")
solvers = {name: InpaintingSolver(whole, CondOTScheduler(), name) for name in args.methods}
solvers["matching, eta 0"] = InpaintingSolver(whole, CondOTScheduler(), "moment_matching", eta=0.0)
solvers["trained with masks"] = ODESolver(MaskedVelocityModel(masked))
known, holes = truth = [x.repeat(args.fills, 1, 1, 1) for x in (images, mask)]
print(f"{'':18}   PSNR  SSIM  read spread   nfe  vjps  s/fill")
rows = [images, images.masked_fill(mask, 0)]
for method, solver in solvers.items():
    torch.manual_seed(1)
    start = time.perf_counter()
    with accelerator.autocast():
        if isinstance(solver, InpaintingSolver):
            size = {"steps": STEPS.get(method, args.solver_steps), "fills": args.fills}
            fills = solver.sample(images.to(here), mask=mask.to(here), **size).flatten(0, 1)
        else:
            noise = torch.where(holes, torch.randn_like(known), known).to(here)
            fills = solver.sample(noise, steps=10, method="midpoint", mask=holes.to(here))
    fills = fills.float().clamp(-1, 1).cpu()
    seconds = (time.perf_counter() - start) / len(fills)
    spread = fill_diversity(fills.unflatten(0, (args.fills, -1)).transpose(0, 1), mask)
    match = judge(fills).argmax(1) == labels.repeat(args.fills) if digits else fills * torch.nan
    cost = f"{solver.nfe:5} {getattr(solver, 'gradients', 0):5} {seconds:7.2f}"
    figures = f"{hole_psnr(fills, *truth):6.2f} {hole_ssim(fills, *truth):5.2f}"
    print(f"{method:18} {figures} {match.float().mean():5.0%} {spread:6.2f} {cost}", flush=True)
    rows += fills.split(len(images))[:2]

grid = make_grid(torch.cat([row[:8] for row in rows]) / 2 + 0.5, len(images[:8]))
titles = ["original", "masked", *(name for name in solvers for _ in range(2))]
plt.figure(figsize=(7, 15))
plt.imshow(grid.movedim(0, 2), extent=(0, len(images[:8]), len(titles), 0), aspect="auto")
plt.yticks(torch.arange(len(titles)) + 0.5, titles)
plt.tick_params(length=0, labelbottom=False)
plt.savefig(args.output / "fills.png", dpi=100, bbox_inches="tight")
