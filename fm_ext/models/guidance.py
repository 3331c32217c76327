"""Classifier-free guidance, on classes, on any other condition, and on the known pixels."""

from collections.abc import Mapping
from typing import Any

import torch
from flow_matching.utils import ModelWrapper
from jaxtyping import Float
from torch import Tensor, nn

from fm_ext.models.extras import belongs_to_samples, map_samples, mask_of
from fm_ext.models.wrapper import UNetWrapper
from fm_ext.path.scheduler.broadcast import time_shape


class GuidedVelocityModel(ModelWrapper):
    r"""Extrapolates from the velocity without a condition through the velocity with it.

    $$v = v_\varnothing + s\,(v_c - v_\varnothing) = (1 + w)\,v_c - w\,v_\varnothing, \qquad s = 1 + w$$

    (Ho and Salimans, arXiv 2207.12598, equation 6; for flows Zheng et al., arXiv 2311.13443). Two conventions are in
    use, so the number is given by name: `scale` is $s$, where 1 is the plain conditional model and 0 the unconditional
    one, as in diffusers and Stable Diffusion; `weight` is $w$, where 0 is the plain one, as in the paper and in
    upstream's examples (`cfg_scale`). On affine paths with an independent Gaussian source velocities are affine in
    scores, so this is the guidance of diffusion models, with the same $s$; with another source or coupling it
    is a heuristic. Both velocities come from one evaluation of a batch of twice the size; at scale 1, outside the
    interval, and at scale 0 with neither interval nor rescale, one of the batch itself is enough (a compiled graph does
    not branch on times: outside the interval it computes both). In training mode a `UNetWrapper` inside hides
    nothing by its `label_dropout` and `mask_dropout`: what is hidden is decided here.

    Guidance on the known pixels (`hide_known`) needs a network trained with `UNetWrapper(..., mask_dropout=...)`:
    $v_\varnothing$ is then the velocity of the missing pixels among themselves, $E[\dot X^m_t \mid X^m_t]$, at the
    very same state, and the guided flow follows the scores of $p(x^m \mid y)^s\, p(x^m)^{1-s}$.

    Args:
        model: the velocity model. Other wrappers go around this one: `MaskedVelocityModel(GuidedVelocityModel(model,
            ...))`.
        scale: $s$; give this or `weight`.
        weight: $w = s - 1$.
        null: what stands for "no condition" in each extra: a number, or a tensor that broadcasts to the extra. If
            None, `{"label": model.null_label}` where `model` has such an attribute and `hide_known` is False.
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

    Raises:
        TypeError: if not exactly one of `scale` and `weight` is given.
        ValueError: for an interval out of order, `rescale` outside [0, 1], or nothing to guide on.
    """

    def __init__(
        self,
        model: nn.Module,
        scale: float | None = None,
        *,
        weight: float | None = None,
        null: Mapping[str, Any] | None = None,
        hide_known: bool = False,
        interval: tuple[float, float] | None = None,
        rescale: float = 0.0,
    ):
        super().__init__(model)
        if (scale is None) == (weight is None):
            raise TypeError(
                "give either `scale` (1 is the plain conditional model) or `weight` (0 is; upstream's cfg_scale); got "
                f"{scale} and {weight}."
            )
        if interval is not None and not interval[0] < interval[1]:
            raise ValueError(f"`interval` must be two times, first < last; got {interval}.")
        if not 0 <= rescale <= 1:
            raise ValueError(f"`rescale` must lie in [0, 1]; got {rescale}.")
        if null is None:
            label = getattr(model, "null_label", None)
            null = {} if hide_known or label is None else {"label": label}
        if not null and not hide_known:
            raise ValueError(
                "`null` must say what stands for no condition, {'label': num_classes} for a UNet; or set `hide_known`."
            )
        self.scale = scale if scale is not None else 1 + (weight or 0.0)
        self.null = dict(null)
        self.hide_known = hide_known
        self.interval = interval
        self.rescale = rescale
        self._wrappers = tuple(m for m in self.modules() if isinstance(m, UNetWrapper))

    def extra_repr(self) -> str:
        """What is guided on, how far, and when."""
        on = [*self.null, *(["known pixels"] if self.hide_known else [])]
        return f"scale={self.scale}, on={on}, interval={self.interval}, rescale={self.rescale}"

    def forward(
        self, x: Float[Tensor, " batch *dim"], t: Float[Tensor, "..."], **extras: Any
    ) -> Float[Tensor, " batch *dim"]:
        """Returns the guided velocity.

        Args:
            x: the state.
            t: times, 0-d, `(batch,)` or `(batch, 1, ..., 1)`.
            **extras: handed to the model; tensors as long as the batch, in a dict among the extras too, hold one
                entry a sample. What `null` names must be among them.

        Raises:
            TypeError: if an extra that `null` names is missing.
        """
        for name in self.null:
            extra = extras.get(name)
            if extra is None:
                raise TypeError(
                    f"`{name}` is guided on and was not given: solver.sample(..., {name}=...)."
                )
            if not belongs_to_samples(extra, len(x)):
                raise ValueError(
                    f"`{name}` is guided on and must be a tensor of one entry a sample, {len(x)}; got "
                    f"{tuple(extra.shape) if isinstance(extra, Tensor) else type(extra).__name__}."
                )
        inside = None
        if self.interval is not None:
            first, last = self.interval
            inside = (first <= t) & ((t < last) | (last >= 1))
            if not torch.compiler.is_compiling() and not inside.any():
                return self._ask(x, t, extras)
            inside = inside.view(time_shape(t, x))
        if self.scale == 1:
            return self._ask(x, t, extras)
        if self.scale == 0 and inside is None and self.rescale == 0:
            return self._ask(x, t, extras | self._nothing(extras, len(x), x.device))
        conditional, null = self._both(x, t, extras)
        velocity = torch.lerp(null, conditional, self.scale)
        if self.rescale > 0:
            mask = mask_of(extras, x)
            wanted, got = _deviation(conditional, mask), _deviation(velocity, mask)
            ratio = torch.where(got == 0, 1.0, wanted / got)
            velocity = velocity * (1 - self.rescale + self.rescale * ratio)
        return velocity if inside is None else torch.where(inside, velocity, conditional)

    def _ask(self, x: Tensor, t: Tensor, extras: dict[str, Any]) -> Tensor:
        """The model's velocity, without the dropouts of the wrappers in it; their networks keep their mode."""
        training = [wrapper for wrapper in self._wrappers if wrapper.training]
        if not training:
            return self.model(x=x, t=t, **extras)
        try:
            for wrapper in training:
                wrapper.training = False
            return self.model(x=x, t=t, **extras)
        finally:
            for wrapper in training:
                wrapper.training = True

    def _nothing(self, extras: dict[str, Any], batch: int, device: torch.device) -> dict[str, Any]:
        """What takes the condition's place among the extras."""
        nothing = {
            name: torch.as_tensor(value, dtype=extras[name].dtype, device=device).expand_as(
                extras[name]
            )
            for name, value in self.null.items()
        }
        if self.hide_known:
            nothing["hide_known"] = torch.ones(batch, dtype=torch.bool, device=device)
        return nothing

    def _both(self, x: Tensor, t: Tensor, extras: dict[str, Any]) -> tuple[Tensor, Tensor]:
        batch = len(x)
        nothing = self._nothing(extras, batch, x.device)
        if self.hide_known:
            extras = {**extras, "hide_known": torch.zeros_like(nothing["hide_known"])}
        twice = map_samples(extras, batch, lambda extra: torch.cat([extra, extra]))
        twice |= {name: torch.cat([extras[name], null]) for name, null in nothing.items()}
        t = torch.cat([t, t]) if belongs_to_samples(t, batch) else t
        conditional, null = self._ask(torch.cat([x, x]), t, twice).chunk(2)
        return conditional, null


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
