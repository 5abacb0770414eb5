from __future__ import annotations

import numpy as np
import pytest
from media import tone, write_sound

from ltx2_train.media import speech
from ltx2_train.media.sound import sound_levels
from ltx2_train.media.speech import STEPS_PER_SECOND

RATE = 16000


def recording(spoken, seconds, floor=1e-3, level=0.2, seed=0):
    """Noise at `floor`, louder within each (start, end) of `spoken`."""
    wave = np.random.default_rng(seed).standard_normal((1, round(seconds * RATE))).astype(np.float32)
    gain = np.full(wave.shape[1], floor, np.float32)
    for start, end in spoken:
        gain[round(start * RATE) : round(end * RATE)] = level
    return wave * gain


def spoken_segments(wave, rate, *limits):
    step = rate // STEPS_PER_SECOND
    count = wave.shape[1] // step
    power = np.square(wave[:, : count * step]).mean(axis=0).reshape(count, step).mean(axis=1) if count else np.zeros(0)
    return speech.spoken_segments(10 * np.log10(np.maximum(power, 1e-10)), *limits)


@pytest.mark.parametrize(
    ("rate", "codec", "ending"), [(16000, "pcm_f32le", "wav"), (11025, "pcm_s16le", "wav"), (44100, "flac", "flac")]
)
def test_levels_of_a_file(tmp_path, rate, codec, ending):
    wave = np.full((2, rate * 30), 0.1, np.float32)
    wave[:, rate * 20 : rate * 21] = 0.01
    loud = sound_levels(write_sound(tmp_path / f"a.{ending}", wave, rate, codec), STEPS_PER_SECOND)
    assert len(loud) == 1500
    expected = np.full(1500, -20.0)
    expected[1000:1050] = -40
    np.testing.assert_allclose(loud, expected, atol=0.1)


@pytest.mark.parametrize("floor", [1e-5, 1e-3, 2e-2])
def test_phrases_are_found_whatever_the_noise(floor):
    spoken = [(1.0, 4.0), (6.0, 9.5), (12.0, 14.2)]
    found = spoken_segments(recording(spoken, 16.0, floor), RATE, 2.0, 4.0, 0.3)
    assert len(found) == 3
    for (start, seconds), (first, last) in zip(found, spoken, strict=True):
        assert first - 0.12 <= start <= first + 0.02
        assert last - 0.02 <= start + seconds <= last + 0.12


def test_a_quiet_recording_is_cut_like_a_loud_one():
    spoken = [(1.0, 4.0), (6.0, 9.5)]
    loud = spoken_segments(recording(spoken, 11.0, 1e-4, 0.3), RATE, 2.0, 4.0, 0.3)
    quiet = spoken_segments(recording(spoken, 11.0, 1e-4, 0.01), RATE, 2.0, 4.0, 0.3)
    assert len(loud) == len(quiet) == 2
    np.testing.assert_allclose(loud, quiet, atol=0.05)


def test_short_phrases_are_joined_up_to_the_longest():
    spoken = [(0.5 + 2 * k, 1.9 + 2 * k) for k in range(6)]
    found = spoken_segments(recording(spoken, 13.0), RATE, 2.0, 6.0, 0.3)
    assert len(found) == 2
    assert all(5.0 < seconds <= 6.0 for _, seconds in found)


def test_a_phrase_that_is_too_long_is_cut_where_it_is_quietest():
    wave = recording([(1.0, 11.0)], 12.0)
    wave[:, round(5.5 * RATE) : round(5.6 * RATE)] *= 0.2
    found = spoken_segments(wave, RATE, 1.0, 6.0, 0.3)
    assert len(found) == 2
    assert found[1][0] == pytest.approx(5.55, abs=0.15)


def test_segments_keep_within_the_limits_and_never_overlap():
    random = np.random.default_rng(1)
    edges = np.cumsum(random.uniform(0.2, 3.0, 60))
    wave = recording(list(zip(edges[::2], edges[1::2], strict=True)), edges[-1] + 1)
    found = spoken_segments(wave, RATE, 1.0, 5.0, 0.25)
    assert len(found) > 5
    assert all(1.0 <= seconds <= 5.0 + 1e-9 for _, seconds in found)
    ends = [start + seconds for start, seconds in found]
    assert all(end <= start + 1e-9 for end, (start, _) in zip(ends, found[1:], strict=False))
    assert ends[-1] <= wave.shape[1] / RATE


def test_what_is_too_short_is_left_out():
    assert spoken_segments(recording([(1.0, 1.5)], 5.0), RATE, 2.0, 6.0, 0.3) == []


@pytest.mark.parametrize(
    "wave", [np.zeros((1, RATE * 5), np.float32), np.zeros((2, 0), np.float32), np.zeros((1, 10), np.float32)]
)
def test_silence_has_no_segments(wave):
    assert spoken_segments(wave, RATE, 1.0, 5.0, 0.3) == []


def test_one_steady_sound_is_cut_by_length_alone():
    wave = recording([(0.0, 20.0)], 20.0)
    found = spoken_segments(wave, RATE, 1.0, 5.0, 0.3)
    assert sum(seconds for _, seconds in found) > 15
    assert all(seconds <= 5.0 + 1e-9 for _, seconds in found)


def test_segments_that_carry_the_caption_of_the_whole_are_pointed_out(tmp_path):
    from ltx2_train.dataset.dataset_file import DatasetConfig
    from ltx2_train.dataset.plan import plan_dataset

    wave = np.concatenate([tone(2.5), tone(1.0) * 0, tone(2.5)], axis=1)
    write_sound(tmp_path / "s" / "talk.wav", wave, caption="one, two, three")
    entry = {"audio_directory": "s", "speech_segments": True, "speech_max_seconds": 4}
    plan = plan_dataset(DatasetConfig.from_table({"datasets": [entry]}, tmp_path))
    assert len(plan.items) == 2
    assert any("the 2 segments of talk.wav all carry its whole caption" in text for text in plan.warnings)
