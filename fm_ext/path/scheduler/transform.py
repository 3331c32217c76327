"""A trained velocity model, sampled on another schedule than it was trained on."""

from collections.abc import Callable
from typing import Any

import torch
from flow_matching.path.scheduler import Scheduler, SchedulerOutput
from jaxtyping import Float
from torch import Tensor, nn

from fm_ext.path.scheduler.ends import check_schedule, end_slope, time_at
from fm_ext.path.scheduler.precision import double, hold, single
from fm_ext.utils.inputs import align_time, entry_mask
from fm_ext.utils.model_wrapper import ModelWrapper, hold_known

_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


class ScheduleTransformedModel(ModelWrapper):
    r"""The velocity on `new_scheduler` of a model that was trained on `original_scheduler`.

    Both paths mix the same $X_0$ and $X_1$, so $\bar X_r = s_r X_{t_r}$ where the ratios agree,
    $\bar\alpha_r / \bar\sigma_r = \alpha_{t_r} / \sigma_{t_r}$ (Lipman et al., arXiv 2412.06264, section 4.8.2; Pokle
    et al., arXiv 2310.04432). With the Wronskian $W = \sigma\dot\alpha - \alpha\dot\sigma$ of either
    schedule

    $$\bar u_r(x) = A\,x + B\,u_{t_r}(x / s_r), \qquad B = \frac{\bar W_r}{s_r W_{t_r}}, \qquad
    A = \frac{\dot{\bar\alpha}_r - B \dot\alpha_{t_r}}{\bar\alpha_r}
    = \frac{\dot{\bar\sigma}_r - B \dot\sigma_{t_r}}{\bar\sigma_r},$$

    where $s_r$ and $A$ are read from $\alpha$ on the data's side and from $\sigma$ on the source's, so that neither
    divides by something small. Upstream's name, arguments and, inside the interval, values; both ends are right too:

    * Where both Wronskians are finite and not 0 the formula holds up to the ends as it stands.
    * `original_scheduler` has infinite $\dot\sigma_1$ (VP, LinearVP, iDDPM): at $r = 1$, $B$ is its limit, 0 or the
      ratio of the limits of $\sigma\dot\sigma$. The model is asked for no later time than $1 - \epsilon^{2/3}$
      ($\epsilon$ the rounding of `t`), because most are not finite at 1.
    * Only `new_scheduler` has: $A$ and $B$ are infinite at $r = 1$ and cancel for an exact model only. The velocity at
      the last $r$ with $\bar\sigma_r \ge \epsilon^{1/3}$ is held from there on ($\epsilon$ the rounding of `x`).
    * `original_scheduler` stands still at an end (the polynomials at 0): the model's velocity says nothing there. Its
      prediction of $X_1$ (at the data, of the score) is taken where the ratio of the shares is $\epsilon^{2/3}$.
    * `original_scheduler` never reaches a ratio of `new_scheduler` (VP near the source; tables and EDM near both
      ends): the model's prediction of $X_1$ at its own first time is held, and its score at its own last.

    Known entries do not move on either path, so where a `mask` of `x`'s entries is among the extras (bool, True =
    missing) the model gets them as they are, and their velocity is 0. `MaskedVelocityModel` may stand inside or
    outside.

    Outside [0, 1], where adaptive solvers look, the velocity of the nearer end is held. Works in any float dtype, with
    the schedules in float64, and under `ODESolver.compute_likelihood`.

    Args:
        velocity_model: called as `velocity_model(x=x, t=t, **extras)`.
        original_scheduler: the schedule it was trained on.
        new_scheduler: the schedule to sample on.

    Raises:
        TypeError: for a schedule that is none.
        ValueError: for a model that lives on another schedule than `original_scheduler`, or a `new_scheduler` whose
            derivatives at t = 0 are not finite.
    """

    holds_itself = True

    def __init__(
        self,
        velocity_model: nn.Module | Callable[..., Tensor],
        original_scheduler: Scheduler,
        new_scheduler: Scheduler,
    ):
        super().__init__(model=velocity_model)  # pyright: ignore[reportArgumentType]
        for name, scheduler in (("original", original_scheduler), ("new", new_scheduler)):
            if not isinstance(scheduler, Scheduler):
                raise TypeError(
                    f"`{name}_scheduler` must be a flow_matching.path.scheduler.Scheduler, for example "
                    f"CondOTScheduler(); got {scheduler!r}."
                )
        check_schedule("original_scheduler", original_scheduler, velocity_model)
        self.original_scheduler = original_scheduler
        self.new_scheduler = new_scheduler
        zero, one = torch.tensor([0.0, 1.0], dtype=torch.float64).unbind()
        old_end = original_scheduler(one)
        old_start_w, old_end_w = _wronskian(original_scheduler(zero)), _wronskian(old_end)
        if not _wronskian(new_scheduler(zero)).isfinite():
            raise ValueError(
                "`new_scheduler` must have finite derivatives at t = 0, where every solver starts; "
                f"{new_scheduler!r} has not."
            )
        self._still_at_source = bool((old_start_w == 0) | ~old_start_w.isfinite())
        self._still_at_data = bool(old_end_w == 0)
        self._singular = not bool(old_end_w.isfinite())
        noisy = bool(old_end.sigma_t > 1e-12)
        self._stops_short = noisy or self._still_at_data
        self._end_rate = 0.0  # of B
        self._latest = dict.fromkeys(_DTYPES, 1.0)
        if not _wronskian(new_scheduler(one)).isfinite():
            if self._singular:
                self._end_rate = float(end_slope(new_scheduler) / end_slope(original_scheduler))
            elif noisy:
                rate = old_end.sigma_t * old_end_w / old_end.alpha_t**2
                self._end_rate = float(end_slope(new_scheduler) / rate)
            else:
                for dtype in _DTYPES:
                    sigma = one * torch.finfo(dtype).eps ** (1 / 3)
                    self._latest[dtype] = float(time_at(new_scheduler, one, sigma))

    @property
    def schedule(self) -> Scheduler:
        """The schedule to sample on."""
        return self.new_scheduler

    @property
    def answers(self) -> str:
        """A velocity."""
        return "velocity"

    def forward(
        self, x: Float[Tensor, " batch *dim"], t: Float[Tensor, "..."], **extras: Any
    ) -> Float[Tensor, " batch *dim"]:
        r"""The velocity $\bar u_t(x)$.

        Args:
            x: state, `(batch, ...)`.
            t: time on the new schedule, 0-d, `(batch,)`, `(batch, 1, ..., 1)` or of `x`'s shape; the model gets its
                own time in the same shape and dtype.
            **extras: handed to the model; a `mask` of `x`'s entries says which are known.

        Raises:
            ValueError: if `t` has another shape, or the model's answer has not the shape of `x`.
        """
        shape = align_time(t, x).shape
        r = hold(double(single(t))).clamp(max=self._latest.get(x.dtype, 1.0))
        new = self.new_scheduler(r)
        alpha, sigma = new.alpha_t, new.sigma_t
        floor = torch.finfo(x.dtype).eps ** (2 / 3)
        if self._still_at_source:
            alpha = torch.maximum(alpha, floor * sigma)
        if self._still_at_data:
            sigma = torch.maximum(sigma, floor * alpha)
        time = time_at(self.original_scheduler, alpha, sigma)
        old = self.original_scheduler(time)

        near_data = new.alpha_t > new.sigma_t
        value = torch.where(near_data, new.alpha_t, new.sigma_t)
        slope = torch.where(near_data, new.d_alpha_t, new.d_sigma_t)
        s = value / torch.where(near_data, old.alpha_t, old.sigma_t)
        new_w, old_w = _wronskian(new), _wronskian(old)
        b = new_w / (s * old_w)
        if self._stops_short:  # the score stays where the noise falls below the last of the model
            b = torch.where(near_data, b * (new.sigma_t / (s * old.sigma_t)).clamp(max=1), b)
        b = torch.where(new_w.isfinite() & old_w.isfinite(), b, self._end_rate)
        a = (slope - b * torch.where(near_data, old.d_alpha_t, old.d_sigma_t)) / value

        if self._singular:
            time = time.clamp(max=1 - torch.finfo(t.dtype).eps ** (2 / 3))
        compute = torch.promote_types(x.dtype, torch.float32)
        a, b, s = (c.to(compute).view(shape) for c in (a, b, s))
        mask = entry_mask(extras, x)
        state = x / s if mask is None else torch.where(mask, x / s, x)
        u = self.ask(state.to(x.dtype), time.to(t.dtype), extras)
        # A velocity that does not count must not turn the answer into NaN.
        return hold_known((a * x + torch.where(b == 0, 0.0, b * u)).to(x.dtype), mask)


def _wronskian(out: SchedulerOutput) -> Tensor:
    return out.sigma_t * out.d_alpha_t - out.alpha_t * out.d_sigma_t
