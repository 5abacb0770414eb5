"""While caching, no two big models are in memory at once: neither the VAEs, nor Gemma, nor the connectors."""

from __future__ import annotations

import gc
import shutil
import weakref

import pytest

from ltx2_train import build_caches, load_run
from ltx2_train.training import caches


@pytest.mark.parametrize("form", ["compact", "full"])
def test_one_big_model_at_a_time(sound_run_file, monkeypatch, form):
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

    watch(caches, "load_video_vae", "video VAE")
    watch(caches, "load_audio_vae", "audio VAE")
    watch(caches, "load_connectors", "connectors")
    watch(caches.TextEncoder, "load", "Gemma")  # captions and sample prompts share it
    shutil.rmtree(sound_run_file.parent / "cache")
    build_caches(load_run(sound_run_file, [f"cache.text_form={form}", "sample.every=10"]))
    assert opened[:3] == ["video VAE", "audio VAE", "Gemma"]
    assert ("connectors" in opened) == (form == "full")
