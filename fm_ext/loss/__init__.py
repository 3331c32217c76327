"""Training losses on path samples, and the times that they are taken at."""

from fm_ext.loss.time import LogitNormalTime, PowerTime, ShiftedTime, TimeSampler, UniformTime
from fm_ext.loss.velocity import velocity_loss

__all__ = [
    "LogitNormalTime",
    "PowerTime",
    "ShiftedTime",
    "TimeSampler",
    "UniformTime",
    "velocity_loss",
]
