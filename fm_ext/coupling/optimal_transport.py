"""Couplings of least transport cost: the cost, what conditions do to it, the exact solver, `OptimalTransport`."""

import abc
import math
import warnings
from collections.abc import Callable
from typing import final

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from fm_ext.coupling.coupling import Coupling, check_conditions

Cost = Callable[..., Tensor]
"""`cost(x_1, x_0)`, the `(target, source)` matrix; under a mask it is called as `cost(x_1, x_0, mask=mask)`."""

COLUMNS = 64
"""Numbers of a condition by which rows are sorted first; those that agree in them are compared as a whole."""


class Transport(Coupling):
    r"""Pairs every target with a source that is near to it, and leaves the law of the sources given the conditions.

    Sampling starts from sources that know nothing of the condition, so training must see $p(x_0 \mid c) = p(x_0)$.
    Sources therefore change hands only among targets whose conditions are equal: the label, the condition, and under a
    mask the mask and the known pixels. Such a batch has the right law whatever its size. Where all conditions differ,
    as those of real images under random masks do, no source moves, and a warning says so once.

    `ratio` or `weight` allow exchanges among rows whose conditions are near (C2OT, Cheng and Schwing, arXiv
    2503.10636, section 4.2): the cost is $\|x_0 - x_1\|^2 + w \|c_0 - c_1\|^2$, where each source carries the condition
    of its row. This makes the law of the source depend on the condition, so samples are biased;
    `docs/content/guides/coupling.md` has measured by how much.

    Args:
        cost: `cost(x_1, x_0)`, the `(target, source)` matrix of transport costs, for example squared geodesic distances
            on a manifold or Hamming distances of tokens; None: squared Euclidean distances. Under a mask it is called
            as `cost(x_1, x_0, mask=mask)`, with the mask of the targets, `(batch, ...)`.
        ratio: approximate: the fraction of pairs that may be as near, cost of the condition included, as the pair
            of a target with its own row's source, in (0, 1]. w is found from it for each batch. None: exact.
        weight: approximate: w itself. None: exact, or by `ratio`.

    Raises:
        ValueError: for a ratio or weight out of range, or both.
    """

    def __init__(
        self,
        *,
        cost: Cost | None = None,
        ratio: float | None = None,
        weight: float | None = None,
    ):
        if ratio is not None and not 0 < ratio <= 1:
            raise ValueError(f"`ratio` must lie in (0, 1], or be None; got {ratio}.")
        if weight is not None and not 0 <= weight < float("inf"):
            raise ValueError(f"`weight` must be finite and not negative, or None; got {weight}.")
        if ratio is not None and weight is not None:
            raise ValueError(
                f"`ratio` and `weight` must not both be given, as one decides the other; got {ratio} and {weight}. "
                "Leave one of them out."
            )
        self.cost = cost
        self.ratio = ratio
        self.weight = weight
        self._said_that_nothing_moves = False

    def __call__(
        self,
        x_0: Shaped[Tensor, " batch *dim"],
        x_1: Shaped[Tensor, " batch *dim"],
        *,
        mask: Bool[Tensor, "..."] | None = None,
        label: Shaped[Tensor, " batch"] | None = None,
        condition: Shaped[Tensor, " batch ..."] | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Shaped[Tensor, " batch *dim"], Int64[Tensor, " batch"]]:
        r"""Re-pairs the sources among rows of equal conditions, or near ones where `ratio` or `weight` is given.

        Args:
            x_0: sources, `(batch, ...)`: independent of the targets; of noise, no known pixels pasted in.
            x_1: targets, of the same shape.
            mask: True = missing, as `MaskedProbPath` takes it; the cost counts the target's missing entries only. The
                mask and the known entries of `x_1` are a condition.
            label: classes `(batch,)`; sources stay within their class, under `ratio` and `weight` too.
            condition: numbers `(batch, ...)`, for example embeddings.
            generator: source of the randomness, where there is any.

        Returns:
            The source of each target, through which gradients flow, and its row of `x_0`.

        Warns:
            RuntimeWarning: once, if no two rows have equal conditions, so that nothing moved.

        Raises:
            TypeError: for a mask that is not bool, data that are not floating point without `cost`, or a `cost` that
                returns no tensor or takes no `mask` where there is one.
            ValueError: for shapes that do not agree, or values that are not finite.
        """
        if x_0.shape != x_1.shape:
            raise ValueError(
                f"`x_0` and `x_1` must have the same shape; got {tuple(x_0.shape)} and {tuple(x_1.shape)}."
            )
        if self.cost is None and not (x_0.is_floating_point() and x_1.is_floating_point()):
            raise TypeError(
                f"`x_0` and `x_1` must be floating point for squared distances; got {x_0.dtype} and {x_1.dtype}. "
                "For tokens say what a change costs: cost=lambda x_1, x_0: ..., a (batch, batch) matrix."
            )
        mask = check_conditions(x_1, mask, label, condition)
        if condition is not None and not bool(condition.isfinite().all()):
            raise ValueError("`condition` must be finite; it is not.")
        with torch.no_grad(), torch.autocast(x_0.device.type, enabled=False):
            index = self._index(x_0, x_1, mask, label, condition, generator)
        return x_0[index], index

    @abc.abstractmethod
    def assign(
        self,
        cost: Float[Tensor, "n n"],
        generator: torch.Generator | None,
        data: Float[Tensor, "n n"] | None = None,
    ) -> Int64[Tensor, " n"]:
        """The source (column) of each target (row).

        Args:
            cost: of all pairs, float32 or float64 and finite.
            generator: source of the randomness, where there is any.
            data: the part of the cost that is not the conditions'; None: all of it.
        """

    def _index(
        self,
        x_0: Tensor,
        x_1: Tensor,
        mask: Tensor | None,
        label: Tensor | None,
        condition: Tensor | None,
        generator: torch.Generator | None,
    ) -> Tensor:
        n = len(x_0)
        known = None if mask is None else torch.where(mask, 0, x_1)
        rest = [c.reshape(n, -1) for c in (mask, known, condition) if c is not None and n]
        near = None
        if (self.ratio is not None or self.weight is not None) and rest:
            dtype = torch.float32
            for c in rest:
                dtype = torch.promote_types(dtype, c.dtype)
            near, rest = torch.cat([c.to(dtype) for c in rest], dim=1), []
        index = torch.arange(n, device=x_0.device)
        groups = [index] if n > 1 else []
        for c in [label, *rest] if label is not None else rest:
            groups = [part for rows in groups for part in _equal_rows(rows, c.reshape(n, -1))]
        if n > 1 and not groups and not self._said_that_nothing_moves:
            self._said_that_nothing_moves = True
            kind = type(self).__name__
            warnings.warn(
                f"{kind} moved no source, because no two of the {n} rows have equal conditions: the pairs stay "
                f"independent. {kind}(ratio=0.05) exchanges sources among near conditions, at the price of a bias that "
                "docs/content/guides/coupling.md measures; IndependentCoupling() says that nothing shall move.",
                RuntimeWarning,
                stacklevel=3,
            )
        index = index.clone()
        for rows in groups:
            hole, c = (x if x is None else x[rows] for x in (mask, near))
            index[rows] = rows[self._pair(x_0[rows], x_1[rows], hole, c, generator)]
        return index

    def _pair(
        self,
        x_0: Tensor,
        x_1: Tensor,
        mask: Tensor | None,
        condition: Tensor | None,
        generator: torch.Generator | None,
    ) -> Tensor:
        if self.cost is None:
            cost = squared_distance(x_1, x_0, mask, centred=True).clamp_(min=0)
        else:
            cost = _given(self.cost, x_1, x_0, mask)
        data = cost
        if condition is not None:
            penalty = condition_distance(condition).to(cost.dtype)
            weight = self.weight
            if (
                self.ratio is not None
            ):  # which compares sources: it needs to know how far off they are
                true = cost if self.cost else squared_distance(x_1, x_0, mask).clamp_(min=0)
                weight = condition_weight(true, penalty, self.ratio)
            cost = data.add(penalty, alpha=weight or 0)
        if not bool(cost.sum().isfinite()):
            given = "`x_0`, `x_1`" if self.cost is None else "what `cost` returns"
            raise ValueError(
                f"{given} and `condition` must be finite, and so must the cost of each pair in {cost.dtype}; it is not."
            )
        return self.assign(cost, generator, data)


