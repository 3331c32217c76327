"""Checks of time, mask, extras and sizes: one function checks and expands each of them, for the whole package."""

import inspect
import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class shared(Generic[T]):  # a word that is written in calls, like `partial`
    """Says that an extra is the same for all samples of a batch: `solver.sample(x, steps=10, table=shared(table))`.

    A tensor with an axis holds one entry a sample, wherever fm_ext takes extras, so a table that belongs to no sample
    must be declared. The wrappers of `fm_ext.models` and the solvers hand the mark on; the network gets `value`.

    Args:
        value: what the network gets, a tensor or a dict or list of tensors.
    """

    __slots__ = ("value",)

    def __init__(self, value: T):
        self.value = value

    def __repr__(self) -> str:
        return f"shared({self.value!r})"


def align_time(t: Any, x: Tensor) -> Tensor:
    """`t`, reshaped so that what is computed from it broadcasts beside `x`.

    Plain broadcasting lines `(batch,)` up with the last axis of `x`, which is silently wrong for square images whose
    side is the batch size.

    Args:
        t: 0-d (solvers pass that), `(1,)`, `(batch,)` (training passes that), `(batch, 1, ..., 1)` or of `x`'s shape.
        x: a state, `(batch, ...)`.

    Returns:
        0-d, or of `x`'s rank with each axis of its length or 1.

    Raises:
        TypeError: if `t` is not floating point.
        ValueError: for any other shape.
    """
    _check_time(t)
    if t.numel() == 1:
        return t.reshape(())
    if t.ndim == 1 and len(t) == len(x):
        return t.reshape(-1, *(1 for _ in x.shape[1:]))
    if t.ndim == x.ndim and all(m in (1, n) for m, n in zip(t.shape, x.shape, strict=True)):
        return t
    raise _bad_time(t, x)


def sample_time(t: Any, x: Tensor) -> Tensor:
    """One time a sample, `(batch,)`, as networks take it.

    Args:
        t: as `align_time` takes it; one of `x`'s shape must be the same for all entries of a sample.
        x: a state, `(batch, ...)`.

    Raises:
        TypeError: if `t` is not floating point.
        ValueError: for any other shape, or times that differ within a sample.
    """
    _check_time(t)
    batch = len(x)
    if t.numel() == 1:
        return t.reshape(1).expand(batch)
    t = align_time(t, x)
    if len(t) == batch and t.numel() == batch:
        return t.reshape(batch)
    rows = t.expand(batch, *t.shape[1:]).flatten(1)
    if not bool((rows == rows[:, :1]).all()):
        raise ValueError(
            f"`t` must be one time a sample for a network; got {tuple(t.shape)} with times that differ within a sample."
        )
    return rows[:, 0]


def _check_time(t: Any) -> None:
    if not isinstance(t, Tensor):
        raise TypeError(
            f"`t` must be a tensor; got {type(t).__name__}. Write torch.as_tensor(t, device=x.device)."
        )
    if not t.is_floating_point():
        raise TypeError(
            f"`t` must be floating point; got {t.dtype}. Write `t.float()`; a DDPM index k of T is the time "
            "t = 1 - k / (T - 1)."
        )


def _bad_time(t: Tensor, x: Tensor) -> ValueError:
    return ValueError(
        f"`t` must be 0-d, (1,), (batch,), (batch, 1, ..., 1) or of the state's shape; got {tuple(t.shape)} for a "
        f"state of {tuple(x.shape)}."
    )


def check_mask(mask: Any, x: Tensor, like: str = "x_1") -> Tensor:
    """`mask` with the batch axis of `x`; an error unless it is bool and broadcasts to `x` axis by axis.

    Args:
        mask: bool, True = missing (to be generated), of `x`'s rank, each axis of its length or 1.
        x: what the mask is of, `(batch, ...)`.
        like: what the caller calls `x`.

    Raises:
        TypeError: for a mask that is not a bool tensor.
        ValueError: for another shape.
    """
    if not isinstance(mask, Tensor):
        raise TypeError(
            f"`mask` must be a tensor, bool with True = missing (to be generated); got {type(mask).__name__}. "
            "Write torch.as_tensor(mask, device=x.device)."
        )
    if mask.dtype != torch.bool:
        raise TypeError(
            f"`mask` must be bool with True = missing (to be generated); got {mask.dtype}. Values from 0 to 1 become a "
            "mask by `mask > 0.5`, bytes by `mask > 127`; write `<=` if yours marks the known pixels."
        )
    fits = mask.ndim == x.ndim and all(
        m in (1, n) for m, n in zip(mask.shape, x.shape, strict=True)
    )
    if not fits:
        raise ValueError(
            f"`mask` must have as many axes as `{like}`, each of its length or 1: (batch, 1, height, width) for "
            f"images, (batch, length, 1) for sequences with channels last; got mask {tuple(mask.shape)} for {like} "
            f"{tuple(x.shape)}."
        )
    return mask.expand(len(x), *mask.shape[1:])


def entry_mask(extras: Mapping[str, object], x: Tensor) -> Tensor | None:
    """The `mask` among the extras if it is one of `x`'s entries: bool, of `x`'s rank, each axis of its length or 1.

    Any other `mask` is the network's own affair, for example one of the tokens that it attends to.
    """
    mask = extras.get("mask")
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.ndim != x.ndim:
        return None
    fits = all(m in (1, n) for m, n in zip(mask.shape, x.shape, strict=True))
    return mask.expand(len(x), *mask.shape[1:]) if fits else None


