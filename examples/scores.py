"""Figures that the examples judge fills and samples by; a reader of a lesson may skip it."""

import cv2
import torch
from torch import Tensor, nn

from fm_ext.metrics import (
    FeatureMetrics,
    class_balance,
    classifier,
    colour_error,
    fill_diversity,
    frechet_distance,
    hole_psnr,
    hole_ssim,
    jackknife,
    seam_gradient,
)
from fm_ext.sampling import Samples, to_uint8


def print_digit_scores(samples: Samples, reference: Tensor, judge: str) -> None:
    """Distances of samples to images in the features of a shipped classifier, with intervals; and their classes.

    Args:
        samples: with as many labels of each class.
        reference: what they are compared with, in [-1, 1].
        judge: "mnist" or "fashion_mnist".
    """
    network = classifier(judge)
    metrics = FeatureMetrics(network.features)
    for part in reference.split(500):
        metrics.update(part, real=True)
    predicted = []
    for part in samples.to_float().split(500):
        metrics.update(part, real=False)
        predicted.append(network(part).argmax(1))
    for figure, estimate in metrics.compute().items():
        print(f"{figure:9} {estimate}")
    labels, classes = torch.cat(predicted), 10
    even = torch.full((classes,), 1 / classes)
    print(f"right class {jackknife(torch.mean, (labels == samples.label).double()):.3f}")
    print(f"imbalance {jackknife(lambda labels: class_balance(labels, even), labels):.3f}")


def telea(images: Tensor, mask: Tensor) -> Tensor:
    """OpenCV's inpainting, to compare with."""
    pixels = to_uint8(images).movedim(1, 3).squeeze(-1).cpu().numpy()
    holes = mask[:, 0].byte().cpu().numpy()
    pairs = zip(pixels, holes, strict=True)
    filled = [torch.from_numpy(cv2.inpaint(p, h, 3, cv2.INPAINT_TELEA)) for p, h in pairs]
    height, width = images.shape[-2:]
    filled = torch.stack(filled).view(len(images), height, width, -1).movedim(3, 1)
    return filled.to(images.device) / 127.5 - 1


def known_mean(images: Tensor, mask: Tensor) -> Tensor:
    """The mean of the known pixels in every hole."""
    mean = (images * ~mask).sum((2, 3), keepdim=True) / (~mask).sum((2, 3), keepdim=True)
    return torch.where(mask, mean, images)


class HoleScores:
    """A table of what answers to holes are worth, beside two classical ones.

    Args:
        images: the truth, `(batch, channel, height, width)` in [-1, 1].
        labels: classes, for a judge.
        judge: a classifier that reads the images, or None.
    """

    def __init__(self, images: Tensor, labels: Tensor | None, judge: nn.Module | None):
        self.images, self.labels, self.judge = images, labels, judge
        print(
            f"{len(images)} test images; PSNR (dB), SSIM, colour error in the holes; seam, 1 for the truth"
        )
        if judge:
            right = (judge(images).argmax(1) == labels).float().mean()
            print(
                f"read rightly by a classifier ({right:.1%} of the originals); Frechet in its features"
            )
        header = f"{'':26} {'PSNR':>6} {'SSIM':>5} {'colour':>7} {'seam':>5}"
        print(header + f" {'read':>6} {'Frechet':>8}" * bool(judge))

    def print(self, name: str, fills: list[Tensor], mask: Tensor) -> None:
        """Prints the lines of one kind of hole: of one fill, of the mean of all, and of classical answers."""
        spread = fill_diversity(torch.stack(fills, 1), mask)
        print(f"{name}: {mask.float().mean():.0%} missing, spread of the fills {spread:.2f}")
        answers = {
            "one fill": fills,  # of each, and so averages over all
            f"mean of {len(fills)}": [torch.stack(fills).mean(0)],
            "Telea": [telea(self.images, mask)],
            "known mean": [known_mean(self.images, mask)],
        }
        for answer, filled in answers.items():
            print(f"  {answer:24} {self.line(filled, mask)}", flush=True)

    def line(self, answers: list[Tensor], mask: Tensor) -> str:
        """Figures over one or several answers to each hole; the seam is relative to that of the true images."""
        answer, times = torch.cat(answers), len(answers)
        truth, mask = self.images.repeat(times, 1, 1, 1), mask.repeat(times, 1, 1, 1)
        seam = seam_gradient(answer, mask) / seam_gradient(truth, mask)
        line = f"{hole_psnr(answer, truth, mask):6.2f} {hole_ssim(answer, truth, mask):5.2f} "
        line += f"{colour_error(answer, truth, mask):7.3f} {seam:5.2f}"
        if self.judge is None or self.labels is None:
            return line
        read = (self.judge(answer).argmax(1) == self.labels.repeat(times)).float().mean()
        line += f" {read:6.1%}"
        if len(self.images) <= 96:  # features: a covariance needs more images
            return line + f" {'-':>8}"
        first, real = self.judge.features(answers[0]), self.judge.features(self.images)
        return line + f" {frechet_distance(first, real):8.2f}"  # equal counts in all rows
