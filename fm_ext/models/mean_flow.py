"""A network of two times, whose average velocity jumps, as a velocity model."""

from typing import Any

from flow_matching.path.scheduler import ScheduleTransformedModel as UpstreamTransformedModel
from jaxtyping import Float
from torch import Tensor, nn

from fm_ext.path.scheduler import ScheduleTransformedModel
from fm_ext.utils.inputs import align_time, entry_mask, taken_extras
from fm_ext.utils.model_wrapper import ModelWrapper, hold_known


class MeanFlowModel(ModelWrapper):
    r"""The average velocity of a flow between two times, which is its velocity where the two are one.

    $$u(x, t, r) = \frac{1}{r - t} \int_t^r v_s(x_s)\, ds \quad\text{with } x_t = x, \qquad u(x, t, t) = v_t(x),$$

    so that $x_r = x + (r - t)\,u(x, t, r)$ is the flow's own map, in one evaluation (MeanFlow, Geng et al., arXiv
    2505.13447, whose time runs from data to noise). `mean_flow_loss` trains such a network,
    `MeanFlowSolver` jumps with it. Every other solver asks without `r` and gets the velocity.

    Where a `mask` of the state's entries is among the extras (bool, True = missing) the answer is 0 at known entries:
    a network trained on `MaskedProbPath` fills holes by one evaluation, and no `MaskedVelocityModel` is needed.

    Args:
        model: the network, called as `model(x=x, t=t, r=r, **extras)`: `UNetWrapper(UNet(..., second_time=True))`.

    Raises:
        TypeError: for a model that says what it takes, and takes no `r`.
        ValueError: around a `ScheduleTransformedModel`, which transforms `t` alone.
    """

    holds_itself = True

    own = frozenset({"r"})

    def __init__(self, model: nn.Module):
        super().__init__(model)
        taken = taken_extras(model)
        if taken is not None and "r" not in taken:
            raise TypeError(
                f"`model` must take a second time `r`; {type(model).__name__} takes "
                f"{', '.join(sorted(taken)) or 'no extras'}. Build the network with UNet(..., second_time=True), or "
                "name its argument: UNetWrapper(network, arguments={'r': ...})."
            )
        transformed = (ScheduleTransformedModel, UpstreamTransformedModel)
        if any(isinstance(inner, transformed) for inner in self.modules()):
            raise ValueError(
                "`model` holds a ScheduleTransformedModel, which transforms the first time and not the second. Put it "
                "outside, for the velocity: ScheduleTransformedModel(MeanFlowModel(network), ...)."
            )

    def forward(
        self,
        x: Float[Tensor, " batch *dim"],
        t: Float[Tensor, "..."],
        r: Float[Tensor, "..."] | None = None,
        **extras: Any,
    ) -> Float[Tensor, " batch *dim"]:
        """Returns the average velocity from `t` to `r`.

        Args:
            x: the state at `t`.
            t: times, 0-d, `(batch,)` or `(batch, 1, ..., 1)`.
            r: times in one of these shapes; None for `t`, the velocity.
            **extras: handed to the network; a `mask` of `x`'s entries says which are known, where the answer is 0.

        Raises:
            ValueError: for times of another shape, or an answer of another shape than `x`.
        """
        average = self.ask(x, t, {**extras, "r": t if r is None else r})
        return hold_known(average, entry_mask(extras, x))

    def jump(
        self,
        x: Float[Tensor, " batch *dim"],
        t: Float[Tensor, "..."],
        r: Float[Tensor, "..."],
        **extras: Any,
    ) -> Float[Tensor, " batch *dim"]:
        r"""Returns the state at `r` of the flow that is at `x` at `t`: $x + (r - t)\,u(x, t, r)$, one evaluation.

        Args:
            x: the state at `t`.
            t: see `forward`.
            r: see `forward`.
            **extras: see `forward`. Known entries stay as they are, bit for bit.

        Raises:
            ValueError: see `forward`.
        """
        average = self(x=x, t=t, r=r, **extras)
        return (x + (align_time(r, x) - align_time(t, x)) * average).to(x.dtype)
