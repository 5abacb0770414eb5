"""The room that caches take is told before any model is loaded, and is about what they take in the end."""

from __future__ import annotations

import shutil
import types

import pytest
import torch
from fake_encoders import Connectors, CountingEncoder, PoolingVAE
from fill_caches import encode_latents, encode_masks, encode_sound, encode_text
from media import moving_square, tone, write_captioned, write_image, write_sound, write_video

from ltx2_train import build_caches, load_run
from ltx2_train.caching.cache_file import Fingerprints
from ltx2_train.caching.disk import CacheNeed
from ltx2_train.caching.encode_text import most_tokens
from ltx2_train.caching.recipe import CacheRecipe, text_widths
from ltx2_train.caching.settings import CacheSettings
from ltx2_train.dataset.dataset_file import DatasetConfig
from ltx2_train.dataset.plan import plan_dataset
from ltx2_train.errors import RunError
from ltx2_train.events import Events

# as long as real ones, for they are written into the files
VAE, AUDIO, WEIGHTS = "a" * 16, "b" * 16, Fingerprints("c" * 16, "d" * 16)


class HearingVAE(torch.nn.Module):
    config = types.SimpleNamespace(sample_rate=16000, n_fft=1024, hop=160)

    def waveform_to_mel(self, waveform, sample_rate):
        return waveform

    def encode(self, mel):
        return torch.zeros(1, 8, mel.shape[-1] // 640 + 1, 16)


@pytest.fixture
def mixed(tmp_path):
    """Clips with sound, a reference and a mask, a silent clip, a picture, recordings with reference sounds."""
    write_video(tmp_path / "v" / "a.mp4", moving_square(50, 96, 64), 25, sound=tone(2.0))
    (tmp_path / "v" / "a.txt").write_text("a square with a hum")
    write_captioned(tmp_path / "v" / "b.mp4", moving_square(50, 96, 64), "a silent square, seen 123 times")
    write_image(tmp_path / "ref" / "a.png", caption=None)
    write_image(tmp_path / "ref" / "b.png", caption=None)
    write_image(tmp_path / "mask" / "a.png", caption=None)
    write_image(tmp_path / "p" / "c.png", 160, 128, caption="etwas mit Ümlauten")
    write_sound(tmp_path / "s" / "talk.wav", tone(6.0), caption="talk")
    write_sound(tmp_path / "hears" / "talk.wav", tone(4.0))
    video = {"video_directory": "v", "cache_directory": "k/v", "target_frames": [17, 49], "flip": True}
    sound = {"audio_directory": "s", "cache_directory": "k/s", "reference_audio_directory": "hears"}
    table = {
        "general": {"resolution": [160, 128]},
        "datasets": [
            {**video, "reference_directory": "ref", "mask_directory": "mask"},
            {"image_directory": "p", "cache_directory": "k/p"},
            {**sound, "reference_audio_max_seconds": 3},
        ],
    }
    return plan_dataset(DatasetConfig.from_table(table, tmp_path))


def need_of(plan, settings, mode="av"):
    return CacheNeed.of(plan, CacheRecipe(settings, mode, VAE, AUDIO, WEIGHTS, text_widths=(24, 16)))


def build(plan, settings):
    encode_latents(plan, PoolingVAE, VAE, settings)
    encode_sound(plan, HearingVAE, AUDIO, settings)
    encode_masks(plan, settings)
    encode_text(plan, CountingEncoder, WEIGHTS, settings, open_connectors=Connectors)


@pytest.mark.parametrize("dtypes", ["bf16", "fp32"])
def test_the_estimate_is_within_ten_per_cent_of_the_files(mixed, dtypes):
    settings = CacheSettings(latents_dtype=dtypes, audio_latents_dtype=dtypes)
    need = need_of(mixed, settings)
    build(mixed, settings)
    kinds = {name: [job.path for job in need.dues[name].jobs] for name in ("latents", "sound", "masks")}
    assert {kind: len(paths) for kind, paths in kinds.items()} == {"latents": 4 * 2 + 1 + 4 * 2, "sound": 4, "masks": 4}
    for kind, paths in kinds.items():
        wanted = sum(need.sizes[path] for path in paths)
        real = sum(path.stat().st_size for path in paths)
        if kind == "sound":  # with the files of latents beside recordings
            real += sum(item.latent_path.stat().st_size for item in mixed.items if item.kind == "audio")
        assert wanted == pytest.approx(real, rel=0.1), kind
    for path, most in need.upper_sizes.items():
        assert path.stat().st_size <= most
    assert not any(due.jobs for due in need_of(mixed, settings).dues.values())


def test_text_in_full_form_is_estimated_upwards_too(mixed):
    settings = CacheSettings(text_form="full")
    need = need_of(mixed, settings)
    build(mixed, settings)
    assert all(path.stat().st_size <= most for path, most in need.upper_sizes.items())


@pytest.mark.parametrize(
    ("caption", "tokens"),
    [("a red fox", 4 + 4), ("12:59", 4 + 4), ("狐狸", 6 + 4), ("x" * 9000, 1024)],
)
def test_tokens_are_reckoned_by_two_letters_by_digits_and_by_bytes(caption, tokens):
    assert most_tokens(caption) == tokens


def said(plan, settings=None, mode="av"):
    messages = []
    events = Events()
    events.message = lambda text, level="info": messages.append((level, text))
    need_of(plan, settings or CacheSettings(), mode).require_room(events)
    return messages


def test_what_is_to_be_made_is_said_with_its_size_and_the_room_there_is(mixed, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=58_000_000_000))
    ((level, text),) = said(mixed)
    assert level == "info"
    assert text.startswith(
        "caches to make: 29 (17 latents, 4 sound, 4 masks, 4 text), about 0.4 MB (of it text at most "
    )
    assert text.endswith("; 58.0 GB free")
    build(mixed, CacheSettings())
    assert said(mixed) == []
    ((_, text),) = said(mixed, CacheSettings(latents_dtype="fp32"))
    assert text.startswith("caches to make: 17 (17 latents), about ")
    ((_, text),) = said(mixed, CacheSettings(skip_existing=False), mode="video")
    assert text.startswith("caches to make: 25 (17 latents, 4 masks, 4 text)")


def test_old_files_that_are_replaced_need_no_more_room(mixed, monkeypatch):
    build(mixed, CacheSettings())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=4000))
    assert said(mixed, CacheSettings(skip_existing=False))[-1][1].startswith("caches to make: 29")


def test_a_disk_too_small_is_an_error_before_anything_is_loaded_or_written(run_file, monkeypatch):
    cache = run_file.parent / "cache"
    shutil.rmtree(cache)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=10_000))
    monkeypatch.setattr("ltx2_train.sampling.render.load_video_vae", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(RunError) as failure:
        build_caches(load_run(run_file))
    text = str(failure.value)
    assert f"The disk of {cache} has 10.0 kB free, and the 4 caches to be made there need about " in text
    assert "set cache_directory to another disk" in text
    assert text.endswith("Nothing was encoded."), "what is known of the media has been written"
    assert not list(cache.glob("*.safetensors"))


def test_captions_alone_that_might_not_fit_are_a_warning(mixed, monkeypatch):
    settings = CacheSettings()
    sure = sum(need_of(mixed, settings).sizes.values())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=sure + 10))
    (level, text), _ = said(mixed, settings)
    assert level == "warning"
    assert "with long captions" in text


def test_the_widths_of_text_are_those_of_the_checkpoint(tiny, tiny20):
    assert len(text_widths(tiny.checkpoint)) == 2
    assert len(text_widths(tiny20.checkpoint)) == 1
