"""The time shift of Stable Diffusion 3 and Flux, around any scheduler."""

from typing import Any

from flow_matching.path.scheduler import ConvexScheduler, Scheduler, SchedulerOutput
from jaxtyping import Float
from torch import Tensor

from fm_ext.path.scheduler.ends import time_at
from fm_ext.path.scheduler.precision import cast, double, hold, outside, single
from fm_ext.path.scheduler.registry import register_scheduler


@register_scheduler("shifted")
class ShiftedScheduler(Scheduler):
    r"""`scheduler`, with the time bent towards the source: $t' = \frac{t}{t + s\,(1 - t)}$.

    On the linear path this divides the signal-to-noise ratio $\alpha / \sigma$ by the shift $s$ at every time, which
    large images need because their pixels repeat one another (Esser et al., arXiv 2403.03206, equation 23; there in
    the noise level $1 - t$, with $s = \sqrt{m / n}$; the exponential form is $s = e^\mu$). It is a change of time and
    of nothing else: in a path it changes what is trained at a uniform `t`; around a trained model,
    `ScheduleTransformedModel(model, scheduler, ShiftedScheduler(scheduler, shift))` changes where the solver's steps
    fall.

    A shifted `ConvexScheduler` is a `ConvexScheduler`. Outside [0, 1] the nearer end is held and the derivatives are
    0.

    Args:
        scheduler: the schedule in $t'$.
        shift: $s > 0$; 3 for Stable Diffusion 3 at 1024 pixels, 1 for no change, below 1 towards the data.
    """

    def __new__(cls, scheduler: Scheduler, shift: float) -> Any:
        kind: Any = _ShiftedConvexScheduler if isinstance(scheduler, ConvexScheduler) else cls
        return super().__new__(kind)

    def __init__(self, scheduler: Scheduler, shift: float):
        if not isinstance(scheduler, Scheduler):
            raise TypeError(
                f"`scheduler` must be a flow_matching.path.scheduler.Scheduler; got {type(scheduler).__name__}."
            )
        if not 0 < shift < float("inf"):
            raise ValueError(f"`shift` must be positive and finite; got {shift}.")
        self.scheduler = scheduler
        self.shift = shift

    def __getnewargs__(self) -> tuple[Scheduler, float]:
        return self.scheduler, self.shift

    def __repr__(self) -> str:
        return f"ShiftedScheduler({self.scheduler!r}, shift={self.shift})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ShiftedScheduler) and (self.scheduler, self.shift) == (
            other.scheduler,
            other.shift,
        )

    def __hash__(self) -> int:
        return hash((self.scheduler, self.shift))

    def __call__(self, t: Float[Tensor, "*shape"]) -> SchedulerOutput:
        """Values and derivatives at times of any shape."""
        time = double(single(t))
        held = hold(time)
        scale = held + self.shift * (1 - held)
        speed = self.shift / scale**2
        inner = self.scheduler(held / scale)
        output = SchedulerOutput(
            alpha_t=inner.alpha_t,
            sigma_t=inner.sigma_t,
            d_alpha_t=(inner.d_alpha_t * speed).masked_fill(outside(time), 0.0),
            d_sigma_t=(inner.d_sigma_t * speed).masked_fill(outside(time), 0.0),
        )
        return cast(output, t.dtype)

    def snr_inverse(self, snr: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        r"""The time at which $\alpha_t / \sigma_t$ is `snr` in [0, inf]."""
        ratio = double(single(snr))
        inner = time_at(self.scheduler, alpha=1 / (1 + 1 / ratio), sigma=1 / (1 + ratio))
        return self._unshift(inner).to(snr.dtype)

    def _unshift(self, t: Tensor) -> Tensor:
        return self.shift * t / (self.shift * t + (1 - t))


class _ShiftedConvexScheduler(ShiftedScheduler, ConvexScheduler):
    def kappa_inverse(self, kappa: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The time at which `alpha_t` is `kappa`."""
        ratio = double(single(kappa))
        return self._unshift(time_at(self.scheduler, alpha=ratio, sigma=1 - ratio)).to(kappa.dtype)
