"""A counter of evaluations, as the network sees them."""

from typing import Any

from torch import Tensor, nn


class EvaluationCounter:
    """Counts the evaluations of a network while it is used as a context.

    What is counted are the samples that pass through `network`, by the first argument with a batch and more; so
    guidance counts twice, whether it calls twice or with a double batch, and an adaptive solver counts its rejected
    steps.

    Args:
        network: the module that is called, not a wrapper that calls it twice.

    Attributes:
        calls: how often it was called.
        evaluations: how many samples it was given, in all calls together.
    """

    def __init__(self, network: nn.Module):
        self.network = network
        self.calls = 0
        self.evaluations = 0

    def __enter__(self) -> "EvaluationCounter":
        self._handle = self.network.register_forward_pre_hook(self._count, with_kwargs=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()

    def _count(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and x.ndim > 1]
        self.calls += 1
        self.evaluations += len(inputs[0]) if inputs else 1
