"""What couplings of least transport cost have in common: the cost, and what the conditions do to it."""

import abc
import inspect
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor

from fm_ext.coupling.cost import condition_distance, condition_weight, squared_distance
from fm_ext.coupling.coupling import Coupling
from fm_ext.mask.check import check_mask

Cost = Callable[..., Tensor]
"""`cost(x_1, x_0)`, or `cost(x_1, x_0, mask=None)`."""


class Transport(Coupling):
    """Pairs every target with a source so that they are near each other, and obeys the conditions it is given.

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

    takes = frozenset({"label", "mask", "condition", "generator"})

    def __init__(
        self, *, cost: Cost | None = None, ratio: float = 0.2, weight: float | None = None
    ):
        if not 0 < ratio <= 1:
            raise ValueError(f"`ratio` must lie in (0, 1]; got {ratio}.")
        if weight is not None and not 0 <= weight < float("inf"):
            raise ValueError(f"`weight` must be finite and not negative, or None; got {weight}.")
        self.cost = cost
        self.ratio = ratio
        self.weight = weight

    def __call__(
        self,
        x_0: Shaped[Tensor, " batch *dim"],
        x_1: Shaped[Tensor, " batch *dim"],
        *,
        label: Shaped[Tensor, " batch"] | None = None,
        mask: Bool[Tensor, "..."] | None = None,
        condition: Float[Tensor, " batch ..."] | None = None,
        generator: torch.Generator | None = None,
        **unknown: Any,
    ) -> tuple[Shaped[Tensor, " batch *dim"], Int64[Tensor, " batch"]]:
        r"""Re-pairs the sources; whatever is given as a condition is obeyed.

        Coupling that ignores a condition $c$ makes $p(x_0 \mid c) \neq p(x_0)$ in training, while sampling
        draws from $p(x_0)$: conditional generation is skewed (C2OT, Cheng and Schwing, arXiv 2503.10636). So each row's
        own condition is attached to its source before sources change hands.

        Args:
            x_0: sources, `(batch, ...)`: independent of the targets; of noise, no known pixels pasted in.
            x_1: targets, of the same shape.
            label: classes `(batch,)`; sources stay within their class.
            mask: True = missing, as `MaskedProbPath` takes it; the cost counts the target's missing entries only.
            condition: real numbers `(batch, ...)`, for example embeddings; the cost is $\|x_0 - x_1\|^2 + w \|c_0 -
                c_1\|^2$, with w from `weight` or `ratio` (section 4.2 of C2OT).
            generator: source of the randomness, where there is any.
            **unknown: an error.

        Returns:
            The source of each target, through which gradients flow, and its row of `x_0`.

        Raises:
            TypeError: for a condition of unknown name, a mask that is not bool, data that are not floating point
                without `cost`, or a `cost` that returns no tensor.
            ValueError: for shapes that do not agree, a mask with a `cost` that takes none, or values that are not
                finite.
        """
        if unknown:
            raise TypeError(
                f"`{min(unknown)}` is no condition that {type(self).__name__} can obey: it knows label, mask, "
                "condition and generator. Leave it out, or give discrete conditions as label= and others as condition=."
            )
        self._check(x_0, x_1, label, mask, condition)
        rows = torch.arange(len(x_0), device=x_0.device)
        mask = None if mask is None else mask.expand(len(x_1), *mask.shape[1:])
        with torch.no_grad(), torch.autocast(x_0.device.type, enabled=False):
            if label is None:
                index = self._pair(x_0, x_1, mask, condition, generator)
            else:
                index = rows.clone()
                _, group, sizes = label.unique(return_inverse=True, return_counts=True)
                for row in rows[group.argsort(stable=True)].split(sizes.tolist()):
                    if len(row) > 1:
                        hole, near = (x if x is None else x[row] for x in (mask, condition))
                        index[row] = row[self._pair(x_0[row], x_1[row], hole, near, generator)]
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

    def _pair(
        self,
        x_0: Tensor,
        x_1: Tensor,
        mask: Tensor | None,
        condition: Tensor | None,
        generator: torch.Generator | None,
    ) -> Tensor:
        if len(x_0) < 2:
            return torch.arange(len(x_0), device=x_0.device)
        if self.cost is None:
            cost = squared_distance(x_1, x_0, mask, centred=True).clamp_(min=0)
        else:
            cost = _given(self.cost, x_1, x_0, mask)
        data = cost
        if condition is not None:
            penalty = condition_distance(condition).to(cost.dtype)
            weight = self.weight
            if weight is None:  # which compares sources, and so needs to know how far off they are
                true = cost if self.cost else squared_distance(x_1, x_0, mask).clamp_(min=0)
                weight = condition_weight(true, penalty, self.ratio)
            cost = data.add(penalty, alpha=weight)
        if not bool(cost.sum().isfinite()):
            given = "`x_0`, `x_1`" if self.cost is None else "what `cost` returns"
            raise ValueError(
                f"{given} and `condition` must be finite, and so must the cost of each pair in {cost.dtype}; it is not."
            )
        return self.assign(cost, generator, data)

    def _check(
        self,
        x_0: Tensor,
        x_1: Tensor,
        label: Tensor | None,
        mask: Tensor | None,
        condition: Tensor | None,
    ) -> None:
        if x_0.shape != x_1.shape:
            raise ValueError(
                f"`x_0` and `x_1` must have the same shape; got {tuple(x_0.shape)} and {tuple(x_1.shape)}."
            )
        if self.cost is None and not (x_0.is_floating_point() and x_1.is_floating_point()):
            raise TypeError(
                f"`x_0` and `x_1` must be floating point for squared distances; got {x_0.dtype} and {x_1.dtype}. "
                "For tokens say what a change costs: cost=lambda x_1, x_0: ..., a (batch, batch) matrix."
            )
        if label is not None and label.shape != x_0.shape[:1]:
            raise ValueError(f"`label` must be ({len(x_0)},); got {tuple(label.shape)}.")
        if condition is not None and condition.shape[:1] != x_0.shape[:1]:
            raise ValueError(
                f"`condition` must have one row a sample, {len(x_0)}; got {tuple(condition.shape)}."
            )
        if mask is not None:
            check_mask(mask, x_1)


def _given(cost: Cost, x_1: Tensor, x_0: Tensor, mask: Tensor | None) -> Tensor:
    """The matrix of a cost function of the user's, in float32 at least."""
    extras = {"mask": mask} if _takes_mask(cost) else {}
    if mask is not None and not extras:
        raise ValueError(
            "`cost` must take a mask, cost(x_1, x_0, mask=None), to count the hole alone; the given one takes none. "
            "Give it one, which it may ignore."
        )
    matrix = cost(x_1, x_0, **extras)
    n = len(x_0)
    if not isinstance(matrix, Tensor):
        raise TypeError(f"`cost` must return a tensor; got {type(matrix).__name__}.")
    if matrix.shape != (n, n):
        raise ValueError(
            f"`cost` must return a row for each of x_1 and a column for each of x_0, ({n}, {n}), as "
            f"(x_1[:, None] != x_0).sum(-1) does; got {tuple(matrix.shape)}."
        )
    return matrix.to(torch.promote_types(matrix.dtype, torch.float32))


def _takes_mask(cost: Cost) -> bool:
    try:
        return "mask" in inspect.signature(cost).parameters
    except ValueError:  # a function written in C, which does not say
        return False
