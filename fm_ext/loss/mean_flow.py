"""The loss of a network of two times: MeanFlow's, in its improved form."""

import functools
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from flow_matching.path import PathSample
from jaxtyping import Float
from torch import Tensor, nn

from fm_ext.loss.velocity import velocity_loss
from fm_ext.path.wrapper import with_fields
from fm_ext.utils.inputs import align_time, check_extras, check_mask, map_samples, sample_time
from fm_ext.utils.model_wrapper import hold_known


def mean_flow_loss(
    model: Callable[..., Tensor],
    sample: PathSample,
    r: Float[Tensor, "..."],
    *,
    tangent: Literal["marginal", "conditional"] = "marginal",
    guidance_scale: Float[Tensor, "..."] | float | None = None,
    null: Mapping[str, Any] | None = None,
    dropout: float = 0.1,
    power: float = 0.75,
    eps: float = 1e-3,
    weight: Float[Tensor, " batch"] | None = None,
    reduction: Literal["mean", "sum", "none"] = "mean",
    generator: torch.Generator | None = None,
    **extras: Any,
) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
    r"""Squared error of the velocity that an average velocity implies.

    The average $u(x, t, r)$ of a flow's velocity from $t$ to $r$ fulfils, for all $t$ and $r$ and in either direction
    of time (the MeanFlow identity, Geng et al., arXiv 2505.13447, whose time runs from data to noise),

    $$v_t(x) = u(x, t, r) - (r - t)\,\frac{d}{dt} u(x, t, r), \qquad
    \frac{d}{dt} u = v_t(x) \cdot \partial_x u + \partial_t u .$$

    The right side, with the derivative $\mathrm{sg}[\cdot]$ held constant, is what the network says about the
    velocity, and the path's $\dot X_t$ is what it is compared with: the loss of flow matching, to which it comes down
    where r = t,

    $$\ell_i = w_i \,\big\| u - (r - t)\,\mathrm{sg}\big[\tfrac{d}{dt} u\big] - \dot X_t \big\|^2, \qquad
    w_i = \mathrm{sg}\big[\|\cdot\|^2 + \varepsilon\big]^{-p},$$

    a mean over a sample's missing entries as in `velocity_loss`. The derivative is taken in forward mode,
    without a graph and in full precision. It needs the velocity, of which there are two estimates: the network's own,
    $u(x, t, t)$ ("marginal", improved MeanFlow, Geng et al., arXiv 2512.02012, without its auxiliary head for the
    velocity), and the path's $\dot X_t$ ("conditional", the original), which is right in the mean and
    noisy. Samples with r = t take no derivative; `TimePairs` draws times of which half are.

    With a `guidance_scale` $s$ the network takes it as an input and learns the average velocity of the guided flow
    $v_\varnothing + s\,(v_c - v_\varnothing)$: one evaluation is then enough for guided samples, at any scale. Its
    velocity is compared with

    $$\dot X_t + (1 - 1/s)\,\big(u_s(x, t, t \mid c) - u_1(x, t, t \mid \varnothing)\big),$$

    whose fixed point is that flow (read from the code of the authors of arXiv 2512.02012; to see it, replace both
    sides by $v_s$ and solve for it).

    Args:
        model: called as `model(x=x, t=t, r=r, **extras)`; a `MeanFlowModel`, or the network in it. It must not drop
            labels nor masks itself, because it is asked up to four times for one loss: `dropout` does it here.
        sample: what `path.sample` returned, on any path with `x_t`, `t` and `dx_t`; its `mask`, which
            `MaskedProbPath` adds, is obeyed.
        r: the second times, as `sample.t`; from `t` to 1 if the network is to go from noise to data.
        tangent: which velocity the derivative is taken along.
        guidance_scale: $s \ge 1$, one number or one a sample.
        null: what stands for no condition in each extra that is guided on, for example `{"label": 10}`. None for
            `{"label": model.null_label}`; needed with a `guidance_scale` only.
        dropout: the share of the samples that are shown without their condition and with $s = 1$, with a
            `guidance_scale` only; in [0, 1).
        power: $p$. 0 is the plain mean square, whose minimiser is the truth; the papers take 1 for ImageNet and 0.75
            for CIFAR-10. It bounds the gradient of a sample, and moves the minimiser where errors are skew
            (`docs/content/guides/meanflow.md` has the figures of a plane).
        eps: $\varepsilon$, in units of a mean square.
        weight: one factor a sample.
        reduction: "mean" or "sum" over the batch, or "none" for one loss a sample.
        generator: of the dropout.
        **extras: handed to the model, one entry a sample: `label`, and the `mask` where it takes one.

    Returns:
        A scalar, or `(batch,)` for "none"; at least float32.

    Raises:
        TypeError: for a `guidance_scale` without an extra that `null` names.
        ValueError: for an unknown `tangent` or `reduction`, `dropout` outside [0, 1), a `guidance_scale` below 1, a
            negative `power` or an `eps` that is not positive, times or extras of another length than the batch, and a
            model in training mode that has a dropout of conditions of its own.
    """
    if tangent not in ("marginal", "conditional"):
        raise ValueError(f"`tangent` must be 'marginal' or 'conditional'; got {tangent!r}.")
    if not 0 <= dropout < 1:
        raise ValueError(f"`dropout` must lie in [0, 1); got {dropout}.")
    if power < 0 or eps <= 0:
        raise ValueError(f"`power` must be at least 0 and `eps` positive; got {power} and {eps}.")
    _refuse_dropout(model)
    x, t = sample.x_t, sample_time(sample.t, sample.x_t)
    r = sample_time(r, x).to(t.dtype)
    mask = getattr(sample, "mask", None)
    mask = None if mask is None else check_mask(mask, x, like="sample.x_t")
    extras = check_extras(extras, x)
    target, velocity = sample.dx_t, None
    bare = _bare(model)
    with torch.no_grad(), _full_precision(x.device.type):
        if guidance_scale is not None:
            null = _null(null, model, extras)
            drop = _draw(dropout, x, generator)
            scale = _scale(guidance_scale, x, t.dtype).masked_fill(drop, 1)
            extras |= {name: _replaced(extras[name], value, drop) for name, value in null.items()}
            extras["guidance_scale"] = scale
            velocity, without = _velocities(bare, x, t, extras, null)
            target = target + hold_known(align_time(1 - 1 / scale, x) * (velocity - without), mask)
        if tangent == "conditional":
            velocity = target
        slope = _slope(bare, x, t, r, extras, velocity, mask)
    average = model(x=x, t=t, r=r, **extras)
    velocity = average - align_time(r - t, x) * slope
    compared = with_fields(sample, dx_t=target)
    loss = velocity_loss(velocity, compared, weight=weight, reduction="none")
    if power > 0:
        plain = loss if weight is None else velocity_loss(velocity, compared, reduction="none")
        loss = loss / (plain.detach() + eps) ** power
    if reduction == "none":
        return loss
    if reduction not in ("mean", "sum"):
        raise ValueError(f"`reduction` must be 'mean', 'sum' or 'none'; got {reduction!r}.")
    return loss.sum() if reduction == "sum" or len(loss) == 0 else loss.mean()


