"""Probability paths on which the known entries of the target stay where they are."""

from dataclasses import dataclass, fields
from typing import Any

import torch
from flow_matching.path import DiscretePathSample, PathSample
from jaxtyping import Bool, Shaped
from torch import Tensor

from fm_ext.mask.check import check_mask
from fm_ext.path.wrapper import PathWrapper


@dataclass
class MaskedPathSample(PathSample):
    r"""A `PathSample` that remembers which entries were missing.

    Attributes:
        mask: bool, broadcastable to `x_1`, True = missing; None when the path was sampled without a mask.
    """

    mask: Tensor | None = None


@dataclass
class MaskedDiscretePathSample(DiscretePathSample):
    r"""A `DiscretePathSample` that remembers which entries were missing.

    Attributes:
        mask: bool, broadcastable to `x_1`, True = missing; None when the path was sampled without a mask.
    """

    mask: Tensor | None = None


class MaskedProbPath(PathWrapper):
    r"""Moves the missing entries along `path` and holds the known ones at the target.

    With mask $m$ (1 = missing) and $(X_t, \dot X_t)$ from the wrapped path,

    $$X_t^m = m \odot X_t + (1 - m) \odot X_1, \qquad \dot X_t^m = m \odot \dot X_t .$$

    This is the conditional path of the data-dependent coupling whose source is the target with noise in its
    hole, so the marginal velocity samples $p(x_1 \mid \text{known entries})$ (Albergo et al., arXiv 2310.03725;
    Lipman et al., arXiv 2412.06264, section 4.7). Known entries are pinned after the path was sampled, not pasted
    into `x_0`: pasting moves them to $(\alpha_t + \sigma_t) X_1$, which is right for $\alpha + \sigma = 1$ only.

    Every upstream path can be wrapped, and ours; a mask is drawn by `fm_ext.mask`. On a manifold the mask must leave
    whole points known or missing, unless the manifold is a product of its coordinates (as the flat torus is).

    `source(x_0)` is what sampling starts from in the hole: the wrapped path's, for example `x_0` with the noise of
    `CoupledProbPath(path, NoisySource(0.1))`.

    Args:
        path: the path of the missing entries.
    """

    _own = frozenset({"mask"})

    def sample(
        self,
        x_0: Shaped[Tensor, " batch *dim"],
        x_1: Shaped[Tensor, " batch *dim"],
        t: Shaped[Tensor, " batch"],
        mask: Bool[Tensor, "..."] | None = None,
        **extras: object,
    ) -> Any:  # a union would make every user of `dx_t` narrow it first
        """Samples the wrapped path in the missing entries.

        Args:
            x_0: source, `(batch, ...)`. Its values at known entries are ignored.
            x_1: target, `(batch, ...)`.
            t: times, `(batch,)`.
            mask: True = missing. Has as many axes as `x_1`, each of its length or 1: `(batch, 1, height, width)` for
                images. None samples exactly the wrapped path.
            **extras: handed to the wrapped path's `sample`, for paths that take more. One that takes a mask, as a
                `CoupledProbPath` with optimal transport does, gets the mask too.

        Returns:
            A `MaskedPathSample`, or a `MaskedDiscretePathSample` over a discrete path, or the subclass of either that
            the wrapped path returns; `x_t` equals `x_1` bit for bit at known entries, and `dx_t` is exactly 0 there.

        Raises:
            TypeError: if the mask is not bool.
            ValueError: if the mask does not broadcast to `x_1`.
        """
        if mask is not None:
            check_mask(mask, x_1)
            if self._inner is None or "mask" in self._inner:
                extras["mask"] = mask
        sample = self.path.sample(x_0=x_0, x_1=x_1, t=t, **extras)
        values = {field.name: getattr(sample, field.name) for field in fields(sample)}
        values["mask"] = mask
        if mask is not None:
            values["x_t"] = torch.where(mask, sample.x_t, x_1)
        if mask is not None and not isinstance(sample, DiscretePathSample):
            # `where` and not a product: a wrapped path may be infinite at an end point, and 0 * inf is not 0.
            values["dx_t"] = torch.where(mask, sample.dx_t, 0)
        if isinstance(sample, MaskedPathSample | MaskedDiscretePathSample):
            return type(sample)(**values)
        if isinstance(sample, DiscretePathSample):
            return MaskedDiscretePathSample(**values)
        return MaskedPathSample(**values)
