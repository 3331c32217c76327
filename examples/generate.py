"""Train a class-conditional flow on images with accelerate, draw images of every class, and judge them.

    accelerate launch examples/generate.py                # shipped MNIST digits, 10 minutes of training on 2 cores
    accelerate launch examples/generate.py --dataset ylecun/mnist --samples 10000
    accelerate launch examples/generate.py --dataset <name or folder> --size 64 --steps 100000 --lr 5e-4
Prints distances to the test images in the features of fm_ext's classifiers (MNIST, Fashion-MNIST), with intervals;
saves a grid, a data set of samples, and the model as a folder. Run again, it goes on from its last checkpoint, or only
draws.
"""

import argparse
import json
import os
from pathlib import Path

import torch
from flow_matching.path import CondOTProbPath
from scores import print_digit_scores

from fm_ext.data import image_loader, load_images
from fm_ext.hub import FlowModel, Sampler
from fm_ext.loss import LogitNormalTime, velocity_loss
from fm_ext.models import GuidedVelocityModel, UNet, UNetWrapper
from fm_ext.sampling import draw_samples
from fm_ext.solver import ODESolver
from fm_ext.training import Trainer, TrainerConfig, auto_accelerator, leave_to_main

SMOKE = os.environ.get("FM_EXT_SMOKE") == "1"
DIGITS = str(Path(__file__).parent / "data" / "mnist")

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--dataset", default=DIGITS)
parser.add_argument("--size", type=int, default=28)
parser.add_argument("--steps", type=int, default=2 if SMOKE else 4000)
parser.add_argument("--batch-size", type=int, default=32)
parser.add_argument("--lr", type=float, default=2e-3)
parser.add_argument("--ema", type=float, default=0.999, help="decay of the average of the weights")
parser.add_argument("--unet", type=json.loads, help="changes of the preset, '{\"channels\": 48}'")
parser.add_argument("--guidance", type=float, default=1.5, help="scale; 1 is none")
parser.add_argument("--samples", type=int, default=200 if SMOKE else 1000)
parser.add_argument("--solver-steps", type=int, default=1 if SMOKE else 10, help="of midpoint")
parser.add_argument("--flip", action="store_true", help="mirror every second image; never digits")
parser.add_argument("--judge", choices=["mnist", "fashion_mnist"], help="classifier, by default")
parser.add_argument("--output", type=Path, default=Path("outputs/generate"))
args = parser.parse_args()

accelerator = auto_accelerator()

# ---- the data, and whether its samples can be judged -----------------------------------------
data = {"source": args.dataset, "size": args.size}
loader = image_loader(**data, batch_size=args.batch_size, flip=args.flip, device=accelerator.device)
shape, classes = loader.dataset.shape, loader.dataset.classes
if not classes:
    raise SystemExit(f"{args.dataset} has no column of class labels to condition on.")
name = Path(args.dataset).name.lower().replace("-", "_")
judge = args.judge or (name if name in ("mnist", "fashion_mnist") else None)
if shape != (1, 28, 28) or len(classes) != 10:
    if args.judge:
        raise SystemExit("--judge knows grey images of 28x28 pixels and 10 classes only")
    judge = None
if judge:
    reference, _ = load_images(**data, limit=max(194, args.samples))
    if not 194 <= args.samples <= len(reference):  # more than twice the classifier's 96 features
        raise SystemExit("--samples must lie in 194 to the number of the test images, to be judged")
else:
    accelerator.print("not judged: no --judge, and the name of the data set tells of none")

# ---- train ----------------------------------------------------------------------------------
torch.manual_seed(0)
net = UNet.preset(
    args.size,
    in_channels=shape[0],
    num_classes=len(classes),
    lean=args.size == 28 and args.unet is None,  # the best for minutes of training
    **(args.unet or {}),
)
model = UNetWrapper(net, label_dropout=0.1, null_label=len(classes))
path, times = CondOTProbPath(), LogitNormalTime()  # the best of a search: results/generation.md


def loss(model, batch):
    x_1 = batch["image"]
    sample = path.sample(torch.randn_like(x_1), x_1, times(len(x_1), device=x_1.device))
    return velocity_loss(model(x=sample.x_t, t=sample.t, label=batch["label"]), sample)


config = TrainerConfig(
    steps=args.steps,
    lr=args.lr,
    warmup=args.steps // 20,
    ema_decay=args.ema,
    log_every=min(50, args.steps),
    output_dir=args.output / "checkpoints",
)
trainer = Trainer(model, loss, loader, config, accelerator)
trainer.fit()

# ---- draw: image i has noise i and class i modulo their number, on any number of processes ----
velocity = trainer.ema_model
guided = velocity if args.guidance == 1 else GuidedVelocityModel(velocity, args.guidance)
solver = ODESolver(guided)


def sample(noise, label):
    with accelerator.autocast():
        return solver.sample(noise, steps=args.solver_steps, method="midpoint", label=label)


samples = draw_samples(
    sample,
    args.samples,
    shape,
    label=torch.arange(args.samples) % len(classes),
    batch_size=250,
    accelerator=accelerator,
    network=velocity,
)
leave_to_main(accelerator)
samples.save_grid(args.output / "samples.png", columns=len(classes))
samples.save(args.output / "samples")
print(
    f"{args.samples} samples, {samples.evaluations:.0f} evaluations each, {samples.seconds:.0f} s"
)
print(f"saved {args.output}/samples.png, and all as a data set in {args.output}/samples")

how = Sampler(steps=args.solver_steps, guidance_scale=args.guidance)
flow = FlowModel(velocity, path, shape=shape, classes=classes, samplers={"sample": how})
flow.save_pretrained(args.output / "pretrained")

if judge:
    print_digit_scores(samples, reference, judge)
