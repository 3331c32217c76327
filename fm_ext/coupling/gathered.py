"""A coupling of the batches of all processes."""

from typing import final

import torch
import torch.distributed as dist
from jaxtyping import Bool, Int64, Shaped
from torch import Tensor

from fm_ext.coupling.coupling import Coupling, check_conditions


@final
class GatheredCoupling(Coupling):
    """Couples the batches of all processes as one: gather, solve on the first, take your share.

    Two processes with B rows each get the pairs that one process with their 2B rows gets: optimal transport
    improves with the batch, and a run should not depend on the number of its GPUs. Without a process group, or with one
    process, this is the coupling itself.

    Every process must call it, with as many rows as the others and with the same conditions.

    Args:
        coupling: what is applied to the whole batch.

    Raises:
        TypeError: if it is no coupling.
        ValueError: if it is a `GatheredCoupling` already.
    """

    def __init__(self, coupling: Coupling):
        if not isinstance(coupling, Coupling):
            raise TypeError(
                f"`coupling` must be a fm_ext.coupling.Coupling, for example OptimalTransport(); got {coupling!r}."
            )
        if isinstance(coupling, GatheredCoupling):
            raise ValueError(
                "`coupling` must not gather itself: give the coupling that is inside of it."
            )
        self.coupling = coupling

    @property
    def keeps_pairs(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the coupling does."""
        return self.coupling.keeps_pairs

    def __call__(
        self,
        x_0: Shaped[Tensor, " batch *dim"],
        x_1: Shaped[Tensor, " batch *dim"],
        *,
        mask: Bool[Tensor, "..."] | None = None,
        label: Shaped[Tensor, " batch"] | None = None,
        condition: Shaped[Tensor, " batch ..."] | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Shaped[Tensor, " batch *dim"], Int64[Tensor, " batch"]]:
        """This process's share of the coupling of all rows; see [`Coupling`][fm_ext.coupling.Coupling].

        Args:
            x_0: sources of this process, `(batch, ...)`.
            x_1: targets of this process.
            mask: of this process's targets, or one for all of them.
            label: of this process's targets.
            condition: of this process's targets.
            generator: the first process's is used.

        Returns:
            The sources of this process's targets, which may come from any process; and their rows in the batch of all
            processes, in the order of ranks.

        Raises:
            ValueError: if the processes hold batches of different sizes, a condition has not a row a target, `x_0`
                requires a gradient, which cannot flow back to other processes, or the coupling returns sources of
                another shape or dtype.
            Exception: what the coupling raises on the first process, there; on the others a ValueError or TypeError if
                it is one, else a RuntimeError, with its message.
        """
        if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return self.coupling(
                x_0, x_1, mask=mask, label=label, condition=condition, generator=generator
            )
        mask = check_conditions(x_1, mask, label, condition)
        if x_0.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                "`x_0` must not require a gradient, which ends at the exchange between processes: x_0.detach()."
            )
        batch = len(x_1)
        sizes = torch.tensor([batch, -batch], device=x_1.device)
        dist.all_reduce(sizes, dist.ReduceOp.MAX)
        largest, smallest = sizes[0].item(), -sizes[1].item()
        if largest != smallest:
            raise ValueError(
                f"`x_1` must have as many rows on every process; got {smallest} to {largest}. Drop the last, smaller "
                "batch (drop_last=True)."
            )
        everything = _gather(x_0), _gather(x_1)
        mask, label, condition = (
            None if rows is None else _gather(rows) for rows in (mask, label, condition)
        )
        share = torch.empty(x_0.shape, dtype=x_0.dtype, device=x_0.device)
        index = torch.empty(batch, dtype=torch.int64, device=x_0.device)
        parts: tuple[list[Tensor], list[Tensor]] | tuple[None, None] = (None, None)
        failure: Exception | None = None
        if dist.get_rank() == 0:
            try:
                paired, chosen = self.coupling(
                    *everything, mask=mask, label=label, condition=condition, generator=generator
                )
                _check_like(everything[0], "sources", paired)
                _check_like(index.new_empty(len(paired)), "indices", chosen)
                parts = list(paired.split(batch)), list(chosen.split(batch))
            except Exception as error:
                failure = error
        _raise_everywhere(failure)
        dist.scatter(share, parts[0])
        dist.scatter(index, parts[1])
        return share, index

    def source(
        self,
        x_0: Shaped[Tensor, " batch *dim"],
        *,
        mask: Bool[Tensor, "..."] | None = None,
        label: Shaped[Tensor, " batch"] | None = None,
        condition: Shaped[Tensor, " batch ..."] | None = None,
        generator: torch.Generator | None = None,
    ) -> Shaped[Tensor, " batch *dim"]:
        """What the coupling starts sampling from."""
        return self.coupling.source(
            x_0, mask=mask, label=label, condition=condition, generator=generator
        )


def _check_like(expected: Tensor, what: str, got: Tensor) -> None:
    """Raises where a share could not be received: every process expects what it has sent."""
    if got.shape != expected.shape or got.dtype != expected.dtype:
        raise ValueError(
            f"`coupling` must return {what} {tuple(expected.shape)} of {expected.dtype} to be shared; got "
            f"{tuple(got.shape)} of {got.dtype}."
        )


def _raise_everywhere(failure: Exception | None) -> None:
    """Raises the first process's failure on all of them, so that none waits for its share."""
    status = [None if failure is None else (type(failure).__name__, str(failure))]
    dist.broadcast_object_list(status)
    if failure is not None:
        raise failure
    if status[0] is not None:
        name, message = status[0]
        raise {"ValueError": ValueError, "TypeError": TypeError}.get(name, RuntimeError)(message)


def _gather(x: Tensor) -> Tensor:
    """The rows of all processes on the first one; anything on the others."""
    first = dist.get_rank() == 0
    sent = x.contiguous()
    sent = sent.view(torch.uint8) if x.dtype == torch.bool else sent  # gloo has no bool
    parts = [torch.empty_like(sent) for _ in range(dist.get_world_size())] if first else None
    dist.gather(sent, parts)
    return x if parts is None else torch.cat(parts).view(x.dtype)
