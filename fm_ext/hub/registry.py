"""Names for networks, wrappers, paths and couplings, and what is written of one: its name and its arguments."""

import difflib
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Any, NamedTuple, TypeVar

import flow_matching.path as upstream
import torch
from flow_matching.path.scheduler import Scheduler
from torch import Tensor, nn

import fm_ext.coupling as couplings
import fm_ext.models as models
import fm_ext.path as paths
from fm_ext.path.scheduler import ScheduleTransformedModel, get_scheduler, scheduler_config
from fm_ext.utils.weights import bare

GROUP = "fm_ext.hub"
# Classes of diffusers that a latent codec holds; diffusers is imported when one of them is written or read.
DIFFUSERS = ("AutoencoderDC", "AutoencoderKL", "AutoencoderTiny")
_MARKS = ("class", "scheduler", "tensor", "module")
C = TypeVar("C", bound=type)
Arguments = Callable[[Any], Mapping[str, Any]]


class Entry(NamedTuple):
    """A registered class, and how the arguments of an object of it are found."""

    cls: type
    arguments: Arguments | None


_ENTRIES: dict[str, Entry] = {}


def register(name: str, *, arguments: Arguments | None = None) -> Callable[[C], C]:
    """Class decorator that makes a network, a wrapper, a path or a coupling known to pretrained folders as `name`.

    An object is written down as its name and its arguments, and built again from them. So it keeps each argument of its
    constructor in an attribute of the same name, as schedulers do, or `arguments` tells those that it does not. An
    argument is None, a bool, number, string, tensor or scheduler, an object of a registered class, a class of
    `torch.nn` (an activation), or a tuple, a list (which comes back as a tuple) or a dict of those.

        @register("my_network")
        class MyNetwork(nn.Module):
            def __init__(self, width: int):
                self.width = width

        register("their_network", arguments=lambda network: network.config)(TheirNetwork)

    A package registers without being imported first by an entry point of the group `fm_ext.hub`:

        [project.entry-points."fm_ext.hub"]
        my_network = "my_package:MyNetwork"

    Args:
        name: what stands in config.json.
        arguments: from an object to those arguments of its constructor that are not its attributes of their names.

    Raises:
        ValueError: if another class has that name.
        TypeError: if what is decorated is no class.
    """

    def decorate(cls: C) -> C:
        if not isinstance(cls, type):
            raise TypeError(f"`register({name!r})` must decorate a class; got {cls!r}.")
        known = _ENTRIES.get(name)
        if known is not None and known.cls is not cls:
            raise ValueError(
                f"`name` must be new; {name!r} is {known.cls.__module__}.{known.cls.__qualname__} already. Choose "
                "another name."
            )
        _ENTRIES[name] = Entry(cls, arguments)
        return cls

    return decorate


def registered() -> list[str]:
    """All names that a config.json may hold, those of installed packages included, sorted."""
    lazy = (f"diffusers.{name}" for name in DIFFUSERS)
    return sorted({*_ENTRIES, *lazy, *(point.name for point in _points())})


