"""Settings of sound, the picture that is imagined for it, silence, and the watch over batches with sound."""

import json

import pytest
import torch

from ltx2_train.errors import ConfigError, DataError, RunError
from ltx2_train.objective.audio import AudioSettings, audio_steps, silence_batch, virtual_shape
from ltx2_train.objective.supervision import SupervisionMonitor
from ltx2_train.settings import parse
from ltx2_train.shapes import LatentShape


def test_all_is_off_or_left_to_the_datasets_by_default():
    settings = AudioSettings()
    assert not settings.independent_timestep
    assert not settings.silence_regularizer
    assert (settings.supervision, settings.min_batches, settings.batch_probability) == ("off", 0, None)
    assert (settings.supervision_warmup, settings.supervision_interval, settings.supervision_min_ratio) == (50, 50, 0.9)
    assert settings.bucket_strategy is settings.bucket_interval is settings.separate_buckets is None


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"min_batches": 1, "batch_probability": 0.5}, "keep one"),
        ({"batch_probability": 1.2}, "batch_probability"),
        ({"min_batches": -1}, "min_batches"),
        ({"sequence_resolution": 16}, "at least 32"),
        ({"supervision_min_ratio": 2}, "supervision_min_ratio"),
        ({"supervision_interval": 0}, "supervision_interval"),
        ({"bucket_interval": 0}, "bucket_interval"),
    ],
)
def test_wrong_settings_are_refused_by_name(wrong, text):
    with pytest.raises(ConfigError, match=text):
        parse(AudioSettings, wrong, "run.toml")


@pytest.mark.parametrize(("resolution", "tokens"), [(64, 13 * 4), (32, 13), (100, 13 * 9), (0, 13 * 17 * 30)])
def test_a_sound_counts_as_its_frames_of_a_small_square(resolution, tokens):
    assert virtual_shape(LatentShape(13, 17, 30), resolution).tokens == tokens


@pytest.mark.parametrize(("frames", "fps", "steps"), [(49, 25, 49), (121, 24, 126), (1, 25, 1), (1, 240, 1)])
def test_a_clip_has_25_steps_of_sound_a_second(frames, fps, steps):
    assert audio_steps(frames, fps) == steps


@pytest.mark.parametrize("steps", [3, 6, 11])
def test_silence_is_cut_or_drawn_out_by_its_end(steps):
    silence = torch.randn(8, 6, 16, generator=torch.Generator().manual_seed(0))
    batch = silence_batch(silence, 2, steps)
    assert batch.shape == (2, 8, steps, 16)
    for step in range(steps):
        assert torch.equal(batch[1, :, step], silence[:, min(step, 5)])
    batch[0] = 0  # rows are filled in place by whoever mixes real sound in
    assert torch.equal(batch[1, :, 0], silence[:, 0])


def monitor(**settings):
    return SupervisionMonitor(AudioSettings(**settings))


def test_the_watch_warns_at_its_interval_after_warm_up_while_too_few_batches_have_sound():
    watch = monitor(supervision="warn", supervision_warmup=6, supervision_interval=4, supervision_min_ratio=0.5)
    warned = [number for number in range(1, 29) if watch.observe(number > 12)]
    assert warned == [8, 12, 16, 20]  # 12 of 24 is enough
    assert watch.share == 16 / 28


def test_enough_sound_or_silence_in_its_place_is_no_reason_to_warn():
    watch = monitor(supervision="warn", supervision_warmup=0, supervision_interval=1, supervision_min_ratio=1.0)
    assert watch.observe(True) is None
    assert watch.observe(False, regularized=True) is None
    assert "2 of 3 batches" in watch.observe(False)


def test_the_watch_can_end_the_run_or_be_off():
    watch = monitor(supervision="error", supervision_warmup=0, supervision_interval=1)
    with pytest.raises(DataError, match=r"0 of 1 batches.*silence_regularizer"):
        watch.observe(False)
    off = monitor(supervision_warmup=0, supervision_interval=1)
    assert off.observe(False) is None


def test_the_watch_counts_over_a_resume():
    first, second = (monitor(supervision="warn") for _ in range(2))
    for number in range(49):
        assert first.observe(number % 2 == 0) is None
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert "25 of 50" in second.observe(False)
    with pytest.raises(RunError, match="batch counts"):
        second.load_state_dict({})
