"""The sigmoid schedule: slow at both ends, fast between them."""

import math
from dataclasses import dataclass

import torch
from flow_matching.path.scheduler import ConvexScheduler, SchedulerOutput
from jaxtyping import Float
from torch import Tensor

from fm_ext.path.scheduler.precision import cast, hold, outside, single
from fm_ext.path.scheduler.registry import register_scheduler


@register_scheduler("sigmoid")
@dataclass(frozen=True)
class SigmoidScheduler(ConvexScheduler):
    r"""A stretch of the logistic function, exactly 0 and 1 at the ends.

    $$\alpha_t = \frac{S(v_t) - S(v_0)}{S(v_1) - S(v_0)}, \qquad v_t = \text{start} + t\,(\text{end} - \text{start}),
    \qquad \sigma_t = 1 - \alpha_t ,$$

    with $S$ the logistic function: the curve of Jabri et al., arXiv 2212.11972, on the convex path.
    Differences of $S$ are evaluated as $S(a) - S(b) = \sinh\frac{a - b}{2} / (2 \cosh\frac a2 \cosh\frac b2)$, which
    does not cancel. Outside [0, 1] the nearer end is held and the derivatives are 0.

    Args:
        start: where on the logistic function the source lies.
        end: where the data lie, above `start`. A longer stretch spends more of the time near the ends.
    """

    start: float = -3.0
    end: float = 3.0

    def __post_init__(self) -> None:
        if not self.start < self.end or max(-self.start, self.end, 0) > 40:
            raise ValueError(
                f"`start` and `end` must satisfy -40 <= start < end <= 40; got {self.start} and {self.end}."
            )

    def __call__(self, t: Float[Tensor, "*shape"]) -> SchedulerOutput:
        """Values and derivatives at times of any shape."""
        time = single(t)
        held = hold(time)
        length = self.end - self.start
        cosh = torch.cosh((self.start + held * length) / 2) * math.sinh(length / 2)
        rise = torch.sinh(held * length / 2) * math.cosh(self.end / 2) / cosh
        rest = torch.sinh((1 - held) * length / 2) * math.cosh(self.start / 2) / cosh
        alpha = torch.where(rise < rest, rise, 1 - rest)
        sigma = torch.where(rise < rest, 1 - rise, rest)
        slope = length / 2 * math.cosh(self.start / 2) * math.cosh(self.end / 2)
        slope = slope * math.sinh(length / 2) / cosh**2
        slope = slope.masked_fill(outside(time), 0.0)
        return cast(SchedulerOutput(alpha, sigma, slope, -slope), t.dtype)

    def kappa_inverse(self, kappa: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The time at which `alpha_t` is `kappa`, and the nearer end where it is not in [0, 1]."""
        alpha = hold(single(kappa))
        return self._time(alpha, 1 - alpha).to(kappa.dtype)

    def snr_inverse(self, snr: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        r"""The time at which $\alpha_t / \sigma_t$ is `snr` in [0, inf]."""
        ratio = single(snr)
        return self._time(1 / (1 + 1 / ratio), 1 / (1 + ratio)).to(snr.dtype)

    def _time(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """From both, so that nothing is lost where one is close to 1."""
        growth = _logistic(self.end) / _logistic(self.start) - 1
        decay = _logistic(-self.end) / _logistic(-self.start)
        odds = torch.log1p(alpha * growth) - torch.log(sigma + alpha * decay)
        return hold(torch.where(sigma == 0, 1.0, odds / (self.end - self.start)))


def _logistic(value: float) -> float:
    return 1 / (1 + math.exp(-value))
