"""Any DDPM or Stable Diffusion table of betas as a continuous schedule."""

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise
from operator import mul
from typing import Any

import torch
from jaxtyping import Float
from scipy.interpolate import PchipInterpolator
from torch import Tensor

from fm_ext.path.scheduler.precision import double
from fm_ext.path.scheduler.registry import register_scheduler
from fm_ext.path.scheduler.variance_preserving import VariancePreservingScheduler


@register_scheduler("beta_table")
class BetaTableScheduler(VariancePreservingScheduler):
    r"""A table of $T$ discrete noise levels, index $k$ at flow time $t = 1 - k / (T - 1)$.

    $$\alpha = \sqrt{\bar\alpha_k}, \qquad \sigma = \sqrt{1 - \bar\alpha_k}, \qquad
    \bar\alpha_k = \prod_{j \le k} (1 - \beta_j)$$

    at the table's times; between them the log signal-to-noise ratio $\ln (\alpha / \sigma)$ is interpolated by the
    monotone cubic of Fritsch and Carlson (PCHIP), and the derivatives are those of the interpolant. Computed in
    float64 inside.

    A table reaches neither end: $\alpha_0 = \sqrt{\bar\alpha_{T-1}}$ is 0.0064 for DDPM's linear table and 0.068 for
    Stable Diffusion's, and $\sigma_1 = \sqrt{\beta_0}$. So $X_0$ is not pure noise, and a signal-to-noise ratio
    outside the table is mapped to the nearer end by `snr_inverse`.

    Args:
        betas: $\beta_k$ in (0, 1), from the data (k = 0) to noise.
        alphas_cumprod: $\bar\alpha_k$ instead, falling, in (0, 1); the last may be 0. This is what a diffusers
            scheduler holds: give it rather than betas in float32, whose product differs in the seventh digit.
        zero_terminal_snr: move and stretch the $\alpha_k$ so that the last is 0 and the first stays (Lin et al.,
            arXiv 2305.08891, algorithm 1). For networks trained so; an epsilon network knows nothing at $\alpha = 0$.
    """

    def __init__(
        self,
        betas: Float[Tensor, " steps"] | Sequence[float] | None = None,
        *,
        alphas_cumprod: Float[Tensor, " steps"] | Sequence[float] | None = None,
        zero_terminal_snr: bool = False,
    ):
        if (betas is None) == (alphas_cumprod is None):
            raise ValueError("give exactly one of `betas` and `alphas_cumprod`.")
        self.betas = _floats(betas)
        self.alphas_cumprod = _floats(alphas_cumprod)
        self.zero_terminal_snr = zero_terminal_snr
        if self.betas is not None:
            if not all(0 < beta < 1 for beta in self.betas):
                raise ValueError(
                    f"`betas` must lie in (0, 1); got {min(self.betas)} to {max(self.betas)}."
                )
            products = list(accumulate((1 - beta for beta in self.betas), mul))
        else:
            products = list(self.alphas_cumprod or ())
        if len(products) < 2:
            raise ValueError(f"a table must have at least 2 steps; got {len(products)}.")
        falling = all(high > low for high, low in pairwise(products))
        if not (falling and products[0] < 1 and products[-1] >= 0):
            raise ValueError(
                "`alphas_cumprod` must fall strictly within (0, 1), from the data (k = 0) to noise, and only its last "
                f"entry may be 0; got {products[0]} ... {products[-1]}."
            )
        self._set_table([math.sqrt(product) for product in reversed(products)])

    def _set_table(self, alphas: list[float]) -> None:
        """Takes alpha at growing times, and interpolates its log-SNR.

        A table that starts at 0 has no log-SNR there. Lin's algorithm is an affine map of alpha, so such a table is
        the image of one that starts at `offset` > 0: that one is interpolated, and its image taken.
        """
        first, last = alphas[0], alphas[-1]
        self._offset, self._stretch = 0.0, 1.0
        if self.zero_terminal_snr and first > 0:
            self._offset, self._stretch = first, last / (last - first)
        elif first == 0:
            self._offset = min(alphas[1], last / 2)
            self._stretch = last / (last - self._offset)
            alphas = [alpha / self._stretch + self._offset for alpha in alphas]
        self._last = last
        self._steps = len(alphas)
        log_snr = [math.log(alpha) - math.log1p(-alpha * alpha) / 2 for alpha in alphas]
        knots = range(len(alphas))
        slopes = PchipInterpolator(knots, log_snr).derivative()(knots).tolist()
        # PCHIP may be flat at its ends, where a schedule must not stand still: there the chord is taken.
        slopes[0] = slopes[0] or log_snr[1] - log_snr[0]
        slopes[-1] = slopes[-1] or log_snr[-1] - log_snr[-2]
        # On the CPU and fit for autograd, whatever default device or inference mode it is built in.
        with torch.inference_mode(False):
            table = torch.tensor([log_snr, slopes], dtype=torch.float64, device="cpu")
        self._tables = {torch.device("cpu"): table}

    def __getstate__(self) -> dict[str, Any]:
        """All but the copies of the table on other devices, which the reader may not have."""
        cpu = torch.device("cpu")
        return {**vars(self), "_tables": {cpu: self._tables[cpu]}}

    def __repr__(self) -> str:
        kind = "betas" if self.betas is not None else "alphas_cumprod"
        return f"BetaTableScheduler({kind}=<{self._steps}>, zero_terminal_snr={self.zero_terminal_snr})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BetaTableScheduler) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[object, ...]:
        return self.betas, self.alphas_cumprod, self.zero_terminal_snr

    def index(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The (fractional) DDPM index $k = (1 - t)(T - 1)$ at time `t`: what the table's network is conditioned on."""
        return (1 - t) * (self._steps - 1)

    def time(self, index: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The time of the (fractional) DDPM index `index`."""
        return 1 - index / (self._steps - 1)

    def angle(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        position = double(t) * (self._steps - 1)
        log_snr, slope = self._interpolate(position, self._interval(position))
        slope = slope * (self._steps - 1)
        # Of the table that is interpolated ...
        alpha, variance = torch.sigmoid(2 * log_snr).sqrt(), torch.sigmoid(-2 * log_snr)
        # ... and of its image; differences are added up from positive parts, so that nothing cancels.
        sin = alpha
        if self._offset > 0:
            first = self._table(t.device)[0, 0]
            squares = torch.sinh(log_snr - first) / (2 * torch.cosh(log_snr) * torch.cosh(first))
            sin = self._stretch * squares / (alpha + self._offset)
        short = variance / (1 + alpha) + (self._stretch - 1) * (self._last - alpha)
        cos = torch.sqrt(short * (1 + sin))
        rate = self._stretch * alpha * variance * slope / cos
        return sin.to(t.dtype), cos.to(t.dtype), rate.to(t.dtype)

    def angle_inverse(self, sin: Tensor, cos: Tensor) -> Tensor:
        wide_sin, wide_cos = double(sin), double(cos)
        alpha = wide_sin / self._stretch + self._offset
        short = wide_cos**2 / (1 + wide_sin) - (self._stretch - 1) * (self._last - alpha)
        knots = self._table(sin.device)[0]
        log_snr = torch.log(alpha) - torch.log(short * (1 + alpha)) / 2
        log_snr = log_snr.clamp(knots[0], knots[-1])
        interval = torch.searchsorted(knots, log_snr, right=True).sub(1).clamp(0, self._steps - 2)
        # Newton's iteration in one interval of a monotone cubic, with bisection where it would leave the bracket.
        low, high = interval.to(log_snr.dtype), interval.to(log_snr.dtype) + 1
        left, right = _entries(knots, interval), _entries(knots, interval + 1)
        position = low + (log_snr - left) / (right - left)
        for _ in range(12):
            value, slope = self._interpolate(position, interval)
            low = torch.where(value < log_snr, position, low)
            high = torch.where(value < log_snr, high, position)
            newton = position - (value - log_snr) / slope
            inside = (newton >= low) & (newton <= high)
            position = torch.where(inside, newton, (low + high) / 2)
        return torch.where(sin > 0, position / (self._steps - 1), 0.0).to(sin.dtype)

    def _table(self, device: torch.device) -> Tensor:
        if device not in self._tables:
            with torch.inference_mode(False):
                self._tables[device] = double(self._tables[torch.device("cpu")].to(device))
        return self._tables[device]

    def _interval(self, position: Tensor) -> Tensor:
        return position.detach().floor().long().clamp(0, self._steps - 2)

    def _interpolate(self, position: Tensor, interval: Tensor) -> tuple[Tensor, Tensor]:
        """Cubic Hermite polynomial and its derivative, per step of the table."""
        values, slopes = self._table(position.device)
        left, right = _entries(values, interval), _entries(values, interval + 1)
        m, n = _entries(slopes, interval), _entries(slopes, interval + 1)
        u = position - interval
        c = 3 * (right - left) - 2 * m - n
        d = m + n - 2 * (right - left)
        return left + u * (m + u * (c + u * d)), m + u * (2 * c + u * 3 * d)


def _floats(table: Tensor | Sequence[float] | None) -> tuple[float, ...] | None:
    if table is None:
        return None
    return tuple(float(value) for value in (table.tolist() if isinstance(table, Tensor) else table))


def _entries(table: Tensor, index: Tensor) -> Tensor:
    """`table[index]`, which `vmap` refuses for an index of one entry."""
    return table.index_select(0, index.flatten()).view(index.shape)
