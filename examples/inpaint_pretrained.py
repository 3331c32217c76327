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

import torch
from flow_matching.path import CondOTProbPath
from flow_matching.path.scheduler import CondOTScheduler
from plots import save_rows

from fm_ext.data import image_loader, load_images
from fm_ext.hub import FlowModel
from fm_ext.loss import UniformTime, velocity_loss
from fm_ext.mask import CenterBox, Hybrid, Irregular, RandomBox
from fm_ext.metrics import classifier, fill_diversity, hole_psnr, hole_ssim
from fm_ext.models import MaskedVelocityModel, UNet, UNetWrapper
from fm_ext.path import MaskedProbPath
from fm_ext.solver import InpaintingSolver, ODESolver
from fm_ext.training import Trainer, TrainerConfig, auto_accelerator, leave_to_main

METHODS = [
    "twisted_smc",
    "moment_matching",
    "flower",
    "ot_ode",
    "pnp",
    "restora",
    "repaint",
    "replace",
    "d_flow",
]
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
parser.add_argument("--images", type=int, default=2 if SMOKE else 16)
parser.add_argument("--fills", type=int, default=2 if SMOKE else 8, help="of each image")
parser.add_argument("--solver-steps", type=int, default=2 if SMOKE else 50)
parser.add_argument("--flip", action="store_true", help="mirror every second image; never digits")
parser.add_argument("--output", type=Path, default=Path("outputs/inpaint_pretrained"))
args = parser.parse_args()
if args.fills < 2:
    parser.error("--fills must be at least 2, for their spread")

accelerator = auto_accelerator()
device = accelerator.device
data = {"source": args.dataset, "size": args.size}
images, labels = load_images(**data, limit=args.images)
name, channels = Path(args.dataset).name, images.shape[1]
digits = name == "mnist" and images.shape[1:] == (1, 28, 28)


# ---- the same network and recipe, without holes and with them -------------------------------
def whole_loss(model, batch):
    x_1 = batch["image"]
    t = times(len(x_1), device=device)
    sample = CondOTProbPath().sample(torch.randn_like(x_1), x_1, t)
    return velocity_loss(model(x=sample.x_t, t=sample.t), sample)


def masked_loss(model, batch):
    x_1 = batch["image"]
    mask = Hybrid()(len(x_1), x_1.shape[-2:], device=device)
    t = times(len(x_1), device=device)
    sample = MaskedProbPath(CondOTProbPath()).sample(torch.randn_like(x_1), x_1, t, mask=mask)
    return velocity_loss(model(x=sample.x_t, t=sample.t, mask=mask), sample)


times = UniformTime()


def train(kind, loss, concat=()):
    loader = image_loader(**data, device=device, batch_size=32, flip=args.flip)
    torch.manual_seed(0)
    net = UNet.preset(args.size, channels + len(concat), channels)
    config = TrainerConfig(
        steps=args.steps,
        lr=2e-3,
        warmup=args.steps // 20,
        ema_decay=0.99 if args.steps < 5000 else 0.999,
        output_dir=args.output / f"{name} {args.size} {args.steps} {kind}",
    )
    trainer = Trainer(UNetWrapper(net, concat=concat), loss, loader, config, accelerator)
    trainer.fit()
    accelerator.free_memory()  # for the next training
    return trainer.ema_model


whole = train("whole", whole_loss)
masked = train("masked", masked_loss, concat=("mask",))
leave_to_main(accelerator)
flow = FlowModel(whole, CondOTProbPath(), shape=images.shape[1:])
flow.save_pretrained(args.output / "pretrained")

# ---- fill by every method --------------------------------------------------------------------
torch.manual_seed(0)
mask = MASKS[args.mask](len(images), images.shape[-2:])
judge = classifier("mnist")
solvers = {name: InpaintingSolver(whole, CondOTScheduler(), name) for name in args.methods}
solvers["matching, eta 0"] = InpaintingSolver(whole, CondOTScheduler(), "moment_matching", eta=0.0)
solvers["trained with masks"] = ODESolver(MaskedVelocityModel(masked))
known, holes = images.repeat(args.fills, 1, 1, 1), mask.repeat(args.fills, 1, 1, 1)
print(f"{'':18}   PSNR  SSIM  read spread   nfe  vjps  s/fill")
rows = [images, images.masked_fill(mask, 0)]
for method, solver in solvers.items():
    torch.manual_seed(1)
    start = time.perf_counter()
    with accelerator.autocast():
        if isinstance(solver, InpaintingSolver):
            steps = STEPS.get(method, args.solver_steps)
            fills = solver.sample(
                images.to(device), mask=mask.to(device), steps=steps, fills=args.fills
            ).flatten(0, 1)
        else:
            noise = torch.where(holes, torch.randn_like(known), known).to(device)
            fills = solver.sample(noise, steps=10, method="midpoint", mask=holes.to(device))
    fills = fills.float().clamp(-1, 1).cpu()
    seconds = (time.perf_counter() - start) / len(fills)
    spread = fill_diversity(fills.unflatten(0, (args.fills, -1)).transpose(0, 1), mask)
    match = judge(fills).argmax(1) == labels.repeat(args.fills) if digits else fills * torch.nan
    cost = f"{solver.nfe:5} {getattr(solver, 'gradients', 0):5} {seconds:7.2f}"
    figures = f"{hole_psnr(fills, known, holes):6.2f} {hole_ssim(fills, known, holes):5.2f}"
    print(f"{method:18} {figures} {match.float().mean():5.0%} {spread:6.2f} {cost}", flush=True)
    rows += fills.split(len(images))[:2]

titles = ["original", "masked", *(name for name in solvers for _ in range(2))]
save_rows(args.output / "fills.png", [row[:8] for row in rows], titles)
