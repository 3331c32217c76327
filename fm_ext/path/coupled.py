"""Probability paths between sources and targets that a coupling has paired."""

from dataclasses import dataclass, fields
from typing import Any

import torch
from flow_matching.path import DiscretePathSample, ProbPath
from jaxtyping import Shaped
from torch import Tensor

from fm_ext.coupling import Coupling, GatheredCoupling
from fm_ext.path.masked import MaskedDiscretePathSample, MaskedPathSample
from fm_ext.path.wrapper import PathWrapper

UNUSED = frozenset({"label", "condition", "generator"})
"""What may be given where nothing takes it, so that one coupling can stand in for another."""


@dataclass
class CoupledPathSample(MaskedPathSample):
    r"""A `PathSample` that remembers which source each target was paired with, and its mask if it has one.

    Attributes:
        x_0: the source that was used: in the order of the targets, with noise if the coupling adds any.
        source_index: int64 `(batch,)`, the row of the given `x_0` that it was made from.
    """

    source_index: Tensor | None = None


@dataclass
class CoupledDiscretePathSample(MaskedDiscretePathSample):
    r"""A `DiscretePathSample` that remembers which source each target was paired with, and its mask if it has one.

    Attributes:
        x_0: the source that was used, in the order of the targets.
        source_index: int64 `(batch,)`, the row of the given `x_0` that it was made from.
    """

    source_index: Tensor | None = None


class CoupledProbPath(PathWrapper):
    r"""Pairs sources with targets by a coupling, and moves along `path` between them.

    $(X_0, X_1) \sim \pi$ instead of the pairs as they came. Targets, and all that belongs to them, keep their order.

    Composes with `MaskedProbPath` either way round: sources are paired first, known entries pinned last, so
    `MaskedProbPath(CoupledProbPath(path, coupling))` and `CoupledProbPath(MaskedProbPath(path), coupling)` are the
    same. Nested in itself, the outer coupling pairs first: `CoupledProbPath(CoupledProbPath(path, NoisySource(0.1)),
    OptimalTransport())` adds noise to optimal pairs.

    Identities that need noise independent of the data (scores, $\epsilon$-prediction, guidance by scores) do not hold
    under a coupling; the velocity does, and $E[X_1 \mid X_t]$ from it.

    Args:
        path: the path between the pairs: any upstream path, or ours.
        coupling: how the pairs are made.

    Raises:
        TypeError: for a path or coupling of another kind.
        ValueError: if `path` holds a `GatheredCoupling`, which can only be the outermost one.
    """

    def __init__(self, path: ProbPath, coupling: Coupling):
        super().__init__(path)
        if not isinstance(coupling, Coupling):
            raise TypeError(
                f"`coupling` must be a fm_ext.coupling.Coupling, for example OptimalTransport(); got {coupling!r}."
            )
        inner = _nested(path)
        if inner is not None and isinstance(inner.coupling, GatheredCoupling):
            raise ValueError(
                "`path` must not gather inside another coupling: its sources come from all processes, and the outer "
                "one knows the rows of its own only. Let the outermost coupling be the GatheredCoupling."
            )
        self.coupling = coupling
        self._own = None if coupling.takes is None else coupling.takes | UNUSED

    def sample(
        self,
        x_0: Shaped[Tensor, " batch *dim"],
        x_1: Shaped[Tensor, " batch *dim"],
        t: Shaped[Tensor, " batch"],
        **conditions: Any,
    ) -> Any:  # a union would make every user of `dx_t` narrow it first
        """Pairs, and samples the wrapped path.

        Args:
            x_0: sources, `(batch, ...)`.
            x_1: targets, of the same shape.
            t: times, `(batch,)`.
            **conditions: what else belongs to the targets, row by row (`label`, `mask`, `condition`), and `generator`:
                coupling and wrapped path get those that they take. `label`, `condition` and `generator` may go unused.

        Returns:
            A `CoupledPathSample`, or a `CoupledDiscretePathSample` over a discrete path.

        Raises:
            TypeError: for any other name that neither takes: a misspelt one, or a mask that would hold nothing.
            ValueError: if the sources that the coupling chose have not the shape of the targets.
        """
        self.assert_sample_shape(x_0=x_0, x_1=x_1, t=t)
        self._check_names(conditions)
        paired, index = self.coupling(x_0, x_1, **_only(self.coupling.takes, conditions))
        if paired.shape != x_1.shape:
            raise ValueError(
                f"`x_0` and `x_1` must have the same shape, a grey source is not one of colour; got "
                f"{tuple(paired.shape)} and {tuple(x_1.shape)}. Write `x_0.expand_as(x_1)` if broadcasting is meant."
            )
        sample = self.path.sample(x_0=paired, x_1=x_1, t=t, **_only(self._inner, conditions))
        values = {field.name: getattr(sample, field.name) for field in fields(sample)}
        if isinstance(sample, CoupledPathSample | CoupledDiscretePathSample):
            index = index[sample.source_index]
        values["source_index"] = index
        if isinstance(sample, DiscretePathSample):
            return CoupledDiscretePathSample(**values)
        return CoupledPathSample(**values)

    def source(
        self, x_0: Shaped[Tensor, " batch *dim"], generator: torch.Generator | None = None
    ) -> Shaped[Tensor, " batch *dim"]:
        """What sampling starts from: `x_0`, with what the coupling adds to every source; it needs no target.

        Args:
            x_0: sources, `(batch, ...)`.
            generator: source of the randomness, on the device of `x_0`; the global one if None.
        """
        return super().source(self.coupling.source(x_0, generator), generator)

    def _check_names(self, conditions: dict[str, Any]) -> None:
        taken = self.takes
        if taken is None:
            return
        for name, value in conditions.items():
            if value is not None and name not in taken:
                fix = "wrap the path in MaskedProbPath" if name == "mask" else "leave it out"
                raise TypeError(
                    f"`{name}` is no condition that {type(self.coupling).__name__} obeys or that "
                    f"{type(self.path).__name__} takes: {fix}, or give one of {', '.join(sorted(taken))}."
                )


def _only(names: frozenset[str] | None, conditions: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in conditions.items() if names is None or k in names}


def _nested(path: ProbPath) -> CoupledProbPath | None:
    """The coupled path that `path` is, or has inside other wrappers."""
    while isinstance(path, PathWrapper):
        if isinstance(path, CoupledProbPath):
            return path
        path = path.path
    return None
