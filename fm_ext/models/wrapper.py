"""Any network as a velocity model."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from fm_ext.utils.inputs import check_answer, check_extras, open_shared, sample_time
from fm_ext.utils.model_wrapper import ModelWrapper

# The names under which networks of the field take the state, the times and the class.
NAMES = {
    "x": ("x", "sample", "x_t", "input", "inputs", "hidden_states"),
    "t": ("t", "timesteps", "timestep", "time", "times", "noise_labels"),
    "r": ("r",),
    "label": ("label", "labels", "y", "class_labels", "class_label"),
}

# diffusers' flow networks, whose sign is their pipeline's affair: most answer with noise minus data.
FLOW_NETWORKS = frozenset(
    {
        "AuraFlowTransformer2DModel",
        "BriaTransformer2DModel",
        "ChromaTransformer2DModel",
        "CogView4Transformer2DModel",
        "Flux2Transformer2DModel",
        "FluxTransformer2DModel",
        "HiDreamImageTransformer2DModel",
        "HunyuanImageTransformer2DModel",
        "HunyuanVideoTransformer3DModel",
        "LTXVideoTransformer3DModel",
        "Lumina2Transformer2DModel",
        "MochiTransformer3DModel",
        "QwenImageTransformer2DModel",
        "SD3Transformer2DModel",
        "SanaTransformer2DModel",
        "WanTransformer3DModel",
        "ZImageTransformer2DModel",
    }
)


class UNetWrapper(ModelWrapper):
    r"""Calls any network as `v(x=x, t=t, **extras)`, which is how upstream's solvers call a velocity model.

    The network's arguments are found by their names, whatever their order: `UNet(x, t, label)`, torchcfm's
    `(t, x, y)`, diffusers' `UNet2DModel(sample, timestep, class_labels)`, upstream's example `(x, timesteps, extra)`
    whose `extra` is a dict. An output object, dict or tuple is unwrapped to its tensor. The solver's 0-d `t` is
    expanded to `(batch,)`, and a mask of one sample to all. An extra that nothing takes is an error.

    Images, video `(batch, channel, frame, height, width)` and signals `(batch, channel, length)` work alike; for
    sequences `(batch, length, channel)` say `channel_axis=-1`.

    Args:
        model: the network.
        concat: names of extras to concatenate to `x` on the channel axis, in this order (Palette, arXiv 2111.05826,
            section 3). A bool extra, as a mask is, becomes 0 and 1. Where a `mask` is among the extras the extra called
            `image` is shown with its missing entries zeroed, so the answer cannot leak.
        time_scale: the network gets `time_scale * t`, for example 1000 for a network made for t in 0...1000; or
            a function of t `(batch,)`, for example `lambda t: 999 * (1 - t)` for DDPM's indices. A second time r is
            treated alike.
        output_scale: the answer is multiplied by it: -1 for a network that answers with noise minus data, where a
            velocity is data minus noise. None for 1, and for an error about the networks of diffusers that are known to
            be flows (SD3, Flux, Sana, ...), most of which need -1.
        label_dropout: in training mode a sample's label becomes `null_label` with this probability
            (classifier-free guidance, arXiv 2207.12598, algorithm 1).
        null_label: the class that stands for "no class"; a missing `label` means it for every sample. None for the
            network's own `null_label`, if it has one.
        mask_dropout: in training mode a sample's known pixels are hidden with this probability, for guidance on them
            (`GuidedVelocityModel(..., hide_known=True)`): they are 0 in `x` and in an `image`, and -1 in the channel of
            the `mask`, where known is 0 and missing 1. For networks trained on `MaskedProbPath` with `velocity_loss`:
            what they then learn is $E[\dot X^m_t \mid X^m_t]$, the velocity of the missing pixels $X^m$ alone.
        arguments: names of the network's own arguments where they are not found, for example
            `{"x": "img", "t": "sigma", "label": "cls"}`.
        extra: names that a network with an argument `extra` reads in that dict; upstream's example reads the default
            ones. They may be given as keywords or as upstream's `extra={...}`.
        channel_axis: the axis of the channels.

    Raises:
        TypeError: if the network's state or time argument cannot be found.
        ValueError: for a dropout outside [0, 1), or one without `null_label` or a `mask` in `concat`; for a flow
            network of diffusers without `output_scale`.
    """

    def __init__(
        self,
        model: nn.Module,
        concat: Sequence[str] = (),
        *,
        time_scale: float | Callable[[Tensor], Tensor] = 1.0,
        output_scale: float | None = None,
        label_dropout: float = 0.0,
        null_label: int | None = None,
        mask_dropout: float = 0.0,
        arguments: Mapping[str, str] | None = None,
        extra: Sequence[str] = ("label", "concat_conditioning"),
        channel_axis: int = 1,
    ):
        super().__init__(model)
        if isinstance(concat, str):
            raise TypeError(
                f"`concat` must be a tuple of names; got the string {concat!r}: write ({concat!r},)."
            )
        if not 0 <= label_dropout < 1:
            raise ValueError(f"`label_dropout` must lie in [0, 1); got {label_dropout}.")
        if null_label is None:
            null_label = getattr(model, "null_label", None)
        if label_dropout > 0 and null_label is None:
            raise ValueError(
                "`label_dropout` needs `null_label`, the class that stands for no class: num_classes for a UNet."
            )
        if not 0 <= mask_dropout < 1:
            raise ValueError(f"`mask_dropout` must lie in [0, 1); got {mask_dropout}.")
        if mask_dropout > 0 and "mask" not in concat:
            raise ValueError(
                f"`mask_dropout` needs a 'mask' in `concat`, which tells what is hidden; got {tuple(concat)}."
            )
        kind = type(getattr(model, "_orig_mod", model)).__name__
        if output_scale is None and kind in FLOW_NETWORKS:
            raise ValueError(
                f"`output_scale` must be given for {kind}: a velocity is data minus noise, and most flow "
                "networks of diffusers answer with noise minus data. from_diffusers(network) knows what each does; or "
                "write output_scale=-1 for one of those, and output_scale=1 for one that was trained with fm_ext."
            )
        self.concat = tuple(concat)
        self.time_scale = time_scale
        self.output_scale = 1.0 if output_scale is None else output_scale
        self.label_dropout = label_dropout
        self.mask_dropout = mask_dropout
        self.channel_axis = channel_axis
        self._null_label = null_label
        self.arguments, self._named, takes_any = find_arguments(model, arguments or {})
        self.extra = tuple(extra) if "extra" in self._named else ()
        known = {"label", "hide_known", *self.concat, *self._named, *self.extra}
        known |= {"r"} & self.arguments.keys()
        self._takes = None if takes_any else frozenset(known)

    @property
    def takes(self) -> frozenset[str] | None:
        """The extras that the network and `concat` name; None for a network that takes any."""
        return self._takes

    @property
    def null_label(self) -> int | None:
        """The class that stands for no class."""
        return self._null_label

    def forward(
        self,
        x: Float[Tensor, " batch *dim"],
        t: Float[Tensor, "..."],
        *,
        r: Float[Tensor, "..."] | None = None,
        label: Shaped[Tensor, " batch ..."] | None = None,
        hide_known: Bool[Tensor, " batch"] | None = None,
        **extras: Any,
    ) -> Float[Tensor, " batch *dim"]:
        """Returns the network's velocity at `x` and `t`, or its average velocity from `t` to `r`.

        Args:
            x: the state, `(batch, channel, height, width)` for images.
            t: times in [0, 1], 0-d, `(1,)`, `(batch,)` or `(batch, 1, ..., 1)`.
            r: times too, for a network that takes a second one.
            label: classes `(batch,)`; the network's own name for them, for example `y=`, means the same.
            hide_known: `(batch,)`, the samples whose known pixels are hidden; if None, in training mode
                those that `mask_dropout` draws.
            **extras: what `concat` names, and what the network itself takes.

        Raises:
            TypeError: for an extra that nothing takes, a missing one that `concat` names, an extra under two names, or
                an output without a tensor.
            ValueError: if an extra's batch or place is not `x`'s, `t` or `r` has another shape, or the answer has not
                the shape of `x`.
        """
        name = type(self.model).__name__
        times = {"t": self._scaled(t, x)}
        if r is not None and "r" in self.arguments:
            times["r"] = self._scaled(r, x)
        elif r is not None:
            extras["r"] = r
        if "extra" in self._named and isinstance(extras.get("extra"), Mapping):
            inner = dict(extras.pop("extra"))
            given = {**extras, **({} if label is None else {"label": label})}
            twice = inner.keys() & given.keys()
            if twice:
                raise TypeError(
                    f"`{min(twice)}` was given both as a keyword and in `extra`: give one."
                )
            label, extras = inner.pop("label", label), {**extras, **inner}
        own = self.arguments.get("label", "label")
        if own != "label" and own in extras and own not in self.concat:
            if label is not None:
                raise TypeError(
                    f"`label` and `{own}`, {name}'s name for it, were both given: give one."
                )
            label = extras.pop(own)
        taken = self.takes
        unknown = set() if taken is None else set(extras) - taken
        if "image" in self.concat:
            unknown.discard("mask")  # it zeroes the image's hole
        if unknown:
            more = f", or name it in extra={(*self.extra, min(unknown))}" if self.extra else ""
            raise TypeError(
                f"`{min(unknown)}` is taken neither by `concat` = {self.concat} nor by {name}, which takes "
                f"{sorted({*self._named, *self.extra} - {'extra'})}: leave it out{more}."
            )
        extras = check_extras(extras if label is None else {**extras, "label": label}, x)
        label = self.choose_label(extras.pop("label", None), len(x), x.device)
        hidden = self.choose_hidden(hide_known, x, extras)
        shown = x if hidden is None else x.masked_fill(hidden, 0)
        channels = self.condition(x, extras, hidden)
        inputs: dict[str, Any] = {self.arguments[role]: time for role, time in times.items()}
        inputs[self.arguments["x"]] = torch.cat([shown, *channels], dim=self.channel_axis)
        for used in self.concat:
            del extras[used]
        if "image" in self.concat and taken is not None and "mask" not in self._named:
            extras.pop("mask", None)
        if label is not None and not self.extra:
            if "label" not in self.arguments:
                raise TypeError(
                    f"`label` was given, but {name} has no argument for it among {NAMES['label']}; name it by "
                    "arguments={'label': ...}."
                )
            inputs[self.arguments["label"]] = label
        elif label is not None:
            extras["label"] = label
        extras = open_shared(extras)
        if self.extra:  # the network writes into the dict, so it gets one of its own
            inputs["extra"] = {key: extras.pop(key) for key in list(extras) if key in self.extra}
        answer = _tensor(self.model(**inputs, **extras), name)
        answer = answer if self.output_scale == 1 else self.output_scale * answer
        return check_answer(answer, x, self.model)

    def _scaled(self, t: Tensor, x: Tensor) -> Tensor:
        """The times `(batch,)` as the network counts them."""
        t = sample_time(t, x)
        return self.time_scale(t) if callable(self.time_scale) else self.time_scale * t

    def condition(
        self, x: Tensor, extras: Mapping[str, Any], hidden: Tensor | None
    ) -> list[Tensor]:
        """The extras that `concat` names, as channels of `x`'s dtype, without what is hidden."""
        axis = self.channel_axis % x.ndim
        channels = []
        for name in self.concat:
            extra = extras.get(name)
            if extra is None:
                raise TypeError(
                    f"`{name}` is named by `concat` and was not given: call model(x=x, t=t, {name}=...), "
                    f"or solver.sample(..., {name}=...)."
                )
            fits = extra.ndim == x.ndim and all(
                m == n or i == axis
                for i, (m, n) in enumerate(zip(extra.shape, x.shape, strict=True))
            )
            if not fits:
                raise ValueError(
                    f"`{name}` must be of x's shape but for the channels, axis {axis}, to be concatenated; got "
                    f"{tuple(extra.shape)} for x {tuple(x.shape)}."
                )
            if name == "image" and extras.get("mask") is not None:
                extra = extra.masked_fill(extras["mask"], 0)
            extra = extra.to(x.dtype)
            if hidden is not None and name in ("mask", "image"):
                extra = extra.masked_fill(hidden, -1 if name == "mask" else 0)
            channels.append(extra)
        return channels

    def choose_hidden(
        self, hide_known: Tensor | None, x: Tensor, extras: Mapping[str, Any]
    ) -> Tensor | None:
        """Where pixels are known and hidden, of the mask's shape; None for nowhere."""
        if hide_known is None and self.training and self.mask_dropout > 0:
            hide_known = torch.rand(len(x), device=x.device) < self.mask_dropout
        if hide_known is None:
            return None
        if "mask" not in self.concat:
            raise TypeError(f"`hide_known` needs a 'mask' in `concat`; got {self.concat}.")
        mask = extras.get("mask")  # `condition` complains of a missing one
        return None if mask is None else hide_known.view(-1, *(1 for _ in x.shape[1:])) & ~mask

    def choose_label(self, label: Tensor | None, batch: int, device: torch.device) -> Tensor | None:
        """The label with dropout in training mode; the null label where none was given."""
        if self.null_label is None:
            return label
        if label is None:
            return torch.full((batch,), self.null_label, device=device)
        if self.training and self.label_dropout > 0:
            drop = torch.rand(batch, device=label.device) < self.label_dropout
            label = label.masked_fill(drop, self.null_label)
        return label


