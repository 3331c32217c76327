"""The model as solvers ask it: extras and state are checked, precision is converted, evaluations are counted."""

import inspect
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any, TypeVar

import torch
from torch import Tensor
from tqdm.auto import tqdm

from fm_ext.utils.inputs import check_answer, is_wrapper, open_shared, taken_extras

T = TypeVar("T")
# What other libraries, and other solvers of this one, call a keyword: the first that the solver has is meant.
ALIASES = {
    "dt": ("step_size", "steps"),
    "n": ("steps", "step_size"),
    "n_samples": ("fills",),
    "nfe": ("steps", "step_size"),
    "noise_level": ("noise_std",),
    "num_fills": ("fills",),
    "num_inference_steps": ("steps", "step_size"),
    "num_samples": ("fills",),
    "num_steps": ("steps", "step_size"),
    "seed": ("generator",),
    "sigma_y": ("noise_std",),
    "step_size": ("steps",),
    "steps": ("step_size",),
    "t_span": ("time_grid", "steps"),
    "time_grid": ("steps",),
    "time_steps": ("time_grid", "steps"),
    "times": ("time_grid", "steps"),
    "timesteps": ("time_grid", "steps"),
    "verbose": ("progress",),
}


def check_keywords(
    model: object, extras: Mapping[str, object], solver: object, method: str
) -> None:
    """Raises for an extra that the model cannot take, or that is a misspelt keyword of the solver.

    A model that names its extras is believed. One that takes any is believed too, unless the name is close to a keyword
    of the solver's `method`, or is in `ALIASES`, or is an argument of the solver's class: the model would swallow it,
    and what was asked would not be done.
    """
    if not extras:
        return
    taken = taken_extras(model)
    keywords = list(inspect.signature(getattr(type(solver), method)).parameters)
    at_construction = inspect.signature(type(solver).__init__).parameters
    for name in extras:
        if taken is not None and name in taken:
            continue
        meant = [alias for alias in ALIASES.get(name, ()) if alias in keywords]
        if not meant and name in at_construction:
            meant = [f"{type(solver).__name__}(..., {name}=...)"]
        meant = meant or get_close_matches(name, keywords, n=1, cutoff=0.8)
        if meant:
            raise TypeError(
                f"`{name}` is no keyword of the solver: did you mean `{meant[0]}`? If it is the model's, name it in "
                "its forward."
            )
        if taken is not None:
            raise TypeError(
                f"`{name}` is taken neither by the solver nor by {type(model).__name__}, which takes "
                f"{', '.join(sorted(taken)) or 'no extras'}."
            )


def check_state(name: str, x: object) -> None:
    """Raises unless `x` is a batch of floating point numbers."""
    if not isinstance(x, Tensor):
        raise TypeError(f"`{name}` must be a tensor; got {type(x).__name__}.")
    if not x.is_floating_point():
        hint = " Images of bytes become data by `x.float() / 127.5 - 1`."
        raise TypeError(
            f"`{name}` must be floating point; got {x.dtype}.{hint if x.dtype == torch.uint8 else ''}"
        )
    if x.ndim == 0:
        raise ValueError(f"`{name}` must have a batch axis, (batch, ...); got a 0-d tensor.")


class TimePrecision:
    """Gives a model the time in float32 although its state is in half precision, or in half where it cannot take that.

    Half precision has 256 times between 0.5 and 1 at most, and so too few for many steps. But a network that puts `t`
    beside `x` in one tensor, without a cast, gets float32 for both then, and fails on its own weights. So the first
    evaluation that fails on the dtypes is tried again with the time in `x`'s; if it works, so are all that follow.

    Args:
        dtype: of the state as the model gets it.
    """

    def __init__(self, dtype: torch.dtype):
        self.dtype = dtype
        self.settled: torch.dtype | None = None
        if torch.promote_types(dtype, torch.float32) == dtype:
            self.settled = dtype

    def __call__(self, ask: Callable[[Tensor], T], t: Tensor) -> T:
        """`ask(t)`; errors of the model are its own."""
        if self.settled is not None:
            return ask(t.to(self.settled))
        try:
            answer = ask(t)
            self.settled = t.dtype
        except RuntimeError as error:
            if not any(words in str(error) for words in ("dtype", "scalar type", " type (")):
                raise
            try:
                answer = ask(t.to(self.dtype))
            except Exception:
                answer = None
            if answer is None:
                raise
            self.settled = self.dtype
        return answer


class Field:
    """`(t, x) -> v` of a model and its extras.

    Args:
        model: the velocity model.
        extras: handed to it, `shared` ones as what they hold unless it is a wrapper.
        dtype: what it gets `x` in.
        bar: told of every evaluation.

    Attributes:
        nfe: evaluations so far.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        extras: dict[str, Any],
        dtype: torch.dtype,
        bar: tqdm | None = None,
    ):
        self.model, self.dtype, self.bar = model, dtype, bar
        self.extras = extras if is_wrapper(model) else open_shared(extras)
        self.in_time = TimePrecision(dtype)
        self.nfe = 0

    def __call__(self, t: Tensor, x: Tensor) -> Tensor:
        velocity = self.velocity(t, x)
        self.count(1)
        return velocity

    def count(self, evaluations: int) -> None:
        """Takes note of evaluations."""
        self.nfe += evaluations
        if self.bar is not None and not self.bar.disable:
            self.bar.update(evaluations)

    def velocity(self, t: Tensor, x: Tensor) -> Tensor:
        """An evaluation that is not counted.

        Raises:
            TypeError: if the model's answer is no tensor.
            ValueError: if it has not the shape of `x`.
        """
        narrow = x.to(self.dtype)
        answer = self.in_time(lambda time: self.model(x=narrow, t=time, **self.extras), t)
        return check_answer(answer, x, self.model).to(x.dtype)


def collect(x: Tensor, states: Iterator[Tensor], count: int) -> Tensor:
    """The last state if `count` is 1, else `x` and all, in `x`'s dtype."""
    if count == 1:
        return deque(states, maxlen=1)[0].to(x.dtype)
    if torch.is_grad_enabled():
        return torch.stack([x, *(state.to(x.dtype) for state in states)])
    result = x.new_empty(count, *x.shape)
    result[0] = x
    for row, state in zip(result[1:], states, strict=True):
        row.copy_(state)
    return result
