"""A saved optimizer and schedule, gone on with under the settings of today.

What an optimizer found out (moments, step counts, estimates of its own) comes from the state. The numbers that it is
built with (rates, betas, eps, weight decay) come from the settings, so that they say what is trained with. The rates
may be kept as they were, where a person wants that.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ..errors import RunError
from .settings import OptimizerSettings

RATE = "initial_lr"  # a group's rate at the top of the schedule


def resume(
    optimizer: Optimizer,
    schedule: LambdaLR,
    moments: Mapping[str, Any] | None,
    place: Mapping[str, Any],
    keep_rates: bool = False,
) -> list[str]:
    """Lay the `state_dict` of an optimizer (None: it starts afresh) and of its schedule over those just built.

    The rates at the top of the schedule are those just built, or with `keep_rates` those of the state. Returns a
    sentence for each number that was another one until now. Raises RunError where the state is of an optimizer with
    other parameters.
    """
    before = list(place.get("base_lrs", schedule.base_lrs))
    notes = _changed_rates(optimizer, before, [float(rate) for rate in schedule.base_lrs], keep_rates)
    if moments is not None:
        notes += _differences(moments["param_groups"], optimizer.param_groups)
        groups = [
            {**saved, **given_numbers(optimizer, built), "params": saved["params"]}
            for saved, built in zip(moments["param_groups"], optimizer.param_groups, strict=False)
        ]
        fitting = len(moments["param_groups"]) == len(optimizer.param_groups)
        try:
            optimizer.load_state_dict({**moments, "param_groups": groups if fitting else moments["param_groups"]})
        except (ValueError, KeyError) as error:
            raise RunError(f"The saved optimizer is not that of this run ({error}).") from None
    kept = keep_rates and len(before) == len(schedule.base_lrs)
    tops = [float(rate) for rate in (before if kept else schedule.base_lrs)]
    # at the place of the state: the schedule may have become longer, too
    schedule.load_state_dict({**place, "base_lrs": tops})
    rates = [
        float(base) * factor(schedule.last_epoch)
        for base, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
    ]
    for group, rate, top in zip(optimizer.param_groups, rates, tops, strict=True):
        group.update({"lr": rate, RATE: top})
    schedule._last_lr = [*rates]
    return notes


def other_course(place: Mapping[str, Any], schedule: LambdaLR) -> str:
    """A sentence where the `schedule` that was gone on with from `place`, whatever its top, has another rate now than
    it would have had; else an empty one."""
    then, tops_then = place.get("_last_lr", ()), place.get("base_lrs", ())
    now, tops = map(float, schedule.get_last_lr()), map(float, schedule.base_lrs)
    for old, top_then, new, top in zip(then, tops_then, now, tops, strict=False):
        if top_then and top and not math.isclose(old / top_then, new / top, abs_tol=1e-4):
            return (
                "The schedule has another length or form than when the run was last started: the next step has the "
                f"learning rate {new:.3g}, where it would have had {old:.3g}."
            )
    return ""


def given_numbers(optimizer: Optimizer, group: Mapping[str, Any]) -> dict[str, Any]:
    """Those entries of a group that the optimizer was built with."""
    names = {*inspect.signature(type(optimizer).__init__).parameters, RATE} - {"params"}
    return {name: value for name, value in group.items() if name in names}


def _changed_rates(optimizer: Optimizer, before: Sequence[float], now: Sequence[float], keep: bool) -> list[str]:
    """A sentence on the rates that the settings have changed, and on which of the two counts."""
    changed = [
        (group.get("name", "all"), old, new)
        for group, old, new in zip(optimizer.param_groups, before, now, strict=False)
        if old != new
    ]
    if not changed:
        return []
    if keep:
        kept = ", ".join(f"{name} {old:g} (the settings say {new:g})" for name, old, new in changed)
        return [f"Learning rates stay those of the run, since train.changed_rate is keep: {kept}."]
    rates = ", ".join(f"{name} {new:g} (until now {old:g})" for name, old, new in changed)
    return [f"Learning rates from here on: {rates}."]


def _differences(before: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]) -> list[str]:
    notes = []
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
