"""Sound as it is read: exact samples at any place, rates, channels, and files that are cut, odd or none.

It is long: each container and codec by the same made tones.
"""

from __future__ import annotations

import math
import struct
import wave as wave_file
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from media import moving_square, pitch, real_clip, tone, truncate, write_sound, write_video

from ltx2_train.dataset.sound_plan import probe_recording
from ltx2_train.errors import DataError
from ltx2_train.media.sound import (
    Sound,
    as_floats,
    clipped_share,
    exactly,
    prepare,
    prepare_file,
    probe_sound,
    read_sound,
    resample,
    rms_db,
    stretch,
    to_stereo,
)
from ltx2_train.media.sound_media import check_numbers, sound_levels, sound_of, sound_tracks
from ltx2_train.media.structure import behind_end

HOP_SECONDS = 0.01  # one row of the mel spectrogram: 160 samples at 16 kHz


def noise(seconds, rate=48000, channels=2, level=0.2, seed=0):
    drawn = np.random.default_rng(seed).standard_normal((channels, round(seconds * rate)))
    return np.clip(level * drawn, -1, 1).astype(np.float32)


def glide(seconds, rate):
    times = np.arange(round(seconds * rate)) / rate
    return np.repeat((0.5 * np.sin(2 * np.pi * (200 * times + 20 * times**2))).astype(np.float32)[None], 2, axis=0)


def clicks(seconds, at, rate=48000):
    """Faint noise with a loud burst of 10 ms at each of the seconds `at`."""
    wave = noise(seconds, rate, 1, 0.02)
    burst = 0.8 * np.sin(2 * np.pi * 2000 * np.arange(round(0.01 * rate)) / rate)
    for second in at:
        first = round(second * rate)
        wave[0, first : first + len(burst)] += burst
    return wave


def bursts(samples, rate):
    """The seconds at which bursts begin."""
    loud = np.flatnonzero(np.abs(samples[0]) > 0.35)
    return loud[np.concatenate([[True], np.diff(loud) > 0.1 * rate])] / rate


# --- decoding --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "rate"), [(1, 8000), (2, 44100), (6, 48000), (8, 48000), (2, 96000)])
def test_samples_come_out_as_they_went_in(tmp_path, channels, rate):
    wave = noise(1.0, rate, channels)
    path = write_sound(tmp_path / "a.wav", wave, rate)
    info = probe_sound(path)
    assert (info.rate, info.channels) == (rate, channels)
    assert info.duration == pytest.approx(1.0, abs=1e-3)
    sound = read_sound(path)
    assert sound.rate == rate
    assert sound.missing == sound.damaged == 0
    np.testing.assert_array_equal(sound.samples, wave)


@pytest.mark.parametrize(
    ("codec", "ending", "step"),
    [("pcm_s16le", "wav", 2**-15), ("pcm_u8", "wav", 2**-7), ("pcm_s32le", "wav", 2**-24), ("flac", "flac", 2**-15)],
)
def test_whole_numbers_become_full_scale_one(tmp_path, codec, ending, step):
    wave = noise(0.5)
    sound = read_sound(write_sound(tmp_path / f"a.{ending}", wave, codec=codec))
    assert sound.samples.dtype == np.float32
    assert np.abs(sound.samples - wave).max() <= step


@pytest.mark.parametrize(
    ("name", "codec", "rate"),
    [
        ("a.wav", "pcm_f32le", 48000),
        ("a.flac", "flac", 44100),
        ("a.m4a", "aac", 48000),
        ("a.mp3", "mp3", 44100),
        ("a.ogg", "libopus", 48000),
    ],
)
def test_a_window_is_that_part_of_the_whole(tmp_path, name, codec, rate):
    # Codecs fill noise with random numbers that depend on all that was decoded before, so a gliding tone it is.
    lossless = codec in ("pcm_f32le", "flac")
    path = write_sound(tmp_path / name, noise(24.0, rate) if lossless else glide(24.0, rate), rate, codec)
    whole = read_sound(path).samples
    for start in (0.0, 1.3, 17.41):
        window = read_sound(path, start, 1.96)
        assert window.missing == 0
        first = round(start * rate)
        expected = whole[:, first : first + round(1.96 * rate)]
        np.testing.assert_allclose(window.samples, expected, atol=0 if lossless else 5e-3)


