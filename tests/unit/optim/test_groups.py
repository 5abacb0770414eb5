"""Which layer learns how fast, with the names of the real model's layers."""

import pytest
import torch

from ltx2_train.config import TrainSettings
from ltx2_train.errors import ConfigError
from ltx2_train.optim import (
    OptimizerSettings,
    ScheduleSettings,
    build_optimizer,
    build_schedule,
    describe_groups,
    parameter_groups,
)
from ltx2_train.training.optimizing import idle_rate, rates_of

PARTS = ("attn1", "attn2", "audio_attn1", "audio_attn2", "audio_to_video_attn", "video_to_audio_attn")
PATHS = [f"transformer_blocks.{block}.{part}.to_q" for block in range(2) for part in PARTS]
PATHS += [f"transformer_blocks.{block}.{part}.net.2" for block in range(2) for part in ("ff", "audio_ff")]


def layers(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            path,
            torch.nn.Parameter(torch.randn(4, 6, generator=generator)),
            torch.nn.Parameter(torch.randn(6, 4, generator=generator)),
        )
        for path in PATHS
    ]


def rates(found, groups):
    """part of the block -> (rate of A, rate of B), checking that each parameter is in one group."""
    where = [(id(parameter), group["lr"]) for group in groups for parameter in group["params"]]
    assert len(where) == len(dict(where)) == 2 * len(found)
    table = dict(where)
    return {path.split(".")[2]: (table[id(a)], table[id(b)]) for path, a, b in found}


def test_one_rate_for_all_is_one_group_in_the_order_of_the_layers():
    found = layers()
    groups, notes = parameter_groups(found, 1e-4)
    assert notes == []
    assert [(group["name"], group["lr"]) for group in groups] == [("main", 1e-4)]
    assert [id(p) for p in groups[0]["params"]] == [id(p) for _, a, b in found for p in (a, b)]


def test_the_audio_rate_covers_audio_layers_and_both_exchanges():
    found = layers()
    groups, notes = parameter_groups(found, 1e-4, audio_lr=1e-5)
    assert notes == []
    slow = {part for part, (a, _) in rates(found, groups).items() if a == 1e-5}
    assert slow == {"audio_attn1", "audio_attn2", "audio_to_video_attn", "video_to_audio_attn", "audio_ff"}
    assert [group["name"] for group in groups] == ["main", "audio"]


def test_a_rate_that_no_layer_has_is_named():
    def told(**train):
        settings = TrainSettings(**train)
        return idle_rate(settings, rates_of(layers(), settings)[0])

    assert told(learning_rate=3e-4) == told(lr_args={".": 1e-5}) == ""
    assert told(learning_rate=3e-4, audio_learning_rate=1e-5) == ""
    assert told(learning_rate=3e-4, lr_args={".": 1e-5}).startswith("train.learning_rate has no effect")


def test_the_first_pattern_that_is_found_wins_over_the_audio_rate():
    found = layers()
    patterns = {"video_to_audio": 5e-6, "audio_attn": 1e-6, r"attn1\.to_q": 3e-4}
    groups, _ = parameter_groups(found, 1e-4, 1e-5, patterns)
    assert {part: a for part, (a, _) in rates(found, groups).items()} == {
        "attn1": 3e-4,
        "attn2": 1e-4,
        "audio_attn1": 1e-6,
        "audio_attn2": 1e-6,
        "audio_to_video_attn": 1e-5,
        "video_to_audio_attn": 5e-6,
        "ff": 1e-4,
        "audio_ff": 1e-5,
    }


def test_a_pattern_that_earlier_ones_leave_nothing_is_told():
    _, notes = parameter_groups(layers(), 1e-4, None, {"audio_attn": 1e-6, "video_to_audio": 5e-6})
    assert len(notes) == 1
    assert "'video_to_audio' has no effect" in notes[0]
    assert "first" in notes[0]


