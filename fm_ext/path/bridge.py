"""The Brownian bridge between source and target."""

import torch
from flow_matching.path import PathSample
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from fm_ext.path.affine import check_ends
from fm_ext.path.scheduler.precision import double
from fm_ext.path.wrapper import ProbPath
from fm_ext.utils.inputs import randn_like


class BridgeProbPath(ProbPath):
    r"""$X_t = (1 - t) X_0 + t X_1 + \sigma\sqrt{t (1 - t)}\, Z$ with $Z \sim N(0, I)$, and its velocity.

    $$\dot X_t = X_1 - X_0 + \sigma \frac{1 - 2t}{2\sqrt{t (1 - t)}} Z$$

    A stochastic interpolant (Albergo et al., arXiv 2303.08797, definition 2.1) with the law of a Brownian bridge at
    each time. The noise in between lets one source have many targets and smooths the velocity when both ends are data.
    With the entropic coupling of the same $\sigma$ its marginals are those of the Schrödinger bridge:
    `CoupledProbPath(BridgeProbPath(sigma), SinkhornTransport(2 * sigma**2, relative=False))` (SB-CFM, Tong et al.,
    arXiv 2302.00482).

    The velocity is infinite at both ends, and its mean square over time diverges like a logarithm: in d dimensions,
    between e and 1 - e, it is $d \sigma^2 (\frac12 \ln\frac1e - 1)$ more than on the straight path, up to order e.
    Train on times that keep a distance, `t = torch.rand(batch).clamp(1e-3, 1 - 1e-3)`; sampling then evaluates the
    network at 0 too, a little outside of what it was trained on.

    Args:
        sigma: the standard deviation of the noise at t = 1/2 is sigma / 2; not negative. 0 is the straight path.
    """

    def __init__(self, sigma: float):
        if not isinstance(sigma, int | float):
            raise TypeError(
                f"`sigma` must be a number, as a bridge wraps no path; got {type(sigma).__name__}. It is the innermost "
                "path: MaskedProbPath(CoupledProbPath(BridgeProbPath(0.1), coupling))."
            )
        if not 0 <= sigma < float("inf"):
            raise ValueError(f"`sigma` must be finite and not negative; got {sigma}.")
        self.sigma = sigma

    def sample(
        self,
        x_0: Float[Tensor, " batch *dim"],
        x_1: Float[Tensor, " batch *dim"],
        t: Float[Tensor, "..."],
        *,
        mask: Bool[Tensor, "..."] | None = None,
        label: Shaped[Tensor, " batch"] | None = None,
        condition: Shaped[Tensor, " batch ..."] | None = None,
        generator: torch.Generator | None = None,
    ) -> PathSample:
        """A point of the bridge at `t`, and its velocity.

        Args:
            x_0: source, `(batch, ...)`.
            x_1: target, of the same shape and dtype.
            t: times, 0-d, `(1,)`, `(batch,)` or `(batch, 1, ..., 1)`, inside (0, 1) unless sigma is 0.
            mask: not used here; `MaskedProbPath` around this path holds known entries.
            label: not used.
            condition: not used.
            generator: source of the noise, drawn on its device and moved; the global one of the ends' if None.

        Returns:
            `x_t` and `dx_t` in the dtype of the ends; `x_0` and `x_1` are the arguments themselves, and so is a `t` of
            shape `(batch,)`, to which others are expanded.

        Raises:
            AssertionError: if the batch sizes differ (upstream's check).
            ValueError: for a time outside (0, 1), where the velocity is infinite; or ends of two shapes. Looking at the
                times would stall an accelerator: there `dx_t` is infinite or NaN instead.
            TypeError: if the ends or `t` are not floating point, or the ends differ in dtype.
        """
        t = self._times(x_0, x_1, t)
        check_ends(x_0, x_1, t)
        dtype = x_1.dtype
        compute = torch.promote_types(dtype, torch.float32)
        x, y = x_0.to(compute), x_1.to(compute)
        # In float64, as 1 - t has lost its digits to rounding near 1 in half precision.
        time = double(t).view(-1, *(1 for _ in x_1.shape[1:]))
        x_t, dx_t = torch.lerp(x, y, time.to(compute)), y - x
        if self.sigma > 0:
            if t.device.type == "cpu" and not torch.compiler.is_compiling():
                _refuse_ends(t)
            spread = (time * (1 - time)).sqrt()
            z = randn_like(x, generator)
            x_t.addcmul_((self.sigma * spread).to(compute), z)
            dx_t.addcmul_((self.sigma * (0.5 - time) / spread).to(compute), z)
        return PathSample(x_t=x_t.to(dtype), dx_t=dx_t.to(dtype), x_1=x_1, x_0=x_0, t=t)


def _refuse_ends(t: Tensor) -> None:
    outside = ~((t > 0) & (t < 1))
    if bool(outside.any()):
        raise ValueError(
            f"`t` must lie inside (0, 1), where the velocity of the bridge is finite; got {t[outside][0].item():g}. "
            "Draw times as torch.rand(batch).clamp(1e-3, 1 - 1e-3)."
        )
