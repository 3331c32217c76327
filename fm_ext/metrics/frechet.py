"""The Frechet distance between Gaussians fitted to two sets of features."""

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from fm_ext.metrics.points import as_points


def frechet_distance(
    samples: Float[Tensor, " batch *dim"], reference: Float[Tensor, " batch2 *dim"]
) -> Float64[Tensor, ""]:
    r"""Squared 2-Wasserstein distance between the Gaussians with the means and covariances of both sets.

    $$\|\mu_x - \mu_y\|^2 + \operatorname{tr}\big(\Sigma_x + \Sigma_y - 2 (\Sigma_x \Sigma_y)^{1/2}\big)$$

    With the features of Inception it is the FID (Heusel et al., arXiv 1706.08500). Covariances are
    unbiased. The trace of the root is the sum of the singular values of $R_x R_y^\top$, where $R^\top R = \Sigma$
    comes from a QR decomposition of the centred features: no covariance is formed and no matrix root taken, so
    near-singular features cost no digits, and the distance of a set to itself is 0 to rounding.

    **It depends on the sample size**: it is too large by about a constant over the count, so figures compare at
    equal counts only (Chong and Forsyth, arXiv 1911.07023), and unequal ones are refused.

    Args:
        samples: features of what is judged; further axes than the second are flattened.
        reference: features of real data, equally many.

    Returns:
        The distance, in the square of the features' unit, at least 0 up to rounding.

    Raises:
        ValueError: for unequal counts, a count that does not exceed the number of features, rows of different shapes,
            or numbers that are not finite.
    """
    x, y = as_points(samples, reference, equal=True)
    count, dimension = x.shape
    if count <= dimension:
        raise ValueError(
            f"`samples` must have more rows than features, or their covariance is singular; got {count} rows of "
            f"{dimension} features. Draw more samples (ten times the features, to say something), or take an extractor "
            "with fewer features."
        )
    means = x.mean(0), y.mean(0)
    roots = [_root(rows - mean) for rows, mean in zip((x, y), means, strict=True)]
    trace = sum(root.square().sum() for root in roots)
    return (means[0] - means[1]).square().sum() + trace - 2 * _nuclear_norm(roots[0] @ roots[1].T)


def _root(centred: Tensor) -> Tensor:
    """A triangular R with R^T R the covariance."""
    return torch.linalg.qr(centred, mode="r").R / (len(centred) - 1) ** 0.5


def _nuclear_norm(matrix: Tensor) -> Tensor:
    return torch.linalg.svdvals(matrix).sum()
