"""Transport costs, for all pairs of two batches at once."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def squared_distance(
    a: Float[Tensor, " rows *dim"],
    b: Float[Tensor, " columns *dim"],
    mask: Bool[Tensor, "..."] | None = None,
) -> Float[Tensor, "rows columns"]:
    r"""$\sum_k m_{ik} (a_{ik} - b_{jk})^2$ by one matrix product, two with a mask.

    In float32 at least, on the device of the batches. Both are shifted by their common mean first, which changes
    nothing on paper: a product of large numbers would lose the distances to rounding.

    Args:
        a: the rows.
        b: the columns.
        mask: of the rows, True = counts; broadcastable to `a`. None counts everything.
    """
    dtype = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    shape = a.shape
    a, b = (x.to(dtype).reshape(len(x), -1) for x in (a, b))
    centre = b.mean(0)
    a, b = a - centre, b - centre
    if mask is None:
        squares = a.square().sum(1)[:, None] + b.square().sum(1)
        return torch.addmm(squares, a, b.T, alpha=-2)
    hole = mask.expand(shape).reshape(a.shape)
    a = torch.where(hole, a, 0)
    squares = a.square().sum(1)[:, None] + hole.to(dtype) @ b.square().T
    return torch.addmm(squares, a, b.T, alpha=-2)


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
    these numbers. Where even an infinite weight leaves more (rows with equal conditions), the largest finite one.

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
