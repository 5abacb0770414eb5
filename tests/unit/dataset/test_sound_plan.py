from __future__ import annotations

import json
import shutil
import types

import numpy as np
import pytest
from media import moving_square, tone, write_image, write_sound, write_video

from ltx2_train.dataset.dataset_file import DatasetConfig
from ltx2_train.dataset.plan import plan_dataset
from ltx2_train.dataset.sound_plan import clip_sound
from ltx2_train.errors import ConfigError, DataError
from ltx2_train.events import Events
from ltx2_train.media.frames import Window, timeline
from ltx2_train.shapes import LatentShape


class Heard(Events):
    def __init__(self):
        self.messages = []

    def message(self, text, level="info"):
        self.messages.append((level, text))


def config(folder, *entries, **general):
    table = {"general": {"resolution": 64, **general}, "datasets": [dict(entry) for entry in entries]}
    return DatasetConfig.from_table(table, folder)


def clip(path, seconds=1.0, fps=25, sound=True, caption="a square moves"):
    wave = tone(seconds, rate=48000) if sound else None
    write_video(path, moving_square(round(seconds * fps), 64, 48), fps, sound=wave)
    path.with_suffix(".txt").write_text(caption)
    return path


def shown(fps, frames, offset=0.0):
    return types.SimpleNamespace(path="clip.mp4", times=tuple(offset + k / fps for k in range(frames)))


# --- which seconds belong to which frames ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "target", "override", "start", "seconds"),
    [
        (25, 25, None, 1.0, 1.96),  # as it is
        (24, 25, None, 25 / 24, 49 / 24),  # passed unresampled: the clip gets faster, so does its sound
        (23.976, 24, None, 25 / 23.976, 49 / 23.976),
        (30, 25, None, 1.0, 1.96),  # frames are dropped, time is kept
        (12, 25, None, 1.0, 1.96),  # frames are repeated, time is kept
        (30, 25, 60, 2.0, 3.92),  # the user says 60: twice as fast as the file says
        (30, 25, 24, 25 / 30, 49 / 30),  # unresampled after the correction
        (30, 25, 12, 0.4, 0.784),  # the user says 12: slower than the file, frames are held
    ],
)
def test_the_sound_is_that_of_the_frames(source, target, override, start, seconds):
    media = shown(source, 400)
    line = timeline("clip.mp4", media.times, source, target, override)
    sound = clip_sound(media, line, Window(25, 49), override is not None)
    assert sound.start == pytest.approx(start, abs=1e-6)
    assert sound.seconds == pytest.approx(seconds, abs=1e-6)
    assert sound.length == pytest.approx(49 / target)
    assert sound.steps == 1 + int(49 / target * 25)
    assert sound.of_clip


def test_a_clip_that_begins_late_takes_its_sound_from_there():
    media = shown(25, 100, offset=0.6)
    line = timeline("clip.mp4", media.times, 25, 25)
    assert clip_sound(media, line, Window(10, 9), False).start == pytest.approx(1.0)
    apart = clip_sound(media, line, Window(10, 9), False, apart="voice.wav")
    assert (apart.start, apart.path, apart.of_clip) == (pytest.approx(0.4), "voice.wav", False)


def test_a_padded_window_goes_on_past_the_end():
    media = shown(25, 20)
    line = timeline("clip.mp4", media.times, 25, 25)
    assert clip_sound(media, line, Window(0, 25), False).seconds == pytest.approx(1.0)


def test_varying_frame_rates_keep_their_time():
    times = list(np.cumsum(np.tile([0.02, 0.06], 60)))
    media = types.SimpleNamespace(path="clip.mp4", times=tuple(times))
    line = timeline("clip.mp4", times, 25, 25)
    assert line.resampled
    sound = clip_sound(media, line, Window(25, 25), False)
    assert (sound.start - times[0], sound.seconds, sound.length) == pytest.approx((1.0, 1.0, 1.0))


