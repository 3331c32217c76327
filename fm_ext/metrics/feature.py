"""Distances between images in the features of any network, over batches and processes."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from fm_ext.metrics.estimate import Estimate, jackknife
from fm_ext.metrics.frechet import frechet_distance
from fm_ext.metrics.kernel import kernel_distance
from fm_ext.metrics.manifold import coverage, density, precision, recall
from fm_ext.metrics.points import ordered

Figure = Literal["frechet", "kernel", "precision", "recall", "density", "coverage"]

FIGURES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "frechet": frechet_distance,
    "kernel": kernel_distance,
    "precision": precision,
    "recall": recall,
    "density": density,
    "coverage": coverage,
}


class FeatureMetrics(Metric):
    """Collects the features of samples and of real images, and compares the two sets.

    Give batches to `update`, on any number of processes, and call `compute` on all of them. Neither the sizes of the
    batches nor the number of processes matter, nor the order, to rounding. Each image must be given once: a loader
    that repeats some to even out its batches counts them twice.

    Args:
        extractor: images to features, `(batch, features)`: the `features` of a `classifier`, an Inception network, an
            encoder. It gets what `update` gets, and no gradient is kept. A module must be in eval mode, and on the
            device of the images.
        figures: what to compute; see the functions of these names (`frechet_distance`, `kernel_distance`, `precision`,
            `recall`, `density`, `coverage`).
        resamples: halves of the data that make the intervals, see `jackknife`; together they take as long as
            `resamples` / 4 evaluations, those of a Frechet distance / 2.
        kwargs: those of `torchmetrics.Metric`.

    Raises:
        ValueError: for an unknown figure, or none, and fewer than 2 resamples.
    """

    is_differentiable = False
    full_state_update = False
    samples: list[Tensor]
    reference: list[Tensor]

    def __init__(
        self,
        extractor: Callable[[Tensor], Tensor],
        *,
        figures: Sequence[Figure] = ("frechet", "kernel", "density", "coverage"),
        resamples: int = 50,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        unknown = [name for name in figures if name not in FIGURES]
        if unknown or not figures:
            raise ValueError(f"`figures` must be some of {list(FIGURES)}; got {list(figures)}.")
        if resamples < 2:
            raise ValueError(f"`resamples` must be at least 2; got {resamples}.")
        self.extractor = extractor
        self.figures = tuple(figures)
        self.resamples = resamples
        self.add_state("samples", [], dist_reduce_fx="cat")
        self.add_state("reference", [], dist_reduce_fx="cat")

    @torch.no_grad()
    def update(self, images: Float[Tensor, " batch *dim"], *, real: bool) -> None:
        """Take in a batch.

        Args:
            images: what the extractor takes.
            real: whether they are the reference, or samples to be judged.

        Raises:
            ValueError: if the extractor is in training mode, or does not return `(batch, features)`.
        """
        if isinstance(self.extractor, nn.Module) and self.extractor.training:
            raise ValueError(
                "`extractor` must be in eval mode, or its features depend on their batch; call `extractor.eval()` "
                "(`train()` of this metric, or of a module that holds it, reaches it too)."
            )
        features = self.extractor(images)
        if features.ndim != 2 or len(features) != len(images):
            raise ValueError(
                f"`extractor` must return (batch, features), {len(images)} rows here; got {tuple(features.shape)}. "
                "Pool or flatten its maps."
            )
        (self.reference if real else self.samples).append(features)

    def forward(self, images: Float[Tensor, " batch *dim"], *, real: bool) -> None:
        """The same as `update`: one batch has no figures of its own."""
        self.update(images, real=real)

    def sync(self, *args: Any, process_group: Any = None, **kwargs: Any) -> None:
        """Gathers the features of all processes; some may have none."""
        available = kwargs.get("distributed_available") or self.distributed_available_fn
        if kwargs.get("should_sync", True) and available is not None and available():
            group = process_group or self.process_group
            mine = next((part[:0] for part in (*self.samples, *self.reference)), None)
            empties: list[Tensor | None] = [None] * torch.distributed.get_world_size(group)
            torch.distributed.all_gather_object(
                empties, None if mine is None else mine.cpu(), group
            )
            empty = next((part for part in empties if part is not None), None)
            for part in (self.samples, self.reference):
                if not len(part) and empty is not None:
                    part.append(empty.to(self.device if mine is None else mine.device))
        super().sync(*args, process_group=process_group, **kwargs)

    def compute(self) -> dict[str, Estimate]:
        """The figures of all images so far, each with its interval and sample count.

        Raises:
            ValueError: as the functions of the figures: for unequal counts, too few images, or features that are not
                finite. For the interval of a Frechet distance half of the images must exceed the number of features.
        """
        if not len(self.samples) or not len(self.reference):  # tensors, once gathered
            raise ValueError(
                "`update` must have been called with real=True and with real=False before `compute`."
            )
        samples, reference = (
            ordered(dim_zero_cat(part)) for part in (self.samples, self.reference)
        )
        count, dimension = samples.shape
        if "frechet" in self.figures and count // 2 <= dimension:
            raise ValueError(
                f"`samples` must be more than twice as many as the features, for the interval of a Frechet distance; "
                f'got {count} with {dimension} features. Give more images, or leave "frechet" out of `figures`.'
            )
        return {
            name: jackknife(FIGURES[name], samples, reference, resamples=self.resamples)
            for name in self.figures
        }
