"""Sound to caches: what is heard, in which pieces and at which rates, and under which names it is kept."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from fill_caches import encode_latents
from media import pitch, real_clip, tone, write_sound, write_video
from unit.caching.sound_caching import HOP, clip, encode, mixed_folder, plan_of

from ltx2_train.caching import cache_file as caches
from ltx2_train.caching import encode_sound
from ltx2_train.caching.cache_file import CacheFile
from ltx2_train.caching.encode_sound import SoundLatents
from ltx2_train.caching.recipe import CacheRecipe
from ltx2_train.caching.settings import CacheSettings
from ltx2_train.caching.status import cache_status
from ltx2_train.errors import OutOfMemory
from ltx2_train.files import write_tensors
from ltx2_train.media.sound import Prepared
from ltx2_train.shapes import AudioLatentShape, encoded_audio_steps
from ltx2_train.weights.load import load_audio_vae


def heard_by(vae, seconds, pieces):
    """The latents of noise, encoded at once and in pieces of so many."""
    wave = np.random.default_rng(0).standard_normal((2, round(seconds * 16000))).astype(np.float32) * 0.1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode_sound, "PIECE_STEPS", 10**6)
        whole = encode_sound.encode(Prepared(wave, {}), vae, "cpu")
        patch.setattr(encode_sound, "PIECE_STEPS", pieces)
        return wave, whole, encode_sound.encode(Prepared(wave, {}), vae, "cpu")


@pytest.fixture
def mixed(tmp_path):
    return mixed_folder(tmp_path)


def test_sound_is_cached_under_the_names_that_others_read(mixed):
    plan = mixed()
    report, (vae,) = encode(plan)
    assert (report.kind, report.made, report.kept, report.failed) == ("sound", 2, 0, [])
    assert vae.closed
    loud, hum = plan.items[0], plan.items[-1]
    file = CacheFile(loud.audio_path)
    assert sorted(file.keys) == ["audio_latents_18x16x8_fp16", "audio_lengths_int32"]
    assert file.audio_shape() == AudioLatentShape(18)  # 17 frames at 25 fps: 0.68 s, and the row at the end
    assert file.audio_steps() == 18
    assert file.audio_latents().shape == (8, 18, 16)
    assert file.audio_latents().dtype == torch.float32
    assert file.metadata["architecture"] == "ltx2_v1"
    assert json.loads(file.metadata["source"])["size"] == loud.source.path.stat().st_size
    assert CacheFile(hum.audio_path).audio_steps() == 51
    assert [item.audio_path for item in plan.items[1:3]] == [None, None]
    assert cache_status(plan, CacheRecipe(mode="av")).of("orphaned") == []


def test_a_recording_has_the_file_that_the_community_trainer_looks_for(mixed):
    plan = mixed()
    encode(plan)
    file = CacheFile(plan.items[-1].latent_path)
    assert sorted(file.keys) == [
        "latents_1x1x1_float16",
        "ltx2_virtual_height_int32",
        "ltx2_virtual_num_frames_int32",
        "ltx2_virtual_width_int32",
    ]
    assert file.latents().shape == (128, 1, 1, 1)
    assert [int(file.tensor(key)) for key in caches.VIRTUAL_KEYS] == [7, 2, 2]


@pytest.mark.parametrize(("precision", "token"), [("bf16", "bfloat16"), ("float32", "float32")])
def test_that_file_has_the_precision_and_channels_asked_for(mixed, precision, token):
    plan = mixed(audio_video_latent_dtype=precision, audio_video_latent_channels=16)
    encode(plan)
    file = CacheFile(plan.items[-1].latent_path)
    assert f"latents_1x1x1_{token}" in file.keys
    assert file.latent_shape().channels == 16


def test_the_video_vae_is_not_asked_for_recordings(mixed):
    plan = mixed()
    sounds = type(plan)(plan.config, plan.items[-1:])
    opened = []
    assert encode_latents(sounds, lambda: opened.append(1), "v", CacheSettings()).made == 0
    assert opened == []


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_other_precisions(mixed, dtype):
    plan = mixed()
    encode(plan, audio_latents_dtype=dtype)
    assert f"audio_latents_18x16x8_{dtype}" in CacheFile(plan.items[0].audio_path).keys


def test_the_real_kind_of_vae_and_a_real_clip(tmp_path, tiny):
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "bunny.mp4").write_bytes(real_clip("bigbuckbunny.mp4").read_bytes())
    (tmp_path / "v" / "bunny.txt").write_text("a rabbit wakes up")
    entry = {"video_directory": "v", "target_frames": [49], "frame_extraction": "chunk"}
    plan = plan_of(tmp_path, entry)
    vae = load_audio_vae(tiny.checkpoint, decoder=False)
    report, _ = encode(plan, vae=vae, audio_latents_dtype="fp32")
    assert (report.made, report.notes) == (2, [])
    one, two = (CacheFile(item.audio_path).audio_latents() for item in plan.items)
    assert one.shape == two.shape == (8, 50, 16)
    assert torch.isfinite(one).all()
    assert not torch.equal(one, two)


@pytest.mark.parametrize(("seconds", "steps"), [(1.0, 26), (0.68, 18), (0.65, 17), (5.0417, 127)])
def test_every_latent_that_the_encoder_gives_is_kept(tiny, seconds, steps):
    vae = load_audio_vae(tiny.checkpoint, decoder=False)
    wave, ours, _ = heard_by(vae, seconds, 40)
    with torch.no_grad():
        whole = vae.encode(vae.waveform_to_mel(torch.from_numpy(wave)[None], 16000))[0]
    assert encoded_audio_steps(seconds) == ours.shape[1] == whole.shape[1] == steps
    assert torch.equal(ours, whole)


@pytest.mark.parametrize(("pieces", "seconds"), [(1, 1.63), (37, 6.43), (40, 6.43), (128, 6.43)])
def test_a_long_sound_is_encoded_in_pieces_as_if_it_were_one(tiny, pieces, seconds):
    """The encoder is causal: a piece with all of the past that it depends on is what it is in the whole."""
    _, whole, joined = heard_by(load_audio_vae(tiny.checkpoint, decoder=False), seconds, pieces)
    torch.testing.assert_close(joined, whole, rtol=0, atol=2e-5)


def test_a_full_memory_names_the_file_and_what_to_set(tmp_path, monkeypatch):
    write_sound(tmp_path / "a" / "long.wav", tone(1.0), caption="x")
    plan = plan_of(tmp_path, {"audio_directory": "a"})

    def full(*_):
        raise MemoryError

    monkeypatch.setattr(encode_sound, "prepare_file", full)
    with pytest.raises(OutOfMemory, match=r"long\.wav \(1 s\).*speech_segments = true or max_seconds"):
        encode(plan)


@pytest.mark.parametrize(("channels", "why"), [(2, None), (6, "its 6 channels are mixed down to another level now")])
def test_old_caches_of_surround_sound_are_made_again_and_others_stay(tmp_path, channels, why):
    write_sound(tmp_path / "a" / "x.wav", tone(1.0, channels=channels), caption="x")
    plan = plan_of(tmp_path, {"audio_directory": "a"})
    encode(plan)
    sounds = SoundLatents(plan, CacheRecipe(mode="av"))
    job = sounds.of(plan.items[0])
    assert sounds.check(job).fresh
    made_from = {key: value for key, value in job.made_from.items() if key != "surround"}
    file = CacheFile(job.path)
    metadata = {**file.metadata, "settings": json.dumps(made_from)}
    write_tensors(job.path, {key: file.tensor(key) for key in file.keys}, metadata)
    assert sounds.check(job).stale == why


@pytest.mark.slow
def test_an_hour_of_sound_takes_less_than_two_gigabytes(tmp_path):
    program = """