@pytest.mark.parametrize(("override", "tempo"), [(None, 1.0), (50, 2.0), (24, 0.96)])
def test_lost_frames_do_not_move_the_sound(override, tempo):
    shown = [k / 25 for k in range(1000) if not 10 <= k < 35]
    media = types.SimpleNamespace(path="clip.mp4", times=tuple(shown))
    line = timeline("clip.mp4", shown, 25, 25, override)
    for start in (0, 5, 20, 200):
        sound = clip_sound(media, line, Window(start, 49), override is not None)
        assert sound.start == pytest.approx(start / 25 * tempo)
        assert sound.seconds == pytest.approx(1.96 * tempo)
        first = line.picks[start]
        assert shown[first] <= sound.start + 1e-3 < shown[first + 1], "the picture of that moment"


def test_each_window_has_its_own_sound_and_cache_name(tmp_path):
    clip(tmp_path / "clips" / "a.mp4", 2.0)
    entry = {"video_directory": "clips", "cache_directory": "k", "target_frames": [17], "frame_extraction": "chunk"}
    plan = plan_dataset(config(tmp_path, entry))
    assert [item.audio_path.name for item in plan.items] == [
        "a_00000-017_0064x0064_ltx2_audio.safetensors",
        "a_00017-017_0064x0064_ltx2_audio.safetensors",
    ]
    assert [item.sound.start for item in plan.items] == pytest.approx([0.0, 0.68])
    assert {item.kind for item in plan.items} == {"video"}


# --- where sound comes from ------------------------------------------------------------------------------------------


def test_a_video_without_sound_is_a_silent_sample(tmp_path):
    clip(tmp_path / "clips" / "mute.mp4", sound=False)
    write_image(tmp_path / "pics" / "p.png")
    entries = {"video_directory": "clips", "target_frames": [9]}, {"image_directory": "pics"}
    video, image = plan_dataset(config(tmp_path, *entries)).items
    assert video.sound is video.audio_path is image.sound is image.audio_path is None
    assert video.silence == "the file has no sound"


def test_sound_can_be_switched_off(tmp_path):
    clip(tmp_path / "clips" / "a.mp4")
    (item,) = plan_dataset(
        config(tmp_path, {"video_directory": "clips", "target_frames": [9], "audio_source": "none"})
    ).items
    assert item.sound is None


@pytest.mark.parametrize(
    ("options", "file"),
    [
        ({}, "clips/a.wav"),
        ({}, "clips/a.flac"),
        ({"audio_extension": "flac"}, "clips/a.flac"),
        ({"audio_files_directory": "voices"}, "voices/A.wav"),
        ({"audio_files_directory": "voices", "audio_extension": ".m4a"}, "voices/a.m4a"),
    ],
)
def test_sound_from_files_of_the_same_name(tmp_path, options, file):
    clip(tmp_path / "clips" / "a.mp4", sound=False)
    path = write_sound(
        tmp_path / file,
        tone(1.0),
        codec="aac" if file.endswith("m4a") else "flac" if file.endswith("flac") else "pcm_s16le",
    )
    entry = {"video_directory": "clips", "target_frames": [9], "audio_source": "audio_files", **options}
    (item,) = plan_dataset(config(tmp_path, entry)).items
    assert item.sound.path == path
    assert not item.sound.of_clip


def test_sub_folders_of_sound_mirror_those_of_the_clips(tmp_path):
    for name in ("one", "two"):
        clip(tmp_path / "clips" / name / "a.mp4", sound=False)
        write_sound(tmp_path / "voices" / name / "a.wav", tone(1.0))
    entry = {"video_directory": "clips", "recursive": True, "target_frames": [9], "audio_source": "audio_files"}
    items = plan_dataset(config(tmp_path, {**entry, "audio_files_directory": "voices"})).items
    assert [item.sound.path.parent.name for item in items] == ["one", "two"]
    shutil.rmtree(tmp_path / "voices")
    write_sound(tmp_path / "voices" / "a.wav", tone(1.0))
    plan = plan_dataset(config(tmp_path, {**entry, "audio_files_directory": "voices"}))
    (note,) = [text for text in plan.warnings if "goes with" in text]
    assert f"{tmp_path / 'voices' / 'a.wav'} goes with 2 media of its name: one/a.mp4, two/a.mp4. To" in note


