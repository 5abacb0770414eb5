"""Caches that the program wrote before are fresh and trained on: what is asked of a file never asks for it again."""

from __future__ import annotations

import json

import pytest
import torch
from media import moving_square, tone, write_image, write_sound, write_video
from old_caches import (
    AUDIO_VAE,
    DINO,
    ENCODER,
    TEXT,
    VIDEO_VAE,
    write_old_caches,
    write_old_manifest,
    write_old_note,
    write_old_prompt,
)

from ltx2_train.caching.cache_file import Fingerprints
from ltx2_train.caching.dino import dino_path, read_dino
from ltx2_train.caching.dino_model import DinoModel
from ltx2_train.caching.disk import CacheNeed
from ltx2_train.caching.notes import FAILED, damage
from ltx2_train.caching.recipe import CacheRecipe
from ltx2_train.caching.settings import CacheSettings, DinoSettings
from ltx2_train.caching.status import cache_status
from ltx2_train.dataset.dataset_file import DatasetConfig
from ltx2_train.dataset.plan import plan_dataset
from ltx2_train.feed.batches import load_batch
from ltx2_train.feed.loader import FullText, TrainingSet
from ltx2_train.sampling.prompt_text import prompts_beside
from ltx2_train.shapes import LatentShape
from ltx2_train.weights.dinov2 import Dinov2Folder


@pytest.fixture
def config(tmp_path):
    write_video(tmp_path / "clips" / "clip.mp4", moving_square(17, 64, 64), 25, sound=tone(1.0))
    (tmp_path / "clips" / "clip.txt").write_text("a square moves")
    write_image(tmp_path / "references" / "clip.png", 64, 64, caption=None)
    write_image(tmp_path / "masks" / "clip.png", 64, 64, caption=None)
    (tmp_path / "sound_masks").mkdir()
    (tmp_path / "sound_masks" / "clip.json").write_text(json.dumps([[0.64, 0.68]]))
    write_sound(tmp_path / "voices" / "clip.wav", tone(1.0))
    write_sound(tmp_path / "sounds" / "hum.wav", tone(2.0), caption="a hum")
    write_image(tmp_path / "pictures" / "still.png", 64, 64, caption="a still")
    clips = {"video_directory": "clips", "cache_directory": "cache", "target_frames": [17]}
    beside = {"reference_directory": "references", "mask_directory": "masks"}
    beside |= {"audio_mask_directory": "sound_masks", "reference_audio_directory": "voices"}
    sounds = {"audio_directory": "sounds", "cache_directory": "cache_of_sounds"}
    pictures = {"image_directory": "pictures", "cache_directory": "cache_of_pictures"}
    table = {"general": {"resolution": 64}, "datasets": [{**clips, **beside}, sounds, pictures]}
    return DatasetConfig.from_table(table, tmp_path)


@pytest.mark.parametrize("form", ["compact", "full"])
def test_old_caches_are_fresh_and_trained_on(config, tmp_path, form):
    write_old_caches(tmp_path, tmp_path / "cache", form)
    text = Fingerprints(TEXT, ENCODER)
    settings = CacheSettings(text_form=form, dino=DinoSettings(model=tmp_path, size=42))
    dino = DinoModel(Dinov2Folder(tmp_path / "tiny", "dinov2", 32, 14, 0, 0), DINO, 42)
    recipe = CacheRecipe(settings, "av", VIDEO_VAE, AUDIO_VAE, text, text_widths=(24, 16), dino=dino)
    plan = plan_dataset(config)
    status = cache_status(plan, recipe)
    assert [(row.path.name, row.state, row.why) for row in status.rows if row.state != "present"] == []
    assert len(status.rows) == 14
    assert CacheNeed.of(plan, recipe).sizes == CacheNeed.of(plan, recipe).upper_sizes == {}

    data = TrainingSet.open(config, recipe, plan=plan)
    clip, hum, still = data.samples
    assert (clip.kind, clip.shape, clip.audio_steps, clip.fps) == ("video", LatentShape(3, 2, 2), 17, 25.0)
    assert (hum.kind, hum.shape, hum.audio_steps) == ("audio", LatentShape(7, 2, 2), 50)
    assert (still.kind, still.shape) == ("image", LatentShape(1, 2, 2))
    assert data.load_latents(clip).eq(0.5).all()
    assert data.load_latents(still).eq(0.75).all()
    assert read_dino(dino_path(clip.latent_path)).shape == (17, 9, 32)
    assert data.load_references(clip)[0].eq(0.25).all()
    assert data.load_reference_audios(clip)[0].shape == (8, 25, 16)
    assert data.load_mask(clip).shape == (3, 2, 2)
    assert data.load_audio_mask(clip).tolist() == [False] * 16 + [True]
    batch = load_batch(data, [clip])
    assert (batch.latents.shape, batch.audio.shape) == ((1, 128, 3, 2, 2), (1, 8, 17, 16))
    text = data.load_text(clip)
    assert isinstance(text, FullText) == (form == "full")
    weights = {"video_vae": "5" * 16, "audio_vae": "5" * 16, "dino": DinoModel(dino.folder, "5" * 16, 42)}
    for (changed, value), stale in zip(weights.items(), (3, 3, 2), strict=True):
        other = CacheRecipe(**{**vars(recipe), changed: value})
        assert len(cache_status(plan, other).of("stale")) == stale, changed


