"""Optimizers and learning-rate schedules by name."""

from .groups import describe_groups, parameter_groups
from .optimizers import OPTIMIZERS, OptimizerSettings, build_optimizer, choose_optimizer, state_aside
from .resume import resume
from .schedules import SCHEDULES, ScheduleSettings, build_schedule, warmup_steps

__all__ = [
    "OPTIMIZERS",
    "SCHEDULES",
    "OptimizerSettings",
    "ScheduleSettings",
    "build_optimizer",
    "build_schedule",
    "choose_optimizer",
    "describe_groups",
    "parameter_groups",
    "resume",
    "state_aside",
    "warmup_steps",
]