def test_a_missing_sound_file_is_named(tmp_path):
    clip(tmp_path / "clips" / "a.mp4")
    entry = {"video_directory": "clips", "target_frames": [9], "audio_source": "audio_files", "audio_extension": ".wav"}
    (item,) = plan_dataset(config(tmp_path, entry)).items
    assert item.sound is None
    assert "no a.wav in" in item.silence


def test_a_list_can_name_the_sound_of_each_video(tmp_path):
    clip(tmp_path / "a.mp4", sound=False)
    clip(tmp_path / "b.mp4")
    path = write_sound(tmp_path / "other.wav", tone(1.0))
    rows = [{"video_path": "a.mp4", "caption": "x", "audio_path": "other.wav"}, {"video_path": "b.mp4", "caption": "y"}]
    (tmp_path / "list.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    a, b = plan_dataset(
        config(tmp_path, {"video_jsonl_file": "list.jsonl", "cache_directory": "k", "target_frames": [9]})
    ).items
    assert (a.sound.path, b.sound.path) == (path, tmp_path / "b.mp4")


# --- recordings ------------------------------------------------------------------------------------------------------


def test_a_recording_is_one_sample_beside_an_imagined_video(tmp_path):
    write_sound(tmp_path / "s" / "voice.wav", tone(2.0), caption="a low hum")
    plan = plan_dataset(config(tmp_path, {"audio_directory": "s", "cache_directory": "k", "resolution": [96, 64]}))
    (item,) = plan.items
    assert (item.kind, item.caption, item.fps) == ("audio", "a low hum", 25.0)
    assert item.shape == LatentShape(7, 2, 2)  # 2 s at 25 fps, floored to 49 frames; 64 x 64 pixels
    assert item.sound.steps == 51
    assert item.latent_path.name == "voice_0096x0064_ltx2.safetensors"
    assert item.audio_path.name == "voice_0096x0064_ltx2_audio.safetensors"
    assert "sound alone, 2.0 to 2.0 s" in plan.summary()


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({"audio_only_target_fps": 12}, (3, 2, 2)),
        ({"audio_only_sequence_resolution": 128}, (7, 4, 4)),
        ({"audio_only_sequence_resolution": 0}, (7, 2, 3)),
        ({"audio_only_sequence_resolution": 0, "audio_only_target_resolution": 256}, (7, 8, 8)),
    ],
)
def test_the_size_of_the_imagined_video(tmp_path, options, shape):
    write_sound(tmp_path / "s" / "voice.wav", tone(2.0), caption="a low hum")
    (item,) = plan_dataset(config(tmp_path, {"audio_directory": "s", "resolution": [96, 64], **options})).items
    assert (item.shape.frames, item.shape.height, item.shape.width) == shape


def test_the_flags_of_the_community_trainer_for_the_empty_picture(tmp_path):
    write_sound(tmp_path / "s" / "voice.wav", tone(2.0), caption="a low hum")
    flags = {"audio_video_latent_channels": 64, "audio_video_latent_dtype": "float32"}
    plan = plan_dataset(config(tmp_path, {"audio_directory": "s", **flags}))
    assert plan.items[0].shape.channels == 64
    assert plan.settings_of(plan.items[0]).audio_video_latent_dtype == "float32"
    (plain,) = plan_dataset(config(tmp_path, {"audio_directory": "s"})).items
    assert plain.shape.channels == 128


def test_a_recording_is_cut_into_spoken_segments(tmp_path):
    wave = np.concatenate([tone(3.0), tone(1.0) * 0, tone(2.5), tone(1.0) * 0, tone(0.5)], axis=1)
    path = write_sound(tmp_path / "s" / "talk.wav", wave, caption="a voice")
    before = path.read_bytes()
    entry = {"audio_directory": "s", "speech_segments": True, "speech_max_seconds": 3.5}
    plan = plan_dataset(config(tmp_path, entry))
    first, second = plan.items
    assert first.sound.start == pytest.approx(0.0, abs=0.02)
    assert first.sound.seconds == pytest.approx(3.1, abs=0.05)
    assert (second.sound.start, second.sound.seconds) == (pytest.approx(3.9, abs=0.05), pytest.approx(2.7, abs=0.05))
    assert first.audio_path != second.audio_path
    assert first.text_key == second.text_key
    assert any("segments of talk.wav all carry its whole caption" in text for text in plan.warnings)
    assert path.read_bytes() == before


