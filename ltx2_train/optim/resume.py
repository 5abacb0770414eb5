"""A saved optimizer and schedule, gone on with under the settings of today.

What an optimizer found out (moments, step counts, estimates of its own) comes from the state. The numbers that it is
built with (rates, betas, eps, weight decay) come from the settings, so that they say what is trained with.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ..errors import RunError
from .optimizers import OptimizerSettings

RATE = "initial_lr"  # a group's rate at the top of the schedule


def resume(
    optimizer: Optimizer, schedule: LambdaLR, moments: Mapping[str, Any] | None, place: Mapping[str, Any]
) -> list[str]:
    """Lay the `state_dict` of an optimizer (None: it starts afresh) and of its schedule over those just built.

    Returns a sentence for each number that was another one until now. Raises RunError where the state is of an
    optimizer with other parameters.
    """
    notes: list[str] = []
    if moments is not None:
        notes = _differences(moments["param_groups"], optimizer.param_groups)
        groups = [
            {**saved, **_given(optimizer, built), "params": saved["params"]}
            for saved, built in zip(moments["param_groups"], optimizer.param_groups, strict=False)
        ]
        fitting = len(moments["param_groups"]) == len(optimizer.param_groups)
        try:
            optimizer.load_state_dict({**moments, "param_groups": groups if fitting else moments["param_groups"]})
        except (ValueError, KeyError) as error:
            raise RunError(f"The saved optimizer is not that of this run ({error}).") from None
    # the rates of today, at the place of the state: the schedule may have become longer, too
    schedule.load_state_dict({**place, "base_lrs": schedule.base_lrs})
    rates = [
        base * factor(schedule.last_epoch) for base, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
    ]
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    schedule._last_lr = rates
    return notes


def _given(optimizer: Optimizer, group: Mapping[str, Any]) -> dict[str, Any]:
    """Those entries of a group that the optimizer was built with."""
    names = {*inspect.signature(type(optimizer).__init__).parameters, RATE} - {"params"}
    return {name: value for name, value in group.items() if name in names}


def _differences(before: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]) -> list[str]:
    notes = []
    rates = [
        f"{new.get('name', 'all')} {new[RATE]:g} (until now {old[RATE]:g})"
        for old, new in zip(before, now, strict=False)
        if old.get(RATE, new[RATE]) != new[RATE]
    ]
    if rates:
        notes.append(f"Learning rates from here on: {', '.join(rates)}.")
    for name in OptimizerSettings.model_fields:
        pairs = [(old[name], new[name]) for old, new in zip(before, now, strict=False) if name in old and name in new]
        changed = next(((old, new) for old, new in pairs if old != new), None)
        if changed is not None:
            notes.append(f"optimizer.{name} is {_words(changed[1])} from here on (until now {_words(changed[0])}).")
    return notes


def _words(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_words, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