@pytest.mark.parametrize(
    ("name", "codec"), [("a.m4a", "aac"), ("a.mka", "aac"), ("a.mp3", "mp3"), ("a.ogg", "libopus")]
)
def test_compressed_sound_is_where_it_was(tmp_path, name, codec):
    at = [0.5, 1.0, 7.25]
    # Older FFmpeg writes AAC into Matroska without saying how far the codec lags: a frame of 1024 samples.
    lag = 0.022 if name == "a.mka" else 2e-3
    path = write_sound(tmp_path / name, clicks(9.0, at), codec=codec)
    np.testing.assert_allclose(bursts(read_sound(path).samples, 48000), at, atol=lag)
    np.testing.assert_allclose(bursts(read_sound(path, 7.0, 1.0).samples, 48000), [0.25], atol=lag)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
@pytest.mark.parametrize("delay", [0.0, 0.48])
def test_sound_stays_with_the_picture_of_its_clip(tmp_path, name, delay):
    path = write_video(tmp_path / name, moving_square(50, 64, 48), sound=clicks(1.5, [0.5]), sound_delay=delay)
    sound = read_sound(path, 0.0, 2.0, of_clip=True)
    np.testing.assert_allclose(bursts(sound.samples, 48000), [0.5 + delay], atol=2e-3)
    assert sound.missing / 48000 == pytest.approx(0.5, abs=0.05)


def test_surround_of_a_real_clip():
    path = real_clip("bigbuckbunny.mp4")
    info = probe_sound(path)
    assert (info.rate, info.channels, info.layout) == (48000, 6, "5.1")
    assert info.duration == pytest.approx(5.31, abs=0.01)
    whole = read_sound(path, of_clip=True)
    window = read_sound(path, 1.96, 1.96, of_clip=True)
    np.testing.assert_array_equal(window.samples, whole.samples[:, 94080:188160])
    stereo = prepare(window, 1.96, 16000)
    assert stereo.samples.shape == (2, 31360)
    assert stereo.remarks == {}


# --- what is wrong with a file ---------------------------------------------------------------------------------------


def test_eight_channels_in_planes(tmp_path):
    wave = np.stack([tone(1.0, 200.0 * (channel + 1))[0] * 0.3 for channel in range(8)])
    wave[3] = 0  # LFE carries nothing above 120 Hz
    sound = read_sound(write_sound(tmp_path / "a.m4a", wave, codec="aac"))
    assert sound.samples.shape[0] == 8
    for channel in (0, 1, 2, 4, 5, 6, 7):
        assert pitch(sound.samples[channel], 48000) == pytest.approx(200.0 * (channel + 1), rel=1e-3)


def test_kinds_of_samples_that_make_no_array_are_converted(tmp_path):
    import av

    wave = tone(0.5, channels=2)
    frame = av.AudioFrame.from_ndarray(wave.T.reshape(1, -1).copy(), format="flt", layout="stereo")
    frame.sample_rate = 48000
    (wide,) = av.AudioResampler("s64p", "stereo", 48000).resample(frame)
    np.testing.assert_allclose(as_floats(wide), wave, atol=1e-6)


def test_sound_that_ends_early_is_padded_and_counted(tmp_path):
    path = write_sound(tmp_path / "a.wav", noise(1.0, 16000, 1), 16000)
    sound = read_sound(path, 0.5, 2.0)
    assert (sound.samples.shape, sound.missing) == ((1, 32000), 24000)
    made = prepare(sound, 2.0, 16000)
    assert not made.samples[:, 8000:].any()
    assert "lacks 1.50 s of the clip" in made.remarks["padded"]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1.6e38, -100.0])
