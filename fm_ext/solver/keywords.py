"""Finding the keywords that nothing takes, before they are lost in a model's `**extras`."""

import inspect
from collections.abc import Callable, Collection, Mapping
from difflib import get_close_matches
from typing import Any

from flow_matching.path.scheduler import ScheduleTransformedModel as UpstreamTransformedModel
from flow_matching.utils import ModelWrapper

from fm_ext.models.guidance import GuidedVelocityModel
from fm_ext.models.masked import MaskedVelocityModel
from fm_ext.models.prediction import PredictionVelocityModel
from fm_ext.models.wrapper import UNetWrapper
from fm_ext.path.scheduler.transform import ScheduleTransformedModel

# Wrappers that hand every extra they do not name on to `.model`.
_PASSING = {
    kind.forward
    for kind in (
        ModelWrapper,
        GuidedVelocityModel,
        MaskedVelocityModel,
        PredictionVelocityModel,
        ScheduleTransformedModel,
        UpstreamTransformedModel,
    )
}
# What solvers of other libraries, and other methods of this one, call it.
ODE_ALIASES = {
    "dt": "step_size",
    "n": "steps",
    "nfe": "steps",
    "num_inference_steps": "steps",
    "num_steps": "steps",
    "options": "ODESolver(velocity_model, options=...)",
    "t_span": "time_grid",
    "time_steps": "time_grid",
    "times": "time_grid",
    "timesteps": "time_grid",
    "verbose": "progress",
}
EXPONENTIAL_ALIASES = {
    "dt": "step_size",
    "n": "step_size",
    "nfe": "step_size",
    "num_inference_steps": "step_size",
    "num_steps": "step_size",
    "steps": "step_size",
    "t_span": "time_grid",
    "time_steps": "time_grid",
    "times": "time_grid",
    "timesteps": "time_grid",
}
INPAINTING_ALIASES = {
    "method": "InpaintingSolver(velocity_model, scheduler, method=...)",
    "n": "fills",
    "n_samples": "fills",
    "nfe": "steps",
    "noise_level": "noise_std",
    "num_fills": "fills",
    "num_inference_steps": "steps",
    "num_samples": "fills",
    "num_steps": "steps",
    "seed": "generator",
    "sigma_y": "noise_std",
    "step_size": "steps",
    "time_grid": "steps",
    "timesteps": "steps",
    "verbose": "progress",
}


def check_extras(
    model: object,
    extras: Collection[str],
    method: Callable[..., object],
    aliases: Mapping[str, str],
) -> None:
    """Raises for an extra that the model cannot take, or that is a misspelt keyword of the solver.

    A model that declares its arguments is believed. One that takes any keyword is believed too, unless the name is
    close to a keyword of the solver's `method`, or among its `aliases`: the misspelling would be swallowed, and not
    what was asked be done.
    """
    if not extras:
        return
    named, takes_any = accepted(model)
    keywords = list(inspect.signature(method).parameters)
    for name in extras:
        if name in named:
            continue
        close = get_close_matches(name, keywords, n=1, cutoff=0.8)
        meant = aliases.get(name, close[0] if close else None)
        if meant is not None:
            raise TypeError(
                f"`{name}` is no keyword of the solver: did you mean `{meant}`? If it is the model's, name it in its "
                "forward."
            )
        if not takes_any:
            raise TypeError(
                f"`{name}` is taken neither by the solver nor by {type(model).__name__}, whose forward takes "
                f"{sorted(named) or 'no extras'}."
            )


def accepted(model: object) -> tuple[set[str], bool]:
    """The extras that a model names, and whether it takes any other; through wrappers that only hand them on.

    A `UNetWrapper` names what its network names and what it concatenates; it refuses the others itself.
    """
    inner: Any = getattr(model, "_orig_mod", model)  # torch.compile hides the signature
    forward = getattr(type(inner), "forward", None)
    try:
        parameters = inspect.signature(inner.forward if forward else inner).parameters.values()
    except (TypeError, ValueError):  # a built-in has none
        return set(), True
    names = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    if isinstance(inner, UNetWrapper):
        names |= inner.accepted.union(inner.concat)
    elif takes_any and forward in _PASSING:
        more, takes_any = accepted(inner.model)
        names |= more
    return names - {"x", "t"}, takes_any
