"""The base of all wrappers of velocity models: flow_matching's, which also tells what is inside."""

from typing import Any, ClassVar

import torch
from flow_matching.path.scheduler import Scheduler
from flow_matching.utils import ModelWrapper as UpstreamModelWrapper
from torch import Tensor

from fm_ext.utils.inputs import check_answer, entry_mask, is_wrapper, open_shared, taken_extras


class ModelWrapper(UpstreamModelWrapper):
    """A velocity model around another one: upstream's class, and what other wrappers and solvers need to know of it.

    To write a wrapper of your own, subclass, name its own extras in `own`, and ask the wrapped model by `self.ask`. It
    then nests with those of `fm_ext.models`: a wrapper that changes the state or the time holds known entries, in any
    order, and a nesting that has no right answer is refused.

    Attributes:
        own: the extras that the wrapper itself takes.
        holds_itself: whether the wrapper reads the `mask` itself and makes its velocity 0 at known entries, as one that
            transforms the state or the time does.
        takes: all extras that it and what is inside take; None for any.
        schedule: the schedule on which it lives, where something inside says so; else None.
        answers: "velocity" where something inside makes its answer one, whatever the network predicts; else None.
        holds_known: whether its velocity is 0 at known entries where a `mask` is among the extras.
        reads_mask: whether something inside needs the `mask` for more than handing it to the network.
        null_label: the class that stands for no class, where the network has one; else None.
    """

    own: ClassVar[frozenset[str]] = frozenset()
    holds_itself: ClassVar[bool] = False
    opens_shared: ClassVar[bool] = True

    @property
    def takes(self) -> frozenset[str] | None:
        """All extras that the wrapper and what is inside take; None for any."""
        inner = taken_extras(self.model)
        return None if inner is None else inner | self.own

    @property
    def schedule(self) -> Scheduler | None:
        """The schedule on which the wrapper lives; None if nothing inside says."""
        return getattr(self.model, "schedule", None)

    @property
    def answers(self) -> str | None:
        """What the answer is: "velocity" where something inside makes it one, None if the network decides."""
        return getattr(self.model, "answers", None)

    @property
    def holds_known(self) -> bool:
        """Whether the velocity is 0 at known entries where a `mask` is among the extras."""
        return self.holds_itself or getattr(self.model, "holds_known", False)

    @property
    def reads_mask(self) -> bool:
        """Whether something inside needs the `mask` for more than handing it to the network."""
        return self.holds_itself or getattr(self.model, "reads_mask", False)

    @property
    def null_label(self) -> int | None:
        """The class that stands for no class."""
        return getattr(self.model, "null_label", None)

    def forward(self, x: Tensor, t: Tensor, **extras: Any) -> Tensor:
        """Asks the wrapped model; a subclass changes what goes in or comes out."""
        return self.ask(x, t, extras)

    def ask(self, x: Tensor, t: Tensor, extras: dict[str, Any]) -> Tensor:
        """The wrapped model's answer at `x` and `t`.

        Raises:
            TypeError: if it is no tensor.
            ValueError: if it has not the shape of `x`.
        """
        return check_answer(self.call(x, t, extras), x, self.model)

    def call(self, x: Tensor, t: Tensor, extras: dict[str, Any]) -> Any:
        """`ask`, whatever the shape of the answer."""
        if not is_wrapper(self.model):  # a network: wrappers pass on what they were given
            mask = entry_mask(extras, x)
            extras = open_shared(extras if mask is None else {**extras, "mask": mask})
        return self.model(x=x, t=t, **extras)


def hold_known(velocity: Tensor, mask: Tensor | None) -> Tensor:
    """`velocity`, exactly 0 at known entries; a product would keep what is infinite there."""
    return velocity if mask is None else torch.where(mask, velocity, 0)