def describe(value: Any, tensors: dict[str, Tensor], where: str = "arguments") -> Any:
    """What JSON holds of an object or an argument; tensors are put into `tensors`, under the name of their place.

    Raises:
        ValueError: for an object of a class that is not registered, or a dict with a key that has a meaning here.
        TypeError: for anything else that cannot be written.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, nn.Module):
        value = bare(value)
    if isinstance(value, Tensor):
        tensors[where] = value.detach()
        return {"tensor": where}
    if isinstance(value, Scheduler):
        config = scheduler_config(value)
        return {"scheduler": config.pop("name"), **config}
    if isinstance(value, Mapping):
        if reserved := [key for key in value if not isinstance(key, str) or key in _MARKS]:
            raise ValueError(
                f"`{where}` must have keys that are strings and none of {', '.join(_MARKS)}; got {reserved[0]!r}. "
                "Rename it."
            )
        return {key: describe(item, tensors, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, (Sequence, torch.Size)):
        return [describe(item, tensors, f"{where}.{i}") for i, item in enumerate(value)]
    if isinstance(value, type) and getattr(nn, value.__name__, None) is value:
        return {"module": value.__name__}
    if name := _name(type(value)):
        entry = _ENTRIES[name]
        told = {} if entry.arguments is None else dict(entry.arguments(value))
        parameters = inspect.signature(entry.cls).parameters.values()
        names = [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        if lacking := [key for key in names if key not in told and not hasattr(value, key)]:
            raise ValueError(
                f"{entry.cls.__name__} must keep each argument of its constructor in an attribute of the same "
                f"name, and has none called {lacking[0]!r}. Keep it, or register the class with "
                "`arguments=`, which tells it."
            )
        found = {key: getattr(value, key) for key in names if key not in told} | told
        if {"class"} & found.keys():
            raise ValueError(f"{entry.cls.__name__} must have no argument called 'class'.")
        inner = {key: describe(item, tensors, f"{where}.{key}") for key, item in found.items()}
        return {"class": name, **inner}
    what = getattr(value, "__name__", type(value).__name__)
    if callable(value) and not isinstance(value, (type, nn.Module)):
        raise TypeError(
            f"`{where}` must be data and not code to be written down; got the function {what}. Make it an object of a "
            "class with `__call__`, decorated by `@register(...)`, in a module that is imported before loading."
        )
    raise ValueError(
        f"`{where}` must be of a registered class; {type(value).__name__} is not. Decorate it with "
        '`@register("a_name")`, from fm_ext.hub.'
    )


def build(config: Any, tensors: Mapping[str, Tensor], where: str = "model") -> Any:
    """The object or argument that `describe` has written.

    Only constructors of registered classes, of schedulers and names of `torch.nn`'s classes are looked up.

    Raises:
        ValueError: for a name that is not known, or arguments that the constructor refuses.
    """
    if isinstance(config, list):
        return tuple(build(item, tensors, f"{where}[{i}]") for i, item in enumerate(config))
    if not isinstance(config, Mapping):
        return config
    mark = next((mark for mark in _MARKS if mark in config), None)
    given = {key: value for key, value in config.items() if key != mark}
    if mark is None:
        return {key: build(value, tensors, f"{where}.{key}") for key, value in given.items()}
    name = config[mark]
    if mark == "tensor":
        if given or name not in tensors:
            raise ValueError(f"`{where}` names a tensor, {name!r}, that the weights do not hold.")
        return tensors[name]
    if mark == "module":
        module = getattr(nn, name, None) if isinstance(name, str) else None
        if given or not (isinstance(module, type) and issubclass(module, nn.Module)):
            raise ValueError(f"`{where}` must name a class of torch.nn; got {name!r}.")
        return module
    if mark == "scheduler":
        make: Callable[..., Any] = lambda **arguments: get_scheduler(name, **arguments)
    else:
        make = _entry(name, where).cls
    arguments = {key: build(value, tensors, f"{where}.{key}") for key, value in given.items()}
    try:
        return make(**arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`{where}`: {name!r} cannot be built: {error}") from error


def _entry(name: Any, where: str) -> Entry:
    for point in _points():
        if point.name == name and name not in _ENTRIES:
            register(point.name)(point.load())
    library, _, cls = str(name).partition(".")
    if library == "diffusers" and cls in DIFFUSERS and name not in _ENTRIES:
        try:
            _register_diffusers(getattr(importlib.import_module(library), cls))
        except ImportError as error:
            raise ValueError(
                f"`{where}` is a {name!r}, which needs diffusers: pip install 'fm_ext[diffusers]'."
            ) from error
    if not isinstance(name, str) or name not in _ENTRIES:
        names = registered()
        nearest = difflib.get_close_matches(str(name), names, n=1)
        raise ValueError(
            f"`{where}` is a {name!r}, which is not registered."
            + (f" Did you mean {nearest[0]!r}?" if nearest else "")
            + " A class that is not of fm_ext is imported before loading, and registers itself by "
            f"`@fm_ext.hub.register({name!r})`; known are {', '.join(names)}."
        )
    return _ENTRIES[name]


def _name(cls: type) -> str | None:
    if cls.__module__.partition(".")[0] == "diffusers" and cls.__name__ in DIFFUSERS:
        _register_diffusers(cls)
    names = {entry.cls: name for name, entry in _ENTRIES.items()}
    if cls not in names:
        for point in _points():
            if point.name not in _ENTRIES:
                register(point.name)(point.load())
        names = {entry.cls: name for name, entry in _ENTRIES.items()}
    return names.get(cls)


def _register_diffusers(cls: Any) -> None:
    """Registers a class of diffusers, which keeps the arguments of its constructor in `config`."""
    names = inspect.signature(cls).parameters
    told: Arguments = lambda module: {k: v for k, v in module.config.items() if k in names}
    if f"diffusers.{cls.__name__}" not in _ENTRIES:
        register(f"diffusers.{cls.__name__}", arguments=told)(cls)


def _points() -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=GROUP))


def _scheduled(model: Any) -> dict[str, Any]:
    return {"scheduler": model.schedule}


register("unet")(models.UNet)
register("small_unet")(models.SmallUNet)
register("mlp")(models.MLP)
register("empirical_velocity_model", arguments=_scheduled)(models.EmpiricalVelocityModel)
register("unet_wrapper")(models.UNetWrapper)
register("masked_velocity_model")(models.MaskedVelocityModel)
register(
    "guided_velocity_model",
    arguments=lambda m: {
        "weight": None,  # `guidance_scale` says the same
        "against": None if m.against is None else m.against.model,
    },
)(models.GuidedVelocityModel)
register("mean_flow_model")(models.MeanFlowModel)
register("latent_codec")(models.LatentCodec)
register("prediction_velocity_model", arguments=_scheduled)(models.PredictionVelocityModel)
register("schedule_transformed_model", arguments=lambda m: {"velocity_model": m.model})(
    ScheduleTransformedModel
)

register("upstream_affine_path")(upstream.AffineProbPath)
register("upstream_cond_ot_path")(upstream.CondOTProbPath)
register("affine_path")(paths.AffineProbPath)
register("cond_ot_path")(paths.CondOTProbPath)
register("bridge_path")(paths.BridgeProbPath)
register("masked_path")(paths.MaskedProbPath)
register("coupled_path")(paths.CoupledProbPath)

register("independent_coupling")(couplings.IndependentCoupling)
register("noisy_source")(couplings.NoisySource)
register("optimal_transport")(couplings.OptimalTransport)
register("greedy_transport")(couplings.GreedyTransport)
register("sinkhorn_transport")(couplings.SinkhornTransport)
register("gathered_coupling")(couplings.GatheredCoupling)
