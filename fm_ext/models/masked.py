"""A velocity model, or a discrete posterior, that leaves known entries alone."""

from typing import Any

import torch
import torch.nn.functional as F
from flow_matching.path.scheduler import ScheduleTransformedModel as UpstreamTransformedModel
from jaxtyping import Bool, Shaped
from torch import Tensor, nn

from fm_ext.utils.inputs import check_mask
from fm_ext.utils.model_wrapper import ModelWrapper, hold_known


class MaskedVelocityModel(ModelWrapper):
    """Sets the wrapped model's velocity to exactly 0 at known entries.

    So solvers leave the known entries of `x_init` as they are: start from `torch.where(mask, noise, image)`.
    With fixed-step methods they stay bit for bit, and under `fm_ext.solver.ODESolver` with every method. Under
    upstream's solver an adaptive method interpolates at the end, by sums that may round them (measured: by up to 6e-6
    under dopri5); `torch.where(mask, result, image)` undoes that.

    It nests with the other wrappers in any order: `ScheduleTransformedModel`, `PredictionVelocityModel` and
    `GuidedVelocityModel` hold known entries themselves where a `mask` is among the extras.

    On tokens (a state of integers) the model answers with probabilities `(*state, vocabulary)`, and at known tokens
    these become certainty of the token that is there, which `MixtureDiscreteEulerSolver` then leaves alone.

    Args:
        model: a velocity model, called with `x=`, `t=`, the extras and, unless `pass_mask` is False, `mask=`.
        pass_mask: False for a network that does not take the mask; it must then be the network, or the `UNetWrapper`
            around it, that is wrapped.

    Raises:
        ValueError: for `pass_mask=False` around a wrapper that needs the mask, or upstream's
            `ScheduleTransformedModel` inside.
    """

    own = frozenset({"mask"})

    def __init__(self, model: nn.Module, *, pass_mask: bool = True):
        super().__init__(model)
        if any(isinstance(inner, UpstreamTransformedModel) for inner in self.modules()):
            raise ValueError(
                "`model` holds upstream's ScheduleTransformedModel, which rescales known entries; the one of "
                "fm_ext.path.scheduler has its arguments and holds them."
            )
        if not pass_mask and getattr(model, "reads_mask", False):
            kind = type(model).__name__
            raise ValueError(
                f"`pass_mask=False` hides the mask from {kind}, which needs it to hold known entries. Put the network "
                f"that takes no mask inside: {kind}(MaskedVelocityModel(network, pass_mask=False), ...)."
            )
        self.pass_mask = pass_mask

    @property
    def holds_known(self) -> bool:
        """True."""
        return True

    def forward(
        self,
        x: Shaped[Tensor, " batch *dim"],
        t: Shaped[Tensor, "..."],
        mask: Bool[Tensor, "..."] | None = None,
        **extras: Any,
    ) -> Shaped[Tensor, "..."]:
        """Returns the velocity, 0 at known entries; of tokens the probabilities, 1 for the known token.

        Args:
            x: the state.
            t: times, 0-d or `(batch,)`.
            mask: True = missing, broadcastable to `x`.
            **extras: handed to the model.

        Raises:
            TypeError: without a mask, or with one that is not bool.
            ValueError: if the mask does not broadcast to `x`, or the model's answer has not the shape of `x`.
        """
        if mask is None:
            raise TypeError(
                "`mask` is required, bool with True = missing: ODESolver(model).sample(x_init, ..., mask=mask). "
                "A model that was trained with masks needs no InpaintingSolver."
            )
        mask = check_mask(mask, x, like="x")
        if self.pass_mask:
            extras["mask"] = mask
        if x.is_floating_point():
            return hold_known(self.ask(x, t, extras), mask)
        answer = self.call(x, t, extras)
        if not isinstance(answer, Tensor) or answer.shape[:-1] != x.shape:
            got = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
            raise ValueError(
                f"`model` must answer tokens {tuple(x.shape)} with probabilities ({', '.join(map(str, x.shape))}, "
                f"vocabulary); got {got}."
            )
        known = F.one_hot(x.masked_fill(mask, 0), answer.shape[-1]).to(answer.dtype)
        return torch.where(mask[..., None], answer, known)
