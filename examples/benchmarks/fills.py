"""What fills of holes are worth; `fill_samplers.py`, `filling.py`, `guidance.py` and `one_step_fills.py` use it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fm_ext.mask import Mask
from fm_ext.metrics import (
    colour_error,
    fill_diversity,
    frechet_distance,
    hole_psnr,
    jackknife,
    seam_gradient,
)
from fm_ext.metrics.classifier import Classifier

Result = dict[str, Any]


@torch.no_grad()
def judge_fills(
    fill: Callable[[Tensor, Tensor, torch.Generator], Tensor],
    images: Tensor,
    masks: Mapping[str, Mask],
    *,
    labels: Tensor | None = None,
    reader: Classifier | None = None,
    count: int = 2,
    batch_size: int = 50,
) -> Result:
    """Figures of the fills of each kind of mask, their means, and the Frechet distance of all to the images.

    Masks are the same for all that are compared, and so is the noise that `fill` draws first. The Frechet distance has
    an interval of `jackknife`, which takes all fills for independent: those of one image are not, so it is wider than
    the truth. "ratio" is the error of a fill over sqrt(2) times the spread of two: 1 for samples of the true posterior,
    less for fills that differ too much, more for fills that are too alike.

    Args:
        fill: images, their masks and a generator of the noise to filled images.
        images: the truth, in [-1, 1].
        masks: kinds, by name.
        labels: of the images, for a reader.
        reader: a classifier; "read" is the share of fills that it takes for what the image was.
        count: of fills of each hole.
        batch_size: of `fill`.
    """
    found: Result = {}
    everything = []
    for seed, (name, kind) in enumerate(masks.items()):
        generator = torch.Generator().manual_seed(seed)
        mask = kind(len(images), images.shape[-2:], generator=generator)
        fills = []
        for _ in range(count):
            answers = []
            for part in zip(images.split(batch_size), mask.split(batch_size), strict=True):
                own = int(torch.randint(2**62, (), generator=generator))
                answer = fill(*part, torch.Generator().manual_seed(own))
                answers.append(answer.float().clamp(-1, 1))
            fills.append(torch.cat(answers))
        everything += fills
        found[name] = _figures(fills, images, mask, labels, reader)
    names = next(iter(found.values())).keys()
    found["mean"] = {name: sum(row[name] for row in found.values()) / len(masks) for name in names}
    if reader is not None:
        features = torch.cat([reader.features(fills) for fills in everything])
        real = reader.features(images).repeat(len(everything), 1)
        distance = jackknife(frechet_distance, features, real)
        found["frechet"] = [distance.value, distance.low, distance.high]
    return found


def _figures(
    fills: Sequence[Tensor],
    images: Tensor,
    mask: Tensor,
    labels: Tensor | None,
    reader: Classifier | None,
) -> dict[str, float]:
    """Of one kind of mask."""
    times = len(fills)
    filled, truth, hole = (
        torch.cat([*fills]),
        images.repeat(times, 1, 1, 1),
        mask.repeat(times, 1, 1, 1),
    )
    psnr = float(hole_psnr(filled, truth, hole))
    figures = {
        "psnr": psnr,
        "colour": float(colour_error(filled, truth, hole)),
        "seam": float(seam_gradient(filled, hole) / seam_gradient(truth, hole)),
    }
    if times > 1:
        spread = float(fill_diversity(torch.stack([*fills], 1), mask))
        figures |= {"spread": spread, "ratio": 2 * 10 ** (-psnr / 20) / (2**0.5 * spread)}
    if reader is not None and labels is not None:
        right = reader(filled).argmax(1) == labels.repeat(times)
        figures["read"] = float(right.double().mean())
    return figures
