"""Inverse and slope of any scheduler at its ends, upstream's included, and whether two schedulers are the same."""

import torch
from flow_matching.path.scheduler import ConvexScheduler, Scheduler
from torch import Tensor

from fm_ext.path.scheduler.precision import double, hold


def time_at(scheduler: Scheduler, alpha: Tensor, sigma: Tensor) -> Tensor:
    r"""The time in [0, 1] at which `scheduler` has the ratio `alpha : sigma`; the nearer end if it never has.

    `snr_inverse`, right at ratios 0 and infinity, where upstream's returns NaN or -inf for all but one scheduler.
    """
    if isinstance(scheduler, ConvexScheduler):
        return hold(scheduler.kappa_inverse(kappa=alpha / (alpha + sigma)))
    inside = (alpha > 0) & (sigma > 0)
    ratio = torch.where(inside, alpha, 1.0) / torch.where(inside, sigma, 1.0)
    ends = torch.where(alpha > 0, 1.0, torch.zeros_like(ratio))
    return hold(torch.where(inside, scheduler.snr_inverse(ratio), ends))


def end_slope(scheduler: Scheduler, device: torch.device | str = "cpu") -> Tensor:
    r"""The limit of $-\sigma_t \dot\sigma_t$ at $t = 1$, a 0-d tensor.

    Where $\sigma_t \approx \sqrt{2 c\,(1 - t)}$ (every schedule with $\alpha^2 + \sigma^2 = 1$, $\sigma_1 = 0$ and
    $\dot\alpha_1 = c > 0$) the derivative $\dot\sigma_1$ is $-\infty$ and this product is finite, $c$; velocities and
    scores need the product only. It is extrapolated in float64 from 2^-29 and 2^-30 before the end, which is right to
    nine digits for any scheduler, ours or not.
    """
    steps = double(torch.tensor([1.0, 2.0], device=device))
    near = scheduler(1 - steps * (2.0**-30 if steps.dtype == torch.float64 else 2.0**-12))
    once, twice = (-near.sigma_t * near.d_sigma_t).unbind()
    return 2 * once - twice


def same_schedule(a: Scheduler, b: Scheduler) -> bool:
    r"""Whether two schedulers agree in $\alpha_t$ and $\sigma_t$ to 1e-6, at 9 times from 0 to 1 in float64.

    Objects may differ: upstream's `CosineScheduler` is the same schedule as ours.
    """
    t = torch.linspace(0, 1, 9, dtype=torch.float64, device="cpu")
    first, second = a(t), b(t)
    return all(
        torch.allclose(u, v, rtol=0, atol=1e-6)
        for u, v in ((first.alpha_t, second.alpha_t), (first.sigma_t, second.sigma_t))
    )


def check_schedule(name: str, scheduler: Scheduler, model: object) -> None:
    """Raises if the model says that it lives on another schedule than the one that the argument `name` gave."""
    inner = getattr(model, "schedule", None)
    if inner is not None and not same_schedule(inner, scheduler):
        raise ValueError(
            f"`{name}` must be the schedule of the model inside: {type(model).__name__} lives on {inner!r}; got "
            f"{scheduler!r}."
        )
