"""Samples to judge a model by: sample i always has noise i, on any number of processes.

`draw_samples` and `Samples` need the extra `train`, and are imported when they are asked for; the rest needs torch.
"""

from typing import TYPE_CHECKING, Any

from fm_ext.sampling.count import EvaluationCounter
from fm_ext.sampling.images import to_uint8
from fm_ext.sampling.noise import indexed_noise

if TYPE_CHECKING:
    from fm_ext.sampling.draw import draw_samples
    from fm_ext.sampling.samples import Samples

__all__ = ["EvaluationCounter", "Samples", "draw_samples", "indexed_noise", "to_uint8"]


def __getattr__(name: str) -> Any:
    if name == "draw_samples":
        from fm_ext.sampling.draw import draw_samples

        return draw_samples
    if name == "Samples":
        from fm_ext.sampling.samples import Samples

        return Samples
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
