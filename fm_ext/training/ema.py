"""The moving average of the weights, which is what one samples from."""

from copy import deepcopy

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class ExponentialMovingAverage:
    r"""An average of a module's parameters over the optimiser steps, with a warm-up for short runs.

    $$\bar\theta_0 = \theta_0, \qquad \bar\theta_n = d_n \bar\theta_{n-1} + (1 - d_n)\, \theta_n, \qquad
    d_n = \min\Big(d,\; \frac{1 + n}{10 + n}\Big)$$

    So the average reaches back over about the last tenth of the run, until it reaches back over $1 / (1 - d)$ steps.
    Buffers are copied, not averaged. The arithmetic is torch's `get_ema_multi_avg_fn`, a few kernels for the whole
    network; its `AveragedModel` is not used because it reads its counter from the device at every step.

    Args:
        module: the network, not wrapped for distributed training or autocast; it is copied.
        decay: d, in (0, 1).

    Attributes:
        module: the averaged network, of the same class, in eval mode and without gradients.
        updates: n.

    Raises:
        ValueError: for a decay out of range, or parameters in half precision, in which an average stands still.
    """

    def __init__(self, module: nn.Module, decay: float):
        if not 0 < decay < 1:
            raise ValueError(f"`decay` must lie in (0, 1); got {decay}.")
        for name, parameter in module.named_parameters():
            if parameter.dtype in (torch.float16, torch.bfloat16):
                raise ValueError(
                    f"`module` must hold float32 parameters to be averaged; `{name}` is {parameter.dtype}, which "
                    "rounds small updates away. Keep weights in float32 and let Accelerator(mixed_precision=...) cast."
                )
        self.module = deepcopy(module).eval().requires_grad_(False)
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def restart(self, module: nn.Module) -> None:
        """Begins again at the weights, and on the device, of `module`."""
        for tensors in (nn.Module.parameters, nn.Module.buffers):
            for mine, theirs in zip(tensors(self.module), tensors(module), strict=True):
                mine.data = theirs.detach().clone()
        self.updates = 0

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Takes in the weights of `module` after an optimiser step."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        average = get_ema_multi_avg_fn(decay)
        average(list(self.module.parameters()), list(module.parameters()), self.updates)
        for mine, theirs in zip(self.module.buffers(), module.buffers(), strict=True):
            mine.copy_(theirs)
