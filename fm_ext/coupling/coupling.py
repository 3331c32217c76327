"""The contract of a coupling: it decides on the sources and leaves the targets alone."""

import abc
from typing import Any, final

import torch
from jaxtyping import Int64, Shaped
from torch import Tensor


class Coupling(abc.ABC):
    r"""A joint law $\pi(X_0, X_1)$ of source and target with the given marginals.

    Any such law makes a flow from the one marginal to the other (Tong et al., arXiv 2302.00482, theorem 3.1; Pooladian
    et al., arXiv 2304.14772). To write one of your own, subclass and implement `__call__`; override `source` too where
    sampling has to begin at something else than the given source.
    """

    takes: frozenset[str] | None = None
    """The names of the conditions that it uses, so that `CoupledProbPath` can refuse others; None: it is given all."""

    @abc.abstractmethod
    def __call__(
        self,
        x_0: Shaped[Tensor, " batch *dim"],
        x_1: Shaped[Tensor, " batch *dim"],
        **conditions: Any,
    ) -> tuple[Shaped[Tensor, " batch *dim"], Int64[Tensor, " batch"]]:
        """Chooses a source for every target; the targets, and all that belongs to them, keep their order.

        Args:
            x_0: sources, `(batch, ...)`.
            x_1: targets, of the same shape.
            **conditions: what else belongs to the targets, row by row: `label`, `mask`, ...; and `generator`, the
                source of randomness. A coupling ignores what it has no use for, unless it says otherwise.

        Returns:
            The source of each target, and the row of `x_0` that it was made from.
        """

    def source(
        self, x_0: Shaped[Tensor, " batch *dim"], generator: torch.Generator | None = None
    ) -> Shaped[Tensor, " batch *dim"]:
        """What sampling starts from, given sources without targets: `x_0` itself, unless a subclass changes it.

        Args:
            x_0: sources, `(batch, ...)`.
            generator: source of the randomness, if there is any.
        """
        return x_0


@final
class IndependentCoupling(Coupling):
    """Leaves the pairs as they came: independent for independently drawn rows, paired for paired data."""

    takes = frozenset()

    def __call__(
        self,
        x_0: Shaped[Tensor, " batch *dim"],
        x_1: Shaped[Tensor, " batch *dim"],
        **conditions: Any,
    ) -> tuple[Shaped[Tensor, " batch *dim"], Int64[Tensor, " batch"]]:
        """See [`Coupling`][fm_ext.coupling.Coupling]."""
        return x_0, torch.arange(len(x_0), device=x_0.device)
