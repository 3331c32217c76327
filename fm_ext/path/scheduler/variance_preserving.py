"""Schedules with alpha^2 + sigma^2 = 1: an angle that turns from the source to the data."""

import math
from abc import abstractmethod
from dataclasses import dataclass

import torch
from flow_matching.path.scheduler import Scheduler, SchedulerOutput
from jaxtyping import Float
from torch import Tensor

from fm_ext.path.scheduler.precision import cast, hold, outside, single
from fm_ext.path.scheduler.registry import register_scheduler


class VariancePreservingScheduler(Scheduler):
    r"""An angle $\varphi_t$ with $\alpha_t = \sin\varphi_t$ and $\sigma_t = \cos\varphi_t$.

    $$\frac{\alpha_t}{\sigma_t} = \tan\varphi_t, \qquad \dot\alpha_t = \dot\varphi_t \cos\varphi_t, \qquad
    \dot\sigma_t = -\dot\varphi_t \sin\varphi_t .$$

    If source and target are independent and of unit variance, so is $X_t$ at every time. A subclass gives the angle
    and its inverse, each on [0, 1]; values, derivatives and `snr_inverse` follow, in the dtype of `t`
    (half precision is computed in float32). Outside [0, 1] the nearer end is held and the derivatives are 0.
    """

    @abstractmethod
    def angle(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        r"""Sine, cosine and rate $\dot\varphi_t$ of the angle at `t` in [0, 1], each free of cancellation."""

    @abstractmethod
    def angle_inverse(self, sin: Tensor, cos: Tensor) -> Tensor:
        """The time at which the angle has this sine and cosine; anything outside [0, 1] means "beyond that end"."""

    @property
    def end_slope(self) -> float:
        r"""$\dot\alpha_1$ where $\dot\varphi_1$ (and so $\dot\sigma_1$) is infinite; 0 where it is finite."""
        return 0.0

    def __call__(self, t: Float[Tensor, "*shape"]) -> SchedulerOutput:
        """Values and derivatives at times of any shape."""
        time = single(t)
        sin, cos, rate = self.angle(hold(time))
        held = outside(time)
        output = SchedulerOutput(
            alpha_t=sin,
            sigma_t=cos,
            d_alpha_t=(cos * rate).masked_fill(cos == 0, self.end_slope).masked_fill(held, 0.0),
            d_sigma_t=(-sin * rate).masked_fill(held, 0.0),
        )
        return cast(output, t.dtype)

    def snr_inverse(self, snr: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        r"""The time at which $\alpha_t / \sigma_t$ is `snr` in [0, inf]; the nearer end where it never is."""
        ratio = single(snr)
        one = torch.ones_like(ratio)
        sin, cos = 1 / torch.hypot(one, 1 / ratio), 1 / torch.hypot(one, ratio)
        return hold(self.angle_inverse(sin, cos)).to(snr.dtype)


@register_scheduler("cosine")
@dataclass(frozen=True)
class CosineScheduler(VariancePreservingScheduler):
    r"""The angle grows at constant speed: $\alpha_t = \sin(\pi t / 2)$, $\sigma_t = \cos(\pi t / 2)$.

    Upstream's formula, exactly 0 and 1 at the ends and free of cancellation before them, because the cosine is taken
    as $\sin(\pi (1 - t) / 2)$ (Nichol and Dhariwal, arXiv 2102.09672, equation 17, with $s = 0$).
    """

    def angle(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        quarter = math.pi / 2
        return torch.sin(quarter * t), torch.sin(quarter * (1 - t)), torch.full_like(t, quarter)

    def angle_inverse(self, sin: Tensor, cos: Tensor) -> Tensor:
        return torch.atan2(sin, cos) / (math.pi / 2)


@register_scheduler("iddpm_cosine")
@dataclass(frozen=True)
class IDDPMCosineScheduler(VariancePreservingScheduler):
    r"""Improved DDPM's cosine schedule in flow time: $\alpha_t = \sin(w t) / \sin w$, $w = \frac{\pi}{2 (1 + s)}$.

    Nichol and Dhariwal, arXiv 2102.09672, equation 17, with their time running from data to noise:
    $t = 1 - \text{step} / T$. The offset slows the last steps down; $\dot\alpha_1 = w \cot w > 0$, so $\dot\sigma$
    goes to $-\infty$ as $t$ goes to 1, and it is $-\infty$ at 1. Their clipping of beta at 0.999 is not part of it:
    $\alpha_0 = 0$ exactly.

    Args:
        s: the offset, positive. `CosineScheduler` is the limit s = 0.
    """

    s: float = 0.008

    def __post_init__(self) -> None:
        if not self.s > 0:
            raise ValueError(
                f"`s` must be positive; got {self.s}. CosineScheduler() is the case s = 0."
            )

    @property
    def _w(self) -> float:
        return math.pi / 2 / (1 + self.s)

    @property
    def end_slope(self) -> float:
        return self._w / math.tan(self._w)

    def angle(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        w, scale, rest = self._w, math.sin(self._w), 1 - t
        # From the nearer end, with differences of sines as products: nothing cancels, and 0 and 1 are exact.
        near = torch.sin(w * t) / scale
        far = 2 * torch.sin(w * (rest / 2 + self.s)) * torch.sin(w * rest / 2) / scale
        sin = torch.where(t < 0.5, near, 1 - far)
        # Each square root sees its own half only: in the other it has an end with an infinite slope.
        early, late = torch.where(t < 0.5, near, 0.0), torch.where(t < 0.5, 0.5, rest)
        cos = torch.where(
            t < 0.5,
            torch.sqrt((1 - early) * (1 + early)),
            torch.sqrt(torch.sin(w * late) * torch.sin(w * (late + 2 * self.s))) / scale,
        )
        return sin, cos, w * torch.sin(w * (rest + self.s)) / scale / cos

    def angle_inverse(self, sin: Tensor, cos: Tensor) -> Tensor:
        rise = math.sin(self._w) * sin
        run = torch.hypot(torch.full_like(cos, math.cos(self._w)), math.sin(self._w) * cos)
        return torch.atan2(rise, run) / self._w


@register_scheduler("vp")
@dataclass(frozen=True)
class VPScheduler(VariancePreservingScheduler):
    r"""The variance preserving diffusion: $\alpha_t = e^{-T_t / 2}$.

    $$T_t = (1 - t)\,\beta_{min} + \tfrac12 (1 - t)^2 (\beta_{max} - \beta_{min}), \qquad
    \sigma_t = \sqrt{1 - e^{-T_t}} .$$

    Song et al., arXiv 2011.13456, in flow time. Upstream's formula without its cancellation:
    $\sigma_t = \sqrt{-\operatorname{expm1}(-T_t)}$. Two properties belong to the schedule and not to a program: $X_0$
    still holds $\alpha_0 = e^{-(\beta_{min} + \beta_{max}) / 4}$ of the target (0.0066 by default), and
    $\dot\sigma_1 = -\infty$.

    Args:
        beta_min: noise per unit of time at the data, positive.
        beta_max: noise per unit of time at the source, at least `beta_min`.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        if not 0 < self.beta_min <= self.beta_max:
            raise ValueError(
                f"`beta_min` and `beta_max` must satisfy 0 < beta_min <= beta_max; "
                f"got {self.beta_min} and {self.beta_max}."
            )

    @property
    def end_slope(self) -> float:
        return self.beta_min / 2

    def angle(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rest, growth = 1 - t, self.beta_max - self.beta_min
        decay = rest * (self.beta_min + rest * growth / 2)
        sin, cos = torch.exp(-decay / 2), torch.sqrt(-torch.expm1(-decay))
        return sin, cos, (self.beta_min + rest * growth) / 2 * sin / cos

    def angle_inverse(self, sin: Tensor, cos: Tensor) -> Tensor:
        decay = torch.where(sin > cos, -torch.log1p(-cos * cos), -2 * torch.log(sin))
        growth, largest = self.beta_max - self.beta_min, (self.beta_min + self.beta_max) / 2
        root = torch.sqrt(self.beta_min**2 + 2 * growth * decay)
        return 1 - torch.where(decay < largest, 2 * decay / (self.beta_min + root), 1.0)


@register_scheduler("linear_vp")
@dataclass(frozen=True)
class LinearVPScheduler(VariancePreservingScheduler):
    r"""The sine grows at constant speed: $\alpha_t = t$, $\sigma_t = \sqrt{(1 - t)(1 + t)}$.

    Upstream's formula without its cancellation. $\dot\sigma_1 = -\infty$, and $E[\dot\sigma^2]$ over uniform times is
    infinite: do not regress on its velocity without a bound on `t` or a weight; predict `x_1` instead.
    """

    @property
    def end_slope(self) -> float:
        return 1.0

    def angle(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        cos = torch.sqrt((1 - t) * (1 + t))
        return t, cos, 1 / cos

    def angle_inverse(self, sin: Tensor, cos: Tensor) -> Tensor:
        return sin
