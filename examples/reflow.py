"""Straighten a flow on its own pairs, then distil it to one step: rectified flow end to end on MNIST.

    accelerate launch examples/reflow.py                  # shipped digits, expect an hour on 2 cores
    accelerate launch examples/reflow.py --dataset ylecun/mnist --steps 20000 --pairs 60000
Three trainings of the same network: the flow of examples/generate.py; the same on pairs of noise and what the flow made
of it, on disk; and the last on those pairs at t = 0 alone. Prints distances to the test images at 1, 2 and 4 Euler
steps of each; saves a picture, the pairs and the weights. Run again, it goes on where it stopped.
"""

import argparse
import os
from pathlib import Path

import torch
from flow_matching.path import CondOTProbPath
from torchvision.utils import make_grid, save_image

from fm_ext.data import image_loader, load_images, pair_loader, write_pairs
from fm_ext.loss import LogitNormalTime, UniformTime, velocity_loss
from fm_ext.metrics import FeatureMetrics, classifier
from fm_ext.models import UNet, UNetWrapper
from fm_ext.sampling import indexed_noise
from fm_ext.solver import ODESolver, simulate_pairs
from fm_ext.training import Trainer, TrainerConfig, auto_accelerator

SMOKE = os.environ.get("FM_EXT_SMOKE") == "1"
DIGITS = str(Path(__file__).parent / "data" / "mnist")
BATCH, EVALUATIONS = 250, (1,) if SMOKE else (1, 2, 4)

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--dataset", default=DIGITS)
parser.add_argument("--steps", type=int, default=2 if SMOKE else 4000, help="of each training")
parser.add_argument("--batch-size", type=int, default=32)
parser.add_argument("--lr", type=float, default=2e-3)
parser.add_argument("--pairs", type=int, default=250 if SMOKE else 10000)
parser.add_argument("--pair-steps", type=int, default=1 if SMOKE else 10, help="of midpoint")
parser.add_argument("--samples", type=int, default=200 if SMOKE else 1000)
parser.add_argument("--output", type=Path, default=Path("outputs/reflow"))
args = parser.parse_args()

accelerator = auto_accelerator()
if accelerator.num_processes > 1:
    raise SystemExit("examples/reflow.py writes its pairs on one process")
device, path = accelerator.device, CondOTProbPath()


def fit(name, loss, loader, start=None, lr=args.lr):
    """Trains one more network, from the weights of another; returns the average of its weights."""
    accelerator.free_memory()  # of the training before
    torch.manual_seed(0)
    model = UNetWrapper(UNet.preset(28, 1, 1, num_classes=10, lean=True), label_dropout=0.1)
    if start is not None:
        model.load_state_dict(start.state_dict())
    rates = {"lr": lr, "warmup": args.steps // 20, "ema_decay": 0.999}
    folders = {"output_dir": args.output / name, "log_every": min(50, args.steps)}
    config = TrainerConfig(steps=args.steps, **rates, **folders)
    trainer = Trainer(model, loss, loader, config, accelerator)
    trainer.fit()
    return trainer.ema_model.eval()


# ---- the flow: noise and data that know nothing of each other -------------------------------
def independent(model, batch, times=LogitNormalTime()):  # noqa: B008  # frozen
    x_1 = batch["image"]
    sample = path.sample(torch.randn_like(x_1), x_1, times(len(x_1), device=device))
    return velocity_loss(model(x=sample.x_t, t=sample.t, label=batch["label"]), sample)


loader = image_loader(args.dataset, batch_size=args.batch_size, device=device)
flow = fit("flow", independent, loader)

# ---- its pairs: pair i is a function of i ---------------------------------------------------
folder = args.output / "pairs"
if not folder.exists():
    sources = (
        {"x_0": indexed_noise(range(i, i + BATCH), (1, 28, 28)).to(device)}
        | {"label": torch.arange(i, i + BATCH, device=device) % 10}
        for i in range(0, args.pairs, BATCH)
    )
    write_pairs(simulate_pairs(flow, sources, step_size=1 / args.pair_steps), folder)
pairs = pair_loader(folder, batch_size=args.batch_size)


# ---- reflow: the same loss on the pairs; then the first step alone --------------------------
def paired(model, batch, times=UniformTime()):  # noqa: B008
    x_0 = batch["x_0"]
    sample = path.sample(x_0, batch["x_1"], times(len(x_0), device=device))
    return velocity_loss(model(x=sample.x_t, t=sample.t, label=batch["label"]), sample)


def one_step(model, batch):
    return paired(model, batch, times=lambda n, device: torch.zeros(n, device=device))


straight = fit("reflow", paired, pairs, start=flow, lr=args.lr / 2)
distilled = fit("distilled", one_step, pairs, start=straight, lr=args.lr / 2)

# ---- how few steps are enough ---------------------------------------------------------------
reference, _ = load_images(args.dataset, limit=args.samples, device=device)
noise = indexed_noise(range(args.samples), (1, 28, 28), seed=1).to(device)
label = torch.arange(args.samples, device=device) % 10
network, rows = classifier("mnist").to(device), []
print(f"Frechet distance of {args.samples} digits to as many test images, and their right class")
for name, model in {"flow": flow, "reflow": straight, "distilled": distilled}.items():
    for n in (1,) if name == "distilled" else EVALUATIONS:
        digits = ODESolver(model).sample(noise, steps=n, batch_size=BATCH, label=label).clamp(-1, 1)
        metrics = FeatureMetrics(network.features)
        metrics.update(reference, real=True)
        metrics.update(digits, real=False)
        right = (network(digits).argmax(1) == label).double().mean()
        print(f"{name:10}{n:3} evaluations {metrics.compute()['frechet']} {right:7.1%}", flush=True)
        rows.append(digits[:10])
save_image(make_grid(torch.cat(rows) / 2 + 0.5, 10), args.output / "reflow.png")
print(f"saved {args.output}/reflow.png, the pairs and the weights in {args.output}")
