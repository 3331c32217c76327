"""The time shift of Stable Diffusion 3 and Flux: `ShiftedScheduler`, and `ShiftedConvexScheduler` for convex paths."""

from typing import Any, final

import torch
from flow_matching.path.scheduler import ConvexScheduler, Scheduler, SchedulerOutput
from jaxtyping import Float
from torch import Tensor

from fm_ext.path.scheduler.ends import time_at
from fm_ext.path.scheduler.precision import cast, double, hold, outside, single
from fm_ext.path.scheduler.registry import register_scheduler


class _Shifted(Scheduler):
    """What both kinds share."""

    _kind: type[Scheduler] = Scheduler

    def __init__(self, scheduler: Scheduler, shift: float):
        if not isinstance(scheduler, self._kind):
            hint = " ShiftedScheduler takes any." if isinstance(scheduler, Scheduler) else ""
            raise TypeError(
                f"`scheduler` must be a flow_matching.path.scheduler.{self._kind.__name__}; "
                f"got {type(scheduler).__name__}.{hint}"
            )
        if not 0 < shift < float("inf"):
            raise ValueError(f"`shift` must be positive and finite; got {shift}.")
        self.scheduler = scheduler
        self.shift = shift

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.scheduler!r}, shift={self.shift})"

    def __eq__(self, other: object) -> bool:
        """Whether class, shift and inner scheduler agree; upstream's agree if they hold the same values."""
        return (
            isinstance(other, _Shifted)
            and type(self) is type(other)
            and self.shift == other.shift
            and _equal(self.scheduler, other.scheduler)
        )

    def __hash__(self) -> int:
        return hash((type(self), type(self.scheduler), self.shift))

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


@final
@register_scheduler("shifted")
class ShiftedScheduler(_Shifted):
    r"""`scheduler`, with the time bent towards the source: $t' = \frac{t}{t + s\,(1 - t)}$.

    On the linear path this divides the signal-to-noise ratio $\alpha / \sigma$ by the shift $s$ at every time, which
    large images need because their pixels repeat one another (Esser et al., arXiv 2403.03206, equation 23; there in
    the noise level $1 - t$, with $s = \sqrt{m / n}$; the exponential form is $s = e^\mu$). It is a change of time and
    of nothing else: in a path it changes what is trained at a uniform `t`; around a trained model,
    `ScheduleTransformedModel(model, scheduler, ShiftedScheduler(scheduler, shift))` changes where the solver's steps
    fall.

    Outside [0, 1] the nearer end is held and the derivatives are 0.

    Args:
        scheduler: the schedule in $t'$.
        shift: $s > 0$; 3 for Stable Diffusion 3 at 1024 pixels, 1 for no change, below 1 towards the data.
    """


@final
@register_scheduler("shifted_convex")
class ShiftedConvexScheduler(_Shifted, ConvexScheduler):
    """`ShiftedScheduler` of a `ConvexScheduler`, which is one itself: for geodesic and discrete mixture paths.

    Args:
        scheduler: the schedule in shifted time, a `ConvexScheduler`.
        shift: positive, see `ShiftedScheduler`.
    """

    _kind = ConvexScheduler

    def kappa_inverse(self, kappa: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The time at which `alpha_t` is `kappa`."""
        ratio = double(single(kappa))
        return self._unshift(time_at(self.scheduler, alpha=ratio, sigma=1 - ratio)).to(kappa.dtype)


def _equal(a: Any, b: Any) -> bool:
    """`a == b`; objects without an equality of their own, as upstream's schedulers, by type and attributes."""
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if type(a).__eq__ is not object.__eq__ or not hasattr(a, "__dict__"):
        return bool(a == b)
    first, second = vars(a), vars(b)
    return first.keys() == second.keys() and all(_equal(first[k], second[k]) for k in first)
