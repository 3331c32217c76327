"""The contract of a coupling: it decides on the sources and leaves the targets alone."""

import abc
from typing import ClassVar, final

import torch
from jaxtyping import Bool, Int64, Shaped
from torch import Tensor

from fm_ext.utils.inputs import check_mask


class Coupling(abc.ABC):
    r"""A joint law $\pi(X_0, X_1)$ of source and target with the given marginals.

    Any such law makes a flow from the one marginal to the other (Tong et al., arXiv 2302.00482, theorem 3.1; Pooladian
    et al., arXiv 2304.14772). To write one of your own, subclass and implement `__call__`; override `source` too where
    sampling has to begin at something else than the given source.

    Every coupling takes the same four keywords, `mask`, `label`, `condition` and `generator`, used or not, so that one
    can stand in for another. The law of the source given the conditions must be the same in `__call__` and in `source`:
    a coupling that makes sources depend on a condition which `source` does not know skews what is sampled.

    Attributes:
        keeps_pairs: whether `__call__` returns its sources as they came. Scores need noise that is independent of the
            data, and `CoupledProbPath` converts them under such a coupling only.
    """

    keeps_pairs: ClassVar[bool] = False

    @abc.abstractmethod
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
        """Chooses a source for every target; the targets, and all that belongs to them, keep their order.

        Args:
            x_0: sources, `(batch, ...)`.
            x_1: targets, of the same shape.
            mask: of the targets, bool, True = missing, of `x_1`'s rank with axes of its length or 1.
            label: classes of the targets, `(batch,)`.
            condition: numbers that belong to the targets, `(batch, ...)`.
            generator: source of the randomness, if there is any.

        Returns:
            The source of each target, and the row of `x_0` that it was made from.
        """

    def source(
        self,
        x_0: Shaped[Tensor, " batch *dim"],
        *,
        mask: Bool[Tensor, "..."] | None = None,
        label: Shaped[Tensor, " batch"] | None = None,
        condition: Shaped[Tensor, " batch ..."] | None = None,
        generator: torch.Generator | None = None,
    ) -> Shaped[Tensor, " batch *dim"]:
        """What sampling starts from, given sources without targets: `x_0` itself, unless a subclass changes it.

        Args:
            x_0: sources, `(batch, ...)`.
            mask: as in `__call__`; so are the others.
            label: see `mask`.
            condition: see `mask`.
            generator: source of the randomness, if there is any.
        """
        return x_0


@final
class IndependentCoupling(Coupling):
    """Leaves the pairs as they came: independent for independently drawn rows, paired for paired data."""

    keeps_pairs = True

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
        """See [`Coupling`][fm_ext.coupling.Coupling]; no condition is used."""
        return x_0, torch.arange(len(x_0), device=x_0.device)


def check_conditions(
    x_1: Tensor, mask: Tensor | None, label: Tensor | None, condition: Tensor | None
) -> Tensor | None:
    """The mask with the batch axis of the targets; an error unless each condition has a row a target."""
    if label is not None and label.shape != x_1.shape[:1]:
        raise ValueError(f"`label` must be ({len(x_1)},); got {tuple(label.shape)}.")
    if condition is not None and condition.shape[:1] != x_1.shape[:1]:
        raise ValueError(
            f"`condition` must have one row a sample, {len(x_1)}; got {tuple(condition.shape)}."
        )
    return None if mask is None else check_mask(mask, x_1)
