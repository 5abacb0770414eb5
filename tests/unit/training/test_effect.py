"""A run that would learn nothing is refused before work, and lengths that do not fit into it are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ltx2_train import Events
from ltx2_train.config import make_run
from ltx2_train.dataset.dataset_file import DatasetConfig
from ltx2_train.errors import ConfigError
from ltx2_train.feed.batches import BatchOrder
from ltx2_train.feed.loader import Sample
from ltx2_train.feed.samples import SoundBuckets
from ltx2_train.shapes import LatentShape
from ltx2_train.training.effect import (
    require_learning,
    require_taught,
    tell_batches,
    tell_grouping,
    tell_lengths,
    tell_levels,
    tell_other_stream,
    tell_overridden,
    tell_sounds,
    tell_unplanned,
)
from ltx2_train.training.fit import MemoryPlan
from ltx2_train.training.fit.memory_plan import Choice
from ltx2_train.training.regularizers.table import REGULARIZERS

AV = {"model": {"mode": "av"}}
AUDIO = {"model": {"mode": "audio"}}
MUTE = {"loss": {"video_weight": 0}}
DEAF = {"loss": {"audio_weight": 0}}
NEITHER = {"loss": {"video_weight": 0, "audio_weight": 0}}
KEPT = {"regularizers": {"blank": {"weight": 0.5}}}
SHOWN = {"regularizers": {"rollout": {"weight": 0.5}, "tread": {"weight": 0.5}}}
FILLED = {"audio": {"silence_regularizer": True}}


class Told(Events):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def message(self, text: str, level: str = "info") -> None:
        assert level == "warning"
        self.texts.append(text)


def sample(name: str = "x", frames: int = 1, **more: Any) -> Sample:
    nowhere = Path("-")
    return Sample(name, LatentShape(frames, 1, 1), 25.0, "", nowhere, nowhere, **more)


@pytest.mark.parametrize(
    ("run", "entry", "named"),
    [
        (MUTE, {}, r"loss\.video_weight is 0"),
        (AV | NEITHER, {}, r"loss\.video_weight and loss\.audio_weight are 0"),
        (AUDIO | DEAF, {}, r"loss\.audio_weight is 0"),
        ({}, {"video_loss_weight": 0}, r"video_loss_weight of the datasets are 0"),
        (AV | MUTE | {"audio": {"generated": False}}, {}, r"loss\.video_weight is 0"),
        (AV | MUTE, {"audio_source": "none"}, r"loss\.video_weight and loss\.audio_weight are 0"),
        (MUTE | SHOWN, {}, "no regularizer has a weight that trains something"),
    ],
)
def test_weights_that_keep_every_clip_out_of_the_loss_are_refused(run, entry, named, tmp_path):
    dataset = DatasetConfig.from_table({"datasets": [{"video_directory": "a", **entry}]}, tmp_path)
    with pytest.raises(ConfigError, match=rf"^Nothing would be learned: .*{named}"):
        require_learning(make_run(run), dataset)


def test_media_that_can_have_no_sound_are_refused_where_sound_alone_is_trained(tmp_path):
    mute, heard = {"video_directory": "a", "audio_source": "none"}, {"audio_directory": "b"}
    for table, name in (({"datasets": [mute]}, "datasets"),
                        ({"datasets": [heard], "validation_datasets": [mute]}, "validation_datasets")):  # fmt: skip
        with pytest.raises(ConfigError, match=rf"no media of the \[\[{name}\]\] can have sound: .*audio_source"):
            require_learning(make_run(AUDIO), DatasetConfig.from_table(table, tmp_path))
    require_learning(make_run(AUDIO), DatasetConfig.from_table({"datasets": [mute, heard]}, tmp_path))


def test_a_validation_that_would_measure_nothing_is_refused(tmp_path):
    held = {"video_directory": "b", "video_loss_weight": 0}
    table = {"datasets": [{"video_directory": "a"}], "validation_datasets": [held]}
    dataset = DatasetConfig.from_table(table, tmp_path)
    require_learning(make_run({}), dataset)
    with pytest.raises(ConfigError, match=r"would always be 0: .*video_loss_weight of the datasets are 0"):
        require_learning(make_run({"validation": {"every": 1}}), dataset)


@pytest.mark.parametrize(
    ("run", "entry"),
    [
        (MUTE, {"video_loss_weight": 1}),
        (AV | MUTE, {}),
        (AV | DEAF, {}),
        (MUTE | KEPT, {}),
        (AV | MUTE | FILLED, {"audio_source": "none"}),
    ],
)
def test_what_has_a_part_in_the_loss_may_train(run, entry, tmp_path):
    require_learning(
        make_run(run), DatasetConfig.from_table({"datasets": [{"video_directory": "a", **entry}]}, tmp_path)
    )


def test_what_a_regularizer_is_follows_from_its_class():
    kinds = {name: REGULARIZERS.get(name) for name in REGULARIZERS.names()}
    assert {name for name, kind in kinds.items() if not kind.teaches()} == {"tread", "rollout"}
    assert {name for name, kind in kinds.items() if not kind.asks_the_base} == {"crepa", "tread", "rollout"}


def test_clips_without_sound_teach_nothing_where_the_picture_counts_0():
    run, told = make_run(AV | MUTE), Told()
    heard = sample("heard", audio_steps=6)
    require_taught(run, [heard], told)
    assert not told.texts
    require_taught(run, [heard, sample("a"), sample("b")], told)
    (text,) = told.texts
    assert text.startswith("2 of 3 samples teach nothing")
    assert "a, b. Their steps are lost" in text
    with pytest.raises(ConfigError, match="Nothing would be learned"):
        require_taught(run, [sample("a"), sample("b")], told)


@pytest.mark.parametrize(
    ("samples", "size", "said"),
    [
        ([sample()] * 3, 3, ""),
        ([sample(repeats=4)], 4, ""),
        ([sample()] * 3, 4, "datasets[0].batch_size is 4, but no batch of it has more than 3: it has no more samples"),
        ([sample(), sample(), sample(frames=2)], 3, "more than 2: its samples have 2 different sizes"),
    ],
)
def test_a_batch_that_is_never_full_is_named(samples, size, said):
    told = Told()
    tell_batches(BatchOrder(samples, (size,), 0), ["datasets[0]"], told)
    assert said in "".join(told.texts)
    assert len(told.texts) == bool(said)


@pytest.mark.parametrize(
    ("run", "named"),
    [
        ({"schedule": {"warmup": 0.9}}, ""),
        ({"schedule": {"warmup": 9}}, ""),
        ({"schedule": {"warmup": 10}}, "schedule.warmup is 10 steps"),
        ({"schedule": {"name": "constant"}}, ""),
        ({"schedule": {"name": "step", "step_size": 50}}, "schedule.step_size is 50 steps"),
        ({"optimizer": {"args": {"warmup_steps": 100}}}, "optimizer.args: warmup_steps is 100"),
        ({"regularizers": {"rollout": {"weight": 0.1, "warmup_steps": 30}}}, "rollout.warmup_steps is 30"),
        ({"validation": {"every": 20}}, "validation.every is 20"),
        ({"validation": {"every": 10}}, ""),
        ({"sample": {"every": 20}}, "sample.every is 20, so samples are drawn before the first step and at the end"),
        ({"sample": {"every": 20, "at_start": False}}, "sample.every is 20, so samples are drawn at the end alone"),
        ({"sample": {"every": 10, "at_start": False}}, ""),
        ({"train": {"save_every": 20}}, "train.save_every is 20, so nothing is saved before the end"),
        ({"train": {"save_every": 10}}, ""),
        ({"train": {"save_every": 20, "save_every_epochs": 2}}, ""),
        ({"train": {"save_every": 0, "keep_loras": 2}}, "train.keep_loras is 2 and train.save_every 0"),
        ({"train": {"save_every": 0, "save_every_epochs": 1, "keep_loras": 2}}, ""),
        ({"train": {"save_every_epochs": 3}}, "train.save_every_epochs is 3, which it does not come to in 2.5 passes"),
        ({"validation": {"every_epochs": 3}}, "validation.every_epochs is 3, which"),
        ({"sample": {"every_epochs": 3}}, "sample.every_epochs is 3, which it does not come to"),
        ({"train": {"norms_every": 11}}, "train.norms_every is 11, so norms are never measured"),
        (AV | {"audio": {"supervision": "error"}}, "audio.supervision first looks after 50 batches"),
        (AV | {"audio": {"supervision": "warn", "supervision_warmup": 6, "supervision_interval": 5}}, ""),
        (AV | {"audio": {"supervision": "warn"}, "train": {"accumulation": 5}}, ""),
    ],
)
def test_what_takes_longer_than_the_run_is_named(run, named):
    told = Told()
    tell_lengths(make_run(run), 10, told, batches=4)
    assert len(told.texts) == bool(named)
    assert all(named in text for text in told.texts)
    assert all(text.endswith("the run has 10 steps.") for text in told.texts)


def test_what_is_for_clips_without_sound_or_for_their_order_and_finds_none_is_named():
    heard, mute = sample("heard", audio_steps=9), sample("mute")
    run = make_run(AV | {"audio": {"silence_regularizer": True, "batch_probability": 0.5}})
    windowed = make_run(AV | {"audio": {"min_batches": 1}})

    def told(*samples, config=run):
        events = Told()
        tell_sounds(config, BatchOrder(samples, 1, 0), events)
        return [text.split(" has ")[0] for text in events.texts]

    assert told(heard, mute) == told(heard, config=make_run(AV)) == []
    assert told(heard) == ["audio.silence_regularizer", "audio.batch_probability = 0.5"]
    assert told(mute) == ["audio.batch_probability = 0.5"]
    assert told(heard, config=windowed) == ["audio.min_batches = 1"]
    assert told(heard, mute, config=windowed) == []
    balanced = make_run(AV | {"loss": {"balance": {"mode": "inv_freq"}}})
    assert told(heard, config=balanced) == ["loss.balance.mode = inv_freq"]
    rising = make_run(AV | {"loss": {"balance": {"mode": "inv_freq", "start": 0.5}}})
    assert told(heard, mute, config=balanced) == told(heard, config=rising) == []


@pytest.mark.parametrize(
    ("version", "objective", "named"),
    [
        ("2.3", {"eps": 0.1, "uniform_prob": 0.5}, ""),
        ("2.0", {"eps": 0.1, "uniform_prob": 0.5}, "objective.eps, objective.uniform_prob: no effect, since they are"),
        ("2.0", {"eps": 0.1, "mode": "stretched"}, ""),
        ("2.3", {"min_timestep": 500, "max_timestep": 500}, ""),
        ("2.3", {"min_timestep": 500, "max_timestep": 500, "shift": 1}, "objective.shift: no effect"),
    ],
)
def test_settings_of_noise_levels_that_draw_none_are_named(version, objective, named):
    told = Told()
    tell_levels(make_run({"objective": objective}), version, told)
    assert len(told.texts) == bool(named)
    assert all(named in text for text in told.texts)


def test_what_every_dataset_says_itself_is_named(tmp_path):
    run = make_run({
        **AV, "loss": {"video_weight": 2, "audio_weight": 3}, "train": {"first_frame_probability": 0.1},
        "audio": {"bucket_strategy": "truncate", "bucket_interval": 2, "separate_buckets": True},
    })  # fmt: skip
    dataset = DatasetConfig.from_table({"datasets": [{"video_directory": "a"}]}, tmp_path)
    own = {"video_loss_weight": 1, "audio_loss_weight": 1, "first_frame_probability": 0.3, "audio_steps": 9}
    spoken, alone = sample("spoken", **own), sample("alone", kind="audio", **own)
    followed = sample("followed", audio_steps=9, buckets=SoundBuckets("truncate", 2.0, True))

    def told(*samples, config=run, dataset=dataset):
        events = Told()
        tell_overridden(config, dataset, samples, events)
        return [text.split(" = ")[0] for text in events.texts]

    assert told(spoken, alone) == [
        "loss.video_weight", "loss.audio_weight", "train.first_frame_probability", "audio.bucket_strategy",
        "audio.separate_buckets",
    ]  # fmt: skip
    assert told(followed) == told(spoken, followed) == told(spoken, alone, config=make_run(AV)) == []
    wide = {"audio_directory": "a", "audio_only_sequence_resolution": 128}
    dataset = DatasetConfig.from_table({"datasets": [wide]}, tmp_path)
    for side, named in ((96, ["datasets[0].audio_only_sequence_resolution"]), (128, [])):
        assert told(followed, config=make_run(AUDIO | {"audio": {"sequence_resolution": side}}), dataset=dataset) == (
            named
        )


def test_how_sounds_are_grouped_is_named_where_it_sorts_none(tmp_path):
    clip, mute = sample("clip", audio_steps=9), sample("mute")
    sound, other = sample("sound", audio_steps=9, kind="audio"), sample("other", audio_steps=9, dataset=1)
    asked = {"bucket_strategy": "truncate", "bucket_interval": 3, "separate_buckets": True}

    def told(*samples, audio=(), entry=(), mode="av"):
        events, run = Told(), make_run({"model": {"mode": mode}, "audio": dict(audio)})
        folders = [{"video_directory": name, **dict(entry)} for name in "ab"]
        tell_grouping(run, DatasetConfig.from_table({"datasets": folders}, tmp_path), samples, events)
        return [text.split(" = ")[0] for text in events.texts]

    assert told(clip, other, audio=asked) == [f"audio.{name}" for name in asked]
    assert told(clip, mute, sound, audio=asked) == told(clip, mute) == []
    assert told(mute, other, audio={"separate_buckets": True}) == ["audio.separate_buckets"]
    own = {"audio_bucket_strategy": "truncate", "audio_bucket_interval": 2.0, "separate_audio_buckets": True}
    names = ["datasets[0], datasets[1]: audio_bucket_strategy", "datasets[0], datasets[1]: separate_audio_buckets"]
    assert told(clip, other, entry=own) == names
    assert told(clip, mute, sound, entry=own) == told(clip, entry=own, mode="video") == []


def test_settings_of_datasets_for_the_stream_that_is_not_trained_are_named(tmp_path):
    clip = {"video_directory": "a", "color_jitter": 0.2, "flip": True}
    heard, mute = {"audio_normalize": True, "separate_audio_buckets": True}, {"audio_source": "none"}
    table = {
        "datasets": [clip | heard, {"image_directory": "b"}],
        "validation_datasets": [clip | mute | {"cache_directory": "c"}],
    }
    dataset = DatasetConfig.from_table(table, tmp_path)

    def told(mode):
        texts: list[str] = []
        events = Events()
        events.message = lambda text, level="info": texts.append(text if level == "warning" else level)
        tell_other_stream(make_run({"model": {"mode": mode}}), dataset, events)
        return texts

    assert told("video") == [
        "datasets[0]: audio_normalize, separate_audio_buckets have no effect: model.mode = video trains no sound.",
        "validation_datasets[0]: audio_source has no effect: model.mode = video trains no sound.",
    ]
    assert told("audio") == [
        "datasets[0], validation_datasets[0]: flip, color_jitter have no effect: model.mode = audio trains no picture."
    ]
    assert told("av") == []


def test_what_is_set_for_what_the_plan_does_not_do_is_named():
    asked = {"quant": {"block_size": 64, "device": "cpu"}, "memory": {"swap_ahead": 3}}

    def told(choice, **more):
        texts: list[str] = []
        foretold: Any = None
        events = Events()
        events.message = lambda text, level="info": texts.append(text)
        tell_unplanned(make_run({**asked, **more}), MemoryPlan(choice, 2, foretold), events)
        return [text.split(" = ")[0] for text in texts if "has no effect in this plan: it counts only" in text]

    swapped = Choice("nf4", blocks_to_swap=1, recompute_blocks=2, swap_ahead=3)
    assert told(swapped) == told(Choice("none", recompute_blocks=2), quant={}, memory={}) == []
    names = ["quant.block_size", "quant.device", "memory.swap_ahead"]
    for format in ("none", "kept"):
        assert told(Choice(format, swap_ahead=3)) == names
    assert told(Choice("int8", 1, 2, swap_ahead=3)) == ["quant.block_size"]
