"""A saved optimizer goes on with the numbers of today, and with what it found out itself."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from ltx2_train.errors import RunError
from ltx2_train.optim import OptimizerSettings, ScheduleSettings, build_optimizer, build_schedule, other_course, resume

NAMES = ["adamw", "adamw8bit"]


def made(name: str, lr: float = 1e-2, total: int = 10, groups: int = 1, **numbers: Any):
    """Parameters, their optimizer and a linear schedule over `total` steps, without warm-up."""
    generator = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(64, 80, generator=generator)) for _ in range(groups)]
    tables = [{"params": [one], "lr": lr, "name": f"group {number}"} for number, one in enumerate(params)]
    optimizer, _ = build_optimizer(tables, OptimizerSettings.model_validate({"name": name, **numbers}), lr, "cpu")
    return params, optimizer, build_schedule(optimizer, ScheduleSettings(name="linear", warmup=0), total)


def take(steps: int, params, optimizer, schedule) -> None:
    for step in range(steps):
        for param in params:
            param.grad = torch.full_like(param, 0.1 * (step + 1))
        optimizer.step()
        schedule.step()


def state_of(optimizer, schedule):
    return copy.deepcopy(optimizer.state_dict()), copy.deepcopy(schedule.state_dict())


@pytest.mark.parametrize("name", NAMES)
def test_nothing_changed_is_an_unbroken_run_without_a_word(name):
    whole, *rest = made(name)
    take(6, whole, *rest)
    first, optimizer, schedule = made(name)
    take(3, first, optimizer, schedule)
    moments, place = state_of(optimizer, schedule)
    second, optimizer, schedule = made(name)
    with torch.no_grad():
        second[0].copy_(first[0])
    assert resume(optimizer, schedule, moments, place) == []
    assert other_course(place, schedule) == ""
    for step in range(3, 6):
        second[0].grad = torch.full_like(second[0], 0.1 * (step + 1))
        optimizer.step()
        schedule.step()
    assert torch.equal(whole[0], second[0])


@pytest.mark.parametrize("name", NAMES)
def test_numbers_of_today_are_used_and_told(name):
    params, optimizer, schedule = made(name)
    take(2, params, optimizer, schedule)
    moments, place = state_of(optimizer, schedule)
    _, optimizer, schedule = made(name, lr=5e-3, weight_decay=5.0, betas=(0.5, 0.6), eps=1e-6)
    notes = resume(optimizer, schedule, moments, place)
    group = optimizer.param_groups[0]
    assert (group["weight_decay"], tuple(group["betas"]), group["eps"]) == (5.0, (0.5, 0.6), 1e-6)
    assert group["lr"] == schedule.get_last_lr()[0] == pytest.approx(5e-3 * 0.8), "two of ten steps are done"
    assert other_course(place, schedule) == "", "the rate at the top was told"
    assert len(optimizer.state) == 1, "the moments are those of the state"
    assert notes == [
        "Learning rates from here on: group 0 0.005 (until now 0.01).",
        "optimizer.betas is 0.5, 0.6 from here on (until now 0.9, 0.999).",
        "optimizer.eps is 1e-06 from here on (until now 1e-08).",
        "optimizer.weight_decay is 5 from here on (until now 0.01).",
    ]


def test_rates_of_the_state_are_kept_where_that_is_wanted():
    params, optimizer, schedule = made("adamw")
    take(2, params, optimizer, schedule)
    moments, place = state_of(optimizer, schedule)
    for saved in (moments, None):
        _, optimizer, schedule = made("adamw", lr=5e-3)
        notes = resume(optimizer, schedule, saved, place, keep_rates=True)
        assert optimizer.param_groups[0]["lr"] == schedule.get_last_lr()[0] == pytest.approx(1e-2 * 0.8)
        assert notes == [
            "Learning rates stay those of the run, since train.changed_rate is keep: group 0 0.01 (the settings say "
            "0.005)."
        ]
        assert schedule.state_dict()["base_lrs"] == [1e-2], "the next state says so too"
        assert optimizer.param_groups[0]["initial_lr"] == 1e-2


def test_a_longer_run_takes_its_first_step_at_the_rate_of_the_longer_schedule():
    params, optimizer, schedule = made("adamw", total=4)
    take(4, params, optimizer, schedule)
    assert schedule.get_last_lr() == [0.0]
    moments, place = state_of(optimizer, schedule)
    _, optimizer, schedule = made("adamw", total=8)
    assert resume(optimizer, schedule, moments, place) == []
    assert optimizer.param_groups[0]["lr"] == schedule.get_last_lr()[0] == pytest.approx(5e-3)
    assert other_course(place, schedule).endswith("the learning rate 0.005, where it would have had 0.")


def test_without_moments_the_rate_is_that_of_the_place_all_the_same():
    params, optimizer, schedule = made("adamw", total=4)
    take(3, params, optimizer, schedule)
    _, place = state_of(optimizer, schedule)
    _, optimizer, schedule = made("adamw", total=4)
    assert resume(optimizer, schedule, None, place) == []
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-2 / 4)


def test_what_an_optimizer_found_out_itself_stays():
    params, optimizer, schedule = made("adamw")
    take(1, params, optimizer, schedule)
    optimizer.param_groups[0]["found_distance"] = 7.0
    moments, place = state_of(optimizer, schedule)
    _, optimizer, schedule = made("adamw")
    optimizer.param_groups[0]["found_distance"] = 1.0
    resume(optimizer, schedule, moments, place)
    assert optimizer.param_groups[0]["found_distance"] == 7.0


def test_a_state_of_other_parameters_is_a_plain_error():
    params, optimizer, schedule = made("adamw", groups=2)
    take(1, params, optimizer, schedule)
    moments, place = state_of(optimizer, schedule)
    _, optimizer, schedule = made("adamw")
    with pytest.raises(RunError, match="not that of this run"):
        resume(optimizer, schedule, moments, place)
