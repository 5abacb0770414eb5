"""Optimizers and learning-rate schedules by name."""

from .build import averaged, build_optimizer, choose_optimizer, rehearse, state_aside, state_bytes, why_not
from .groups import describe_groups, parameter_groups
from .guarded import can_be_guarded, guarded_step
from .mean import MeanSettings, WeightMean
from .optimizers import OPTIMIZERS, find_optimizer
from .resume import other_course, resume
from .schedules import SCHEDULES, ScheduleSettings, build_schedule, warmup_steps
from .settings import OptimizerSettings

__all__ = [
    "OPTIMIZERS",
    "SCHEDULES",
    "MeanSettings",
    "OptimizerSettings",
    "ScheduleSettings",
    "WeightMean",
    "averaged",
    "build_optimizer",
    "build_schedule",
    "can_be_guarded",
    "choose_optimizer",
    "describe_groups",
    "find_optimizer",
    "guarded_step",
    "other_course",
    "parameter_groups",
    "rehearse",
    "resume",
    "state_aside",
    "state_bytes",
    "warmup_steps",
    "why_not",
]
