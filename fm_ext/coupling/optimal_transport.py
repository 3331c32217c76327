"""Exact optimal transport between two batches."""

from typing import final

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from fm_ext.coupling.assignment import assign
from fm_ext.coupling.transport import Transport


@final
class OptimalTransport(Transport):
    r"""The permutation of the sources with the least transport cost.

    $$\min_{\pi} \sum_j \| x_0^{(\pi(j))} - x_1^{(j)} \|^2$$

    Paths of a batch then cross less, marginal velocities are straighter, and few steps go further (Pooladian et
    al., arXiv 2304.14772; Tong et al., arXiv 2302.00482). Each source is used exactly once, unlike in a plan sampled
    with replacement, which uses 63 % of them. Between two batches it is only near the optimal transport between the
    two laws, the nearer the larger the batch and the smaller the dimension.

    A condition that is given is obeyed: `label` keeps sources within their class, `mask` counts the missing entries
    only, `condition` adds the distance of the conditions (C2OT). Over the batches of all processes:
    [`GatheredCoupling`][fm_ext.coupling.GatheredCoupling].

    Costs are computed on the device of the data, in float32 at least, rows of up to 64 numbers in float64; the
    assignment is solved on the CPU. Where several permutations are the cheapest (tokens, repeated rows), rounding
    decides between them, which may differ between machines.

    Args:
        cost: `cost(x_1, x_0)`, the `(target, source)` matrix of transport costs, for example squared geodesic distances
            on a manifold or Hamming distances of tokens; None: squared Euclidean distances. With a parameter `mask` it
            gets the targets' mask, `(batch, ...)`, or None.
        ratio: for `condition`: the fraction of pairs that may be as near, cost of the condition included, as the pair
            of a target with its own row's source, in (0, 1].
        weight: for `condition`: the weight of its cost; None: found from `ratio` for each batch.

    Raises:
        ValueError: for a ratio or weight out of range.
    """

    def assign(
        self,
        cost: Float[Tensor, "n n"],
        generator: torch.Generator | None,
        data: Float[Tensor, "n n"] | None = None,
    ) -> Int64[Tensor, " n"]:
        """The optimal source (column) of each target (row)."""
        return assign(cost).to(cost.device)