import resource, sys
from pathlib import Path
from ltx2_train.caching import encode_sound
from ltx2_train.media.sound import prepare_file
from ltx2_train.models.audio_vae import AudioVAE, AudioVAEConfig

vae = AudioVAE(AudioVAEConfig(channels=2, mid_attention=False), decoder=False)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
latents = encode_sound.encode(prepare_file(Path(sys.argv[1]), None, 16000), vae, "cpu")
print(latents.shape[1], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    path = write_sound(tmp_path / "hour.mp3", np.tile(tone(1.0, channels=2), (1, 3600)), codec="libmp3lame")
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True)
    steps, kilobytes = map(int, done.stdout.split())
    assert steps == pytest.approx(90_000, abs=5)
    assert kilobytes < 2e6


def test_one_frame_is_enough(tmp_path):
    clip(tmp_path / "v" / "a.mp4", fps=50, frames=10, wave=tone(0.2))
    plan = plan_of(tmp_path, {"video_directory": "v", "target_fps": 50, "target_frames": [1]})
    report, _ = encode(plan)
    assert (report.made, CacheFile(plan.items[0].audio_path).audio_steps()) == (1, 1)


@pytest.mark.parametrize(
    ("fps", "options", "seconds"),
    [
        (25, {}, 1.96),
        (24, {}, 1.96),  # passed unresampled, 4 % fast
        (30, {}, 1.96),  # resampled, time kept
        (12, {}, 1.96),  # slower than the target
        (30, {"source_fps": 60}, 1.96),  # said to be twice as fast
        (25, {"source_fps": 20}, 1.96),  # said to be slower
        (29.97, {"target_fps": 30}, 49 / 30),
    ],
)
def test_pitch_and_length_survive_every_frame_rate(tmp_path, fps, options, seconds):
    clip(tmp_path / "v" / "a.mp4", fps, round(6 * fps), tone(6.0, 440))
    entry = {"video_directory": "v", "target_frames": [49], "frame_extraction": "chunk", **options}
    plan = plan_of(tmp_path, entry)
    report, (vae,) = encode(plan)
    assert report.made == len(plan.items) >= 1
    assert report.notes == []
    for wave in vae.heard:
        assert abs(wave.shape[1] - seconds * 16000) <= 1
        assert pitch(wave, 16000) == pytest.approx(440, rel=5e-3)
        assert np.abs(wave[:, -2 * HOP : -HOP]).max() > 0.2
        np.testing.assert_array_equal(wave[0], wave[1])


