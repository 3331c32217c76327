"""The training loop on accelerate. It takes a loss, and knows no path and no mask."""

from fm_ext.training.accelerator import auto_accelerator, leave_to_main
from fm_ext.training.checkpoint import CheckpointError, latest_checkpoint, load_weights
from fm_ext.training.config import TrainerConfig
from fm_ext.training.ema import ExponentialMovingAverage
from fm_ext.training.trainer import NonFiniteLossError, Trainer

__all__ = [
    "CheckpointError",
    "ExponentialMovingAverage",
    "NonFiniteLossError",
    "Trainer",
    "TrainerConfig",
    "auto_accelerator",
    "latest_checkpoint",
    "leave_to_main",
    "load_weights",
]
