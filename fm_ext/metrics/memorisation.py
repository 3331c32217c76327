"""Distances of samples to their nearest training images, and a test for copies."""

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from fm_ext.metrics.pairwise import ROWS
from fm_ext.metrics.points import as_points


def nearest_distance(
    samples: Float[Tensor, " batch *dim"], train: Float[Tensor, " batch2 *dim"]
) -> Float64[Tensor, " batch"]:
    """Euclidean distance from each sample to the nearest training point.

    Args:
        samples: images or features.
        train: what was trained on, all of it.

    Raises:
        ValueError: for rows of different shapes, or numbers that are not finite.
    """
    x, y = as_points(samples, train, names=("samples", "train"), least=1)
    nearest = torch.cat([torch.cdist(block, y).argmin(1) for block in x.split(ROWS)])
    return torch.cat(  # again, because `cdist` rounds: a copy is at distance 0
        [
            (block - y[rows]).norm(dim=1)
            for block, rows in zip(x.split(ROWS), nearest.split(ROWS), strict=True)
        ]
    )


def memorisation(
    samples: Float[Tensor, " batch"], held_out: Float[Tensor, " batch2"]
) -> Float64[Tensor, ""]:
    r"""Probability that a sample lies nearer to the training set than a held-out image does, ties half.

    $$\Pr(d_x < d_y) + \tfrac12 \Pr(d_x = d_y)$$

    1/2 where samples are as far from the training images as new data are, 1 where all are copies: the area under the
    curve of the test that tells both apart by this distance (Mann and Whitney), in the spirit of Meehan et al. (arXiv
    2004.05675). Blur lowers distances in pixels too, and bad samples raise them: look at the nearest pairs before
    speaking of copies.

    Args:
        samples: `nearest_distance(samples, train)`.
        held_out: `nearest_distance(test, train)`, of images that were not trained on.

    Raises:
        ValueError: if one is empty, not one number a sample, or not finite.
    """
    for name, distances in (("samples", samples), ("held_out", held_out)):
        if distances.ndim != 1 or not distances.isfinite().all():
            raise ValueError(
                f"`{name}` must hold one finite distance a sample, (batch,); got {tuple(distances.shape)}, finite: "
                f"{bool(distances.isfinite().all())}."
            )
    if not len(samples) or not len(held_out):
        raise ValueError(
            f"`samples` and `held_out` must hold distances; got {len(samples)} and {len(held_out)} of them."
        )
    ordered, ours = held_out.double().sort().values, samples.double()
    above = len(ordered) - torch.searchsorted(ordered, ours, right=True)
    not_below = len(ordered) - torch.searchsorted(ordered, ours)
    return (above + not_below).double().mean() / (2 * len(ordered))