@final
class OptimalTransport(Transport):
    r"""The permutation of the sources with the least transport cost.

    $$\min_{\pi} \sum_j \| x_0^{(\pi(j))} - x_1^{(j)} \|^2$$

    Paths of a batch then cross less, marginal velocities are straighter, and few steps go further (Pooladian et
    al., arXiv 2304.14772; Tong et al., arXiv 2302.00482). Each source is used exactly once, unlike in a plan sampled
    with replacement, which uses 63 % of them. Between two batches it is only near the optimal transport between the
    two laws, the nearer the larger the batch and the smaller the dimension.

    Sources move only among rows whose conditions (`label`, `condition`, under a `mask` the mask and the known pixels)
    are equal, because the law of the source given the conditions must be that which sampling starts from. Without
    conditions that is the whole batch; with real images under masks it is nothing, and a warning says so once. `ratio`
    and `weight` let sources move among near conditions, with a bias (see
    [Conditions](../guides/coupling.md#conditions)). Over the batches of all processes:
    [`GatheredCoupling`][fm_ext.coupling.GatheredCoupling].

    Costs are computed on the device of the data, in float32 at least, rows of up to 64 numbers in float64; the
    assignment is solved on the CPU. Where several permutations are the cheapest (tokens, repeated rows), rounding
    decides between them, which may differ between machines.

    Args:
        cost: `cost(x_1, x_0)`, the `(target, source)` matrix of transport costs, for example squared geodesic distances
            on a manifold or Hamming distances of tokens; None: squared Euclidean distances. Under a mask it is called
            as `cost(x_1, x_0, mask=mask)`, with the mask of the targets, `(batch, ...)`.
        ratio: approximate (C2OT): the fraction of pairs that may be as near, cost of the condition included, as the
            pair of a target with its own row's source, in (0, 1]. None: exact.
        weight: approximate (C2OT): the weight of the squared distance of the conditions. None: exact, or by `ratio`.

    Raises:
        ValueError: for a ratio or weight out of range, or both.
    """

    def assign(
        self,
        cost: Float[Tensor, "n n"],
        generator: torch.Generator | None,
        data: Float[Tensor, "n n"] | None = None,
    ) -> Int64[Tensor, " n"]:
        """The optimal source (column) of each target (row)."""
        return assign(cost).to(cost.device)


