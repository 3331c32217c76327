"""Probability paths between sources and targets that a coupling has paired."""

from typing import Any

import torch
from flow_matching.path import ProbPath
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from fm_ext.coupling import Coupling, GatheredCoupling
from fm_ext.path.wrapper import PathWrapper, nested_paths, with_fields


class CoupledProbPath(PathWrapper):
    r"""Pairs sources with targets by a coupling, and moves along `path` between them.

    $(X_0, X_1) \sim \pi$ instead of the pairs as they came. Targets, and all that belongs to them, keep their order.

    Composes with `MaskedProbPath` either way round: sources are paired first, known entries pinned last, so
    `MaskedProbPath(CoupledProbPath(path, coupling))` and `CoupledProbPath(MaskedProbPath(path), coupling)` are the
    same. Nested in itself, the outer coupling pairs first: `CoupledProbPath(CoupledProbPath(path, NoisySource(0.1)),
    OptimalTransport())` adds noise to optimal pairs.

    What the wrapped path has (its scheduler, its conversions) is reachable through the wrapper. Target, epsilon (which
    is $X_0$) and velocity determine each other at given $X_t$ under any coupling, and so do their means. A score does
    not: $-E[X_0 \mid X_t] / \sigma_t$ is the score of $X_t$ only if $X_0$ is noise that is independent of the data. The
    six conversions from and to the score therefore raise, unless the coupling keeps the pairs as they came.

    Args:
        path: the path between the pairs: any upstream path, ours, or your own.
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
                "one knows the rows of its own only. Let the outermost coupling be the GatheredCoupling: "
                f"CoupledProbPath(CoupledProbPath(path, {type(coupling).__name__}(...)), "
                f"GatheredCoupling({type(inner.coupling.coupling).__name__}(...)))."
            )
        self.coupling = coupling

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
        **extras: Any,
    ) -> Any:
        """Pairs, and samples the wrapped path.

        Args:
            x_0: sources, `(batch, ...)`.
            x_1: targets, of the same shape.
            t: times, 0-d, `(1,)`, `(batch,)` or `(batch, 1, ..., 1)`.
            mask: for the coupling, and for the wrapped path if it is of `fm_ext.path`; so are the next three. It is
                `MaskedProbPath`, inside or outside, that holds known entries.
            label: see `mask`.
            condition: see `mask`.
            generator: see `mask`.
            **extras: handed to the wrapped path as they are.

        Returns:
            The wrapped path's sample with a field `source_index`, int64 `(batch,)`, the row of the given `x_0` that
            each source was made from. Its `x_0` is the source that was used, in the order of the targets, with noise if
            the coupling adds any.

        Raises:
            TypeError: for a name that the wrapped path does not take.
            ValueError: if the sources that the coupling chose have not the shape of the targets.
            AssertionError: if the batch sizes differ.
        """
        t = self._times(x_0, x_1, t)
        given = {"mask": mask, "label": label, "condition": condition, "generator": generator}
        paired, index = self.coupling(
            x_0, x_1, mask=mask, label=label, condition=condition, generator=generator
        )
        if paired.shape != x_1.shape:
            raise ValueError(
                f"`x_0` and `x_1` must have the same shape, also where one is grey; got "
                f"{tuple(paired.shape)} and {tuple(x_1.shape)}. Write `x_0.expand_as(x_1)` if broadcasting is meant."
            )
        sample = self._sample(paired, x_1, t, given, extras)
        if _nested(self.path) is not None:
            index = index[sample.source_index]
        return with_fields(sample, source_index=index)

    def source(
        self,
        x_0: Shaped[Tensor, " batch *dim"],
        *,
        mask: Bool[Tensor, "..."] | None = None,
        label: Shaped[Tensor, " batch"] | None = None,
        condition: Shaped[Tensor, " batch ..."] | None = None,
        generator: torch.Generator | None = None,
    ) -> Shaped[Tensor, " batch *dim"]:
        """What sampling starts from: `x_0`, with what the coupling adds to every source; it needs no target.

        Args:
            x_0: sources, `(batch, ...)`.
            mask: for the coupling and the wrapped path; so are the others.
            label: see `mask`.
            condition: see `mask`.
            generator: source of the randomness; the global one if None.
        """
        x_0 = self.coupling.source(
            x_0, mask=mask, label=label, condition=condition, generator=generator
        )
        return super().source(x_0, mask=mask, label=label, condition=condition, generator=generator)

    def _convert(self, name: str, *args: Any, **kwargs: Any) -> Tensor:
        if "score" in name and not self.coupling.keeps_pairs:
            raise ValueError(
                f"`{name}` needs noise that is independent of the data, and {type(self.coupling).__name__} makes "
                "sources depend on them. Convert target, epsilon or velocity, which determine each other "
                "under any coupling: path.velocity_to_target(velocity, x_t, t)."
            )
        return super()._convert(name, *args, **kwargs)


def _nested(path: ProbPath) -> CoupledProbPath | None:
    """The coupled path that `path` is, or has inside other wrappers."""
    return next((inner for inner in nested_paths(path) if isinstance(inner, CoupledProbPath)), None)
