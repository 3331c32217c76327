"""Precision, recall, density and coverage: whether samples lie where the data are, and the data where samples are."""

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from fm_ext.metrics.pairwise import ROWS
from fm_ext.metrics.points import as_points

Features = Float[Tensor, " batch *dim"]
Real = Float[Tensor, " batch2 *dim"]
Figure = Float64[Tensor, ""]


def precision(samples: Features, reference: Real, *, neighbours: int = 3) -> Figure:
    r"""Fraction of samples within the balls around real points that reach to their k-th neighbours.

    $$\frac1n \sum_j \mathbf 1\big[\exists i: \|x_j - y_i\| \le r_k(y_i)\big], \qquad
    r_k(y_i) \text{ the distance from } y_i \text{ to the k-th nearest other } y$$

    Kynkaanniemi et al., arXiv 1904.06991, equations 1 and 2. One real outlier with its large ball raises it; `density`
    does not have this fault. **It depends on the sample size.**

    Args:
        samples: features of what is judged.
        reference: features of real data, equally many.
        neighbours: k.

    Raises:
        ValueError: for unequal counts, a count that does not exceed k, rows of different shapes, or numbers that are
            not finite.
    """
    x, y = _points(samples, reference, neighbours)
    return _fraction_inside(x, y, neighbours)


def recall(samples: Features, reference: Real, *, neighbours: int = 3) -> Figure:
    """Fraction of real points within the balls around samples: `precision` with the two exchanged.

    Args:
        samples: features of what is judged.
        reference: features of real data, equally many.
        neighbours: k.

    Raises:
        ValueError: as `precision`.
    """
    x, y = _points(samples, reference, neighbours)
    return _fraction_inside(y, x, neighbours)


def density(samples: Features, reference: Real, *, neighbours: int = 5) -> Figure:
    r"""How many balls of real points a sample lies in on average, divided by k; 1 for equal distributions.

    $$\frac{1}{k n} \sum_j \sum_i \mathbf 1\big[\|x_j - y_i\| \le r_k(y_i)\big]$$

    Naeem et al., arXiv 2002.09797, section 3. Above 1 where samples crowd where the data are densest. **It depends on
    the sample size.**

    Args:
        samples: features of what is judged.
        reference: features of real data, equally many.
        neighbours: k.

    Raises:
        ValueError: as `precision`.
    """
    x, y = _points(samples, reference, neighbours)
    radii = _radii(y, neighbours)
    inside = sum((torch.cdist(block, y) <= radii).sum() for block in x.split(ROWS))
    return torch.as_tensor(inside, dtype=x.dtype) / (neighbours * len(x))


def coverage(samples: Features, reference: Real, *, neighbours: int = 5) -> Figure:
    r"""Fraction of real points in whose ball there is a sample.

    $$\frac1n \sum_i \mathbf 1\big[\exists j: \|x_j - y_i\| \le r_k(y_i)\big]$$

    Naeem et al., arXiv 2002.09797, section 3. For equal distributions $1 - 2^{-k}$ in the limit, 0.97 for k = 5, and
    not 1. **It depends on the sample size.**

    Args:
        samples: features of what is judged.
        reference: features of real data, equally many.
        neighbours: k.

    Raises:
        ValueError: as `precision`.
    """
    x, y = _points(samples, reference, neighbours)
    radii = _radii(y, neighbours)
    covered = torch.zeros_like(radii, dtype=torch.bool)
    for block in x.split(ROWS):
        covered |= (torch.cdist(block, y) <= radii).any(0)
    return covered.double().mean()


def _points(samples: Tensor, reference: Tensor, neighbours: int) -> tuple[Tensor, Tensor]:
    if neighbours < 1:
        raise ValueError(f"`neighbours` must be at least 1; got {neighbours}.")
    return as_points(samples, reference, equal=True, least=neighbours + 1)


def _radii(points: Tensor, neighbours: int) -> Tensor:
    """Distance of each point to its k-th neighbour; the nearest is the point itself."""
    return torch.cat(
        [
            torch.cdist(block, points).topk(neighbours + 1, largest=False).values[:, -1]
            for block in points.split(ROWS)
        ]
    )


def _fraction_inside(points: Tensor, centres: Tensor, neighbours: int) -> Tensor:
    """Fraction of the points within any ball around the centres."""
    radii = _radii(centres, neighbours)
    inside = [(torch.cdist(block, centres) <= radii).any(1) for block in points.split(ROWS)]
    return torch.cat(inside).double().mean()
