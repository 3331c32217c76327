r"""Train an inpainting flow on real images with accelerate, then fill holes in images that it has not seen.

    accelerate launch examples/inpainting.py                     # shipped MNIST digits, 6 to 8 minutes on 2 CPU cores
    accelerate launch examples/inpainting.py --dataset examples/data/portraits --size 64 --flip --turn-colours \
        --steps 12000
    accelerate launch examples/inpainting.py --dataset <name or folder> --size 256 --steps 300000 --lr 1e-4
Prints what the fills of every kind of mask are worth, beside two classical answers; saves a picture and the weights.
Run again, it goes on from its last checkpoint; a finished run is only evaluated.
"""

import argparse
import json
import os
from pathlib import Path

import torch
from flow_matching.path import CondOTProbPath
from plots import save_rows
from scores import HoleScores, telea
from tqdm import tqdm

from fm_ext.data import image_loader, load_images, turn_colours
from fm_ext.hub import FlowModel
from fm_ext.loss import LogitNormalTime, ShiftedTime, velocity_loss
from fm_ext.mask import CenterBox, FreeForm, Hybrid, Irregular, RandomBox
from fm_ext.metrics import classifier
from fm_ext.models import PredictionVelocityModel, UNet, UNetWrapper
from fm_ext.path import MaskedProbPath
from fm_ext.solver import ExponentialSolver
from fm_ext.training import Trainer, TrainerConfig, auto_accelerator, leave_to_main

MASKS = {mask.__name__: mask() for mask in (CenterBox, RandomBox, FreeForm, Irregular, Hybrid)}
SMOKE = os.environ.get("FM_EXT_SMOKE") == "1"
DIGITS = str(Path(__file__).parent / "data" / "mnist")

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--dataset", default=DIGITS)
parser.add_argument("--size", type=int, default=28)
parser.add_argument("--mask", choices=MASKS, default="Hybrid", help="the masks of training")
parser.add_argument("--steps", type=int, default=2 if SMOKE else 3000)
parser.add_argument("--batch-size", type=int, default=16)
parser.add_argument("--lr", type=float, default=2e-3)
parser.add_argument("--unet", type=json.loads, help="changes of the preset, '{\"channels\": 64}'")
parser.add_argument("--flip", action="store_true", help="mirror every second image; never digits")
parser.add_argument(
    "--turn-colours", action="store_true", help="train on as many images with other colours"
)
parser.add_argument("--generate", action="store_true", help="learn classes and whole images, too")
parser.add_argument("--evaluate", type=int, help="number of test images to fill; 0 for none")
parser.add_argument("--fills", type=int, default=2 if SMOKE else 4, help="of each hole")
parser.add_argument("--output", type=Path, default=Path("outputs/inpainting"))
args = parser.parse_args()
if args.evaluate is None:  # as many pixels at any size
    args.evaluate = 4 if SMOKE else max(16, 100_000 // args.size**2)
if args.fills < 2:
    raise SystemExit("--fills must be at least 2, for their spread")

accelerator = auto_accelerator()

# ---- train ----------------------------------------------------------------------------------
data = {"source": args.dataset, "size": args.size, "device": accelerator.device}
loader = image_loader(**data, batch_size=args.batch_size, flip=args.flip)
channels, classes = loader.dataset.shape[0], loader.dataset.classes
if args.generate and not classes:
    raise SystemExit(f"--generate needs class labels; {args.dataset} has none")
if args.turn_colours and (args.generate or channels != 3):
    raise SystemExit("--turn-colours needs RGB images, and its label cannot be that of --generate")
torch.manual_seed(0)
net = UNet.preset(
    args.size,
    in_channels=channels + 1,  # the mask is one more
    out_channels=channels,
    num_classes=len(classes) if args.generate else 1 if args.turn_colours else None,
    lean=args.size in (28, 64) and args.unet is None,  # the best for minutes of training
    **(args.unet or {}),
)
model = UNetWrapper(net, concat=("mask",), label_dropout=0.5 if args.generate else 0)
path = MaskedProbPath(CondOTProbPath())
# What a hole shows is decided early, the more so the larger it is.
times = ShiftedTime(shift=3.0 if args.size >= 64 else 2.0)
if args.generate and args.size < 64:
    times = LogitNormalTime()


def loss(model, batch):
    x_1, label = batch["image"], batch["label"] if args.generate else None
    if args.turn_colours:  # the network is told which; without a label it draws true colours
        turned = torch.rand(len(x_1), device=x_1.device) < 0.5
        x_1 = torch.where(turned[:, None, None, None], turn_colours(x_1), x_1)
        label = torch.where(turned, 0, net.null_label)
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
# Each step renews the noise in the holes (DDPM's ancestral sampler), which mends what earlier steps did wrong.
solver = ExponentialSolver(PredictionVelocityModel(trainer.ema_model, path.scheduler, "velocity"))
name = Path(args.dataset).name.lower().replace("-", "_")
judged = name in ("mnist", "fashion_mnist") and images.shape[1:] == (1, 28, 28)
scores = HoleScores(images, labels, classifier(name).to(images.device) if judged else None)
rows = []
for seed, (kind, draw_mask) in enumerate(MASKS.items()):
    torch.manual_seed(seed)
    mask = draw_mask(len(images), images.shape[-2:], device=images.device)
    fills = []
    for _ in tqdm(range(args.fills), unit="fill of all", leave=False):
        x_init = torch.where(mask, torch.randn_like(images), images)
        with accelerator.autocast():
            fill = solver.sample(x_init, step_size=1 / 16, eta=1.0, mask=mask)
        assert torch.equal(fill.masked_fill(mask, 0), images.masked_fill(mask, 0))  # bit for bit
        fills.append(fill.clamp(-1, 1))
    scores.print(kind, fills, mask)
    first = 2 * seed if len(images) > 10 else 0  # two images for each kind of mask
    columns = [images, images.masked_fill(mask, 0), telea(images, mask), *fills]
    rows.append(torch.cat([torch.stack([c[i] for c in columns]) for i in (first, first + 1)]))

titles = ["original", "masked", "Telea", *["ours"] * args.fills] * 2
save_rows(args.output / "inpainting.png", rows, list(MASKS), titles, inches=1.0)
