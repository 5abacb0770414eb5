"""Optimizers, learning-rate schedules, and their state as plain tensors and JSON."""

from .optimizers import OPTIMIZERS, OptimizerSettings, build_optimizer
from .schedules import SCHEDULES, ScheduleSettings, build_schedule, warmup_steps
from .state import pack_state, unpack_state

__all__ = [
    "OPTIMIZERS",
    "SCHEDULES",
    "OptimizerSettings",
    "ScheduleSettings",
    "build_optimizer",
    "build_schedule",
    "pack_state",
    "unpack_state",
    "warmup_steps",
]
