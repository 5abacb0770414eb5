"""Caches of sound: which stay and which are made again, and what is said of sound that cannot be used."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from media import tone, write_sound
from unit.caching.sound_caching import Heard, HearingVAE, clip, encode, mixed_folder, plan_of

from ltx2_train.caching.cache_file import CacheFile
from ltx2_train.caching.encode_sound import SoundLatents
from ltx2_train.caching.recipe import CacheRecipe
from ltx2_train.errors import CacheError, DataError, OutOfMemory, Stopped


def failure(plan, item):
    """Why the sound of `item` could not be cached."""
    sounds = SoundLatents(plan, CacheRecipe())
    return sounds.failure(sounds.of(item))


@pytest.fixture
def mixed(tmp_path):
    return mixed_folder(tmp_path)


def test_what_is_fresh_stays_and_opens_no_model(mixed):
    encode(mixed())
    report, opened = encode(mixed())
    assert (report.made, report.kept, opened) == (0, 2, [])
    report, opened = encode(mixed(), skip_existing=False)
    assert (report.made, len(opened)) == (2, 1)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"fingerprint": "audio-2"}, "another audio VAE"),
        ({"audio_vae_dtype": "bf16"}, "audio_vae_dtype changed (fp32 -> bf16)"),
        ({"audio_latents_dtype": "fp32"}, "audio_latents_dtype changed"),
    ],
)
def test_sound_is_made_again_when_what_it_was_made_with_changes(mixed, change, reason):
    encode(mixed())
    heard = Heard()
    report, _ = encode(mixed(), events=heard, **change)
    assert (report.made, report.stale) == (2, 2)
    assert any(reason in text for _, text in heard.messages)


@pytest.mark.parametrize("general", [{"audio_normalize": True}, {"source_fps": 30}])
def test_sound_is_made_again_when_the_dataset_changes(mixed, general):
    encode(mixed())
    report, _ = encode(mixed(**general))
    assert report.stale >= 1


def test_sound_is_made_again_when_its_file_changes(mixed, tmp_path):
    encode(mixed())
    path = tmp_path / "a" / "hum.wav"
    os.utime(path, ns=(1, 1))
    assert encode(mixed())[0].made == 0  # the same content at another time
    write_sound(path, tone(2.0, 330, 44100), 44100, caption="a hum")
    assert encode(mixed())[0].made == 1


def test_damaged_and_half_missing_caches_are_made_again(mixed):
    plan = mixed()
    encode(plan)
    plan.items[0].audio_path.write_bytes(b"damaged")
    plan.items[-1].latent_path.unlink()
    report, _ = encode(plan)
    assert (report.made, report.kept) == (2, 0)
    assert plan.items[-1].latent_path.is_file()


def test_caches_of_the_community_trainer_are_read_and_kept(mixed):
    from safetensors.torch import save_file

    plan = mixed()
    path = plan.items[0].audio_path
    path.parent.mkdir(parents=True, exist_ok=True)
    latents = torch.randn(8, 18, 16)
    tensors = {"audio_latents_18x16x8_float32": latents, "audio_lengths_int32": torch.tensor(17, dtype=torch.int32)}
    save_file(tensors, str(path), metadata={"architecture": "ltx2", "format_version": "1.0.1"})
    file = CacheFile(path)
    assert (file.audio_shape().steps, file.audio_steps()) == (18, 17)
    torch.testing.assert_close(file.audio_latents(), latents)
    assert encode(plan)[0].kept == 1


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"audio_latents_9x16x8_fp16": torch.zeros(8, 8, 16)},
        {"audio_latents_8x16x8_fp16": torch.full((8, 8, 16), torch.nan)},
    ],
)
def test_a_wrong_sound_cache_is_an_error(tmp_path, tensors):
    from safetensors.torch import save_file

    path = tmp_path / "a_ltx2_audio.safetensors"
    save_file({"other": torch.zeros(1), **tensors}, str(path))
    with pytest.raises(CacheError, match="damaged"):
        CacheFile(path).audio_latents()


def test_sound_that_cannot_be_used_never_ends_caching(tmp_path):
    clip(tmp_path / "v" / "good.mp4", wave=tone(1.0))
    clip(tmp_path / "v" / "late.mp4")
    clip(tmp_path / "v" / "gone.mp4")
    clip(tmp_path / "v" / "bad.mp4")
    for name in ("good", "late"):
        write_sound(tmp_path / "v" / f"{name}.wav", tone(1.0 if name == "good" else 0.02))
    (tmp_path / "v" / "bad.wav").write_bytes(b"no sound" * 99)
    options = {"target_frames": [9], "frame_extraction": "uniform", "frame_sample": 2}
    plan = plan_of(tmp_path, {"video_directory": "v", "audio_source": "audio_files", **options})
    heard = Heard()
    report, _ = encode(plan, events=heard)
    reasons = {failure.path.name: failure.reason for failure in report.failed}
    assert report.made == 3  # two windows of good, the first of late
    assert set(reasons) == {"bad.wav", "late.wav"}
    assert "cannot be read" in reasons["bad.wav"]
    assert "no sound from" in reasons["late.wav"]
    assert reasons["bad.wav"].startswith("trains without its sound: ")
    assert not any("left out" in text for _, text in heard.messages)
    summary = report.summary()
    assert "bad.wav: " in summary
    assert "1 videos have no sound and train as pictures alone: gone.mp4 (no gone.wav in" in summary
    assert "have sound that begins late, ends early or has holes: late.wav" in summary
    assert sum(level == "warning" for level, _ in heard.messages) >= 3
    bad = [item for item in plan.items if item.source.path.name == "bad.mp4"]
    assert all("cannot be read" in failure(plan, item) for item in bad)
    good = [item for item in plan.items if item.source.path.name == "good.mp4"]
    assert [failure(plan, item) for item in good] == [None, None]


def test_what_deserves_a_look_is_counted(tmp_path):
    broken = tone(1.0)
    broken[0, :10] = np.nan
    waves = {
        "quiet": tone(1.0, level=0),
        "loud": np.clip(tone(1.0, level=3), -1, 1),
        "broken": broken,
        "fine": tone(1.0),
    }
    for name, wave in waves.items():
        write_sound(tmp_path / "a" / f"{name}.wav", wave, caption=name)
    report, (vae,) = encode(plan_of(tmp_path, {"audio_directory": "a"}))
    assert (report.made, len(vae.heard)) == (3, 3), "what is not a number is never encoded"
    assert all(np.isfinite(heard).all() for heard in vae.heard)
    (failure,) = report.failed
    assert "broken.wav holds samples that are not numbers" in failure.reason
    notes = "\n".join(report.notes)
    assert "1 files are silent: quiet.wav is silence" in notes
    assert "1 files are clipped: loud.wav" in notes
    assert "fine.wav" not in notes
    caches = {path.name.split("_")[0]: CacheFile(path) for path in (tmp_path / "a").rglob("*_ltx2_audio.safetensors")}
    assert {name: file.metadata["silence"] for name, file in caches.items()} == {
        "quiet": "yes",
        "loud": "no",
        "fine": "no",
    }
    assert [name for name, file in caches.items() if file.silent] == ["quiet"]


def test_a_recording_that_fails_is_left_out_by_training_too(tmp_path):
    write_sound(tmp_path / "a" / "good.wav", tone(1.0), caption="x")
    path = write_sound(tmp_path / "a" / "bad.wav", tone(1.0), caption="y")
    plan = plan_of(tmp_path, {"audio_directory": "a"})
    path.write_bytes(b"x" * 5000)
    report, _ = encode(plan)
    assert (report.made, [failure.path.name for failure in report.failed]) == (1, ["bad.wav"])
    bad = next(item for item in plan.items if item.source.path == path)
    assert failure(plan, bad)


def test_recordings_of_which_none_can_be_encoded_are_an_error(tmp_path):
    path = write_sound(tmp_path / "a" / "bad.wav", tone(1.0), caption="y")
    plan = plan_of(tmp_path, {"audio_directory": "a"})
    path.write_bytes(b"x" * 5000)
    with pytest.raises(DataError, match="Not one recording"):
        encode(plan)


def test_latents_that_are_not_finite_are_refused(tmp_path):
    class Broken(HearingVAE):
        def encode(self, mel):
            return super().encode(mel) * torch.nan

    clip(tmp_path / "v" / "a.mp4", wave=tone(1.0))
    plan = plan_of(tmp_path, {"video_directory": "v"})
    report, _ = encode(plan, vae=Broken())
    assert "not finite" in report.failed[0].reason
    assert not plan.items[0].audio_path.exists()


def test_a_stop_keeps_what_is_done(tmp_path):
    for name in "abc":
        write_sound(tmp_path / "s" / f"{name}.wav", tone(1.0), caption=name)
    plan = plan_of(tmp_path, {"audio_directory": "s"})
    vae = HearingVAE()
    with pytest.raises(Stopped):
        encode(plan, events=Heard(stop_after=1), vae=vae)
    assert vae.closed
    assert [item.audio_path.is_file() for item in plan.items] == [True, False, False]
    report, _ = encode(plan)
    assert (report.made, report.kept) == (2, 1)


def test_a_full_device_says_what_to_make_smaller(tmp_path):
    class Full(HearingVAE):
        def encode(self, mel):
            raise torch.OutOfMemoryError("full")

    write_sound(tmp_path / "s" / "a.wav", tone(1.0), caption="x")
    with pytest.raises(OutOfMemory, match=r"a\.wav \(1 s\).*speech_segments"):
        encode(plan_of(tmp_path, {"audio_directory": "s"}), vae=Full())
