"""Conversions between data, source, velocity and score, given the state, and the names of predictions."""

from typing import Literal, get_args

import torch
from flow_matching.path.scheduler import Scheduler
from torch import Tensor

from fm_ext.path.scheduler.ends import end_slope
from fm_ext.path.scheduler.precision import double, single

Quantity = Literal["target", "epsilon", "velocity", "score"]

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


def coefficients(
    scheduler: Scheduler,
    source: Quantity,
    target: Quantity,
    t: Tensor,
    rounding: float = torch.finfo(torch.float64).eps,
) -> tuple[Tensor, Tensor]:
    r"""$a$ and $b$ of `target` $= a\,X_t + b\,$`source`, in float64, of `t`'s shape; NaN where they do not exist.

    Each quantity is a row in the basis $(X_1, \epsilon)$: $X_t = (\alpha, \sigma)$, target $= (1, 0)$, epsilon
    $= (0, 1)$, velocity $= (\dot\alpha, \dot\sigma)$, score $= (0, -1/\sigma)$. For rows $p$ (source) and $q$
    (target)

    $$a = \frac{q_1 p_0 - q_0 p_1}{\alpha p_0 - \sigma p_1}, \qquad
    b = \frac{\alpha q_0 - \sigma q_1}{\alpha p_0 - \sigma p_1} .$$

    At the data ($\sigma = 0$) $X_t$ alone gives any quantity without an $\epsilon$ part, at the source ($\alpha = 0$)
    any without an $X_1$ part. What is left undetermined there, or is infinite, becomes NaN.

    Args:
        scheduler: any, upstream's included; it is evaluated in float64, where their cancellation does no harm.
        source: what is given beside $X_t$.
        target: what is wanted.
        t: times of any shape.
        rounding: an end counts as reached where the other end's share of $X_t$ is below it. Not 0, because
            upstream's cosine ends at 6e-17.
    """
    out = scheduler(double(single(t)))
    alpha, sigma = out.alpha_t, out.sigma_t
    at_data = sigma.abs() <= rounding * alpha.abs()
    at_source = alpha.abs() <= rounding * sigma.abs()
    alpha, sigma = torch.where(at_source, 0.0, alpha), torch.where(at_data, 0.0, sigma)

    if {source, target} == {"velocity", "score"}:
        # Only the product sigma * d_sigma enters, and it has a limit where d_sigma is infinite.
        product = sigma * out.d_sigma_t
        limit = -end_slope(scheduler, t.device)
        product = torch.where(at_data & out.d_sigma_t.isinf(), limit, product)
        wronskian = sigma * sigma * out.d_alpha_t - alpha * product
        if target == "velocity":
            a, b = out.d_alpha_t / alpha, wronskian / alpha
            still = at_source & (out.d_alpha_t == 0)
            a, b = torch.where(still, 0.0, a), torch.where(still, -product, b)
        else:
            a, b = -out.d_alpha_t / wronskian, alpha / wronskian
            a, b = torch.where(at_source, -1 / sigma**2, a), torch.where(at_source, 0.0, b)
    else:
        zero, one = torch.zeros_like(alpha), torch.ones_like(alpha)
        rows = {
            "target": (one, zero),
            "epsilon": (zero, one),
            "velocity": (out.d_alpha_t, out.d_sigma_t),
            "score": (zero, one),
        }
        (p_1, p_0), (q_1, q_0) = rows[source], rows[target]
        determinant = alpha * p_0 - sigma * p_1
        a, b = (q_1 * p_0 - q_0 * p_1) / determinant, (alpha * q_0 - sigma * q_1) / determinant
        alone = at_data & (q_0 == 0)
        a, b = torch.where(alone, q_1 / alpha, a), torch.where(alone, 0.0, b)
        alone = at_source & (q_1 == 0)
        a, b = torch.where(alone, q_0 / sigma, a), torch.where(alone, 0.0, b)
        if source == "score":  # epsilon = -sigma * score
            b = -sigma * b
        if target == "score":
            a, b = -a / sigma, -b / sigma
    exists = a.isfinite() & b.isfinite()
    return torch.where(exists, a, torch.nan), torch.where(exists, b, torch.nan)
