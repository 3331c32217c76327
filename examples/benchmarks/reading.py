"""How often a filled digit can be read as what it was: what the known pixels tell of the class.

    OMP_NUM_THREADS=1 python examples/benchmarks/reading.py --dataset <folder of MNIST>
    OMP_NUM_THREADS=1 python examples/benchmarks/reading.py --dataset <folder> --flow outputs/inpainting/pretrained
A hole often hides which digit it was. A sampler of the true posterior then draws each digit as often as it is possible,
p(class | known pixels), and is read rightly with the mean of that probability: more is not a better fill. The script
trains a classifier that sees the known pixels and the mask alone, fits one temperature a mask on held-out training
images, and prints for the test images

    best guess       the accuracy of its likeliest class
    samplers         its mean probability of the true class: the share that a perfect sampler is read rightly with
    expected         the mean of the sum of its squared probabilities; equal to `samplers` if it is calibrated
    fills            the share of one fill of each that the package's classifier reads rightly

A weaker classifier knows less and tells a lower share, so `samplers` is a lower bound of what is possible.
"""

import argparse
import os
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from race import BF16
from torch import Tensor, nn

from fm_ext.data import load_images
from fm_ext.hub import FlowModel
from fm_ext.mask import CenterBox, FreeForm, Hybrid, Irregular, RandomBox
from fm_ext.metrics import classifier, jackknife

SMOKE = os.environ.get("FM_EXT_SMOKE") == "1"
DIGITS = str(Path(__file__).parents[1] / "data" / "mnist")
MASKS = {mask.__name__: mask() for mask in (CenterBox, RandomBox, FreeForm, Irregular, Hybrid)}

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--dataset", default=DIGITS)
parser.add_argument("--seconds", type=float, default=0.5 if SMOKE else 400, help="of training")
parser.add_argument("--batch-size", type=int, default=64)
parser.add_argument("--lr", type=float, default=2e-3)
parser.add_argument("--held-out", type=int, default=100 if SMOKE else 5000)
parser.add_argument("--fills", type=int, default=8 if SMOKE else 500, help="test images to fill")
parser.add_argument("--flow", nargs="*", default=["mnist"], help="names or folders of FlowModels")
args = parser.parse_args()


class Reader(nn.Module):
    """Logits of the class from the known pixels and the mask; residual convolutions at 28, 14 and 7 pixels."""

    def __init__(self, width: int = 32, classes: int = 10):
        super().__init__()
        widths = (width, 2 * width, 4 * width)
        self.first = nn.Conv2d(2, width, 3, padding=1)
        self.blocks = nn.ModuleList()
        for level, channels in enumerate(widths):
            before = widths[max(0, level - 1)]
            self.blocks.append(
                nn.Sequential(
                    nn.Conv2d(before, channels, 3, stride=2 if level else 1, padding=1, bias=False),
                    nn.BatchNorm2d(channels),
                    nn.ReLU(),
                    nn.Conv2d(channels, channels, 3, padding=1, bias=False),
                    nn.BatchNorm2d(channels),
                )
            )
        self.head = nn.Linear(49 * widths[-1], classes)

    def forward(self, images: Tensor, mask: Tensor) -> Tensor:
        known = images.masked_fill(mask, 0.0)
        x = F.relu(self.first(torch.cat([known, mask.to(known)], 1)))
        for level, block in enumerate(self.blocks):
            x = F.relu(block(x) + (x if level == 0 else 0))
        return self.head(F.dropout(x.flatten(1), 0.4, self.training))


def shifted(images: Tensor) -> Tensor:
    """Images moved by up to two pixels, each by its own way."""
    move = torch.randint(-2, 3, (len(images), 2))
    theta = torch.eye(2, 3).repeat(len(images), 1, 1)
    theta[:, :, 2] = move / 14
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images + 1, grid, mode="nearest", align_corners=False) - 1


def train(images: Tensor, labels: Tensor) -> Reader:
    torch.manual_seed(0)
    reader, start = Reader().to(memory_format=torch.channels_last).train(), time.process_time()
    optimizer = torch.optim.AdamW(reader.parameters(), lr=args.lr, weight_decay=0.02)
    steps, kinds = 0, [*MASKS.values()]
    while (past := (time.process_time() - start) / args.seconds) < 1:
        rate = min(1.0, (steps + 1) / 200) * (1 - past)  # of the budget: up, then down to 0
        for group in optimizer.param_groups:
            group["lr"] = args.lr * rate
        rows = torch.randint(len(images), (args.batch_size,))
        mask = kinds[steps % len(kinds)](args.batch_size, images.shape[-2:])
        with torch.autocast("cpu", torch.bfloat16, enabled=BF16):
            logits = reader(shifted(images[rows]), mask)
        optimizer.zero_grad()
        F.cross_entropy(logits.float(), labels[rows]).backward()
        optimizer.step()
        steps += 1
    print(f"classifier of known pixels: {steps} steps in {args.seconds:g} seconds", flush=True)
    return reader.eval()


@torch.no_grad()
def read(reader: Reader, images: Tensor, mask: Tensor) -> Tensor:
    parts = zip(images.split(500), mask.split(500), strict=True)
    return torch.cat([reader(x, m) for x, m in parts]).double()


def temperature(logits: Tensor, labels: Tensor) -> Tensor:
    """The one number by which logits are divided for the least cross-entropy."""
    log = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log], max_iter=50)

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(logits / log.exp(), labels)
        value.backward()
        return value

    optimizer.step(closure)  # pyright: ignore[reportArgumentType]
    return log.detach().exp()


images, labels = load_images(args.dataset, split="train")
test, truth = load_images(args.dataset, limit=100 if SMOKE else None)
assert labels is not None and truth is not None
split = len(images) - args.held_out
reader = train(images[:split], labels[:split])
judge = classifier("mnist")
flows = {name: FlowModel.from_pretrained(name) for name in args.flow}
print(f"{len(test)} test images; fills of {args.fills}; in brackets 95 % intervals of the share")
for seed, (name, kind) in enumerate(MASKS.items()):
    generator = torch.Generator().manual_seed(seed)
    mask = kind(args.held_out, images.shape[-2:], generator=generator)
    scale = temperature(read(reader, images[split:], mask), labels[split:])
    mask = kind(len(test), test.shape[-2:], generator=generator)
    p = (read(reader, test, mask) / scale).softmax(1)
    of_truth = p.gather(1, truth[:, None])[:, 0]
    best = (p.argmax(1) == truth).double().mean()
    print(
        f"{name:10} best guess {best:.3f}; samplers {jackknife(torch.mean, of_truth):.3f}; "
        f"expected {p.square().sum(1).mean():.3f}; temperature {scale:.2f}",
        flush=True,
    )
    for called, flow in flows.items():
        shown = slice(0, args.fills)
        parts = zip(test[shown].split(50), mask[shown].split(50), strict=True)
        filled = torch.cat([flow.fill(x, m, generator=generator) for x, m in parts])
        right = (judge(filled).argmax(1) == truth[shown]).double()
        print(
            f"{'':10} fills of {called} {jackknife(torch.mean, right):.3f}; a perfect sampler of the same "
            f"{of_truth[shown].mean():.3f}",
            flush=True,
        )
