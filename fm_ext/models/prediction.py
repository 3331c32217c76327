"""A network that predicts something else as a velocity model."""

from typing import Any

import torch
from flow_matching.path.scheduler import Scheduler
from jaxtyping import Float
from torch import Tensor, nn

from fm_ext.path.affine import AffineProbPath
from fm_ext.path.prediction import Prediction, Quantity, quantity, regular_times
from fm_ext.path.scheduler.ends import check_schedule
from fm_ext.utils.inputs import align_time, entry_mask
from fm_ext.utils.model_wrapper import ModelWrapper, hold_known


class PredictionVelocityModel(ModelWrapper):
    r"""Turns any prediction into the velocity $v = \dot\alpha_t\,\hat x_1 + \dot\sigma_t\,\hat x_0$.

    With $x = \alpha_t \hat x_1 + \sigma_t \hat x_0$, one of the two ends gives the other, and so (Lipman et al., arXiv
    2412.06264, equations 4.55 to 4.57)

    | `prediction` | the network estimates                        | keeps `t_eps` from an end with                   |
    |--------------|----------------------------------------------|--------------------------------------------------|
    | "x_1"        | $E[X_1 \mid X_t = x]$                        | $\sigma = 0$, the data                           |
    | "x_0"        | $E[X_0 \mid X_t = x]$, whatever the source   | $\alpha = 0$, the source; $\dot\sigma = -\infty$ |
    | "epsilon"    | the same, of a source $N(0, I)$              | the same                                         |
    | "score"      | $\nabla \ln p_t(x)$, for a source $N(0, I)$  | $\alpha = 0$                                     |
    | "velocity"   | $E[\dot X_t \mid X_t = x]$                   | none                                             |

    "epsilon" and "x_0" are one formula. They part when the source is not that Gaussian: a network trained to find the
    noise in `sketch + 0.1 * noise` predicts neither.

    At an end that the table names the prediction does not determine the velocity: the formula is 0/0. Nearer to it than
    `t_eps`, and outside [0, 1], where adaptive methods look too, the velocity is that of the nearest time inside,
    network and schedule alike. If the velocity is smooth in time this makes it wrong by the order of `t_eps`, there
    only; a prediction that is wrong by $e$ makes it wrong by $e\,/\,$`t_eps`, which decides for trained networks. Every
    method looks at the source's end; euler, midpoint and heun3 do not look at the data's. `ExponentialSolver` needs no
    `t_eps` at the data.

    Args:
        model: the network, called as `model(x=x, t=t, **extras)`. `UNetWrapper` makes any network one.
        scheduler: the schedule that it was trained with.
        prediction: what it was trained to predict.
        t_eps: the distances in time kept from the source's and from the data's end, where the table says so, each
            in (0, 0.5). Small for exact predictions, 0.01 to 0.1 for trained ones; what is kept from the data stays
            in the result as noise.

    Raises:
        ValueError: for an unknown prediction, a `t_eps` outside (0, 0.5), or a model that lives on another schedule or
            answers with a velocity already.
    """

    holds_itself = True

    def __init__(
        self,
        model: nn.Module,
        scheduler: Scheduler,
        prediction: Prediction = "velocity",
        *,
        t_eps: tuple[float, float] = (0.05, 0.01),
    ):
        super().__init__(model)
        self.path = AffineProbPath(scheduler)
        if prediction != "velocity" and getattr(model, "answers", None) == "velocity":
            raise ValueError(
                f"`prediction` = {prediction!r} is what a network predicts, and {type(model).__name__} answers with a "
                f"velocity already. Convert the network inside: {_inside(model, prediction)}."
            )
        check_schedule("scheduler", scheduler, model)
        self.prediction: Prediction = prediction
        self.t_eps = t_eps
        self.quantity = quantity("prediction", prediction)
        self.times = regular_times(scheduler, self.quantity, "velocity", t_eps)
        self.end_times = regular_times(scheduler, self.quantity, "target", t_eps)[0], 1.0

    @property
    def schedule(self) -> Scheduler:
        """The schedule that the network was trained with."""
        return self.path.scheduler

    @property
    def answers(self) -> str:
        """A velocity."""
        return "velocity"

    def extra_repr(self) -> str:
        """Schedule, prediction, and the times at which the network is asked."""
        first, last = self.times
        return f"{self.path.scheduler!r}, prediction={self.prediction!r}, t in [{first}, {last}]"

    def forward(
        self, x: Float[Tensor, " batch *dim"], t: Float[Tensor, "..."], **extras: Any
    ) -> Float[Tensor, " batch *dim"]:
        """Returns the velocity at `x` and `t`.

        Args:
            x: the state.
            t: times, 0-d, `(batch,)` or `(batch, 1, ..., 1)`.
            **extras: handed to the network. Where a `mask` of `x`'s entries is among them (bool, True = missing) the
                velocity is 0 at known entries, whatever the network predicts there.

        Raises:
            ValueError: if the network's answer has not the shape of `x`.
        """
        value, t = self._predict(x, t, self.times, extras)
        return hold_known(self._convert("velocity", value, x, t), entry_mask(extras, x))

    def ends(
        self,
        x: Float[Tensor, " batch *dim"],
        t: Float[Tensor, "..."],
        *,
        dtype: torch.dtype | None = None,
        **extras: Any,
    ) -> tuple[Float[Tensor, " batch *dim"], Float[Tensor, " batch *dim"]]:
        r"""Returns both expected ends, $E[X_0 \mid X_t = x]$ and $E[X_1 \mid X_t = x]$, by one evaluation.

        So $x = \alpha_t \hat x_1 + \sigma_t \hat x_0$. Closer than `t_eps` to a source at which the prediction does not
        determine $\hat x_1$, that is the one of the nearest time inside, and $\hat x_0$ completes $x$. Known entries
        are $x$ at any time: there $\hat x_1 = x$, and $\hat x_0$ is 0 and means nothing.

        Args:
            x: the state.
            t: times, as for `forward`; below 1 for "x_1", which does not determine $\hat x_0$ at the data.
            dtype: what the network gets `x` in, where that is less than `x` has.
            **extras: handed to the network; a `mask` of `x`'s entries (bool, True = missing) says which are known.

        Raises:
            ValueError: if the network's answer has not the shape of `x`, or does not determine $\hat x_0$.
        """
        value, held = self._predict(x.to(dtype or x.dtype), t, self.end_times, extras)
        value = value.to(x.dtype)
        x_0, x_1 = (
            self._convert("epsilon", value, x, held),
            self._convert("target", value, x, held),
        )
        first = self.end_times[0]
        if first > 0:
            completion = self.path.target_to_epsilon(x_1, x, t.clamp(max=first))
            x_0 = torch.where(align_time(t, x) < first, completion, x_0)
        mask = entry_mask(extras, x)
        return (x_0, x_1) if mask is None else (hold_known(x_0, mask), torch.where(mask, x_1, x))

    def _predict(
        self, x: Tensor, t: Tensor, times: tuple[float, float], extras: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        held = t.to(torch.promote_types(t.dtype, torch.float32)).clamp(*times)
        return self.ask(x, held.to(t.dtype), extras), held

    def _convert(self, target: Quantity, value: Tensor, x: Tensor, t: Tensor) -> Tensor:
        if target == self.quantity:
            return value
        return getattr(self.path, f"{self.quantity}_to_{target}")(value, x, t)


def _inside(model: Any, prediction: Prediction) -> str:
    """How the wrappers of a velocity model are written with the conversion next to the network."""
    if getattr(model, "answers", None) != "velocity":
        return f"PredictionVelocityModel(network, scheduler, {prediction!r})"
    inner = _inside(model.model, prediction)
    return (
        inner
        if isinstance(model, PredictionVelocityModel)
        else f"{type(model).__name__}({inner}, ...)"
    )