def test_patterns_may_be_written_for_the_flat_names_of_other_trainers():
    found = layers()
    groups, _ = parameter_groups(found, 1e-4, None, {"^lora_unet_transformer_blocks_1_ff_net_2$": 1e-3})
    assert [len(group["params"]) for group in groups if group["lr"] == 1e-3] == [2]


def test_patterns_that_are_wrong_are_errors():
    with pytest.raises(ConfigError, match="found in no layer"):
        parameter_groups(layers(), 1e-4, None, {"audio_atn": 1e-6})
    with pytest.raises(ConfigError, match="no regular expression|not a regular expression"):
        parameter_groups(layers(), 1e-4, None, {"(": 1e-6})


def test_an_audio_rate_without_audio_layers_is_told():
    video = [layer for layer in layers() if "audio_" not in layer[0]]
    groups, notes = parameter_groups(video, 1e-4, audio_lr=1e-5)
    assert len(groups) == 1
    assert "no effect" in notes[0]


def test_loraplus_speeds_the_b_half_of_every_group():
    found = layers()
    groups, _ = parameter_groups(found, 1e-4, 1e-5, {"ff": 2e-4}, loraplus_ratio=16)
    for part, (a, b) in rates(found, groups).items():
        expected = 2e-4 if part.endswith("ff") else 1e-5 if "audio_" in part else 1e-4
        assert a == expected, part
        assert b == pytest.approx(16 * expected)
    assert [group["name"] for group in groups] == ["main", "main B", "audio", "audio B", "ff", "ff B"]
    assert describe_groups(groups).startswith("Learning rates: main 0.0001, main B 0.0016, audio 1e-05,")


def test_a_ratio_of_one_changes_nothing():
    assert [group["name"] for group in parameter_groups(layers(), 1e-4, loraplus_ratio=1.0)[0]] == ["main"]


def build(name):
    if name == "adamw8bit":
        pytest.importorskip("bitsandbytes")
    found = layers()
    groups, _ = parameter_groups(found, 1e-2, 1e-3, {"ff": 2e-2}, loraplus_ratio=4)
    optimizer, _ = build_optimizer(groups, OptimizerSettings(name=name), 1e-2, "cpu")
    return found, optimizer, build_schedule(optimizer, ScheduleSettings(name="cosine", warmup=2), 8)


def advance(found, optimizer, schedule, first, last):
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        for _, a, b in found:
            a.grad, b.grad = (torch.randn(p.shape, generator=generator) for p in (a, b))
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize("name", ["adamw", "adamw8bit"])
def test_a_resume_with_several_rates_equals_an_unbroken_run(name):
    whole, optimizer, schedule = build(name)
    advance(whole, optimizer, schedule, 0, 6)

    first, optimizer_1, schedule_1 = build(name)
    advance(first, optimizer_1, schedule_1, 0, 3)
    second, optimizer_2, schedule_2 = build(name)
    with torch.no_grad():
        for (_, *old), (_, *new) in zip(first, second, strict=True):
            for a, b in zip(old, new, strict=True):
                b.copy_(a)
    optimizer_2.load_state_dict(optimizer_1.state_dict())
    schedule_2.load_state_dict(schedule_1.state_dict())
    assert [group["name"] for group in optimizer_2.param_groups] == ["main", "main B", "audio", "audio B", "ff", "ff B"]
    advance(second, optimizer_2, schedule_2, 3, 6)
    for (_, *old), (_, *new) in zip(whole, second, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(old, new, strict=True))
    assert schedule.get_last_lr() == schedule_2.get_last_lr()


def test_a_schedule_keeps_the_ratios_of_the_groups():
    _, optimizer, schedule = build("adamw")
    tops = [group["initial_lr"] for group in optimizer.param_groups]
    for _ in range(5):
        optimizer.step()
        schedule.step()
        factors = [lr / top for lr, top in zip(schedule.get_last_lr(), tops, strict=True)]
        assert factors == pytest.approx([factors[0]] * len(factors))
