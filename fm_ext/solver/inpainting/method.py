"""The interface of a method of inpainting, and what each assumes of the model's training."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any, ClassVar

from torch import Tensor

from fm_ext.solver.inpainting.problem import Problem


class Method(ABC):
    r"""A way to fill missing entries by a model of the whole: a frozen dataclass, whose fields are its options.

    Attributes:
        noisy: whether its formula has a place for noisy known entries.
        independent: whether it assumes that $X_0$ and $X_1$ were drawn independently in training.
        gaussian: whether it assumes $X_0 \sim N(0, I)$.
    """

    noisy: ClassVar[bool] = False
    independent: ClassVar[bool] = True
    gaussian: ClassVar[bool] = False

    @abstractmethod
    def fill(self, problem: Problem) -> Tensor:
        """A completion, `(batch, ...)`; what stands at its known entries does not count where there is no noise."""


Rule = tuple[Callable[[Any], bool], str]  # whether it holds, and the rule in words


def check(owner: str | None, **rules: tuple[object, Rule]) -> None:
    """Raises for the first value whose rule is broken, of a method's option or of the solver's own (`owner` None)."""
    for name, (value, (holds, words)) in rules.items():
        if not holds(value):
            of = "" if owner is None else f" of method {owner!r}"
            raise ValueError(f"`{name}`{of} must be {words}; got {value!r}.")


def whole(least: int) -> Rule:
    """Whole numbers, numpy's too."""
    return lambda v: _number(v, Integral) and v >= least, f"a whole number of at least {least}"


def real(words: str, holds: Callable[[Any], bool]) -> Rule:
    """Numbers of which something holds."""
    return lambda v: _number(v, Real) and holds(v), words


def _number(value: object, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)
