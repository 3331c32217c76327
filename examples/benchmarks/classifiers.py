"""Accuracy of the shipped classifiers on their own test images, and distances under blur and noise.

    OMP_NUM_THREADS=1 python examples/benchmarks/classifiers.py mnist <folder of MNIST>
    OMP_NUM_THREADS=1 python examples/benchmarks/classifiers.py fashion_mnist <folder of Fashion-MNIST>

Each row compares 10,000 images with the 10,000 test images: training images, drawn at random (MNIST's come by turns
from two groups of writers); then the test images blurred or with noise, rounded to 8 bits. The scale of a Frechet
distance in these features is read off here.
"""

import argparse
import os

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

from fm_ext.data import load_images
from fm_ext.data.pixels import to_float
from fm_ext.metrics import classifier, frechet_distance, jackknife
from fm_ext.sampling import to_uint8

SMOKE = os.environ.get("FM_EXT_SMOKE") == "1"

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("name", choices=["mnist", "fashion_mnist"])
parser.add_argument("dataset", help="folder or hub name of the full data set")
args = parser.parse_args()

limit = 200 if SMOKE else None
images, labels = load_images(args.dataset, channels=1, limit=limit)
train, train_labels = load_images(args.dataset, split="train", channels=1, limit=limit)
chosen = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[: len(images)]
network = classifier(args.name)


def features(images: Tensor) -> Tensor:
    return torch.cat([network.features(part) for part in images.split(500)])


real = features(images)
for part, values, truth in (("train", features(train), train_labels), ("test", real, labels)):
    right = (network.head(values).argmax(1) == truth).double()
    print(f"accuracy, {part}: {jackknife(torch.mean, right):.4f}", flush=True)

cases = {"training images": train[chosen]}
for sigma in (0.4, 0.6, 0.8, 1.2, 2.0):
    cases[f"blur, {sigma} pixels"] = gaussian_blur(images, [13, 13], [sigma, sigma])
for level in (0.05, 0.1, 0.2, 0.4, 0.8):
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(images.shape, generator=generator)
    cases[f"noise, {level} in [-1, 1]"] = (images + level * noise).clamp(-1, 1)

for name, changed in cases.items():
    values = features(to_float(to_uint8(changed)))
    truth = train_labels[chosen] if name == "training images" else labels
    accuracy = (network.head(values).argmax(1) == truth).double().mean()
    estimate = jackknife(frechet_distance, values, real)
    print(f"{name}: frechet {estimate:.3g}; accuracy {accuracy:.4f}", flush=True)
