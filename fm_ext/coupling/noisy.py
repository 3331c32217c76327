"""Noise in the source. Without it one source has one target."""

from typing import final

import torch
from jaxtyping import Bool, Int64, Shaped
from torch import Tensor

from fm_ext.coupling.coupling import Coupling
from fm_ext.utils.inputs import randn_like


@final
class NoisySource(Coupling):
    r"""Adds Gaussian noise to the source, $X_0' = X_0 + s\,Z$ with $Z \sim N(0, I)$, in training and in sampling.

    The flow of an ODE is a deterministic map: without noise every source has one target, and where the data have many
    the network learns their mean near t = 0. Translation from a sketch to photographs therefore needs noise in
    the source (Albergo et al., arXiv 2310.03725, section 3.2).

    Args:
        std: s, in units of the data, not negative.
    """

    def __init__(self, std: float):
        if not 0 <= std < float("inf"):
            raise ValueError(f"`std` must be finite and not negative; got {std}.")
        self.std = std

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
        """The sources with noise, in their order; see [`Coupling`][fm_ext.coupling.Coupling].

        Args:
            x_0: sources, `(batch, ...)`, floating point.
            x_1: targets; not looked at.
            mask: not used; nor are `label` and `condition`.
            label: see `mask`.
            condition: see `mask`.
            generator: source of the noise, drawn on its device and moved; the global one of `x_0`'s if None.

        Raises:
            TypeError: if `x_0` is not floating point.
        """
        return self.source(x_0, generator=generator), torch.arange(len(x_0), device=x_0.device)

    def source(
        self,
        x_0: Shaped[Tensor, " batch *dim"],
        *,
        mask: Bool[Tensor, "..."] | None = None,
        label: Shaped[Tensor, " batch"] | None = None,
        condition: Shaped[Tensor, " batch ..."] | None = None,
        generator: torch.Generator | None = None,
    ) -> Shaped[Tensor, " batch *dim"]:
        """The sources with fresh noise."""
        if not x_0.is_floating_point():
            raise TypeError(
                f"`x_0` must be floating point to take noise; got {x_0.dtype}. Tokens take none: leave NoisySource out."
            )
        return torch.add(x_0, randn_like(x_0, generator), alpha=self.std)
