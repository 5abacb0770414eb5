"""Learning-rate schedules against their closed forms."""

import json
import math

import pytest
import torch

from ltx2_train.optim import SCHEDULES, ScheduleSettings, build_schedule, warmup_steps


def rates(steps, top=2.0, total=None, **settings):
    param = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([param], lr=top)
    schedule = build_schedule(optimizer, ScheduleSettings(**settings), total or steps)
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return seen


def test_warmup_reaches_the_full_rate_in_its_last_step_and_wastes_none():
    seen = rates(10, name="constant_with_warmup", warmup=4)
    assert seen == pytest.approx([0.5, 1.0, 1.5, 2.0] + [2.0] * 6)


def test_constant_has_no_warmup():
    assert rates(5, name="constant", warmup=3) == [2.0] * 5


def test_linear_falls_to_zero_right_after_the_last_step():
    seen = rates(10, name="linear", warmup=2)
    assert seen == pytest.approx([1.0, 2.0] + [2.0 * (10 - s) / 8 for s in range(2, 10)])
    assert rates(12, total=10, name="linear", warmup=2)[10:] == [0.0, 0.0]


def test_cosine_is_half_way_in_the_middle_and_ends_at_the_floor():
    seen = rates(101, total=100, name="cosine", warmup=0, min_lr_ratio=0.1)
    for step in (0, 25, 50, 75, 100):
        assert seen[step] == pytest.approx(2.0 * (0.1 + 0.9 * (1 + math.cos(math.pi * step / 100)) / 2))


def test_polynomial_is_a_power_of_the_line():
    seen = rates(11, total=10, name="polynomial", warmup=0, power=2)
    assert seen == pytest.approx([2.0 * ((10 - s) / 10) ** 2 for s in range(11)])


def test_restarts_begin_each_cycle_at_the_top_and_end_at_the_floor():
    seen = rates(42, total=40, name="cosine_with_restarts", warmup=0, cycles=2, min_lr_ratio=0.5)
    assert seen[:20] == pytest.approx([2.0 * (0.5 + 0.25 * (1 + math.cos(math.pi * s / 20))) for s in range(20)])
    assert seen[20:40] == pytest.approx(seen[:20])
    assert seen[40:] == pytest.approx([1.0, 1.0])


def test_step_falls_after_so_many_steps_or_such_a_share():
    seen = rates(12, name="step", warmup=2, step_size=4, gamma=0.5)
    assert seen == pytest.approx([1.0, *[2.0] * 5, *[1.0] * 4, *[0.5] * 2])
    shares = rates(12, name="step", warmup=2, step_size=0.3, gamma=0.5, min_lr_ratio=0.2)
    assert shares[2:] == pytest.approx([2.0] * 3 + [1.2] * 3 + [0.8] * 3 + [0.6])


def test_floor_holds_for_linear():
    seen = rates(11, total=10, name="linear", warmup=0, min_lr_ratio=0.5)
    assert seen[0] == 2.0
    assert seen[10] == 1.0


@pytest.mark.parametrize(
    ("warmup", "total", "steps"),
    [(0.05, 2000, 100), (0.05, 10, 0), (1, 10, 1), (20, 10, 10), (0, 10, 0), (100, 2000, 100)],
)
def test_warmup_is_a_share_below_one_and_steps_from_one_on(warmup, total, steps):
    assert warmup_steps(ScheduleSettings(warmup=warmup), total) == steps


@pytest.mark.parametrize("name", list(SCHEDULES))
@pytest.mark.parametrize(("total", "warmup"), [(1, 0), (1, 1), (3, 3), (7, 0.5)])
def test_short_runs_have_rates_between_zero_and_the_top(name, total, warmup):
    seen = rates(total + 2, total=total, name=name, warmup=warmup)
    assert all(0 <= rate <= 2.0 for rate in seen)
    assert seen[0] > 0


@pytest.mark.parametrize("name", list(SCHEDULES))
def test_resume_through_json_follows_the_unbroken_course(name):
    settings = ScheduleSettings(name=name, warmup=3)

    def fresh():
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        return optimizer, build_schedule(optimizer, settings, 12)

    def run(optimizer, schedule, steps):
        seen = []
        for _ in range(steps):
            seen.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        return seen

    whole = run(*fresh(), 12)
    optimizer, schedule = fresh()
    first = run(optimizer, schedule, 5)
    saved = json.loads(
        json.dumps({"schedule": schedule.state_dict(), "groups": optimizer.state_dict()["param_groups"]})
    )
    resumed, again = fresh()
    resumed.load_state_dict({"state": {}, "param_groups": saved["groups"]})
    again.load_state_dict(saved["schedule"])
    assert first + run(resumed, again, 7) == whole


def test_groups_fall_from_their_own_top():
    a, b = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    optimizer = torch.optim.SGD([{"params": [a], "lr": 1.0}, {"params": [b], "lr": 4.0}], lr=1.0)
    build_schedule(optimizer, ScheduleSettings(name="linear", warmup=4), 8)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 1.0]


def test_every_name_of_the_setting_is_in_the_table():
    assert set(ScheduleSettings.model_fields["name"].annotation.__args__) == set(SCHEDULES)