def test_samples_that_are_not_numbers_are_refused_however_they_are_read(tmp_path, value):
    wave = noise(6.0, 16000, 2)
    wave[1, 90_000] = value
    path = write_sound(tmp_path / "a.wav", wave, 16000)
    for read in (
        read_sound,
        check_numbers,
        lambda path: prepare_file(path, None, 16000),
        lambda path: sound_levels(path, 50),
    ):
        with pytest.raises(DataError, match=r"a\.wav holds samples that are not numbers"):
            read(path)
    assert np.isfinite(read_sound(path, 0.0, 5.0).samples).all(), "what is before it may be used"


def test_floats_as_large_as_integers_are_a_recording_as_any_other(tmp_path):
    wave = noise(2.0, 16000, 2)
    wave[:, :7000] = 0
    path = write_sound(tmp_path / "a.wav", wave * 32768, 16000)
    assert np.allclose(prepare_file(path, None, 16000).samples, wave / np.abs(wave).max(), atol=1e-6)
    fade = np.zeros_like(wave)
    fade[:, 5000:5003] = fade[:, 5100] = 1 / 128  # the smallest steps of 16 bits in 24, stored as floats
    fade[:, :2000] = wave[:, 7000:9000]
    assert read_sound(write_sound(tmp_path / "b.wav", fade * 32768, 16000), 0.2).samples.any()


@pytest.mark.parametrize(("level", "said"), [(0.0, "is silence"), (1e-4, "is silent (-8")])
def test_silence_is_mentioned(level, said):
    made = prepare(Sound(tone(1.0, level=level, rate=16000), 16000, "mono"), 1.0, 16000)
    assert said in made.remarks["silent"]
    assert "silent" not in prepare(Sound(tone(1.0, level=0.01), 48000, "mono"), 1.0, 16000).remarks


def test_clipping_is_mentioned():
    wave = np.clip(tone(1.0, level=1.5), -1, 1)
    assert clipped_share(wave) > 0.3
    assert "full scale" in prepare(Sound(wave, 48000, "mono"), 1.0, 16000).remarks["clipped"]
    assert clipped_share(tone(1.0, level=1.0)) < 0.05
    assert prepare(Sound(tone(1.0, level=0.9), 48000, "mono"), 1.0, 16000).remarks == {}


def test_a_window_without_sound_is_an_error(tmp_path):
    path = write_sound(tmp_path / "a.wav", noise(1.0, 16000, 1), 16000)
    with pytest.raises(DataError, match="no sound from 3.00 s on"):
        read_sound(path, 3.0, 1.0)


def test_sound_that_begins_behind_the_window_says_when_it_begins(tmp_path):
    path = write_video(tmp_path / "a.mp4", moving_square(100, 64, 48), sound=tone(1.0), sound_delay=2.0)
    with pytest.raises(
        DataError, match=r"begins at (1\.9|2\.0)\d s, and the part from 0\.00 to 1\.00 s is to be heard"
    ):
        read_sound(path, 0.0, 1.0, of_clip=True)


def test_what_is_no_sound_is_named(tmp_path):
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("this is not sound at all, whatever its name says" * 20)
    mute = write_video(tmp_path / "mute.mp4", moving_square(9, 64, 48))
    for path, said in (
        (tmp_path / "gone.wav", "does not exist"),
        (tmp_path / "empty.wav", "0 bytes"),
        (tmp_path / "text.wav", "cannot be read"),
        (mute, "has no sound"),
    ):
        with pytest.raises(DataError, match=said) as caught:
            probe_sound(path)
        assert caught.value.path == path


