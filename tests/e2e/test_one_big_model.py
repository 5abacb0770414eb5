"""While caching, no two big models are in memory at once: neither the VAEs, nor Gemma, nor the connectors."""

from __future__ import annotations

import gc
import shutil
import weakref

import pytest

from ltx2_train import Events, build_caches, load_run, placement
from ltx2_train.sampling import render, sound
from ltx2_train.sampling.sample import prompt_folder
from ltx2_train.training import caches, checks, setup, texts


@pytest.fixture
def watched(monkeypatch):
    """`watch(module, name, label)` has a loader fail where another one's model is still there; `opened` in order."""
    alive: dict[str, weakref.ref] = {}
    opened: list[str] = []

    def watch(module, name, label):
        real = getattr(module, name)

        def load(*args, **more):
            gc.collect()
            others = [other for other, model in alive.items() if model() is not None]
            assert not others, f"{label} is loaded while {others} is still there"
            made = real(*args, **more)
            alive[label] = weakref.ref(made)
            opened.append(label)
            return made

        monkeypatch.setattr(module, name, load)

    return watch, opened


@pytest.mark.parametrize("form", ["compact", "full"])
@pytest.mark.parametrize("placement", ["device", "layers"])
def test_one_big_model_at_a_time(sound_run_file, watched, form, placement):
    watch, opened = watched
    watch(render, "load_video_vae", "video VAE")
    watch(sound, "load_audio_vae", "audio VAE")
    watch(caches, "load_connectors", "connectors")
    watch(caches.TextEncoder, "load", "Gemma")  # captions and sample prompts share it
    shutil.rmtree(sound_run_file.parent / "cache")
    build_caches(
        load_run(sound_run_file, [f"cache.text_form={form}", f"gemma.placement={placement}", "sample.every=10"])
    )
    assert opened[:3] == ["audio VAE", "video VAE", "Gemma"]
    assert ("connectors" in opened) == (form == "full")


@pytest.mark.parametrize("gemma", [{"placement": "layers"}, {"placement": "device"}, {"precision": "8bit"}])
def test_when_training_begins_gemma_has_left_before_the_transformer_comes(sound_run_file, watched, gemma):
    watch, opened = watched
    more = [f"gemma.{name}={value}" for name, value in gemma.items()] + ["sample.every=10"]
    run = load_run(sound_run_file, more)
    build_caches(run)
    shutil.rmtree(prompt_folder(run))  # so that the prompts need Gemma again
    watch(caches.TextEncoder, "load", "Gemma")
    watch(texts, "load_connectors", "connectors")
    watch(placement, "load_transformer", "transformer")
    checked = checks.check(run, Events())
    setup.load(checked, Events()).close()
    assert opened == ["Gemma", "connectors", "transformer"]
