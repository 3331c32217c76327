"""An endless walk through the epochs of a loader that can begin anywhere."""

from collections.abc import Generator
from typing import Any

from accelerate import Accelerator

from fm_ext.training.randomness import seed_epoch

Position = tuple[int, int]  # epoch, and batches of it that are behind

_EMPTY = (
    "`loader` must yield at least one batch an epoch; it yields none. Is the data set empty, or smaller than a batch "
    "with drop_last=True?"
)


def batches_per_epoch(loader: Any) -> int | None:
    """The number of batches of a process in an epoch, or None where the loader does not know.

    Raises:
        ValueError: if it is 0.
    """
    try:
        count = len(loader)
    except TypeError:
        return None
    if count == 0:
        raise ValueError(_EMPTY)
    return count


def batches_from(
    position: Position, loader: Any, seed: int, accelerator: Accelerator
) -> Generator[tuple[Position, Any], None, None]:
    """Yields each batch with the position after it, for ever; close it to leave.

    What an epoch holds, and in which order, is a function of `(seed, epoch)` alone, wherever the walk began.

    Args:
        position: where to begin.
        loader: prepared by the accelerator.
        seed: `TrainerConfig.seed`.
        accelerator: skips batches, and keeps track of the loader that is being read.

    Raises:
        ValueError: if an epoch is empty.
    """
    epoch, count = position
    while True:
        part: Any = accelerator.skip_first_batches(loader, count) if count else loader
        seed_epoch(part, seed, epoch, accelerator.device)
        try:
            for batch in part:
                count += 1
                yield (epoch + 1, 0) if part.end_of_dataloader else (epoch, count), batch
        except GeneratorExit:
            part.end()  # else accelerate goes on seeing a loader that was left half-way
            raise
        if count == 0:
            raise ValueError(_EMPTY)
        epoch, count = epoch + 1, 0
