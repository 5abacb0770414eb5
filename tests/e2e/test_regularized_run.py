"""Runs with regularizers on the tiny model: every term is written, a run that stops goes on as if it had not."""

from __future__ import annotations

import pytest
import torch

from ltx2_train import Events, Stopped, build_caches, load_run, read_rows, train
from ltx2_train.errors import ConfigError, RunError
from ltx2_train.training import caches
from ltx2_train.training.state import list_states, load_state

BLOCKS = {"student_block": 1, "teacher_block": 2}


def run_of(path, name, settings, *more):
    given = [f"regularizers.{one}.{key}={value}" for one, values in settings.items() for key, value in values.items()]
    return load_run(path, [f"run.name={name}", "train.steps=2", "optimizer.name=adamw", *given, *more])


class StopAfterOne(Events):
    taken = 0

    def step(self, metrics):
        self.taken += 1

    def should_stop(self):
        return self.taken >= 1


def stopped_and_resumed(run_file, settings, *more):
    """The rows of an unbroken run, after one that stopped on the way was found equal to it to the bit."""
    whole = train(run_of(run_file, "whole", settings, *more))
    broken = run_of(run_file, "broken", settings, *more)
    with pytest.raises(Stopped, match="after step 1 of 2"):
        train(broken, StopAfterOne())
    again = train(broken)
    states = [load_state(list_states(one.folder / "states")[-1][1]) for one in (whole, again)]
    for path, layer in states[0]["lora"].items():
        assert torch.equal(layer["B"], states[1]["lora"][path]["B"]), path
    rows = [read_rows(one.folder / "metrics.jsonl") for one in (whole, again)]
    kept = [[{k: v for k, v in row.items() if k != "seconds"} for row in several] for several in rows]
    assert kept[0] == kept[1]
    return rows[0], states


def test_all_of_a_video_run_together(run_file):
    settings = {
        "blank": {"weight": 0.5},
        "dop": {"weight": 0.5, "captions": "replace", "trigger": "ball", "class_prompt": "thing"},
        "prior_divergence": {"weight": 0.1},
        "crepa": {"weight": 0.3, **BLOCKS},
        "self_flow": {"weight": 0.2, **BLOCKS, "teacher": "ema", "momentum": 0.9},
    }
    rows, states = stopped_and_resumed(run_file, settings)
    names = ("video", "blank", "dop", "prior_divergence", "crepa", "self_flow")
    for row in rows:
        parts = [row[f"loss_{name}"] for name in names]
        assert all(part is not None for part in parts)
        weights = (1, 0.5, 0.5, 0.1, 0.3, 0.2)
        assert row["loss"] == pytest.approx(sum(w * part for w, part in zip(weights, parts, strict=True)), rel=1e-4)
    assert rows[0]["loss_blank"] == rows[0]["loss_dop"] == 0  # the LoRA begins as nothing
    assert rows[-1]["loss_blank"] > 0
    beside = [state["regularizers"] for state in states]
    for name in ("crepa", "self_flow"):
        for key, weight in beside[0][name]["weights"].items():
            assert torch.equal(weight, beside[1][name]["weights"][key]), f"{name}.{key}"
    with pytest.raises(RunError, match="regularizers: was crepa of block 1 to 2"):
        train(run_of(run_file, "whole", {"crepa": {"weight": 0.3, **BLOCKS}}))


@pytest.mark.slow
def test_off_is_absent_to_the_bit(run_file):
    plain = train(run_of(run_file, "plain", {}))
    off = train(run_of(run_file, "off", {"blank": {"weight": 0}, "crepa": {"weight": 0, **BLOCKS}}))
    one, other = (load_state(list_states(run.folder / "states")[-1][1]) for run in (plain, off))
    assert all(torch.equal(one["lora"][path]["B"], other["lora"][path]["B"]) for path in one["lora"])
    assert "regularizers" not in other


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"tread": {"weight": 0.5, "routes": '["1:-2:0.5"]'}, "blank": {"weight": 0.5}},
        {"rollout": {"weight": 0.7, "steps": 2, "step_size": 0.1}, "crepa": {"weight": 0.3, **BLOCKS}},
        {"self_flow": {"weight": 0.2, **BLOCKS, "student_range": 0, "tokenwise_timestep": "false"}},
    ],
)
def test_others_go_on_as_if_they_had_not_stopped(run_file, settings):
    rows, _ = stopped_and_resumed(run_file, settings, "memory.fit=custom", "train.accumulation=2")
    assert len(rows) == 2


@pytest.mark.slow
def test_sound_of_clips_without_it(sound_run_file, tmp_path):
    run = run_of(sound_run_file, "sound", {"audio_dop": {"weight": 0.5}, "blank": {"weight": 0.5}})
    rows = read_rows(train(run).folder / "metrics.jsonl")
    assert all(row["loss_blank"] is not None for row in rows)


def test_what_cannot_be_is_refused_before_anything_is_loaded(run_file):
    for settings, words in (
        ({"crepa": {"weight": 0.3}}, "student_block is 16, and the model has the blocks 0 to 3"),
        ({"dop": {"weight": 1, "captions": "replace", "trigger": "ohwx"}}, "no caption holds the trigger ohwx"),
        ({"tread": {"weight": 1, "routes": '["0:-1:0.5"]'}}, "the last must see every token"),
    ):
        with pytest.raises(ConfigError, match=words):
            train(run_of(run_file, "refused", settings))


def test_what_clips_and_captions_cannot_serve_is_refused_before_they_are_encoded(run_file, monkeypatch):
    for encode in ("make_due", "encode_text"):
        monkeypatch.setattr(caches, encode, lambda *_: pytest.fail("encoding began"))
    for settings, more, words in (
        ({"dop": {"weight": 1, "captions": "replace", "trigger": "ohwx"}}, [], "no caption holds the trigger ohwx"),
        ({"dop": {"weight": 1, "captions": "replace"}}, [], "there is no trigger to replace"),
        (
            {"crepa": {"weight": 0.1, "mode": "dino", "student_block": 1}},
            [],
            r"3 of 3 clips have no DINOv2 features .* nor would they get any, since cache.dino.model is not set",
        ),
        ({}, ["validation.every=1"], r"validation.every is set, and the dataset file has no \[\[validation_datasets"),
        ({}, ["validation.every_epochs=1"], "or set validation.every_epochs to 0"),
    ):
        with pytest.raises(ConfigError, match=words):
            build_caches(run_of(run_file, "refused", settings, *more))
