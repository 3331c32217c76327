"""Translate garments into digits, and compare which garment is paired with which digit.

    accelerate launch examples/image_to_image.py                     # shipped Fashion-MNIST to MNIST
    accelerate launch examples/image_to_image.py --source zalando-datasets/fashion_mnist --target ylecun/mnist
The network, the straight path and the epochs of a teaching exercise (Sorbonne RDFIA, "Flow Matching", section 3.1), by
four couplings at an equal budget: pairs as they come; with noise in the source; by optimal transport of each batch;
and both. "U-Net" is the last with another network, more noise, the transport of 256 images, of which a step is trained
on 16, and more effort near the source. Prints what a digit classifier makes of the outputs, and what the
transport costs; saves a figure.
"""

import argparse
import os
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from flow_matching.path import CondOTProbPath
from plots import save_figure, show_rows

from fm_ext.coupling import IndependentCoupling, NoisySource, OptimalTransport
from fm_ext.data import image_pair_loader, load_images
from fm_ext.hub import FlowModel
from fm_ext.loss import LogitNormalTime, ShiftedTime, UniformTime, velocity_loss
from fm_ext.metrics import class_entropy, classifier, frechet_distance, jackknife
from fm_ext.models import SmallUNet, UNet, UNetWrapper
from fm_ext.path import CoupledProbPath
from fm_ext.solver import ODESolver
from fm_ext.training import Trainer, TrainerConfig, auto_accelerator, leave_to_main

SMOKE = os.environ.get("FM_EXT_SMOKE") == "1"
DATA = Path(__file__).parent / "data"
NOISE, UNET_NOISE = 0.5, 1.0  # of the source, in units of the images in [-1, 1]

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--source", default=str(DATA / "fashion_mnist"))
parser.add_argument("--target", default=str(DATA / "mnist"))
parser.add_argument("--epochs", type=float, default=0.02 if SMOKE else 100)
parser.add_argument("--batch-size", type=int, default=64)
parser.add_argument("--lr", type=float, default=1e-3)
parser.add_argument("--solver-steps", type=int, default=4 if SMOKE else 24, help="of midpoint")
parser.add_argument("--unet-steps", type=int, default=2 if SMOKE else 8000, help="of the U-Net")
parser.add_argument("--seed", type=int, default=0)
FEW = ["noise", "U-Net"] if SMOKE else None
parser.add_argument(
    "--only", nargs="*", default=FEW, metavar="COUPLING", help="others are not trained"
)
parser.add_argument("--output", type=Path, default=Path("outputs/image_to_image"))
args = parser.parse_args()

accelerator = auto_accelerator()
data = {"size": 28, "channels": 1, "device": accelerator.device}
order = data | {"seed": args.seed}
sources, _ = load_images(args.source, **data, limit=200 if SMOKE else 1000)
targets, labels = load_images(args.target, **data, limit=len(sources))

# ---- which source goes to which target -------------------------------------------------------
straight = CondOTProbPath()
noisy = CoupledProbPath(straight, NoisySource(NOISE))
noisier = CoupledProbPath(straight, NoisySource(UNET_NOISE))
paths = {
    "as they come": CoupledProbPath(straight, IndependentCoupling()),
    "noise": noisy,
    "transport": CoupledProbPath(straight, OptimalTransport()),
    "transport, noise": CoupledProbPath(noisy, OptimalTransport()),
    "U-Net": CoupledProbPath(noisier, OptimalTransport()),
}
paths = {name: path for name, path in paths.items() if args.only is None or name in args.only}


# ---- train -----------------------------------------------------------------------------------
def train_exercise(name, path):
    """The exercise's network and hyper-parameters."""
    loader = image_pair_loader(args.source, args.target, batch_size=args.batch_size, **order)
    torch.manual_seed(args.seed)
    model, times = UNetWrapper(SmallUNet(1)), UniformTime()

    def loss(model, batch):
        t = times(len(batch["image"]), device=batch["image"].device)
        sample = path.sample(batch["source"], batch["image"], t)
        return velocity_loss(model(x=sample.x_t, t=sample.t), sample)

    steps = max(1, round(args.epochs * len(loader) / accelerator.num_processes))
    return fit(name, model, loss, loader, steps=steps, lr=args.lr)


