"""Names for schedulers, so that configs, command lines and checkpoints can say which one."""

import difflib
import inspect
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

import flow_matching.path.scheduler as upstream
from flow_matching.path.scheduler import Scheduler
from torch import Tensor

GROUP = "fm_ext.schedulers"
_SCHEDULERS: dict[str, type[Scheduler]] = {}
S = TypeVar("S", bound=type[Scheduler])


def register_scheduler(name: str) -> Callable[[S], S]:
    """Class decorator that makes a scheduler known as `name`.

    To be found again by `scheduler_config`, a scheduler keeps each argument of its constructor in an attribute of
    the same name, as upstream's and all of ours do. A package registers without being imported first by an entry
    point of the group `fm_ext.schedulers`:

        [project.entry-points."fm_ext.schedulers"]
        my_schedule = "my_package:MyScheduler"

    Args:
        name: what `get_scheduler` will be asked for.

    Raises:
        ValueError: if another class has that name.
        TypeError: if the class is no `flow_matching.path.scheduler.Scheduler`.
    """

    def register(cls: S) -> S:
        if not (isinstance(cls, type) and issubclass(cls, Scheduler)):
            raise TypeError(
                f"`register_scheduler({name!r})` must decorate a subclass of "
                f"flow_matching.path.scheduler.Scheduler; got {cls!r}."
            )
        known = _SCHEDULERS.get(name, cls)
        if known is not cls:
            raise ValueError(
                f"`name` must be new; {name!r} is {known.__module__}.{known.__qualname__} already. "
                "Choose another name."
            )
        _SCHEDULERS[name] = cls
        return cls

    return register


def scheduler_names() -> list[str]:
    """All names that `get_scheduler` knows, those of installed packages included, sorted."""
    return sorted({*_SCHEDULERS, *(point.name for point in _points())})


def get_scheduler(name: str, **kwargs: Any) -> Scheduler:
    """Builds a scheduler by name: `get_scheduler("vp", beta_max=12.0)`.

    `get_scheduler(**scheduler_config(scheduler))` rebuilds `scheduler`.

    Args:
        name: one of `scheduler_names()`.
        **kwargs: arguments of its constructor. A mapping with a "name" stands for a scheduler inside a scheduler.

    Raises:
        ValueError: for an unknown name.
        TypeError: for arguments that the scheduler does not take.
    """
    for point in _points():
        if point.name == name:
            register_scheduler(name)(point.load())
    if name not in _SCHEDULERS:
        names = scheduler_names()
        nearest = difflib.get_close_matches(str(name), names, n=1)
        raise ValueError(
            f"`name` must be one of {', '.join(names)}; got {name!r}."
            + (f" Did you mean {nearest[0]!r}?" if nearest else "")
        )
    cls = _SCHEDULERS[name]
    known = inspect.signature(cls).parameters
    if unknown := [key for key in kwargs if key not in known]:
        raise TypeError(
            f"scheduler {name!r} takes {', '.join(f'`{key}`' for key in known) or 'no arguments'}; "
            f"got {', '.join(f'`{key}`' for key in unknown)}."
        )
    return cls(**{key: _decoded(value) for key, value in kwargs.items()})


def scheduler_config(scheduler: Scheduler) -> dict[str, Any]:
    """The name and the arguments that rebuild `scheduler`, fit for JSON.

    Args:
        scheduler: an instance of a registered class.

    Raises:
        ValueError: if its class is not registered.
        TypeError: if an argument is neither a number, a string, a tensor, a sequence nor a scheduler.
    """
    names = {cls: name for name, cls in _SCHEDULERS.items()}
    cls = next((cls for cls in type(scheduler).__mro__ if cls in names), None)
    if cls is None:
        for point in _points():
            register_scheduler(point.name)(point.load())
        names = {cls: name for name, cls in _SCHEDULERS.items()}
        cls = next((cls for cls in type(scheduler).__mro__ if cls in names), None)
    if cls is None:
        raise ValueError(
            f"`scheduler` must be of a registered class; {type(scheduler).__name__} is not. "
            'Decorate it with `@register_scheduler("a_name")`.'
        )
    arguments = {
        key: _encoded(getattr(scheduler, key)) for key in inspect.signature(cls).parameters
    }
    return {"name": names[cls], **arguments}


def _points() -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=GROUP))


def _encoded(value: Any) -> Any:
    if isinstance(value, Scheduler):
        return scheduler_config(value)
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, (list, tuple)):
        return [_encoded(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(
        f"a scheduler's arguments must be numbers, strings, tensors, sequences or schedulers to be written down; "
        f"got {type(value).__name__}."
    )


def _decoded(value: Any) -> Any:
    return get_scheduler(**value) if isinstance(value, Mapping) and "name" in value else value


register_scheduler("cond_ot")(upstream.CondOTScheduler)
register_scheduler("polynomial")(upstream.PolynomialConvexScheduler)
register_scheduler("upstream_cosine")(upstream.CosineScheduler)
register_scheduler("upstream_linear_vp")(upstream.LinearVPScheduler)
register_scheduler("upstream_vp")(upstream.VPScheduler)
