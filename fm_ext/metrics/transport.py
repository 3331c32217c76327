"""2-Wasserstein distances between point sets: exact, and averaged over lines."""

import torch
from jaxtyping import Float, Float64
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from fm_ext.metrics.points import as_points


def wasserstein_distance(
    samples: Float[Tensor, " batch *dim"], reference: Float[Tensor, " batch2 *dim"]
) -> Float64[Tensor, ""]:
    r"""Exact 2-Wasserstein distance between two point sets, by an optimal assignment.

    $$\Big(\min_{\pi} \frac1n \sum_i \|x_i - y_{\pi(i)}\|^2\Big)^{1/2}$$

    **It depends on the sample size**: two sets from one distribution in d dimensions are about $n^{-1/d}$ apart, so it
    says something about distributions in few dimensions only. Time grows as the cube of the count, memory as its
    square; 2,000 points take a second or so.

    Args:
        samples: points, or images, which are flattened.
        reference: equally many points of the same shape.

    Returns:
        The distance, in the points' unit.

    Raises:
        ValueError: for unequal counts, rows of different shapes, or numbers that are not finite.
    """
    x, y = as_points(samples, reference, equal=True, least=1)
    _, partner = linear_sum_assignment(torch.cdist(x, y).square().cpu().numpy())
    pairs = x - y[torch.as_tensor(partner, device=y.device)]
    return pairs.square().sum(1).mean().sqrt()


def sliced_wasserstein(
    samples: Float[Tensor, " batch *dim"],
    reference: Float[Tensor, " batch2 *dim"],
    *,
    projections: int = 128,
    generator: torch.Generator | None = None,
) -> Float64[Tensor, ""]:
    r"""Squared 2-Wasserstein distance of the projections on a line, averaged over random directions.

    $$\frac{1}{L} \sum_{l=1}^{L} W_2^2(\theta_l \cdot X, \theta_l \cdot Y), \qquad \theta_l \text{ uniform on the
    sphere}$$

    Unbiased over the projections, as the square and not as its root (Bonneel et al., Journal of Mathematical Imaging
    and Vision 51, 2015, equation 9). On a line the distance is that of the sorted points. **It depends on the sample
    size**, being too large by about a constant over the count. A shift by $m$ in d dimensions gives $\|m\|^2 / d$.

    Args:
        samples: points, or images, which are flattened.
        reference: equally many points of the same shape.
        projections: L.
        generator: source of the directions, on the CPU; a new one with seed 0 if None, so the same data give the same
            figure.

    Returns:
        The squared distance, in the square of the points' unit.

    Raises:
        ValueError: for unequal counts, no projection, rows of different shapes, or numbers that are not finite.
    """
    if projections < 1:
        raise ValueError(f"`projections` must be at least 1; got {projections}.")
    x, y = as_points(samples, reference, equal=True, least=1)
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    directions = torch.randn(projections, x.shape[1], dtype=x.dtype, generator=generator)
    directions = torch.nn.functional.normalize(directions).to(x.device)
    sorted_x, sorted_y = ((directions @ points.T).sort().values for points in (x, y))
    return (sorted_x - sorted_y).square().mean()
