"""Training losses on path samples, and the times that they are taken at."""

from fm_ext.loss.mean_flow import mean_flow_loss
from fm_ext.loss.time import (
    LogitNormalTime,
    PowerTime,
    ShiftedTime,
    TimePairs,
    TimeSampler,
    UniformTime,
)
from fm_ext.loss.velocity import velocity_loss

__all__ = [
    "LogitNormalTime",
    "PowerTime",
    "ShiftedTime",
    "TimePairs",
    "TimeSampler",
    "UniformTime",
    "mean_flow_loss",
    "velocity_loss",
]
