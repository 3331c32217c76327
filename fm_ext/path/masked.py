"""Probability paths on which the known entries of the target stay where they are."""

from typing import Any

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from fm_ext.path.wrapper import PathWrapper, with_fields
from fm_ext.utils.inputs import check_mask


class MaskedProbPath(PathWrapper):
    r"""Moves the missing entries along `path` and holds the known ones at the target.

    With mask $m$ (1 = missing) and $(X_t, \dot X_t)$ from the wrapped path,

    $$X_t^m = m \odot X_t + (1 - m) \odot X_1, \qquad \dot X_t^m = m \odot \dot X_t .$$

    This is the conditional path of the data-dependent coupling whose source is the target with noise in its
    hole, so the marginal velocity samples $p(x_1 \mid \text{known entries})$ (Albergo et al., arXiv 2310.03725;
    Lipman et al., arXiv 2412.06264, section 4.9.1). Known entries are pinned after the path was sampled, not pasted
    into `x_0`: pasting moves them to $(\alpha_t + \sigma_t) X_1$, which is right for $\alpha + \sigma = 1$ only.

    Every upstream path can be wrapped, and ours, and your own; a mask is drawn by `fm_ext.mask`. On a manifold the mask
    must leave whole points known or missing, unless the manifold is a product of its coordinates (as the flat torus
    is).

    What the wrapped path has (its scheduler, its conversions) is reachable through the wrapper, so upstream's
    `MixturePathGeneralizedKL` and `MixtureDiscreteEulerSolver` take a masked discrete path. Conversions take `mask=`,
    and then answer with `x_t` for the target at known entries, and with 0 for the velocity, for epsilon and for the
    score, as nothing moves there and there is no noise. Without a mask they are the wrapped path's.

    `source(x_0)` is what sampling starts from in the hole: the wrapped path's, for example `x_0` with the noise of
    `CoupledProbPath(path, NoisySource(0.1))`.

    Args:
        path: the path of the missing entries.
    """

    def sample(
        self,
        x_0: Shaped[Tensor, " batch *dim"],
        x_1: Shaped[Tensor, " batch *dim"],
        t: Float[Tensor, "..."],
        *,
        mask: Bool[Tensor, "..."] | None = None,
        label: Shaped[Tensor, " batch"] | None = None,
        condition: Shaped[Tensor, " batch ..."] | None = None,
        generator: torch.Generator | None = None,
        **extras: Any,
    ) -> Any:
        """Samples the wrapped path in the missing entries.

        Args:
            x_0: source, `(batch, ...)`. Its values at known entries are ignored.
            x_1: target, `(batch, ...)`.
            t: times, 0-d, `(1,)`, `(batch,)` or `(batch, 1, ..., 1)`.
            mask: True = missing. Has as many axes as `x_1`, each of its length or 1: `(batch, 1, height, width)` for
                images. None samples exactly the wrapped path.
            label: for the wrapped path, if it is of `fm_ext.path`; so are `condition`, `generator` and the mask.
            condition: see `label`.
            generator: see `label`.
            **extras: handed to the wrapped path as they are.

        Returns:
            The wrapped path's sample with a field `mask`, `(batch, ...)` or None. With a mask, `x_t` equals `x_1` bit
            for bit at known entries, and `dx_t`, where the sample has one, is exactly 0 there.

        Raises:
            TypeError: if the mask is not bool, or for a name that the wrapped path does not take.
            ValueError: if the mask does not broadcast to `x_1`.
            AssertionError: if the batch sizes differ.
        """
        t = self._times(x_0, x_1, t)
        if mask is not None:
            mask = check_mask(mask, x_1)
        given = {"mask": mask, "label": label, "condition": condition, "generator": generator}
        sample = self._sample(x_0, x_1, t, given, extras)
        values: dict[str, Any] = {"mask": mask}
        if mask is not None:
            values["x_t"] = torch.where(mask, sample.x_t, x_1)
            if hasattr(sample, "dx_t"):
                # `where` and not a product: a wrapped path may be infinite at an end point, and 0 * inf is not 0.
                values["dx_t"] = torch.where(mask, sample.dx_t, 0)
        return with_fields(sample, **values)

    def _convert(self, name: str, *args: Any, mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        answer = getattr(self.path, name)(*args, **kwargs)
        if mask is None:
            return answer
        x_t = kwargs["x_t"] if "x_t" in kwargs else args[1]
        mask = check_mask(mask, x_t, like="x_t")
        if name == "posterior_to_velocity":  # of tokens, with the vocabulary as last axis
            mask = mask[..., None]
        return torch.where(mask, answer, x_t if name.endswith("_to_target") else 0)