def train_unet(name):
    """More images paired than trained on: a nearer transport for the price of loading them."""
    paired, trained = (32, 8) if SMOKE else (256, 16)
    loader = image_pair_loader(args.source, args.target, batch_size=paired, **order)
    torch.manual_seed(args.seed)
    model = UNetWrapper(UNet.preset(28, 1, lean=True))
    transport, times = OptimalTransport(), ShiftedTime(shift=2.0, times=LogitNormalTime())

    def loss(model, batch):
        x_0, _ = transport(batch["source"], batch["image"])
        t = times(trained, device=x_0.device)
        sample = noisier.sample(x_0[:trained], batch["image"][:trained], t)
        return velocity_loss(model(x=sample.x_t, t=sample.t), sample)

    steps = args.unet_steps
    return fit(name, model, loss, loader, steps=steps, lr=2e-3, warmup=steps // 20)


def fit(name, model, loss, loader, **settings):
    config = TrainerConfig(
        output_dir=args.output / name,
        ema_decay=0.999,
        log_every=min(50, settings["steps"]),
        **settings,
    )
    trainer = Trainer(model, loss, loader, config, accelerator)
    trainer.fit()
    accelerator.free_memory()  # for the next training
    return trainer.ema_model


models = {
    name: train_unet(name) if name == "U-Net" else train_exercise(name, path)
    for name, path in paths.items()
}
leave_to_main(accelerator)
best = next(name for name in ("U-Net", "transport, noise", *models) if name in models)
flow = FlowModel(models[best], paths[best], shape=(1, 28, 28), source="image")
flow.save_pretrained(args.output / "pretrained")

# ---- translate, and ask a classifier ---------------------------------------------------------
judge = classifier("mnist").to(accelerator.device)


def report(name, images, cost):
    """What the classifier makes of images, and how far they came."""
    with torch.no_grad():
        chances = judge(images).softmax(1)
        frechet = jackknife(frechet_distance, judge.features(images), judge.features(targets))
    sure, found = chances.max(1)
    figures = f"{(sure > 0.9).float().mean():6.1%} {class_entropy(found, 10):8.2f} {cost:8.1f}"
    print(f"{name:18} {figures}   {frechet:.1f}")
    return found


print(f"{'':18} {'clear':>6} {'entropy':>8} {'cost':>8}   Frechet distance to the test digits")
found = report("test digits", targets, 0.0)
report("garments", sources, 0.0)
shown = {}
for name, path in paths.items():
    torch.manual_seed(0)
    solver = ODESolver(models[name])
    with accelerator.autocast():
        states = solver.sample(
            path.source(sources),
            step_size=1 / args.solver_steps,
            method="midpoint",
            time_grid=[0.0, 0.25, 0.5, 0.75, 1.0],
            return_intermediates=True,
        ).clamp(-1, 1)
    report(name, states[-1], (states[-1] - sources).square().flatten(1).sum(1).mean())
    shown[name] = torch.cat([sources[None], states])[:, :: len(sources) // 12][:, :12]
right = (found == labels).float().mean()
print(f"clear: above 90 % for one digit; the classifier reads {right:.1%} of the test digits")
print(f"cost: mean squared distance from garment to digit; {solver.nfe} evaluations a translation")

# ---- one picture -----------------------------------------------------------------------------
across = min(len(paths), 2)
down = -(-len(paths) // across)
figure, axes = plt.subplots(
    down, across, figsize=(6 * across, 3.4 * down), layout="constrained", squeeze=False
)
for axis in axes.flat[len(paths) :]:
    axis.set_visible(False)
for axis, (name, rows) in zip(axes.flat, shown.items(), strict=False):
    show_rows(axis, list(rows), titles=["garment", "start", "1/4", "1/2", "3/4", "digit"])
    axis.set_title(name)
save_figure(figure, args.output / "translations.png", dpi=100)