def test_the_length_of_a_pause_decides_where_segments_end(tmp_path):
    wave = np.concatenate([tone(2.5), tone(0.6) * 0, tone(2.5)], axis=1)
    write_sound(tmp_path / "s" / "talk.wav", wave, caption="a voice")
    entry = {"audio_directory": "s", "speech_segments": True, "speech_min_seconds": 1, "speech_max_seconds": 4}
    short = plan_dataset(config(tmp_path, {**entry, "speech_pause_seconds": 0.3})).items
    assert [item.sound.seconds for item in short] == pytest.approx([2.6, 2.6], abs=0.2)
    long = plan_dataset(config(tmp_path, {**entry, "speech_pause_seconds": 1, "speech_max_seconds": 8})).items
    assert [item.sound.seconds for item in long] == pytest.approx([5.6], abs=0.2)


def test_lists_of_recordings(tmp_path):
    write_sound(tmp_path / "x" / "a.flac", tone(1.0), codec="flac")
    (tmp_path / "list.jsonl").write_text(json.dumps({"audio_path": "x/a.flac", "caption": "hum"}))
    (item,) = plan_dataset(config(tmp_path, {"audio_jsonl_file": "list.jsonl", "cache_directory": "k"})).items
    assert (item.kind, item.caption) == ("audio", "hum")


def test_recordings_that_cannot_be_used_are_named(tmp_path):
    folder = tmp_path / "s"
    write_sound(folder / "good.wav", tone(2.0), caption="a")
    write_sound(folder / "short.wav", tone(0.5), caption="b")
    write_sound(folder / "mute.wav", tone(2.0))
    (folder / "broken.mp3").write_bytes(b"no sound" * 100)
    (folder / "broken.txt").write_text("c")
    plan = plan_dataset(config(tmp_path, {"audio_directory": "s", "min_seconds": 1}))
    reasons = {skip.path.name: skip.reason for skip in plan.skipped}
    assert [item.source.path.name for item in plan.items] == ["good.wav"]
    assert "too short: 0.50 s" in reasons["short.wav"]
    assert "no caption" in reasons["mute.wav"]
    assert "broken.mp3" in reasons["broken.mp3"]


def test_a_long_recording_is_mentioned(tmp_path):
    write_sound(tmp_path / "s" / "long.wav", tone(61.0, rate=8000), 8000, caption="a")
    heard = Heard()
    plan_dataset(config(tmp_path, {"audio_directory": "s"}), heard)
    assert any("lasts 61 s; speech_segments" in text for level, text in heard.messages if level == "warning")


def test_a_folder_of_other_media_is_pointed_out(tmp_path):
    clip(tmp_path / "clips" / "a.mp4")
    with pytest.raises(DataError, match="no sound files in .* For these use video_directory"):
        plan_dataset(config(tmp_path, {"audio_directory": "clips"}))
    write_sound(tmp_path / "s" / "a.wav", tone(1.0))
    with pytest.raises(DataError, match="For these use audio_directory"):
        plan_dataset(config(tmp_path, {"video_directory": "s"}))


def test_all_kinds_mix_in_one_plan(tmp_path):
    clip(tmp_path / "v" / "a.mp4")
    write_image(tmp_path / "i" / "p.png")
    write_sound(tmp_path / "s" / "h.wav", tone(1.0), caption="hum")
    entries = {"video_directory": "v", "target_frames": [9]}, {"image_directory": "i"}, {"audio_directory": "s"}
    plan = plan_dataset(config(tmp_path, *entries))
    assert [item.kind for item in plan.items] == ["video", "image", "audio"]
    assert len({item.key for item in plan.items}) == 3


# --- references ------------------------------------------------------------------------------------------------------