def test_an_old_manifest_is_trained_on_without_its_media(tmp_path):
    (tmp_path / "media").mkdir()
    for name in ("clips/clip.mp4", "references/clip.png", "masks/clip.png", "voices/clip.wav", "sounds/hum.wav"):
        path = tmp_path / "media" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"gone since")
    for name in ("sound_masks/clip.json", "pictures/still.png"):
        path = tmp_path / "media" / name
        path.parent.mkdir()
        path.write_bytes(b"gone since")
    write_old_caches(tmp_path / "media", tmp_path / "cache")
    config = DatasetConfig.read(write_old_manifest(tmp_path))
    data = TrainingSet.open(config, CacheRecipe(mode="av"))
    clip, hum = data.samples
    assert (clip.kind, clip.shape, clip.audio_steps, clip.repeats) == ("video", LatentShape(3, 2, 2), 17, 2)
    assert data.load_references(clip)[0].eq(0.25).all()
    assert data.load_reference_audios(clip)[0].shape == (8, 25, 16)
    assert data.load_mask(clip) is not None
    assert data.load_audio_mask(clip) is not None
    assert (hum.kind, hum.audio_steps) == ("audio", 50)


def test_old_notes_are_of_what_they_were_of(tmp_path):
    medium, cache = tmp_path / "clip.mp4", tmp_path / "clip_ltx2.safetensors"
    for path in (medium, cache):
        path.write_bytes(b"as it was")
    write_old_note(tmp_path / "ltx2_failed.json", "clip_ltx2.safetensors", "not one frame", medium)
    write_old_note(tmp_path / "ltx2_damaged.json", "clip_ltx2.safetensors", "not finite", cache)
    assert FAILED.get(tmp_path, cache.name, medium) == "not one frame"
    assert damage(cache) == "not finite"
    medium.write_bytes(b"another one")
    assert FAILED.get(tmp_path, cache.name, medium) is None


def test_the_features_of_an_old_prompt_are_not_made_again(tmp_path):
    write_old_prompt(tmp_path, "a fox", TEXT)
    device = torch.device("cpu")
    assert list(prompts_beside([" a fox ", "a hare"], tmp_path, TEXT, device)) == ["a hare"]
    assert list(prompts_beside(["a fox"], tmp_path, ENCODER, device)) == ["a fox"]


def test_an_old_mask_goes_with_sound_that_was_made_again(config, tmp_path):
    """Sound once had a latent less, and so had its mask."""
    write_old_caches(tmp_path, tmp_path / "cache")
    path = tmp_path / "cache" / "clip_00000-017_0064x0064_ltx2_audio.safetensors"
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(str(path), "pt") as file:
        metadata = file.metadata()
    tensors = {"audio_latents_18x16x8_fp16": torch.zeros(8, 18, 16, dtype=torch.float16)}
    save_file({**tensors, "audio_lengths_int32": torch.tensor(18, dtype=torch.int32)}, str(path), metadata)
    data = TrainingSet.open(config, CacheRecipe(mode="av"))
    assert data.samples[0].audio_steps == 18
    assert data.load_audio_mask(data.samples[0]).tolist() == [False] * 16 + [True, True]
