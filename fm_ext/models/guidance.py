"""Guidance, away from what a model says without a condition, without the known pixels, or while it knew less."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fm_ext.models.wrapper import UNetWrapper
from fm_ext.path.scheduler.ends import check_schedule
from fm_ext.utils.inputs import align_time, check_extras, entry_mask, map_samples, taken_extras
from fm_ext.utils.model_wrapper import ModelWrapper, hold_known


class GuidedVelocityModel(ModelWrapper):
    r"""Extrapolates from the velocity without a condition through the velocity with it.

    $$v = v_\varnothing + s\,(v_c - v_\varnothing) = (1 + w)\,v_c - w\,v_\varnothing, \qquad s = 1 + w$$

    (Ho and Salimans, arXiv 2207.12598, equation 6; for flows Zheng et al., arXiv 2311.13443). Two conventions are in
    use, so the number is given by name: `guidance_scale` is $s$, where 1 is the plain conditional model and 0 the
    unconditional one, as in diffusers and Stable Diffusion; `weight` is $w$, where 0 is the plain one, as in the paper
    and in upstream's examples (`cfg_scale`). On affine paths with an independent Gaussian source velocities are affine
    in scores, so this is the guidance of diffusion models, with the same $s$; with another source or coupling it is a
    heuristic. Both velocities come from one evaluation of a batch of twice the size; at scale 1, outside the interval,
    and at scale 0 with neither interval nor rescale, one of the batch itself is enough (a compiled graph does not
    branch on times: outside the interval it computes both). In training mode a `UNetWrapper` inside hides nothing by
    its `label_dropout` and `mask_dropout`: what is hidden is decided here.

    Guidance on the known pixels (`hide_known`) needs a network trained with `UNetWrapper(..., mask_dropout=...)`:
    $v_\varnothing$ is then the velocity of the missing pixels among themselves, $E[\dot X^m_t \mid X^m_t]$, at the
    very same state, and the guided flow follows the scores of $p(x^m \mid y)^s\, p(x^m)^{1-s}$.

    Autoguidance (`against`, Karras et al., arXiv 2406.02507) puts a worse model of the same kind in the
    place of $v_\varnothing$, under the same conditions: a smaller one, or an earlier checkpoint of the same run. It
    works without classes too, and moves away from the errors that both share rather than from other classes.

    CFG-Zero* (Fan et al., arXiv 2503.18886) is `optimized_scale`, which replaces $v_\varnothing$ by its multiple that
    is nearest to $v_c$, $\langle v_c, v_\varnothing \rangle / \|v_\varnothing\|^2$ for each sample over its
    (missing) entries, and `zero_init`. Both help networks that have learned little, and distort an exact velocity.

    Args:
        model: the velocity model, or a network whose prediction a `PredictionVelocityModel` outside turns into one.
            Other wrappers may stand inside or outside; `interval` is in the time, and `rescale` in the prediction, of
            the place where this one stands.
        guidance_scale: $s$, one number for all samples; give this or `weight`.
        weight: $w = s - 1$.
        null: what stands for "no condition" in each extra: a number, or a tensor that broadcasts to the extra. If
            None, `{"label": null_label}` where something inside has a `null_label` and `hide_known` is False.
        hide_known: whether to hide the known pixels from $v_\varnothing$.
        interval: guide at times from the first up to, not at, the last (at 1 too if that is the last); None for all.
            Guidance at high noise costs diversity and at low noise does nothing (Kynkäänniemi et al., arXiv
            2404.07724; their noise level is $\sigma_t / \alpha_t$, on the straight path $(1 - t) / t$). It makes the
            velocity jump. With both ends in the `time_grid` every step lies on one side, exactly for methods that ask
            for no velocity at the end of their step: "euler", "midpoint", "heun3". "heun2" and "rk4" do, and step
            over the jump with part of their weight.
        rescale: $\phi$ in [0, 1]: this share of the velocity is brought back to the standard deviation of $v_c$, per
            sample over its (missing) entries (Lin et al., arXiv 2305.08891, equations 15 and 16, which work on the
            network's output, here the velocity); 0.7 there, against over-exposed images.
        against: the worse model, which answers in the same quantity and on the same schedule as `model`, and takes its
            extras; it is asked in an evaluation of its own. `null` is then nothing unless it is given.
        optimized_scale: whether to scale $v_\varnothing$ as CFG-Zero* does, in velocities: not inside a
            `PredictionVelocityModel`. It changes nothing at scale 1.
        zero_init: the velocity is 0 at times before this one, in [0, 1), so that the noise waits: for the first step of
            N, 1 / N, on a grid that has it. 0 for never.

    Raises:
        TypeError: if not exactly one of `guidance_scale` and `weight` is given, or it is no number; for `hide_known`
            around a model that does not take it.
        ValueError: for an interval out of order, `rescale` outside [0, 1], `zero_init` outside [0, 1), nothing to guide
            on, or a model `against` that answers in something else or on another schedule.
    """

    def __init__(
        self,
        model: nn.Module,
        guidance_scale: float | None = None,
        *,
        weight: float | None = None,
        null: Mapping[str, Any] | None = None,
        hide_known: bool = False,
        interval: tuple[float, float] | None = None,
        rescale: float = 0.0,
        against: nn.Module | None = None,
        optimized_scale: bool = False,
        zero_init: float = 0.0,
    ):
        super().__init__(model)
        if (guidance_scale is None) == (weight is None):
            raise TypeError(
                "give either `guidance_scale` (1 is the plain conditional model) or `weight` (0 is; upstream's "
                f"cfg_scale); got {guidance_scale} and {weight}."
            )
        number = guidance_scale if weight is None else weight
        if not isinstance(number, (int, float)):
            raise TypeError(
                f"`{'weight' if guidance_scale is None else 'guidance_scale'}` must be a number, the same for all "
                f"samples; got {type(number).__name__}. Sample once for each of several."
            )
        if interval is not None and not interval[0] < interval[1]:
            raise ValueError(f"`interval` must be two times, first < last; got {interval}.")
        if not 0 <= rescale <= 1:
            raise ValueError(f"`rescale` must lie in [0, 1]; got {rescale}.")
        if not 0 <= zero_init < 1:
            raise ValueError(f"`zero_init` must be a time in [0, 1); got {zero_init}.")
        if against is not None:
            _check_alike(model, against)
        if null is None:
            label = self.null_label
            hidden = hide_known or against is not None
            null = {} if hidden or label is None else {"label": label}
        if not null and not hide_known and against is None:
            raise ValueError(
                f"`null` must say what stands for no condition, because nothing in {type(model).__name__} has a "
                "`null_label`: null={'label': 10} for a class 10 that means none; or set `hide_known`, or name a "
                "worse model `against`."
            )
        taken = taken_extras(model)
        if hide_known and taken is not None and "hide_known" not in taken:
            raise TypeError(
                f"`hide_known` needs a UNetWrapper(network, concat=('mask',)) inside, which hides known pixels; "
                f"{type(model).__name__} takes {', '.join(sorted(taken)) or 'no extras'}."
            )
        self.guidance_scale = number + (guidance_scale is None)
        self.null = dict(null)
        self.hide_known = hide_known
        self.interval = interval
        self.rescale = rescale
        self.against = None if against is None else ModelWrapper(against)
        self.optimized_scale = optimized_scale
        self.zero_init = zero_init
        self._wrappers = tuple(m for m in self.modules() if isinstance(m, UNetWrapper))

    @property
    def answers(self) -> str | None:
        """A velocity, where what is done to the answer is meant for one."""
        return "velocity" if self.optimized_scale or self.zero_init > 0 else super().answers

    def extra_repr(self) -> str:
        """What is guided on, how far, and when."""
        on = [*self.null, *(["known pixels"] if self.hide_known else [])]
        return (
            f"guidance_scale={self.guidance_scale}, on={on}, interval={self.interval}, rescale={self.rescale}, "
            f"optimized_scale={self.optimized_scale}, zero_init={self.zero_init}"
        )

    def forward(
        self, x: Float[Tensor, " batch *dim"], t: Float[Tensor, "..."], **extras: Any
    ) -> Float[Tensor, " batch *dim"]:
        """Returns the guided velocity.

        Args:
            x: the state.
            t: times, 0-d, `(batch,)` or `(batch, 1, ..., 1)`.
            **extras: handed to the model; tensors with an axis hold one entry a sample, in a dict among the extras too,
                and what is `shared` says so. What `null` names must be among them.

        Raises:
            TypeError: if an extra that `null` names is missing.
            ValueError: for an extra of another length than the batch, or an answer of another shape than `x`.
        """
        extras = check_extras(extras, x)
        for name in self.null:
            condition = _find(extras, name)
            if condition is None:
                raise TypeError(
                    f"`{name}` is guided on and was not given: solver.sample(..., {name}=...)."
                )
            if not isinstance(condition, Tensor) or condition.ndim == 0:
                raise ValueError(
                    f"`{name}` is guided on and must be a tensor of one entry a sample, {len(x)}; got {condition!r}."
                )
        if self.zero_init == 0:
            return self._guided(x, t, extras)
        waits = align_time(t, x) < self.zero_init
        if not torch.compiler.is_compiling() and waits.all():
            return torch.zeros_like(x)
        return torch.where(waits, 0, self._guided(x, t, extras))

    def _guided(self, x: Tensor, t: Tensor, extras: dict[str, Any]) -> Tensor:
        """The guided velocity at any time."""
        scale, inside = self.guidance_scale, None
        if self.interval is not None:
            first, last = self.interval
            time = align_time(t, x)
            inside = (first <= time) & ((time < last) | (last >= 1))
            if not torch.compiler.is_compiling() and not inside.any():
                return self._ask(x, t, extras)
        if scale == 1:
            return self._ask(x, t, extras)
        if scale == 0 and inside is None and self.rescale == 0 and not self.optimized_scale:
            return self._ask_null(x, t, self._without(extras, x))
        conditional, null = self._both(x, t, extras)
        mask = entry_mask(extras, x)
        if self.optimized_scale:
            null = _nearest_multiple(conditional, null, mask)
        velocity = torch.lerp(null, conditional, scale)
        if self.rescale > 0:
            wanted, got = _deviation(conditional, mask), _deviation(velocity, mask)
            ratio = torch.where(got == 0, 1.0, wanted / got)
            velocity = velocity * (1 - self.rescale + self.rescale * ratio)
        return velocity if inside is None else torch.where(inside, velocity, conditional)

    def _ask_null(self, x: Tensor, t: Tensor, extras: dict[str, Any]) -> Tensor:
        """The velocity to move away from, of the worse model where there is one."""
        if self.against is None:
            return self._ask(x, t, extras)
        velocity = self._ask(x, t, extras, self.against)
        return hold_known(velocity, entry_mask(extras, x)) if self.holds_known else velocity

    def _ask(
        self, x: Tensor, t: Tensor, extras: dict[str, Any], model: ModelWrapper | None = None
    ) -> Tensor:
        """The model's velocity, without the dropouts of the wrappers in it; their networks keep their mode."""
        ask = self.ask if model is None else model.ask
        training = [wrapper for wrapper in self._wrappers if wrapper.training]
        if not training:
            return ask(x, t, extras)
        try:
            for wrapper in training:
                wrapper.training = False
            return ask(x, t, extras)
        finally:
            for wrapper in training:
                wrapper.training = True

    def _without(self, extras: dict[str, Any], x: Tensor) -> dict[str, Any]:
        """The extras with nothing in the conditions' place."""
        for name, value in self.null.items():
            extras = _replace(extras, name, value)
        if self.hide_known:
            extras = {**extras, "hide_known": torch.ones(len(x), dtype=torch.bool, device=x.device)}
        return extras

    def _both(self, x: Tensor, t: Tensor, extras: dict[str, Any]) -> tuple[Tensor, Tensor]:
        without = self._without(extras, x)
        if self.hide_known:
            extras = {**extras, "hide_known": torch.zeros_like(without["hide_known"])}
        if self.against is not None:
            return self._ask(x, t, extras), self._ask_null(x, t, without)
        halves: list[Tensor] = []
        map_samples(without, lambda half: halves.append(half) or half)
        rest = iter(halves)  # the same walk, so the same order
        twice = map_samples(extras, lambda extra: torch.cat([extra, next(rest)]))
        time = torch.cat([t, t]) if t.ndim > 0 and len(t) == len(x) and t.numel() > 1 else t
        conditional, null = self._ask(torch.cat([x, x]), time, twice).chunk(2)
        return conditional, null


def _find(extras: Mapping[str, Any], name: str) -> Any:
    """The extra called `name`, also in a dict among the extras (upstream's `extra={"label": y}`)."""
    if name in extras:
        return extras[name]
    inner = (
        extra[name] for extra in extras.values() if isinstance(extra, Mapping) and name in extra
    )
    return next(inner, None)


def _replace(extras: Mapping[str, Any], name: str, null: Any) -> dict[str, Any]:
    """The extras with `null` for each entry of the one called `name`."""
    changed: dict[str, Any] = {}
    for key, extra in extras.items():
        if key == name:
            null = torch.as_tensor(null, dtype=extra.dtype, device=extra.device)
            changed[key] = null.expand_as(extra)
        elif isinstance(extra, Mapping) and name in extra and name not in extras:
            changed[key] = _replace(extra, name, null)
        else:
            changed[key] = extra
    return changed


def _check_alike(model: nn.Module, against: nn.Module) -> None:
    """Raises unless both answer in the same quantity, as far as they say, and on the same schedule."""
    kinds = [getattr(each, "answers", None) for each in (model, against)]
    if kinds[0] != kinds[1]:
        raise ValueError(
            f"`against` must answer as `model` does; {type(model).__name__} answers with {kinds[0] or 'a prediction'}, "
            f"{type(against).__name__} with {kinds[1] or 'a prediction'}. Wrap both alike."
        )
    schedule = getattr(model, "schedule", None)
    if schedule is not None:
        check_schedule("against", schedule, against)


def _nearest_multiple(v: Tensor, null: Tensor, mask: Tensor | None) -> Tensor:
    """The multiple of `null` that is nearest to `v`, for each sample over its missing entries; 0 of a 0."""
    axes = tuple(range(1, v.ndim))  # of a velocity that may be infinite where the other is 0
    seen = null if mask is None else torch.where(mask, null, 0)
    product, square = (
        torch.where(seen == 0, 0, part * seen).sum(axes, keepdim=True) for part in (v, seen)
    )
    return null * torch.where(square == 0, 0, product / square)


def _deviation(v: Tensor, mask: Tensor | None) -> Tensor:
    """The standard deviation of each sample, over its missing entries, as `(batch, 1, ..., 1)`."""
    axes = tuple(range(1, v.ndim))
    if mask is None:
        return v.std(axes, keepdim=True, correction=0)
    missing = mask.expand_as(v)
    count = missing.sum(axes, keepdim=True).clamp(min=1)
    mean = torch.where(missing, v, 0).sum(axes, keepdim=True) / count
    square = torch.where(missing, v - mean, 0).square().sum(axes, keepdim=True) / count
    return square.sqrt()