def test_the_soundtrack_of_a_long_clip_is_not_squeezed_into_its_first_window(tmp_path):
    wave = np.concatenate([tone(1.0, hz) for hz in (300, 500, 700, 900, 1100)], axis=1)
    clip(tmp_path / "v" / "a.mp4", frames=125, wave=wave)
    for extraction, expected in (("head", [300]), ("chunk", [300, 500, 700, 900, 1100])):
        entry = {
            "video_directory": "v",
            "target_frames": [25],
            "frame_extraction": extraction,
            "cache_directory": extraction,
        }
        _, (vae,) = encode(plan_of(tmp_path, entry))
        assert [round(pitch(heard, 16000)) for heard in vae.heard] == pytest.approx(expected, abs=2)


def test_a_flash_and_its_click_stay_together_when_the_clip_gets_faster(tmp_path):
    frames = 24 * 5
    picture = np.full((frames, 48, 64, 3), 20, np.uint8)
    wave = 0.01 * np.random.default_rng(0).standard_normal((1, 5 * 48000)).astype(np.float32)
    flashes = [24, 48, 72, 96]
    burst = 0.9 * np.sin(2 * np.pi * 2000 * np.arange(480) / 48000)
    for frame in flashes:
        picture[frame] = 240
        wave[0, frame * 2000 : frame * 2000 + 480] += burst
    write_video(tmp_path / "v" / "a.mp4", picture, 24, sound=wave)
    (tmp_path / "v" / "a.txt").write_text("flashes")
    plan = plan_of(tmp_path, {"video_directory": "v", "target_frames": [113]})
    _, (vae,) = encode(plan)
    heard = vae.heard[0][0]
    loud = np.flatnonzero(np.abs(heard) > 0.35)
    clicks = loud[np.concatenate([[True], np.diff(loud) > 1600])] / 16000
    # 24 fps pass as 25: frame k is now shown at k / 25 s.
    np.testing.assert_allclose(clicks, np.array(flashes) / 25, atol=0.03)


def test_sound_apart_follows_its_clip(tmp_path):
    clip(tmp_path / "v" / "a.mp4", 24, 60)
    write_sound(tmp_path / "v" / "a.wav", tone(2.5, 440, 8000), 8000)
    plan = plan_of(tmp_path, {"video_directory": "v", "target_frames": [49], "audio_source": "audio_files"})
    report, (vae,) = encode(plan)
    assert (report.made, vae.heard[0].shape) == (1, (2, 31360))
    assert pitch(vae.heard[0], 16000) == pytest.approx(440, rel=5e-3)


def test_spoken_segments_are_read_from_their_place(tmp_path):
    wave = np.concatenate([tone(3.0, 300), tone(1.0) * 0, tone(3.0, 700)], axis=1)
    write_sound(tmp_path / "a" / "talk.wav", wave, caption="talk")
    plan = plan_of(tmp_path, {"audio_directory": "a", "speech_segments": True, "speech_max_seconds": 4})
    report, (vae,) = encode(plan)
    assert report.made == 2
    assert [round(pitch(heard, 16000)) for heard in vae.heard] == pytest.approx([300, 700], abs=2)


def test_loudness_on_request(tmp_path):
    write_sound(tmp_path / "a" / "hum.wav", tone(1.0, level=0.02), caption="hum")
    _, (vae,) = encode(plan_of(tmp_path, {"audio_directory": "a", "audio_normalize": True}))
    assert np.abs(vae.heard[0]).max() == pytest.approx(10 ** (-7 / 20), abs=1e-3)


def test_a_reference_is_neither_cut_nor_stretched(tmp_path):
    clip(tmp_path / "v" / "a.mp4", 24, 60, tone(2.5))
    write_sound(tmp_path / "ref" / "a.wav", tone(5.0, 330))
    entry = {
        "video_directory": "v",
        "target_frames": [9, 17],
        "reference_audio_directory": "ref",
        "cache_directory": "k",
    }
    plan = plan_of(tmp_path, entry)
    report, (vae,) = encode(plan)
    assert report.made == 4
    references = [heard for heard in vae.heard if heard.shape[1] == 80000]
    assert len(references) == 2
    assert pitch(references[0], 16000) == pytest.approx(330, rel=1e-3)
    assert [CacheFile(item.reference_audio_path(0)).audio_steps() for item in plan.items] == [126, 126]
    limited = plan_of(tmp_path, {**entry, "reference_audio_max_seconds": 2})
    report, _ = encode(limited)
    assert (report.made, report.kept, report.stale) == (2, 2, 2)
    assert CacheFile(limited.items[0].reference_audio_path(0)).audio_steps() == 51
