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
    """

    def __init__(self, dim: int = 2, hidden: int = 128, *, activation: type[nn.Module] = nn.ReLU):
        super().__init__()
        if dim < 1 or hidden < 1:
            raise ValueError(f"`dim` and `hidden` must be positive; got {dim} and {hidden}.")
        self.dim = dim
        self.hidden = hidden
        self.activation = activation
        self.net = nn.Sequential(
            nn.Linear(dim + 1, hidden),
            activation(),
            nn.Linear(hidden, hidden),
            activation(),
            nn.Linear(hidden, hidden),
            activation(),
            nn.Linear(hidden, dim),
        )

    def forward(
        self, x: Float[Tensor, "batch dim"], t: Float[Tensor, "..."]
    ) -> Float[Tensor, "batch dim"]:
        """Returns the velocity at `x` and `t`.

        Args:
            x: points, `(batch, dim)`.
            t: times in [0, 1], 0-d, `(batch,)` or `(batch, 1)`.

        Raises:
            ValueError: if `x` or `t` has another shape.
        """
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise ValueError(f"`x` must be (batch, {self.dim}); got {tuple(x.shape)}.")
        check_dtype(x, self.net)
        time = sample_time(t, x).to(x.dtype)[:, None]
        return self.net(torch.cat([x, time], dim=1))