def find_arguments(
    model: nn.Module, given: Mapping[str, str]
) -> tuple[dict[str, str], set[str], bool]:
    """What a network calls its state, time and class, what else it takes, and whether it takes any name."""
    inner: Any = getattr(model, "_orig_mod", model)  # torch.compile hides the signature
    parameters = inspect.signature(inner.forward).parameters.values()
    accepted = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    found = {
        role: next(name for name in names if name in accepted)
        for role, names in NAMES.items()
        if accepted.intersection(names)
    } | dict(given)
    for role in ("x", "t"):
        if role not in found:
            raise TypeError(
                f"`model`: no argument of {type(inner).__name__}.forward{inspect.signature(inner.forward)} is called "
                f"one of {NAMES[role]}; name it by arguments={{'{role}': ...}}."
            )
    return (
        found,
        accepted - {found["x"], found["t"]},
        any(p.kind is p.VAR_KEYWORD for p in parameters),
    )


def _tensor(output: Any, name: str) -> Tensor:
    """The tensor in a network's output: an object's or dict's `sample`, or the first of a tuple."""
    if isinstance(output, Mapping):
        output = output.get("sample", output)
    elif isinstance(output, (tuple, list)):
        output = output[0] if len(output) > 0 else output
    elif not isinstance(output, Tensor):
        output = getattr(output, "sample", output)
    if not isinstance(output, Tensor):
        got = (
            f"a dict with {sorted(output)}"
            if isinstance(output, Mapping)
            else type(output).__name__
        )
        raise TypeError(
            f"`model` must answer with a tensor, or with an object, dict or tuple that holds it as `sample` or first; "
            f"{name} answered with {got}."
        )
    return output
