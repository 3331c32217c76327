"""Maximum mean discrepancies: unbiased for any number of samples."""

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from fm_ext.metrics.pairwise import discrepancy
from fm_ext.metrics.points import as_points, ordered

_MEDIAN_ROWS = 1000


def kernel_distance(
    samples: Float[Tensor, " batch *dim"], reference: Float[Tensor, " batch2 *dim"]
) -> Float64[Tensor, ""]:
    r"""Unbiased squared maximum mean discrepancy under the kernel $(x \cdot y / d + 1)^3$.

    With the features of Inception it is the KID (Binkowski et al., arXiv 1801.01401, section 4), here over all pairs
    rather than over subsets. It sees means, covariances and third moments.

    Args:
        samples: features of what is judged; further axes than the second are flattened.
        reference: features of real data; any number.

    Returns:
        The squared distance; about 0, also a little below, where the distributions agree.

    Raises:
        ValueError: for fewer than 2 rows, rows of different shapes, or numbers that are not finite.
    """
    x, y = as_points(samples, reference)
    return discrepancy(x, y, _cubic)


def maximum_mean_discrepancy(
    samples: Float[Tensor, " batch *dim"],
    reference: Float[Tensor, " batch2 *dim"],
    *,
    bandwidth: float | None = None,
) -> Float64[Tensor, ""]:
    r"""Unbiased squared maximum mean discrepancy under the kernel $\exp(-\|x - y\|^2 / 2 h^2)$.

    Gretton et al., Journal of Machine Learning Research 13, 2012, lemma 6. It is 0 for equal distributions only.
    Figures of different bandwidths do not compare.

    Args:
        samples: points, or images, which are flattened.
        reference: points of the same shape; any number.
        bandwidth: h, in the unit of the points. None: the median distance between points of both sets together, as in
            their section 8, over at most 1,000 of each, which do not depend on their order.

    Returns:
        The squared discrepancy, below 2; about 0, also a little below, where the distributions agree.

    Raises:
        ValueError: for fewer than 2 rows, rows of different shapes, numbers that are not finite, or a bandwidth that
            is not above 0 (a median of 0 among them).
    """
    x, y = as_points(samples, reference)
    if bandwidth is None:
        pooled = [ordered(rows)[:: -(-len(rows) // _MEDIAN_ROWS)] for rows in (x, y)]
        bandwidth = torch.pdist(torch.cat(pooled)).median().item()
    if not bandwidth > 0:
        raise ValueError(
            f"`bandwidth` must be above 0; got {bandwidth}. Where the median distance is 0, because most points are "
            "equal, give a bandwidth."
        )
    scale = -0.5 / bandwidth**2
    return discrepancy(x, y, lambda a, b: torch.cdist(a, b).square_().mul_(scale).exp_())


def _cubic(a: Tensor, b: Tensor) -> Tensor:
    base = (a @ b.T).div_(a.shape[1]).add_(1)
    return base.square().mul_(base)
