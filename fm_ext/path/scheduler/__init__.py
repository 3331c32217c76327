"""Schedulers that are exact up to both ends, and their names."""

from fm_ext.path.scheduler.beta_table import BetaTableScheduler
from fm_ext.path.scheduler.registry import (
    get_scheduler,
    register_scheduler,
    scheduler_config,
    scheduler_names,
)
from fm_ext.path.scheduler.shifted import ShiftedConvexScheduler, ShiftedScheduler
from fm_ext.path.scheduler.sigmoid import SigmoidScheduler
from fm_ext.path.scheduler.transform import ScheduleTransformedModel
from fm_ext.path.scheduler.variance_exploding import (
    EDMScheduler,
    VarianceExplodingScheduler,
    VEScheduler,
)
from fm_ext.path.scheduler.variance_preserving import (
    CosineScheduler,
    IDDPMCosineScheduler,
    LinearVPScheduler,
    VariancePreservingScheduler,
    VPScheduler,
)

__all__ = [
    "BetaTableScheduler",
    "CosineScheduler",
    "EDMScheduler",
    "IDDPMCosineScheduler",
    "LinearVPScheduler",
    "ScheduleTransformedModel",
    "ShiftedConvexScheduler",
    "ShiftedScheduler",
    "SigmoidScheduler",
    "VEScheduler",
    "VPScheduler",
    "VarianceExplodingScheduler",
    "VariancePreservingScheduler",
    "get_scheduler",
    "register_scheduler",
    "scheduler_config",
    "scheduler_names",
]
