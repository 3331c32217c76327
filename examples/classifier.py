"""Train the small classifier that the package ships, by whose labels and features generated images are judged.

    python examples/classifier.py                                            # shipped MNIST digits
    python examples/classifier.py --dataset <folder of MNIST>                # all of it: the weights in the package
    python examples/classifier.py --dataset <folder of Fashion-MNIST> --flip
Prints the accuracy on the test images, saves a picture of its mistakes, and the weights in float16. Run again, it goes
on from its last checkpoint.
"""

import argparse
import os
import time
from pathlib import Path

import matplotlib.pyplot as plt
import safetensors.torch
import torch
import torch.nn.functional as F
from plots import save_figure
from torch import nn

from fm_ext.data import image_loader, load_images
from fm_ext.metrics import Classifier, jackknife
from fm_ext.training import Trainer, TrainerConfig, auto_accelerator

SMOKE = os.environ.get("FM_EXT_SMOKE") == "1"
DIGITS = str(Path(__file__).parent / "data" / "mnist")
TURN, SCALE, SHIFT = 0.15, 0.1, 0.07  # at most: radians, relative, of half the width (one pixel)

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--dataset", default=DIGITS)
parser.add_argument("--flip", action="store_true", help="mirror every second image")
parser.add_argument("--warp", type=float, default=1.0, help="how much of TURN, SCALE and SHIFT")
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--batch-size", type=int, default=128)
parser.add_argument("--lr", type=float, default=4e-3)
parser.add_argument("--output", type=Path, default=Path("outputs/classifier"))
args = parser.parse_args()


def augment(images: torch.Tensor) -> torch.Tensor:
    """Each image turned, scaled and shifted a little, by an affine map of its own."""
    angle, scale, *shift = torch.empty(4, len(images), device=images.device).uniform_(
        -args.warp, args.warp
    )
    cos, sin = (f(TURN * angle) * (1 + SCALE * scale) for f in (torch.cos, torch.sin))
    rows = torch.stack([cos, -sin, SHIFT * shift[0], sin, cos, SHIFT * shift[1]], 1)
    grid = F.affine_grid(rows.view(-1, 2, 3), list(images.shape), align_corners=False)
    return F.grid_sample(images + 1, grid, align_corners=False) - 1  # outside is black


def loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    logits = model(augment(batch["image"]))
    return F.cross_entropy(logits.float(), batch["label"])


# ---- train ----------------------------------------------------------------------------------
accelerator = auto_accelerator()
data = {"source": args.dataset, "channels": 1, "device": accelerator.device}
loader = image_loader(**data, batch_size=args.batch_size, flip=args.flip)
torch.manual_seed(0)
steps = 2 if SMOKE else args.epochs * len(loader)
config = TrainerConfig(
    steps=steps,
    lr=args.lr,
    warmup=steps // 10,
    weight_decay=0.02,
    ema_decay=None,
    output_dir=args.output / "checkpoints",
)
network = Classifier(len(loader.dataset.classes)).to(memory_format=torch.channels_last)
trainer = Trainer(network, loss, loader, config, accelerator)
start = time.process_time()
trainer.fit()
print(
    f"{steps} steps of {args.batch_size} images took {time.process_time() - start:.0f} s of CPU time"
)

# ---- judge, as it will be loaded --------------------------------------------------------------
args.output.mkdir(parents=True, exist_ok=True)
half = {
    name: (tensor.half() if tensor.is_floating_point() else tensor).contiguous().cpu()
    for name, tensor in network.state_dict().items()
}
file = args.output / "classifier.safetensors"
safetensors.torch.save_file(half, file)
print(f"saved {file} ({file.stat().st_size / 1e3:.0f} kB)")
network.load_state_dict({name: tensor.float() for name, tensor in half.items()})
network.eval().requires_grad_(False)
images, labels = load_images(**data, limit=100 if SMOKE else None)
predicted = torch.cat([network(part).argmax(1) for part in images.split(500)])
right = (predicted == labels).double()
print(f"accuracy on test images: {jackknife(torch.mean, right):.4f}")

order = right.argsort(stable=True)[:32].cpu()
figure, axes = plt.subplots(4, 8, figsize=(8, 5))
for axis, index in zip(axes.flat, order.tolist(), strict=True):
    axis.imshow(images[index, 0].cpu(), cmap="gray")
    names = [loader.dataset.classes[int(y[index])] for y in (labels, predicted)]
    axis.set_title(" not ".join(dict.fromkeys(names)), fontsize=7)
    axis.axis("off")
save_figure(figure, args.output / "mistakes.png", dpi=100, bbox_inches="tight")
