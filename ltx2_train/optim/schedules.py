"""Learning rate over the steps of a run.

Steps are counted from 0; T is their number, W the number of warm-up steps, m = min_lr_ratio. The factor on the
learning rate while step s is taken:

    warm-up, s < W         (s + 1) / W                              the first step moves, step W-1 has the full rate
    constant               1, and no warm-up
    constant_with_warmup   1
    linear                 m + (1 - m) * (T - s) / (T - W)          full at s = W, m right after the last step
    polynomial             m + (1 - m) * ((T - s) / (T - W)) ^ power
    cosine                 m + (1 - m) * (1 + cos(pi * (s - W) / (T - W))) / 2
    cosine_with_restarts   the same over each of `cycles` equal parts of what follows the warm-up
    step                   m + (1 - m) * gamma ^ n, n the whole number of times that step_size goes into s - W
    s >= T                 as at s = T

A schedule is a function of the step alone, so its state is the step count, and a run that is prolonged follows the
longer schedule from where it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

from pydantic import Field
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ..registry import Registry
from ..settings import Settings

# (share of the way from the end of the warm-up to the end of the run, 0..1; settings; steps of that way) -> factor
# between 1 and 0
Decay = Callable[[float, "ScheduleSettings", int], float]

SCHEDULES: Registry[Decay] = Registry("schedule")


class ScheduleSettings(Settings):
    """The course of the learning rate."""

    name: Literal[
        "constant", "constant_with_warmup", "linear", "polynomial", "cosine", "cosine_with_restarts", "step"
    ] = Field(
        default="linear",
        description="Course of the learning rate after the warm-up: constant, or falling along a line, a power of it, "
        "a cosine, or in steps.",
        json_schema_extra={"community": "lr_scheduler"},
    )
    warmup: float = Field(
        default=0.05,
        ge=0,
        description="Warm-up: a number of steps, or below 1 a share of all steps. `constant` has none.",
        json_schema_extra={
            "off": 0,
            "counts_with": ".name != constant",
            "community": "lr_warmup_steps",
            "unit": "steps or share",
            "advanced": True,
        },
    )
    min_lr_ratio: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Share of the learning rate at which a falling schedule ends.",
        json_schema_extra={
            "counts_with": ".name = linear | polynomial | cosine | cosine_with_restarts | step",
            "community": "lr_scheduler_min_lr_ratio",
            "advanced": True,
        },
    )
    cycles: int = Field(
        default=1,
        ge=1,
        le=1000,
        description="Number of falls of cosine_with_restarts.",
        json_schema_extra={
            "counts_with": ".name = cosine_with_restarts",
            "community": "lr_scheduler_num_cycles",
            "advanced": True,
        },
    )
    power: float = Field(
        default=1.0,
        gt=0,
        le=100,
        description="Exponent of polynomial; 1 is a line.",
        json_schema_extra={"counts_with": ".name = polynomial", "community": "lr_scheduler_power", "advanced": True},
    )
    step_size: float = Field(
        default=0.5,
        gt=0,
        description="Steps between two falls of step, or below 1 a share of the steps after the warm-up.",
        json_schema_extra={"counts_with": ".name = step", "unit": "steps or share", "advanced": True},
    )
    gamma: float = Field(
        default=0.1,
        gt=0,
        le=1,
        description="What each fall of step multiplies the learning rate with.",
        json_schema_extra={"counts_with": ".name = step", "advanced": True},
    )


def warmup_steps(settings: ScheduleSettings, total_steps: int) -> int:
    """The number of warm-up steps of a run of `total_steps`; at most all of them."""
    if settings.name == "constant":
        return 0
    steps = settings.warmup * total_steps if settings.warmup < 1 else settings.warmup
    return min(round(steps), total_steps)


def build_schedule(optimizer: Optimizer, settings: ScheduleSettings, total_steps: int) -> LambdaLR:
    """The schedule on `optimizer`: call its step() after each optimizer step. Each group keeps its own top rate."""
    decay, warmup = SCHEDULES.get(settings.name), warmup_steps(settings, total_steps)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        length = total_steps - warmup
        way = (step - warmup) / length if length > 0 else 1.0
        return settings.min_lr_ratio + (1 - settings.min_lr_ratio) * decay(min(way, 1.0), settings, length)

    # a plain function: LambdaLR would store the attributes of any other callable in its state
    return LambdaLR(optimizer, factor)


def _flat(way: float, settings: ScheduleSettings, length: int) -> float:
    return 1.0


def _line(way: float, settings: ScheduleSettings, length: int) -> float:
    return 1.0 - way


def _power(way: float, settings: ScheduleSettings, length: int) -> float:
    return (1.0 - way) ** settings.power


def _cosine(way: float, settings: ScheduleSettings, length: int) -> float:
    return (1.0 + math.cos(math.pi * way)) / 2


def _restarts(way: float, settings: ScheduleSettings, length: int) -> float:
    return _cosine(way * settings.cycles % 1.0 if way < 1.0 else 1.0, settings, length)


def _stairs(way: float, settings: ScheduleSettings, length: int) -> float:
    size = settings.step_size * length if settings.step_size < 1 else settings.step_size
    return settings.gamma ** int(round(way * length) / max(size, 1))


SCHEDULES.add("constant", _flat)
SCHEDULES.add("constant_with_warmup", _flat)
SCHEDULES.add("linear", _line)
SCHEDULES.add("polynomial", _power)
SCHEDULES.add("cosine", _cosine)
SCHEDULES.add("cosine_with_restarts", _restarts)
SCHEDULES.add("step", _stairs)
