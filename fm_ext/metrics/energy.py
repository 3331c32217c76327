"""The energy distance."""

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from fm_ext.metrics.pairwise import discrepancy
from fm_ext.metrics.points import as_points


def energy_distance(
    samples: Float[Tensor, " batch *dim"], reference: Float[Tensor, " batch2 *dim"]
) -> Float64[Tensor, ""]:
    r"""$2\, E\|X - Y\| - E\|X - X'\| - E\|Y - Y'\|$, unbiased; 0 for equal distributions only.

    Szekely and Rizzo, Journal of Statistical Planning and Inference 143(8), 2013; without their sums over
    equal points, which make it too large by a constant over the count. (scipy's is the root of the sum with them, in
    one dimension.)

    Args:
        samples: points, or images, which are flattened.
        reference: points of the same shape; any number.

    Returns:
        The distance, in the points' unit; about 0, also a little below, where the distributions agree.

    Raises:
        ValueError: for fewer than 2 rows, rows of different shapes, or numbers that are not finite.
    """
    x, y = as_points(samples, reference)
    return -discrepancy(x, y, torch.cdist)
