"""A small network for points in a few dimensions."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fm_ext.models.blocks import check_dtype
from fm_ext.utils.inputs import sample_time


class MLP(nn.Module):
    r"""A velocity for points: `dim` + 1 inputs, the last of which is $t$, and three hidden layers.

    Made for 2 to some tens of dimensions, where a schedule or a coupling can be studied in seconds. It is called as
    solvers call a velocity model, `model(x=x, t=t)`. Nothing follows its last layer: velocities have a sign.

    Args:
        dim: coordinates of a point.
        hidden: width of the hidden layers.
        activation: between the layers; `nn.SiLU` for a velocity that is smooth.
        second_time: whether there is one more input, the span $r - t$, and the answer is the average velocity from t
            to r (MeanFlow, arXiv 2505.13447), which `fm_ext.loss.mean_flow_loss` trains. Give it a smooth activation.
    """

    def __init__(
        self,
        dim: int = 2,
        hidden: int = 128,
        *,
        activation: type[nn.Module] = nn.ReLU,
        second_time: bool = False,
    ):
        super().__init__()
        if dim < 1 or hidden < 1:
            raise ValueError(f"`dim` and `hidden` must be positive; got {dim} and {hidden}.")
        self.dim, self.second_time = dim, second_time
        self.hidden = hidden
        self.activation = activation
        self.net = nn.Sequential(
            nn.Linear(dim + 1 + second_time, hidden),
            activation(),
            nn.Linear(hidden, hidden),
            activation(),
            nn.Linear(hidden, hidden),
            activation(),
            nn.Linear(hidden, dim),
        )

    def forward(
        self,
        x: Float[Tensor, "batch dim"],
        t: Float[Tensor, "..."],
        r: Float[Tensor, "..."] | None = None,
    ) -> Float[Tensor, "batch dim"]:
        """Returns the velocity at `x` and `t`, or the average velocity from `t` to `r`.

        Args:
            x: points, `(batch, dim)`.
            t: times in [0, 1], 0-d, `(batch,)` or `(batch, 1)`.
            r: the time that the average goes to, for a network with `second_time`; None for `t`, the plain velocity.

        Raises:
            ValueError: if `x`, `t` or `r` has another shape, or `r` is given without `second_time`.
        """
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise ValueError(f"`x` must be (batch, {self.dim}); got {tuple(x.shape)}.")
        check_dtype(x, self.net)
        if r is not None and not self.second_time:
            raise ValueError(
                "`r` was given to an MLP that does not take it; build it with MLP(second_time=True)."
            )
        time = sample_time(t, x)
        inputs = (
            [time] if not self.second_time else [time, sample_time(t if r is None else r, x) - time]
        )
        return self.net(torch.cat([x, *(value.to(x.dtype)[:, None] for value in inputs)], dim=1))