def test_references_are_found_by_name(tmp_path):
    clip(tmp_path / "clips" / "a.mp4", 2.0)
    clip(tmp_path / "clips" / "b.mp4")
    path = write_sound(tmp_path / "ref" / "A.flac", tone(1.0), codec="flac")
    entry = {
        "video_directory": "clips",
        "cache_directory": "k",
        "target_frames": [9],
        "reference_audio_directory": "ref",
    }
    heard = Heard()
    a, b = plan_dataset(config(tmp_path, entry), heard).items
    assert a.reference_audios == (path,)
    assert (
        a.reference_audio_path(0) == tmp_path / "k" / "reference_audio" / "a_00000-009_0064x0064_ltx2_audio.safetensors"
    )
    assert b.reference_audios == ()
    assert any("1 files have no reference sound" in text and "b.mp4" in text for _, text in heard.messages)


def test_recordings_have_references_too(tmp_path):
    write_sound(tmp_path / "s" / "a.wav", tone(1.0), caption="x")
    path = write_sound(tmp_path / "ref" / "a.wav", tone(0.5))
    entry = {"audio_directory": "s", "reference_audio_directory": "ref", "reference_audio_cache_directory": "rk"}
    (item,) = plan_dataset(config(tmp_path, entry)).items
    assert (item.reference_audios, item.reference_audio_path(0).parent) == ((path,), tmp_path / "rk")


# --- settings --------------------------------------------------------------------------------------------------------


def test_values_in_a_dataset_win_over_general(tmp_path):
    entries = {"audio_directory": "a", "audio_bucket_interval": 1}, {"audio_directory": "b"}
    one, two = config(tmp_path, *entries, audio_bucket_interval=4, audio_bucket_strategy="truncate").datasets
    assert (one.audio_bucket_interval, two.audio_bucket_interval) == (1.0, 4.0)
    assert one.audio_bucket_strategy == two.audio_bucket_strategy == "truncate"
    assert one.audio_directory == tmp_path / "a"
    assert (
        DatasetConfig.from_table({"datasets": [{"audio_directory": "a"}]}, tmp_path).datasets[0].audio_bucket_interval
        == 2.0
    )


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"video_directory": "v", "audio_directory": "a"}, 'audio_source = "audio_files"'),
        ({"audio_directory": "a", "audio_only_sequence_resolution": 16}, "must be 0 or at least 32"),
        ({"audio_directory": "a", "speech_min_seconds": 20}, "speech_max_seconds"),
        ({"audio_jsonl_file": "a.jsonl"}, "cache_directory: needs a folder"),
        ({"audio_directory": "a", "audio_bucket_strategy": "crop"}, "audio_bucket_strategy"),
        (
            {
                "audio_directory": "a",
                "cache_directory": "k",
                "reference_audio_directory": "r",
                "reference_audio_cache_directory": "k",
            },
            "reference_audio_cache_directory of its own",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused(tmp_path, entry, said):
    with pytest.raises(ConfigError, match=said):
        config(tmp_path, entry)


def test_a_sound_of_its_own_that_fits_the_rate_of_the_user_is_not_stretched(tmp_path):
    write_video(tmp_path / "a.mp4", moving_square(34, 64, 64))
    (tmp_path / "a.txt").write_text("x")
    lengths = "the clip 0.68 s at source_fps, 1.36 s without"
    for seconds, used, told in (
        (0.68, 0.68, f"at source_fps, and are heard as they are: a.wav (0.68 s; {lengths})"),
        (1.36, 1.36, f"without source_fps, and change their speed with them: a.wav (1.36 s; {lengths})"),
    ):
        write_sound(tmp_path / "a.wav", tone(seconds))
        entry = {"video_directory": ".", "audio_source": "audio_files", "source_fps": 50, "target_frames": [17]}
        plan = plan_dataset(DatasetConfig.from_table({"general": {"resolution": 64}, "datasets": [entry]}, tmp_path))
        assert plan.items[0].sound.seconds == pytest.approx(used, abs=0.05)
        assert not any("shorter" in text or "longer" in text for text in plan.warnings)
        assert [text for text in plan.warnings if "source_fps" in text] == [
            f"datasets[0]: 1 sounds are nearest to the length of their clips {told}"
        ]
    del entry["source_fps"]
    plan = plan_dataset(DatasetConfig.from_table({"general": {"resolution": 64}, "datasets": [entry]}, tmp_path))
    assert not any("source_fps" in text for text in plan.warnings)
