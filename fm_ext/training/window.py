"""Losses, kept on the device until somebody wants to read them."""

from pathlib import Path
from typing import cast

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor


class NonFiniteLossError(FloatingPointError):
    """Raised when a loss or a gradient norm is infinite or not a number.

    Attributes:
        step: the optimiser step it happened in, counted from 1.
        process: the index of a process it happened on.
    """

    def __init__(self, message: str, step: int, process: int):
        super().__init__(message)
        self.step = step
        self.process = process


class LossWindow:
    """Losses and gradient norms of the last optimiser steps, in a buffer on the device.

    Args:
        size: the most optimiser steps between two readings.
        accelerator: gives the device and the other processes.
    """

    def __init__(self, size: int, accelerator: Accelerator):
        self._accelerator = accelerator
        self._values = torch.zeros(2, size, device=accelerator.device)
        self._count = 0

    def add(self, loss: Float[Tensor, ""]) -> None:
        """Adds the loss of a micro-step to the current optimiser step."""
        self._values[0, self._count].add_(loss.detach())

    def close(self, micro_steps: int, grad_norm: Float[Tensor, ""]) -> None:
        """Ends the current optimiser step, after `micro_steps` losses."""
        self._values[0, self._count].div_(micro_steps)
        self._values[1, self._count].copy_(grad_norm)
        self._count += 1

    def read(self, step: int, checkpoint: Path | None) -> tuple[float, float]:
        """Waits for the device, checks that all is finite, and empties the window.

        With float16's gradient scaler a gradient may overflow, and its step is left out; then only losses are checked.

        Args:
            step: optimiser steps done.
            checkpoint: the newest one, for the error.

        Returns:
            Loss and gradient norm, averaged over the window and the processes.

        Raises:
            NonFiniteLossError: on all processes, naming the first bad step and `checkpoint`.
        """
        mine = self._values[None, :, : self._count].clone()
        values = cast(Tensor, self._accelerator.gather(mine)).cpu()  # (processes, 2, steps)
        checked = values if self._accelerator.scaler is None else values[:, :1]
        bad = (~checked.isfinite()).permute(2, 1, 0).nonzero()  # the first step first
        if len(bad):
            index, kind, process = bad[0].tolist()
            bad_step = step - self._count + 1 + index
            kept = (
                f"the last good checkpoint is {checkpoint}"
                if checkpoint
                else "no checkpoint was kept"
            )
            what, value = ("loss", "gradient norm")[kind], values[process, kind, index]
            raise NonFiniteLossError(
                f"the {what} is {value} at step {bad_step} on process {process}; {kept}. Look at the data and the "
                "loss of that step, or start anew with a lower `lr` or `grad_clip`.",
                bad_step,
                process,
            )
        self._values.zero_()
        self._count = 0
        loss, grad_norm = values.mean(dim=(0, 2)).tolist()
        return loss, grad_norm