def check_extras(extras: Mapping[str, Any], x: Tensor) -> dict[str, Any]:
    """The extras of a batch, checked, with a mask of `x`'s entries expanded to the batch.

    A tensor with an axis holds one entry a sample, also in dicts, lists and tuples (upstream's `extra={"label": y}`);
    what all samples share is said to be, by `shared`. Anything else, 0-d tensors included, is shared as it is.

    Args:
        extras: by name.
        x: the state, `(batch, ...)`.

    Raises:
        ValueError: for a tensor of another length.
    """
    batch, mask = len(x), entry_mask(extras, x)
    checked = {
        name: _walk(value, name, lambda path, tensor: _one_a_sample(path, tensor, batch))
        for name, value in extras.items()
        if name != "mask" or mask is None
    }
    return checked if mask is None else {**checked, "mask": mask}


def _one_a_sample(name: str, value: Tensor, batch: int) -> Tensor:
    if len(value) != batch:
        raise ValueError(
            f"`{name}` must hold one entry a sample, ({batch}, ...); got {tuple(value.shape)}. If all samples share "
            f"it, write {name}=shared({name}), from fm_ext.utils."
        )
    return value


def map_samples(extras: Mapping[str, Any], change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """Checked extras, with every tensor that holds one entry a sample changed."""
    return {name: _walk(value, name, lambda _, v: change(v)) for name, value in extras.items()}


def repeat_samples(value: Tensor, copies: int) -> Tensor:
    """The whole batch, as often as said: `(copies * batch, ...)`."""
    return value.repeat(copies, *(1 for _ in value.shape[1:]))


def map_tensors(extras: Mapping[str, Any], change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """The extras, with every tensor changed, shared ones too."""
    return {
        name: _walk(value, name, lambda _, v: change(v), everything=True)
        for name, value in extras.items()
    }


def open_shared(extras: Mapping[str, Any]) -> dict[str, Any]:
    """The extras as a network takes them: without the marks of what is shared."""
    return {name: _open(value) for name, value in extras.items()}


def _walk(
    value: Any, name: str, change: Callable[[str, Tensor], Tensor], everything: bool = False
) -> Any:
    if isinstance(value, Tensor):
        return change(name, value) if value.ndim > 0 or everything else value
    if isinstance(value, shared):
        return shared(_walk(value.value, name, change, everything)) if everything else value
    if isinstance(value, Mapping):
        return {
            key: _walk(item, f"{name}[{key!r}]", change, everything) for key, item in value.items()
        }
    if type(value) in (list, tuple):
        items = (_walk(item, f"{name}[{i}]", change, everything) for i, item in enumerate(value))
        return type(value)(items)
    return value


def _open(value: Any) -> Any:
    if isinstance(value, shared):
        return value.value
    if isinstance(value, Mapping):
        return {key: _open(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_open(item) for item in value)
    return value


def check_whole(name: str, value: Any, least: int) -> int:
    """A whole number as an int, numpy's and a tensor's too.

    Raises:
        TypeError: for anything else, True included.
        ValueError: below `least`.
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    rule = f"`{name}` must be a whole number of at least {least}; got {value!r}"
    if number is None:
        raise TypeError(f"{rule} of type {type(value).__name__}.")
    if number < least:
        raise ValueError(f"{rule}.")
    return number


def check_size(name: str, value: Any) -> tuple[int, int]:
    """Pixels, one number or (height, width), as (height, width).

    Raises:
        TypeError: for a length that is no whole number.
        ValueError: for a length below 1, and for another number of lengths.
    """
    lengths = tuple(value) if isinstance(value, Iterable) else (value, value)
    if len(lengths) != 2 or isinstance(value, str):
        fix = f" Fix: `{lengths[-2:]}`." if len(lengths) > 2 and not isinstance(value, str) else ""
        raise ValueError(
            f"`{name}` must be pixels, one number or (height, width); got {value!r}.{fix}"
        )
    height, width = (check_whole(name, length, 1) for length in lengths)
    return height, width


def check_answer(answer: Any, x: Tensor, model: object) -> Tensor:
    """A model's answer, of the shape of the state that it was asked at.

    Raises:
        TypeError: if it is no tensor.
        ValueError: for another shape, which would be broadcast.
    """
    if not isinstance(answer, Tensor):
        raise TypeError(
            f"`model` must answer with a tensor; {type(model).__name__} answered with {type(answer).__name__}. "
            "UNetWrapper(model) takes the tensor out of a network's output."
        )
    if answer.shape != x.shape:
        raise ValueError(
            f"`model` must answer with the shape of its state, {tuple(x.shape)}; {type(model).__name__} answered with "
            f"{tuple(answer.shape)}. A network with more input channels than image channels needs out_channels=."
        )
    return answer


def is_wrapper(model: object) -> bool:
    """Whether a model is one of fm_ext's wrappers, compiled or not, which say what they take and open `shared`."""
    return getattr(model, "opens_shared", False) is True


def taken_extras(model: object) -> frozenset[str] | None:
    """The extras that a model takes; None for any.

    A wrapper says so by its attribute `takes`; of another model it is what its own signature names.
    """
    if is_wrapper(model):
        return model.takes  # pyright: ignore[reportAttributeAccessIssue]
    inner: Any = getattr(model, "_orig_mod", model)  # torch.compile hides the signature
    try:
        parameters = inspect.signature(getattr(inner, "forward", inner)).parameters.values()
    except (TypeError, ValueError):  # a built-in has none
        return None
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    names = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return frozenset(names - {"x", "t"})


def randn_like(
    x: Tensor, generator: torch.Generator | None, dtype: torch.dtype | None = None
) -> Tensor:
    """Standard normal numbers of `x`'s shape, drawn where the generator lives and moved to `x`'s device."""
    device = x.device if generator is None else generator.device
    z = torch.randn(x.shape, dtype=dtype or x.dtype, device=device, generator=generator)
    return z.to(x.device)