def test_a_file_without_samples_is_an_error(tmp_path):
    path = tmp_path / "a.wav"
    with wave_file.open(str(path), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
    with pytest.raises(DataError, match="not one sample|cannot be read"):
        probe_sound(path)


def test_a_cut_file_gives_what_it_holds(tmp_path):
    path = truncate(write_sound(tmp_path / "a.wav", noise(2.0, 16000, 1), 16000), 0.5)
    assert probe_sound(path).duration == pytest.approx(1.0, abs=0.05)
    assert read_sound(path, 0.0, 2.0).missing / 16000 == pytest.approx(1.0, abs=0.05)


# --- channels, rate, level -------------------------------------------------------------------------------------------


def test_mono_goes_to_both_sides_at_full_level():
    wave = noise(0.1, channels=1)
    np.testing.assert_array_equal(to_stereo(Sound(wave, 48000, "mono")), np.repeat(wave, 2, axis=0))


@pytest.mark.parametrize(
    ("layout", "channel", "left", "right"),
    [
        ("5.1", 0, 1 / 2.414, 0),
        ("5.1", 1, 0, 1 / 2.414),
        ("5.1", 2, 0.707 / 2.414, 0.707 / 2.414),
        ("5.1", 3, 0, 0),
        ("5.1", 4, 0.707 / 2.414, 0),
        ("5.1", 5, 0, 0.707 / 2.414),
        ("7.1", 0, 1 / 3.121, 0),
        ("7.1", 2, 0.707 / 3.121, 0.707 / 3.121),
        ("7.1", 6, 0.707 / 3.121, 0),
        ("6 channels", 2, 0.707 / 2.414, 0.707 / 2.414),
    ],
)
def test_surround_is_mixed_at_the_level_of_the_official_trainer(layout, channel, left, right):
    wave = np.zeros((8 if layout == "7.1" else 6, 4800), np.float32)
    wave[channel] = tone(0.1)
    stereo = to_stereo(Sound(wave, 48000, layout))
    for side, gain in enumerate((left, right)):
        np.testing.assert_allclose(stereo[side], gain * wave[channel], atol=1e-4)


def test_channels_of_no_known_place_are_averaged():
    wave = noise(0.1, channels=11)
    stereo = to_stereo(Sound(wave, 48000, "11 channels"))
    np.testing.assert_allclose(stereo, np.repeat(wave.mean(axis=0)[None], 2, axis=0), atol=1e-6)


def test_what_is_above_full_scale_is_lowered_as_a_whole_and_a_mix_is_not():
    made = prepare(Sound(tone(1.0, channels=2, level=1.8), 48000, "stereo"), 1.0, 16000)
    assert np.abs(made.samples).max() == pytest.approx(1.0, abs=1e-3)
    assert pitch(made.samples, 16000) == pytest.approx(440, rel=1e-3)
    mixed = prepare(Sound(tone(1.0, channels=6, level=0.9), 48000, "5.1"), 1.0, 16000)
    assert np.abs(mixed.samples).max() == pytest.approx(0.9, abs=2e-3)


@pytest.mark.parametrize("limit", [None, 1.3])
@pytest.mark.parametrize(
    ("name", "codec", "channels", "rate"),
    [("a.wav", "pcm_s16le", 1, 44100), ("a.mp3", "libmp3lame", 2, 48000), ("a.wav", "pcm_f32le", 6, 48000)],
)
def test_a_file_read_block_by_block_is_what_it_is_at_once(tmp_path, name, codec, channels, rate, limit):
    path = write_sound(tmp_path / name, noise(2.7, rate, channels), rate, codec)
    sound = read_sound(path)
    length = sound.samples.shape[1] / rate if limit is None else limit
    cut = replace(sound, samples=sound.samples[:, : round(length * rate)])
    for normalise in (False, True):
        at_once, by_block = prepare(cut, length, 16000, normalise), prepare_file(path, limit, 16000, normalise)
        np.testing.assert_array_equal(by_block.samples, at_once.samples)
        assert by_block.remarks == at_once.remarks


def test_what_is_wrong_with_a_file_is_counted_block_by_block(tmp_path):
    wave = np.clip(tone(3.0, 440, 16000, 2, level=3), -1, 1)
    made = prepare_file(write_sound(tmp_path / "a.wav", wave, 16000), None, 16000)
    assert set(made.remarks) == {"clipped"}
    with pytest.raises(DataError):
        prepare_file(truncate(write_sound(tmp_path / "b.mp3", wave[:, :99], 16000, "libmp3lame"), 0.01), None, 16000)


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000, 96000])
def test_another_rate_keeps_pitch_length_and_place(rate):
    wave = np.repeat(tone(2.0, 440, rate), 2, axis=0)
    made = resample(wave, rate, 16000)
    assert abs(made.shape[1] - 32000) <= 2
    assert pitch(made, 16000) == pytest.approx(440, rel=5e-4)
    impulse = np.zeros((2, 2 * rate), np.float32)
    impulse[:, rate] = 1
    assert abs(int(np.abs(resample(impulse, rate, 16000)[0]).argmax()) - 16000) <= 1


