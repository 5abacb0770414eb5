"""Runs and caches for the rehearsal: made for real on the CPU, in the folder of a test."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from conftest import DATASET, RUN

from ltx2_train import build_caches, load_run
from ltx2_train.cli.demo_media import draw_sound

SOUNDS = """\
[[datasets]]
audio_directory = "sounds"
cache_directory = "cache"
"""
GPU = [
    "model.device=cuda",
    "model.precision=bf16",
    "memory.compile=false",  # there is nothing to compile for
    "train.steps=2",
    "sample.every=0",
    "sample.at_start=false",
]


def make_run_file(folder: Path, tiny: Any, clip: Path, mode: str, *more: str) -> Path:
    """A run file of `mode` in `folder`, with the caches of `clip`; `more` are settings that caching needs."""
    (folder / "clips").mkdir(parents=True)
    shutil.copy2(clip, folder / "clips" / "clip.mp4")
    (folder / "clips" / "clip.txt").write_text("a red ball bounces to a tune")
    (folder / "dataset.toml").write_text(SOUNDS if mode == "audio" else DATASET)
    draw_sound(folder / "sounds" / "tune.wav", 1.0)
    (folder / "sounds" / "tune.txt").write_text("a tune")
    text = RUN.format(checkpoint=tiny.checkpoint, encoder=tiny.text_encoder)
    (folder / "run.toml").write_text(text.replace("[model]\n", f'[model]\nmode = "{mode}"\n'))
    build_caches(load_run(folder / "run.toml", list(more)))
    return folder / "run.toml"
