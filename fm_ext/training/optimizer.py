"""AdamW, as networks are trained with it today."""

from collections.abc import Iterable

import torch
from torch import nn

from fm_ext.training.config import TrainerConfig


def make_optimizer(
    parameters: Iterable[nn.Parameter], config: TrainerConfig, device: torch.device
) -> torch.optim.AdamW:
    """AdamW without weight decay on biases and norms, in one kernel where the device has it.

    Args:
        parameters: those to train.
        config: gives `lr`, `betas` and `weight_decay`.
        device: where they will be when the first step is taken.
    """
    parameters = list(parameters)
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    fused = device.type in ("cpu", "cuda")
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=fused)
