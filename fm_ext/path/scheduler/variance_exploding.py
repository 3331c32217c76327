"""The variance exploding family in variance preserving coordinates."""

import math
from abc import abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fm_ext.path.scheduler.registry import register_scheduler
from fm_ext.path.scheduler.variance_preserving import VariancePreservingScheduler


class VarianceExplodingScheduler(VariancePreservingScheduler):
    r"""A noise level $s_t$ that falls from `sigma_max` at the source to `sigma_min` at the data.

    The field writes $Y_t = X_1 + s_t X_0$. Our state is that one, divided by its standard deviation at unit data
    variance:

    $$X_t = \frac{Y_t}{\sqrt{1 + s_t^2}}, \qquad \alpha_t = \frac{1}{\sqrt{1 + s_t^2}},
    \qquad \sigma_t = \frac{s_t}{\sqrt{1 + s_t^2}},$$

    so that sampling starts from $N(0, I)$, as everywhere in flow_matching. To go back, divide:
    $Y_t = X_t / \alpha_t$. Neither end is reached: $\alpha_0 = 1/\sqrt{1 + s_{max}^2}$ and
    $\sigma_1 \approx s_{min}$; a signal-to-noise ratio beyond them is mapped to the nearer end.
    """

    sigma_min: float
    sigma_max: float

    @abstractmethod
    def noise_level(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        r"""$s_t$ at `t` in [0, 1]: what a network of this family is conditioned on (EDM: $\tfrac14 \ln s_t$)."""

    @abstractmethod
    def noise_slope(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        r"""$\frac{d}{dt} \ln s_t$ at `t` in [0, 1]; negative."""

    @abstractmethod
    def noise_inverse(self, noise: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The time at which the noise level is `noise`."""

    def angle(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        noise = self.noise_level(t)
        one = torch.ones_like(noise)
        sin, cos = 1 / torch.hypot(one, noise), 1 / torch.hypot(one, 1 / noise)
        return sin, cos, -sin * cos * self.noise_slope(t)

    def angle_inverse(self, sin: Tensor, cos: Tensor) -> Tensor:
        return self.noise_inverse(cos / sin)


@register_scheduler("edm")
@dataclass(frozen=True)
class EDMScheduler(VarianceExplodingScheduler):
    r"""EDM's noise levels: $s_t^{1/\rho}$ falls at constant speed (Karras et al., arXiv 2206.00364).

    Args:
        sigma_min: noise level at the data, in units of the data's standard deviation.
        sigma_max: noise level at the source.
        rho: how much of the time is spent at low noise; 1 is uniform in $s$, infinity is `VEScheduler`.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        _check(self.sigma_min, self.sigma_max)
        if not 0 < self.rho < math.inf:
            raise ValueError(f"`rho` must be positive and finite; got {self.rho}.")

    def noise_level(self, t: Tensor) -> Tensor:
        return self._root(t) ** self.rho

    def noise_slope(self, t: Tensor) -> Tensor:
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return self.rho * (low - high) / self._root(t)

    def noise_inverse(self, noise: Tensor) -> Tensor:
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return (high - noise ** (1 / self.rho)) / (high - low)

    def _root(self, t: Tensor) -> Tensor:
        return t * self.sigma_min ** (1 / self.rho) + (1 - t) * self.sigma_max ** (1 / self.rho)


@register_scheduler("ve")
@dataclass(frozen=True)
class VEScheduler(VarianceExplodingScheduler):
    r"""Geometric noise levels, $s_t = s_{max}^{1 - t} s_{min}^t$ (Song et al., arXiv 2011.13456, the VE SDE).

    Args:
        sigma_min: noise level at the data, in units of the data's standard deviation.
        sigma_max: noise level at the source.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def __post_init__(self) -> None:
        _check(self.sigma_min, self.sigma_max)

    def noise_level(self, t: Tensor) -> Tensor:
        return torch.exp(t * math.log(self.sigma_min) + (1 - t) * math.log(self.sigma_max))

    def noise_slope(self, t: Tensor) -> Tensor:
        return torch.full_like(t, math.log(self.sigma_min / self.sigma_max))

    def noise_inverse(self, noise: Tensor) -> Tensor:
        return torch.log(self.sigma_max / noise) / math.log(self.sigma_max / self.sigma_min)


def _check(sigma_min: float, sigma_max: float) -> None:
    if not 0 < sigma_min < sigma_max:
        raise ValueError(
            f"`sigma_min` and `sigma_max` must satisfy 0 < sigma_min < sigma_max; got {sigma_min} and {sigma_max}."
        )
