"""Train a network of two times on MNIST with accelerate; draw digits of every class, and fill holes, by one evaluation.

    accelerate launch examples/mean_flow.py               # shipped digits
    accelerate launch examples/mean_flow.py --dataset ylecun/mnist --steps 20000
For half of the steps it learns the velocity alone, which is cheap; then jumps, and guidance as an input. Prints
distances to the test images at 1, 2 and 4 evaluations, beside the same network as a plain flow; and the quality and
diversity of fills. Saves a picture and the weights. Run again, it goes on from its last checkpoint, or only draws.
"""

import argparse
import os
from pathlib import Path

import torch
from flow_matching.path import CondOTProbPath
from torchvision.utils import make_grid, save_image

from fm_ext.data import image_loader, load_images
from fm_ext.hub import FlowModel, Sampler
from fm_ext.loss import LogitNormalTime, TimePairs, UniformTime, mean_flow_loss
from fm_ext.mask import FreeForm, Hybrid
from fm_ext.metrics import FeatureMetrics, classifier, fill_diversity, hole_psnr
from fm_ext.models import MeanFlowModel, UNet, UNetWrapper
from fm_ext.path import MaskedProbPath
from fm_ext.solver import MeanFlowSolver, ODESolver
from fm_ext.training import Trainer, TrainerConfig, auto_accelerator, leave_to_main

SMOKE = os.environ.get("FM_EXT_SMOKE") == "1"
DIGITS = str(Path(__file__).parent / "data" / "mnist")
NO_CLASS = 10

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--dataset", default=DIGITS)
parser.add_argument("--steps", type=int, default=2 if SMOKE else 2000)
parser.add_argument("--batch-size", type=int, default=32)
parser.add_argument("--lr", type=float, default=2e-3)
parser.add_argument("--guidance", type=float, default=2.0, help="scale of sampling, 1 to 3")
parser.add_argument("--samples", type=int, default=200 if SMOKE else 1000)
parser.add_argument("--output", type=Path, default=Path("outputs/mean_flow"))
args = parser.parse_args()

accelerator = auto_accelerator()
device = accelerator.device

# ---- train ----------------------------------------------------------------------------------
loader = image_loader(args.dataset, batch_size=args.batch_size, device=device)
torch.manual_seed(0)
net = UNet.preset(28, 2, 1, num_classes=10, second_time=True, guidance_input=True, lean=True)
model = MeanFlowModel(UNetWrapper(net, concat=("mask",)))
path, holes = MaskedProbPath(CondOTProbPath()), Hybrid()
alone = TimePairs(times=LogitNormalTime(), distinct=0.0)  # r = t: the loss of a flow
pairs = TimePairs(times=UniformTime())  # half of them with t < r


def loss(model, batch):
    x_1, first = batch["image"], trainer.step < args.steps / 2
    everything = torch.rand(len(x_1), 1, 1, 1, device=device) < 0.5  # a digit is a fill of nothing
    mask = holes(len(x_1), x_1.shape[-2:], device=device) | everything
    t, r = (alone if first else pairs)(len(x_1), device=device)
    sample = path.sample(torch.randn_like(x_1), x_1, t, mask=mask)
    given = {"mask": mask, "label": batch["label"]}
    if first:  # a fifth without their class
        dropped = torch.rand(len(x_1), device=device) < 0.2
        given["label"] = given["label"].masked_fill(dropped, NO_CLASS)
        return mean_flow_loss(model, sample, r, **given)
    given["guidance_scale"] = 1 + 2 * torch.rand(len(x_1), device=device)
    return mean_flow_loss(model, sample, r, null={"label": NO_CLASS}, dropout=0.2, **given)


rates = {"lr": args.lr, "warmup": args.steps // 20, "ema_decay": 0.999}
folders = {"output_dir": args.output / "checkpoints", "log_every": min(50, args.steps)}
config = TrainerConfig(steps=args.steps, **rates, **folders)
trainer = Trainer(model, loss, loader, config, accelerator)
trainer.fit()
leave_to_main(accelerator)

flow = FlowModel(
    trainer.ema_model,
    path,
    shape=(1, 28, 28),
    classes=loader.dataset.classes,
    tasks=("sample", "fill"),
    samplers={"sample": Sampler(method="jumps", steps=1, guidance_scale=args.guidance)},
)
flow.save_pretrained(args.output / "pretrained")

# ---- draw digits: everything is missing -----------------------------------------------------
reference, _ = load_images(args.dataset, limit=args.samples, device=device)
noise = torch.randn(args.samples, 1, 28, 28, device=device)
label = torch.arange(args.samples, device=device) % 10
given = {"mask": torch.ones_like(noise, dtype=torch.bool), "label": label}
given["guidance_scale"] = args.guidance
jumps, velocity = MeanFlowSolver(trainer.ema_model), ODESolver(trainer.ema_model)
drawn = {f"{n} evaluations": jumps.sample(noise, n, batch_size=250, **given) for n in (1, 2, 4)}
steps = 1 if SMOKE else 8
drawn[f"{2 * steps} evaluations of the velocity"] = velocity.sample(
    noise, method="midpoint", steps=steps, batch_size=250, **given
)
network = classifier("mnist").to(device)
print(f"Frechet distance of {args.samples} digits to as many test images, and their right class")
for name, digits in drawn.items():
    metrics, digits = FeatureMetrics(network.features), digits.clamp(-1, 1)
    metrics.update(reference, real=True)
    metrics.update(digits, real=False)
    right = (network(digits).argmax(1) == label).double().mean()
    print(f"{name:30} {metrics.compute()['frechet']} {right:7.1%}")

# ---- fill holes, each four times ------------------------------------------------------------
images = reference[:100]
mask = FreeForm()(len(images), (28, 28), device=device)
given = {"mask": mask, "label": torch.full((len(images),), NO_CLASS, device=device)}
print("\nfills: PSNR (dB) in the hole, and the standard deviation of a missing pixel over fills")
for n in (1, 2, 4):
    starts = [torch.where(mask, torch.randn_like(images), images) for _ in range(4)]
    fills = torch.stack([jumps.sample(x, n, **given) for x in starts], 1).clamp(-1, 1)
    assert torch.equal(fills[:, 0][~mask], images[~mask])  # bit for bit
    print(
        f"{n} evaluations {hole_psnr(fills[:, 0], images, mask):8.2f} {fill_diversity(fills, mask):8.3f}"
    )
    if n == 1:
        first = torch.stack([images, images.masked_fill(mask, 0), *fills.unbind(1)])[:, :10]

top = torch.stack([digits[:10] for digits in drawn.values()])
grid = make_grid(torch.cat([top.clamp(-1, 1), first]).flatten(0, 1) / 2 + 0.5, 10)
save_image(grid, args.output / "mean_flow.png")
print(f"saved {args.output}/mean_flow.png; the network is in {args.output}/pretrained")