def _given(cost: Cost, x_1: Tensor, x_0: Tensor, mask: Tensor | None) -> Tensor:
    """The matrix of a cost function of the user's, in float32 at least."""
    matrix = cost(x_1, x_0) if mask is None else cost(x_1, x_0, mask=mask)
    n = len(x_0)
    if not isinstance(matrix, Tensor):
        raise TypeError(f"`cost` must return a tensor; got {type(matrix).__name__}.")
    if matrix.shape != (n, n):
        raise ValueError(
            f"`cost` must return a row for each of x_1 and a column for each of x_0, ({n}, {n}), as "
            f"(x_1[:, None] != x_0).sum(-1) does; got {tuple(matrix.shape)}."
        )
    return matrix.to(torch.promote_types(matrix.dtype, torch.float32))


def _equal_rows(rows: Tensor, condition: Tensor) -> list[Tensor]:
    """`rows`, split into those whose conditions are equal; without those that are equal to no other."""
    width = condition.shape[1]
    if width == 0:
        return [rows]
    own = condition[rows]
    some = own[:, :: max(1, width // COLUMNS)]
    if some.dtype == torch.bool:
        some = some.to(torch.uint8)
    elif some.is_floating_point():
        some = some.to(torch.promote_types(some.dtype, torch.float32))
    group = some.unique(dim=0, return_inverse=True)[1]
    found = []
    for part in group.argsort(stable=True).split(group.bincount().tolist()):
        while len(part) > 1:
            same = (own[part] == own[part[0]]).all(1)
            same[0] = True  # not equal to itself if it is NaN
            if same.sum() > 1:
                found.append(rows[part[same]])
            part = part[~same]
    return found


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


SMALL = 128
"""Rows up to which better prices take longer to find than they save."""

EPSILONS = 0.1, 0.02, 0.005, 0.001
"""Regularisation, in units of the mean cost above the minima of rows and columns."""

SWEEPS = 6
"""Sinkhorn iterations with each of them."""

TIED = 4
"""Zeros a row, on average, above the minima: with more of them there are many optima, and prices only hide the ties."""

CROWDED = 0.3
"""Part of all costs, near 0 for the last of EPSILONS: beyond it a few large costs have set the unit."""

RELAXATION = 1.5
"""Of the iterations: 1 is Sinkhorn's own step, and from 2 on they diverge."""


def assign(cost: Float[Tensor, "n n"]) -> Int64[Tensor, " n"]:
    r"""The permutation $\pi$ with the least $\sum_i C_{i \pi(i)}$, on the CPU.

    By scipy's `linear_sum_assignment` (Crouse, IEEE TAES 52(4), 2016) of $C_{ij} - v_j$ in float64. Prices v of the
    columns change no optimum, and the nearer they are to those of the dual problem, the shorter the paths that the
    solver has to search. Where several permutations are the cheapest, rounding decides between them.

    Args:
        cost: the cost of giving row i column j, finite, on any device.
    """
    reduced = cost.cpu() - _prices(cost).cpu().double()
    return torch.from_numpy(linear_sum_assignment(reduced.numpy())[1]).long()


def _prices(cost: Tensor) -> Tensor:
    r"""Nearly optimal v of the dual problem $\max_v \sum_i \min_j (C_{ij} - v_j) + \sum_j v_j$.

    The minima of the columns above those of the rows; of large problems, the potentials of the entropic plan, by
    over-relaxed Sinkhorn iterations (Thibault et al., arXiv 1711.01851) from a large to a small regularisation. Not
    where many costs are equal, or nearly so beside the mean cost: there the solver is faster from the minima.
    """
    slack = cost - cost.amin(1, keepdim=True)
    minima = slack.amin(0)
    slack -= minima
    n = len(cost)
    if n <= SMALL or (slack == 0).sum() > TIED * n:
        return minima
    unit = slack.mean()
    if (slack <= EPSILONS[-1] * unit).sum() > CROWDED * n * n:
        return minima
    slack = slack.div_(unit).float()
    kernel = torch.empty_like(slack)
    v = torch.zeros_like(slack[0])
    for epsilon in EPSILONS:
        torch.sub(v, slack, out=kernel)
        kernel -= kernel.amax(1, keepdim=True)
        # No entry below e^-20: scalings stay within float32, and products with denormal numbers are slow.
        kernel.div_(epsilon).clamp_min_(-20).exp_()
        a = b = torch.ones_like(v)
        for _ in range(SWEEPS):
            a = a * (a * (kernel @ b)) ** -RELAXATION
            b = b * (b * (a @ kernel)) ** -RELAXATION
        v = v + epsilon * b.log()
    return minima + unit * v
