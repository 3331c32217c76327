"""What probability paths around other paths have in common."""

import inspect

import torch
from flow_matching.path import ProbPath
from jaxtyping import Shaped
from torch import Tensor


class PathWrapper(ProbPath):
    """A path around another one, to which it hands on what that one takes.

    Args:
        path: the wrapped path.
    """

    _own: frozenset[str] | None = frozenset()
    """What the wrapper itself takes; None for anything."""

    def __init__(self, path: ProbPath):
        if not isinstance(path, ProbPath):
            raise TypeError(
                f"`path` must be a flow_matching.path.ProbPath, for example CondOTProbPath(); "
                f"got {type(path).__name__}."
            )
        self.path = path
        self._inner = taken_by(path)

    @property
    def takes(self) -> frozenset[str] | None:
        """What `sample` takes beside `x_0`, `x_1` and `t`; None for anything."""
        if self._own is None or self._inner is None:
            return None
        return self._own | self._inner

    def source(
        self, x_0: Shaped[Tensor, " batch *dim"], generator: torch.Generator | None = None
    ) -> Shaped[Tensor, " batch *dim"]:
        """What sampling starts from: what the wrapped path says, and `x_0` itself where it says nothing.

        Args:
            x_0: sources, `(batch, ...)`.
            generator: source of the randomness, on the device of `x_0`; the global one if None.
        """
        inner = getattr(self.path, "source", None)
        return x_0 if inner is None else inner(x_0, generator)


def taken_by(path: ProbPath) -> frozenset[str] | None:
    """What `path.sample` takes beside `x_0`, `x_1` and `t`; None for anything."""
    if isinstance(path, PathWrapper):
        return path.takes
    parameters = inspect.signature(path.sample).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    names = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return frozenset(names - {"x_0", "x_1", "t"})