def test_what_the_rate_cannot_carry_is_filtered_out():
    made = resample(np.repeat(tone(1.0, 11000, 48000), 2, axis=0), 48000, 16000)
    assert rms_db(made[:, 1000:-1000]) < -60


@pytest.mark.parametrize("level", [0.02, 0.9])
def test_loudness_is_brought_to_a_peak_of_minus_7_db(level):
    made = prepare(Sound(tone(1.0, level=level), 48000, "mono"), 1.0, 16000, normalise=True)
    assert 20 * math.log10(np.abs(made.samples).max()) == pytest.approx(-7.0, abs=1e-3)


def test_silence_is_not_blown_up():
    made = prepare(Sound(tone(1.0, level=1e-5), 48000, "mono"), 1.0, 16000, normalise=True)
    assert np.abs(made.samples).max() < 1e-4


# --- stretching ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hz", [110.0, 440.0, 3000.0])
@pytest.mark.parametrize("factor", [0.4, 0.5, 0.8, 23.976 / 25, 24 / 25, 0.999, 1.001, 25 / 24, 1.25, 2.0, 2.5])
def test_stretching_keeps_the_pitch(hz, factor):
    wave = tone(4.0, hz, channels=2)
    made = stretch(wave, 48000, factor)
    assert made.shape == (2, round(wave.shape[1] * factor))
    assert pitch(made, 48000) == pytest.approx(hz, rel=5e-3)
    # The last hop before the end still sounds: the exact length is not reached by silence.
    hop = round(HOP_SECONDS * 48000)
    assert rms_db(made[:, -2 * hop : -hop]) > rms_db(wave) - 12


@pytest.mark.parametrize("factor", [0.8, 24 / 25, 25 / 24, 1.25])
def test_stretching_moves_events_in_proportion(factor):
    at = np.arange(0.5, 4.0, 0.5)
    made = stretch(np.repeat(clicks(4.5, at), 2, axis=0), 48000, factor)
    np.testing.assert_allclose(bursts(made, 48000), at * factor, atol=0.03)


def test_a_difference_that_nobody_sees_is_not_stretched():
    wave = noise(1.0, 16000, 2)
    made = prepare(Sound(wave, 16000, "stereo"), 1.004, 16000)
    np.testing.assert_array_equal(made.samples, exactly(wave, 16064))


@pytest.mark.parametrize(("seconds", "length"), [(1.96, 1.96), (2.0, 1.92), (1.0, 1.3), (0.04, 0.04)])
def test_prepared_sound_has_exactly_its_length(seconds, length):
    made = prepare(Sound(tone(seconds, rate=44100), 44100, "mono"), length, 16000)
    assert made.samples.shape == (2, round(length * 16000))
    if length > 1:
        assert pitch(made.samples, 16000) == pytest.approx(440, rel=5e-3)


# --- headers that are damaged, ends that are missing -----------------------------------------------------------------


@pytest.mark.parametrize("rate", [1, 999, 2_000_000_000])
def test_an_absurd_rate_is_refused_before_anything_is_made_of_it(tmp_path, rate):
    path = write_sound(tmp_path / "a.wav", noise(2.0, 16000, 1), 16000, "pcm_s16le")
    data = bytearray(path.read_bytes())
    data[24:28] = rate.to_bytes(4, "little")
    path.write_bytes(bytes(data))
    for read in (probe_sound, read_sound):
        with pytest.raises(DataError, match="samples a second|cannot be read|can be decoded"):
            read(path)


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.wav", "pcm_s16le"), ("a.aiff", "pcm_s16be"), ("a.ogg", "libopus"), ("a.flac", "flac"), ("a.mka", "aac")],
)
def test_sound_that_is_cut_short_says_so(tmp_path, name, codec):
    path = write_sound(tmp_path / name, noise(6.0), codec=codec)
    assert probe_sound(path).cut_short == ""
    assert probe_sound(truncate(path, 0.6)).cut_short


