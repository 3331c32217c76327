"""What a network may predict, and the times at which that says everything."""

from typing import Literal, get_args

import torch
from flow_matching.path.scheduler import Scheduler

from fm_ext.path.conversion import Quantity, coefficients

Prediction = Literal["x_1", "x_0", "epsilon", "score", "velocity"]

# The conversions of `AffineProbPath` call the source epsilon, whatever its law.
QUANTITIES: dict[Prediction, Quantity] = {
    "x_1": "target",
    "x_0": "epsilon",
    "epsilon": "epsilon",
    "score": "score",
    "velocity": "velocity",
}


def quantity(name: str, prediction: Prediction) -> Quantity:
    """The conversions' word for `prediction`; an error about the argument `name` for one that is unknown."""
    if prediction not in QUANTITIES:
        raise ValueError(f"`{name}` must be one of {get_args(Prediction)}; got {prediction!r}.")
    return QUANTITIES[prediction]


def regular_times(
    scheduler: Scheduler, source: Quantity, target: Quantity, t_eps: tuple[float, float]
) -> tuple[float, float]:
    """The first and the last time at which `x_t` and `source` are asked for `target`.

    0 and 1, moved inside by the `t_eps` of the source and of the data where the answer is 0/0 or infinite at the end or
    on the way to it.

    Raises:
        ValueError: unless both `t_eps` lie in (0, 0.5) and keep enough distance.
    """
    if not all(0 < eps < 0.5 for eps in t_eps):
        raise ValueError(f"`t_eps` must lie in (0, 0.5); got {t_eps}.")
    if source == target:
        return 0.0, 1.0
    near = torch.cat([2.0 ** -torch.arange(100, dtype=torch.float64), torch.zeros(1)])
    times = torch.stack([t_eps[0] * near, 1 - t_eps[1] * near])
    exists = coefficients(scheduler, source, target, times)[0].isfinite()
    if not bool(exists[:, 0].all()):
        raise ValueError(
            f"`t_eps` = {t_eps} is too small for {scheduler}: `x_t` and the {source} do not determine the {target} "
            "there either, because one end's share of `x_t` is below rounding."
        )
    first, last = exists.all(dim=1).tolist()
    return 0.0 if first else t_eps[0], 1.0 if last else 1 - t_eps[1]
