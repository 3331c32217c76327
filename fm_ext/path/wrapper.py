"""The base of all paths, `ProbPath`, and the base of paths around other paths, `PathWrapper`."""

import abc
import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from flow_matching.path import ProbPath as UpstreamProbPath
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from fm_ext.utils.inputs import sample_time

CONVERSIONS = frozenset(
    f"{a}_to_{b}"
    for a in ("target", "epsilon", "velocity", "score")
    for b in ("target", "epsilon", "velocity", "score")
    if a != b
) | {"posterior_to_velocity"}
"""The names of the conversions of affine paths, ours and upstream's, and of upstream's discrete path."""

Sample = TypeVar("Sample")


class ProbPath(UpstreamProbPath):
    """A path that takes what belongs to the targets by four keywords, used or not.

    The wrappers of `fm_ext.path` hand all four on to a path of this class, and none of them to any other path. To write
    a path that uses them, subclass and implement `sample`; a path that needs more takes it by keyword too, and
    wrappers hand that on.
    """

    @abc.abstractmethod
    def sample(
        self,
        x_0: Shaped[Tensor, " batch *dim"],
        x_1: Shaped[Tensor, " batch *dim"],
        t: Float[Tensor, "..."],
        *,
        mask: Bool[Tensor, "..."] | None = None,
        label: Shaped[Tensor, " batch"] | None = None,
        condition: Shaped[Tensor, " batch ..."] | None = None,
        generator: torch.Generator | None = None,
    ) -> Any:  # a union would make every user of `dx_t` narrow it first
        """A point of the path at `t`, as a `PathSample` or `DiscretePathSample`.

        Args:
            x_0: sources, `(batch, ...)`.
            x_1: targets, of the same shape.
            t: times, 0-d, `(1,)`, `(batch,)` or `(batch, 1, ..., 1)`.
            mask: of the targets, bool, True = missing, of `x_1`'s rank with axes of its length or 1.
            label: classes of the targets, `(batch,)`.
            condition: numbers that belong to the targets, `(batch, ...)`.
            generator: source of the randomness.
        """

    def source(
        self,
        x_0: Shaped[Tensor, " batch *dim"],
        *,
        mask: Bool[Tensor, "..."] | None = None,
        label: Shaped[Tensor, " batch"] | None = None,
        condition: Shaped[Tensor, " batch ..."] | None = None,
        generator: torch.Generator | None = None,
    ) -> Shaped[Tensor, " batch *dim"]:
        """What sampling starts from, given sources without targets: `x_0` itself, unless a subclass changes it.

        Args:
            x_0: sources, `(batch, ...)`.
            mask: as in `sample`; so are the others.
            label: see `mask`.
            condition: see `mask`.
            generator: source of the randomness.
        """
        return x_0

    def _times(self, x_0: Tensor, x_1: Tensor, t: Tensor) -> Tensor:
        """`t` as `(batch,)`, itself where it is; upstream's AssertionError where the batches differ."""
        if t.ndim != 1 or len(t) == 1 != len(x_1):
            t = sample_time(t, x_1)
        self.assert_sample_shape(x_0=x_0, x_1=x_1, t=t)
        return t