def test_what_fails_a_check_sum_is_silenced_and_counted(tmp_path):
    path = write_sound(tmp_path / "a.flac", noise(6.0), codec="flac")
    whole = read_sound(path).samples
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(bytes(data))
    sound = read_sound(path)
    assert sound.missing == 4608, "one frame"
    lost = np.flatnonzero((sound.samples != whole).any(axis=0))
    assert lost[-1] - lost[0] < 4608
    assert not sound.samples[:, lost].any()


def pages(data):
    """Where each page of an Ogg begins."""
    return [at for at in range(len(data)) if data[at : at + 4] == b"OggS"]


@pytest.mark.parametrize(("name", "codec"), [("a.opus", "libopus"), ("a.oga", "flac")])
def test_an_ogg_with_a_damaged_or_a_missing_page_is_refused_however_it_is_read(tmp_path, name, codec):
    path = write_sound(tmp_path / name, noise(6.0, channels=1), codec=codec)
    assert not probe_sound(path).cut_short
    assert read_sound(path).damaged == 0
    whole, at = path.read_bytes(), pages(path.read_bytes())
    middle, flipped = at[len(at) // 2], bytearray(whole)
    flipped[middle + 200] ^= 0x10
    hole = whole[: middle + 200] + bytes(300) + whole[middle + 500 :]
    for data in (bytes(flipped), hole, whole[:middle] + whole[at[len(at) // 2 + 1] :]):
        path.write_bytes(data)
        for read in (probe_sound, read_sound, check_numbers):
            with pytest.raises(DataError, match=r"is damaged: what begins at byte \d.* does not fit its check sum"):
                read(path)


def test_a_damaged_cluster_of_a_matroska_sound_is_refused(tmp_path):
    path = write_sound(tmp_path / "a.mka", noise(2.0, channels=1), codec="libopus")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match="is damaged: what begins at byte"):
        read_sound(path)


def test_what_stands_behind_the_end_that_a_wav_names_is_told(tmp_path):
    path = write_sound(tmp_path / "a.wav", noise(2.0, 16000, 1), 16000, codec="pcm_s16le")
    assert probe_recording(path).remarks == ()
    data = bytearray(path.read_bytes())
    at = data.index(b"data") + 4
    half = int.from_bytes(data[at : at + 4], "little") // 2
    data[at : at + 4], data[4:8] = half.to_bytes(4, "little"), (at + 4 + half - 8).to_bytes(4, "little")
    path.write_bytes(bytes(data))
    (remark,) = probe_recording(path).remarks
    assert remark.startswith("says that it has 32,0")
    assert remark.endswith("what is behind them is not read")
    data[4:8] = (len(data) - 8).to_bytes(4, "little")
    path.write_bytes(bytes(data))
    (remark,) = probe_recording(path).remarks
    assert (
        remark == f"says that its sound ends at byte {at + 4 + half:,} of {len(data):,}; what is behind it is not read"
    )


@pytest.mark.parametrize(
    ("ending", "codec"),
    [
        ("flac", "flac"),
        ("aiff", "pcm_s16be"),
        ("m4a", "aac"),
        ("caf", "pcm_s16le"),
        ("tta", "tta"),
        ("w64", "pcm_s16le"),
        ("voc", "pcm_s16le"),
    ],
)
def test_a_recording_behind_the_first_is_told(tmp_path, ending, codec):
    path = write_sound(tmp_path / f"a.{ending}", noise(1.0, 48000, 1), codec=codec)
    whole = path.read_bytes()
    assert probe_recording(path).remarks == ()
    path.write_bytes(whole + whole)
    (remark,) = probe_recording(path).remarks
    what = "film" if ending == "m4a" else "recording"
    assert remark == f"holds a second {what} from byte {len(whole):,} on; only the first is read"


def test_recordings_of_which_both_are_read_and_long_waves_are_told(tmp_path):
    path = write_sound(tmp_path / "a.au", noise(1.0, 48000, 1), codec="pcm_s16be")
    size = path.stat().st_size
    path.write_bytes(path.read_bytes() * 2)
    (remark,) = probe_recording(path).remarks
    assert remark == f"holds a second recording from byte {size:,} on; both are read, one after the other"
    data = b"RF64" + bytes([255] * 4) + b"WAVEds64" + struct.pack("<IQQQI", 28, 100, 64, 16, 0)
    path.write_bytes(data + bytes(1000))
    assert behind_end(path) == "says that it has 108 bytes and has 1,048; what is behind them is not read"


def test_of_two_programmes_the_sound_is_that_of_the_picture():
    """As DVB records them; each picture has its own mono track, which are not left and right."""
    context = SimpleNamespace(layout=SimpleNamespace(nb_channels=1, name="mono"), sample_rate=48000, name="mp2")
    heard = [SimpleNamespace(codec_context=context, metadata={}, index=index) for index in (1, 2)]
    programmes = {"first": heard[0], "second": heard[1]}

    class Streams:
        audio, video = heard, list(programmes)

        def best(self, kind, related=None):
            return "first" if kind == "video" else programmes.get(related, heard[1])

    container = SimpleNamespace(streams=Streams(), format=SimpleNamespace(name="mpegts"))
    assert sound_of(container) is heard[0]
    assert sound_tracks(Path("a.ts"), container) == (("1: mp2, mono, 48000 Hz", "2: mp2, mono, 48000 Hz"), False)
    Streams.video = ["first"]
    assert sound_tracks(Path("a.ts"), container)[1]


def test_joined_opus_is_refused(tmp_path):
    """FFmpeg reads the second one of two."""
    path = write_sound(tmp_path / "a.opus", noise(1.0, 48000, 1), codec="libopus")
    path.write_bytes(path.read_bytes() * 2)
    with pytest.raises(DataError, match="holds a second recording from byte"):
        probe_recording(path)


def test_a_second_chunk_of_sound_is_told(tmp_path):
    path = write_sound(tmp_path / "a.wav", noise(1.0, 16000, 1), 16000, codec="pcm_s16le")
    data = path.read_bytes()
    at = data.index(b"data")
    whole = data + data[at:]
    path.write_bytes(whole[:4] + (len(whole) - 8).to_bytes(4, "little") + whole[8:])
    (remark,) = probe_recording(path).remarks
    assert remark == f"has a second chunk of sound at byte {len(data):,}, and one alone is read; export it again"


def test_a_wav_that_ends_within_a_sample_is_told(tmp_path):
    path = write_sound(tmp_path / "a.wav", noise(1.0, 16000, 2), 16000, codec="pcm_s16le")
    data = path.read_bytes()
    at = data.index(b"data") + 8
    path.write_bytes(data[: at + 5000] + data[at + 5001 :])
    (remark,) = probe_recording(path).remarks
    assert remark == "ends 3 bytes into a sample of 4; if one is missing inside, what follows is noise"


def test_joined_mp3s_are_read_to_their_end(tmp_path):
    path = write_sound(tmp_path / "a.mp3", noise(1.0, 48000, 1), codec="libmp3lame")
    alone = len(read_sound(path).samples[0])
    path.write_bytes(path.read_bytes() * 2)
    assert len(read_sound(path).samples[0]) > 1.9 * alone or probe_recording(path).remarks


def test_samples_that_float32_cannot_hold_are_infinite_without_a_warning(recwarn):
    frame = av.AudioFrame.from_ndarray(np.full((1, 16), 1e300), format="dbl", layout="mono")
    assert np.isinf(as_floats(frame)).all()
    assert not recwarn.list