def _slope(
    model: Callable[..., Tensor],
    x: Tensor,
    t: Tensor,
    r: Tensor,
    extras: dict[str, Any],
    velocity: Tensor | None,
    mask: Tensor | None,
) -> Tensor:
    """The derivative of the average velocity along `velocity`, or along the model's own; 0 where r = t."""
    slope = torch.zeros_like(x)
    moving = (t != r).nonzero()[:, 0]
    if not len(moving):
        return slope
    x, t, r = x[moving], t[moving], r[moving]
    extras = map_samples(extras, lambda extra: extra[moving])
    v = model(x=x, t=t, r=t, **extras) if velocity is None else velocity[moving]
    v = hold_known(v, None if mask is None else mask[moving]).to(x.dtype)
    ask = lambda x, t: model(x=x, t=t, r=r, **extras)
    found = torch.func.jvp(ask, (x, t), (v, torch.ones_like(t)))[1]
    return slope.index_copy(0, moving, found.to(slope.dtype))


def _bare(model: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The model without what has no derivative in forward mode: `torch.compile`, processes, mixed precision.

    accelerate's mixed precision is a `forward` of the instance around that of the class.
    """
    model = getattr(model, "_orig_mod", model)
    model = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    model = getattr(model, "_orig_mod", model)
    if isinstance(model, nn.Module) and "forward" in vars(model):
        return functools.partial(type(model).forward, model)
    return model


def _full_precision(device: str) -> AbstractContextManager[object]:
    """No autocast: group norm's derivative in forward mode does not keep half precision."""
    available = torch.amp.is_autocast_available(device)
    return torch.autocast(device, enabled=False) if available else nullcontext()


def _velocities(
    model: Callable[..., Tensor],
    x: Tensor,
    t: Tensor,
    extras: dict[str, Any],
    null: Mapping[str, Any],
) -> tuple[Tensor, Tensor]:
    """The model's velocity at the scales among the extras, and without condition at scale 1, by one evaluation."""
    everywhere = torch.ones(len(x), dtype=torch.bool, device=x.device)
    without = {name: _replaced(extras[name], value, everywhere) for name, value in null.items()}
    without["guidance_scale"] = torch.ones_like(extras["guidance_scale"])
    halves: list[Tensor] = []
    map_samples(extras | without, lambda half: halves.append(half) or half)
    rest = iter(halves)  # the same walk, so the same order
    twice = map_samples(extras, lambda extra: torch.cat([extra, next(rest)]))
    times = torch.cat([t, t])
    velocity, plain = model(x=torch.cat([x, x]), t=times, r=times, **twice).to(x.dtype).chunk(2)
    return velocity, plain


def _null(
    null: Mapping[str, Any] | None, model: object, extras: Mapping[str, Any]
) -> Mapping[str, Any]:
    if null is None:
        label = getattr(model, "null_label", None)
        if label is None:
            raise ValueError(
                "`null` must say what stands for no condition, because the model has no `null_label`: "
                "null={'label': 10} for a class 10 that means none."
            )
        null = {"label": label}
    for name in null:
        if not isinstance(extras.get(name), Tensor) or extras[name].ndim == 0:
            raise TypeError(
                f"`{name}` is guided on and must be given, a tensor of one entry a sample: "
                f"mean_flow_loss(..., guidance_scale=..., {name}=...)."
            )
    return null


def _scale(scale: Tensor | float, x: Tensor, dtype: torch.dtype) -> Tensor:
    scale = torch.as_tensor(scale, dtype=dtype, device=x.device)
    if scale.ndim > 0 and scale.shape != x.shape[:1]:
        raise ValueError(
            f"`guidance_scale` must be one number or one a sample, ({len(x)},); got {tuple(scale.shape)}."
        )
    if scale.device.type == "cpu" and bool((scale < 1).any()):
        raise ValueError(f"`guidance_scale` must be at least 1; got {scale.min().item():g}.")
    return scale.expand(len(x))


def _draw(share: float, x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Which samples lose their condition: this share of the batch, to within one."""
    place = x.device if generator is None else generator.device
    u = torch.randperm(len(x), generator=generator, device=place)
    u = (u + torch.rand(1, generator=generator, device=place)) / max(len(x), 1)
    return (u < share).to(x.device)


def _replaced(extra: Tensor, value: Any, where: Tensor) -> Tensor:
    value = torch.as_tensor(value, dtype=extra.dtype, device=extra.device)
    return torch.where(where.view(-1, *(1 for _ in extra.shape[1:])), value, extra)


def _refuse_dropout(model: object) -> None:
    for module in model.modules() if isinstance(model, nn.Module) else ():
        for name in ("label_dropout", "mask_dropout"):
            if module.training and getattr(module, name, 0) > 0:
                raise ValueError(
                    f"`model` must not drop its conditions itself, anew at each of the evaluations of one loss; got "
                    f"{name}={getattr(module, name)}. Leave it out: mean_flow_loss(..., guidance_scale=..., dropout="
                    f"{getattr(module, name)}) drops them."
                )