class PathWrapper(ProbPath):
    """A path around another one, whose attributes are reachable through it.

    Args:
        path: the wrapped path.
    """

    def __init__(self, path: UpstreamProbPath):
        if not isinstance(path, UpstreamProbPath):
            raise TypeError(
                f"`path` must be a flow_matching.path.ProbPath, for example CondOTProbPath(); "
                f"got {type(path).__name__}."
            )
        self.path = path

    def __getattr__(self, name: str) -> Any:
        # Called for what the wrapper itself lacks. Copies and pickles are asked for attributes before they have a path.
        if name.startswith("__") or "path" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        inner = getattr(self.path, name)
        return functools.partial(self._convert, name) if name in CONVERSIONS else inner

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *dir(self.path)})

    def _convert(self, name: str, *args: Any, **kwargs: Any) -> Tensor:
        """The wrapped path's conversion, which a wrapper changes or refuses."""
        return getattr(self.path, name)(*args, **kwargs)

    def _sample(
        self, x_0: Tensor, x_1: Tensor, t: Tensor, given: dict[str, Any], extras: dict[str, Any]
    ) -> Any:
        """The wrapped path's sample, with the four keywords for a path of ours, and with `extras` for any."""
        words = given if isinstance(self.path, ProbPath) else {}
        return self.path.sample(x_0=x_0, x_1=x_1, t=t, **words, **extras)

    def source(
        self,
        x_0: Shaped[Tensor, " batch *dim"],
        *,
        mask: Bool[Tensor, "..."] | None = None,
        label: Shaped[Tensor, " batch"] | None = None,
        condition: Shaped[Tensor, " batch ..."] | None = None,
        generator: torch.Generator | None = None,
    ) -> Shaped[Tensor, " batch *dim"]:
        """What sampling starts from: what the wrapped path says, and `x_0` itself where it says nothing.

        A path that is not of `fm_ext.path` and has a method `source` is asked `source(x_0)`.

        Args:
            x_0: sources, `(batch, ...)`.
            mask: as in `sample`; so are the others.
            label: see `mask`.
            condition: see `mask`.
            generator: source of the randomness; the global one if None.
        """
        if not isinstance(self.path, ProbPath):
            inner = getattr(self.path, "source", None)
            return x_0 if inner is None else inner(x_0)
        return self.path.source(
            x_0, mask=mask, label=label, condition=condition, generator=generator
        )


def with_fields(sample: Sample, **values: Any) -> Sample:
    """A shallow copy of a sample with other values, of its own class or of one with the fields that it lacks.

    Fields, and not attributes, so that `dataclasses.replace`, `fields` and `asdict` know them as copies and pickles do.
    """
    return _restore(_class_with(type(sample), tuple(values)), _state(sample) | values)


@torch.compiler.assume_constant_result
def _class_with(cls: Any, names: tuple[str, ...]) -> Any:
    """The class of a sample, with the fields of these names; made once."""
    if not dataclasses.is_dataclass(cls):
        raise TypeError(
            f"`path.sample` must return a dataclass, as PathSample is, to be wrapped; got {cls.__name__}."
        )
    base, own = getattr(cls, "_extends", (cls, ()))
    lacking = {*names} - {field.name for field in dataclasses.fields(base)}
    return _extended(base, tuple(sorted({*own, *lacking})))


@functools.cache
def _extended(cls: Any, names: tuple[str, ...]) -> Any:
    """The class with further fields, which are None unless they are given."""
    if not names:
        return cls
    parameters = cls.__dataclass_params__
    fields: list[Any] = [
        (name, Tensor | None, dataclasses.field(default=None, kw_only=True)) for name in names
    ]
    extended: Any = dataclasses.make_dataclass(
        cls.__name__,
        fields,
        bases=(cls,),
        namespace={"__module__": cls.__module__, "__doc__": cls.__doc__, "_extends": (cls, names)},
        init=parameters.init,
        repr=parameters.repr,
        eq=False,
        frozen=parameters.frozen,
    )
    extended.__reduce_ex__ = lambda self, protocol: (_rebuild, (cls, names, _state(self)))
    return extended


def _rebuild(cls: Any, names: tuple[str, ...], state: dict[str, Any]) -> Any:
    return _restore(_extended(cls, names), state)


def _state(sample: Any) -> dict[str, Any]:
    state = {field.name: getattr(sample, field.name) for field in dataclasses.fields(sample)}
    return state | getattr(sample, "__dict__", {})


def _restore(cls: Any, state: dict[str, Any]) -> Any:
    sample = object.__new__(cls)
    for name, value in state.items():
        object.__setattr__(sample, name, value)  # frozen ones too
    return sample


def nested_paths(path: UpstreamProbPath) -> Iterator[Any]:
    """The path, and those that it is wrapped around, the innermost last."""
    while isinstance(path, PathWrapper):
        yield path
        path = path.path
    yield path
