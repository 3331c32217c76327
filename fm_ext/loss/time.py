"""Which times, and pairs of times, a batch is trained at."""

import abc
import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class TimeSampler(abc.ABC):
    r"""Draws training times in [0, 1], t = 0 the source and t = 1 the data, by the inverse of their distribution.

    A density $p(t)$ other than the uniform one is a weight on the loss: $E_{t \sim p}[\ell_t] = \int p(t)\,\ell_t\,dt$.
    It moves effort between times and leaves the minimiser of an unconstrained model where it is.

    To write one of your own, subclass, add your fields, and implement `quantile`.

    Args:
        stratified: one time from each of `batch` intervals of equal probability, in random order, rather than
            independent ones. Each time alone has the same law; the batch mean of a loss that is smooth in time varies
            by the order of $n^{-3}$ rather than $n^{-1}$ in what time contributes (Owen, Monte Carlo theory,
            section 10.1; for diffusion Kingma et al., arXiv 2107.00630, appendix I.1).
    """

    stratified: bool = True

    def __call__(
        self,
        batch: int,
        *,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, " batch"]:
        """Draw `batch` times in float32.

        Args:
            batch: number of times, 0 or more.
            device: where the times are; PyTorch's default device if None.
            generator: source of the randomness, the global one if None; times are drawn on its device and moved.

        Raises:
            ValueError: if `batch` is negative.
        """
        if batch < 0:
            raise ValueError(f"`batch` must be at least 0; got {batch}.")
        place = torch.get_default_device() if device is None else torch.device(device)
        origin = place if generator is None else generator.device
        u = torch.rand(batch, device=origin, generator=generator)
        if self.stratified:
            u = (torch.randperm(batch, device=origin, generator=generator) + u) / max(batch, 1)
        return self.quantile(u.to(place))

    @abc.abstractmethod
    def quantile(self, u: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """The time below which a share `u` in [0, 1] of all times lies; non-decreasing."""


@dataclass(frozen=True, kw_only=True)
class UniformTime(TimeSampler):
    """Every time is as likely as any other."""

    def quantile(self, u: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """`u` itself."""
        return u


@dataclass(frozen=True, kw_only=True)
class LogitNormalTime(TimeSampler):
    r"""$t = \operatorname{sigmoid}(m + s\,z)$, $z \sim N(0, 1)$: most effort in the middle, none at the ends.

    Esser et al., arXiv 2403.03206, equation 19, with their time running from data to noise: their mean is `-mean`.

    Args:
        mean: the logit of the median; positive favours the data.
        std: the spread, positive.
    """

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.mean):
            raise ValueError(f"`mean` must be finite; got {self.mean}.")
        if not 0 < self.std < math.inf:
            raise ValueError(f"`std` must be positive and finite; got {self.std}.")

    def quantile(self, u: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        r"""$\operatorname{sigmoid}(m + s\,\Phi^{-1}(u))$."""
        return torch.sigmoid(self.mean + self.std * torch.special.ndtri(u))


@dataclass(frozen=True, kw_only=True)
class PowerTime(TimeSampler):
    r"""The density $(k + 1)\,t^k$, or its mirror image: effort that grows towards one end.

    Args:
        power: $k > -1$; 0 is uniform, and positive favours the end that is named.
        towards: "data" (t = 1) or "source" (t = 0), whose density is $(k + 1)(1 - t)^k$.
    """

    power: float
    towards: str = "data"

    def __post_init__(self) -> None:
        if not -1 < self.power < math.inf:
            raise ValueError(f"`power` must be above -1 and finite; got {self.power}.")
        if self.towards not in ("data", "source"):
            raise ValueError(f"`towards` must be 'data' or 'source'; got {self.towards!r}.")

    def quantile(self, u: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        r"""$u^{1 / (k + 1)}$, or $1 - (1 - u)^{1 / (k + 1)}$ towards the source."""
        exponent = 1 / (self.power + 1)
        return u**exponent if self.towards == "data" else 1 - (1 - u) ** exponent


@dataclass(frozen=True, kw_only=True)
class ShiftedTime(TimeSampler):
    r"""$t = \frac{u}{u + s\,(1 - u)}$ of the times $u$ of another sampler: more effort near the source.

    A large image is told from its noise late, because its pixels repeat one another: its colours and its layout are
    decided early, where uniform times seldom are. So the shift grows with the side of the image (Esser et al., arXiv
    2403.03206, equation 23, there in the noise level $1 - t$). `fm_ext.solver.shifted_grid` is the same map of steps.

    Args:
        shift: $s > 0$: 1 leaves the times as they are, more favours the source, less the data.
        times: the sampler whose times are shifted; its own `stratified` is not used.
    """

    shift: float = 3.0
    times: TimeSampler = UniformTime()

    def __post_init__(self) -> None:
        if not 0 < self.shift < math.inf:
            raise ValueError(f"`shift` must be positive and finite; got {self.shift}.")

    def quantile(self, u: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        r"""$q / (q + s\,(1 - q))$ of the quantile $q$ of `times`."""
        q = self.times.quantile(u)
        return q / (q + self.shift * (1 - q))


@dataclass(frozen=True, kw_only=True)
class TimePairs:
    r"""Draws pairs of times $t \le r$ for `mean_flow_loss`: the smaller and the larger of two, or t twice.

    Args:
        times: what both are drawn from. The default is that of MeanFlow for images (Geng et al., arXiv 2505.13447,
            on ImageNet: a logit-normal of mean -0.4 in their time, which runs from data to noise).
        distinct: the share of pairs with t < r, in [0, 1]; the others, with r = t, train the velocity. 0.25 in the
            paper for ImageNet, 0.75 for CIFAR-10, 0.5 in the improved form (arXiv 2512.02012).
    """

    times: TimeSampler = field(default_factory=lambda: LogitNormalTime(mean=0.4))
    distinct: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.distinct <= 1:
            raise ValueError(f"`distinct` must lie in [0, 1]; got {self.distinct}.")

    def __call__(
        self,
        batch: int,
        *,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
        """Draw `batch` pairs in float32; which of them are distinct is random, how many to within one is not.

        Args:
            batch: number of pairs, 0 or more.
            device: where they are; PyTorch's default device if None.
            generator: source of the randomness, the global one if None.

        Raises:
            ValueError: if `batch` is negative.
        """
        a, b = (self.times(batch, device=device, generator=generator) for _ in range(2))
        chosen = UniformTime()(batch, device=device, generator=generator) < self.distinct
        return torch.where(chosen, a.minimum(b), a), torch.where(chosen, a.maximum(b), a)
