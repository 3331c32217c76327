"""Transport costs, for all pairs of two batches at once."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

FINE = 64
"""Numbers a row up to which float64 costs next to nothing: writing the distances takes longer than computing them."""


def squared_distance(
    a: Float[Tensor, " rows *dim"],
    b: Float[Tensor, " columns *dim"],
    mask: Bool[Tensor, "..."] | None = None,
    *,
    centred: bool = False,
) -> Float[Tensor, "rows columns"]:
    r"""$\sum_k m_{ik} (a_{ik} - b_{jk})^2$ by one matrix product, two with a mask.

    A product of numbers that are large beside their distances loses the distances to rounding. So the mean of `b` is
    taken off both batches first, which changes nothing on paper, and rows of up to `FINE` numbers are multiplied in
    float64 (not on mps, which has none). On the device of the batches.

    Args:
        a: the rows.
        b: the columns.
        mask: of the rows, True = counts; broadcastable to `a`. None counts everything.
        centred: take the mean of `a` off `a` instead. This adds a number to each row and column, which no permutation
            or plan can change, and batches may be far from each other. Not under a mask, where these are no such
            numbers.

    Returns:
        In the dtype of the batches, in float32 at least; under a mask, which leaves what is common to a row in the
        distances, that of the product.
    """
    dtype = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    fine = math.prod(a.shape[1:]) <= FINE and a.device.type != "mps"
    compute = torch.float64 if fine else dtype
    shape = a.shape
    a, b = (x.to(compute).reshape(len(x), -1) for x in (a, b))
    centre = b.mean(0)
    a, b = a - (a.mean(0) if centred and mask is None else centre), b - centre
    if mask is None:
        squares = a.square().sum(1)[:, None] + b.square().sum(1)
        return squares.addmm_(a, b.T, alpha=-2).to(dtype)
    hole = mask.expand(shape).reshape(a.shape)
    a = torch.where(hole, a, 0)
    squares = a.square().sum(1)[:, None] + hole.to(compute) @ b.square().T
    return squares.addmm_(a, b.T, alpha=-2)


def condition_distance(condition: Float[Tensor, " n ..."]) -> Float[Tensor, "n n"]:
    """Squared distances of conditions, exactly 0 where they are as near 0 as rounding leaves those of equal ones."""
    distance = squared_distance(condition, condition).clamp_(min=0)
    c = condition.to(distance.dtype).reshape(len(condition), -1)
    largest = (c - c.mean(0)).square().sum(1).max()
    return distance.masked_fill_(distance <= 16 * torch.finfo(c.dtype).eps * largest, 0)


def above_minima(cost: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """What is left of each cost above the least of its row, and then above the least of its column.

    What was taken off belongs to a row or a column, so it is the same for all permutations and plans.
    """
    cost = cost - cost.amin(1, keepdim=True)
    return cost.sub_(cost.amin(0))


def condition_weight(
    cost: Float[Tensor, "n n"], penalty: Float[Tensor, "n n"], ratio: float
) -> float:
    r"""The least w for which at most the fraction `ratio` of pairs has $C_{ij} + w P_{ij} \le C_{ii}$.

    Such pairs could replace the one that costs nothing extra: a row with itself (Cheng and Schwing, arXiv 2503.10636,
    section 4.2, who bisect). A pair stops being one at $w = (C_{ii} - C_{ij}) / P_{ij}$, so w is an order statistic of
    these numbers. Where even an infinite weight leaves more (rows with equal conditions, whose penalty must be exactly
    0), the largest finite one.

    Args:
        cost: C, of the data.
        penalty: P, of the conditions, not negative.
        ratio: in (0, 1].
    """
    slack = cost.diagonal()[:, None] - cost
    last = torch.where(penalty > 0, slack / penalty, torch.inf)
    last = torch.where(slack < 0, -1, last).flatten()
    allowed = int(ratio * last.numel())
    if allowed >= last.numel():
        return 0.0
    leaves = last.kthvalue(last.numel() - allowed).values
    if leaves.isinf():
        finite = last[last.isfinite()]
        leaves = finite.max() if len(finite) else leaves.new_zeros(())
    return max(0.0, leaves.item()) * (1 + 1e-6)
