"""The training loop, on accelerate: it takes a loss and knows no path and no mask."""

from fm_ext.training.accelerator import auto_accelerator, leave_to_main
from fm_ext.training.checkpoint import latest_checkpoint
from fm_ext.training.config import TrainerConfig
from fm_ext.training.ema import ExponentialMovingAverage
from fm_ext.training.trainer import Trainer
from fm_ext.training.weights import load_weights
from fm_ext.training.window import NonFiniteLossError

__all__ = [
    "ExponentialMovingAverage",
    "NonFiniteLossError",
    "Trainer",
    "TrainerConfig",
    "auto_accelerator",
    "latest_checkpoint",
    "leave_to_main",
    "load_weights",
]
