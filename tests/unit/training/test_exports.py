"""Checkpoints in the export folder: one of the run takes the place of its own alone."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from ltx2_train.events import Events
from ltx2_train.full.file import ABOUT
from ltx2_train.training.exports import export_one


class Told(Events):
    def __init__(self):
        self.texts = []

    def message(self, text, level="info"):
        self.texts.append((level, text))


def checkpoint(path, value, **about):
    path.parent.mkdir(exist_ok=True)
    save_file({"a": torch.full((1,), value)}, path, {ABOUT: json.dumps(about)} if about else {})
    return path


@pytest.mark.parametrize(
    ("there", "is_kept"),
    [
        ({"name": "fox", "started": 5, "step": 1}, False),
        ({"name": "fox", "started": 4, "step": 1}, True),
        ({"name": "hen", "started": 5}, True),
        ({}, True),
    ],
)
def test_a_checkpoint_that_is_not_of_the_run_is_kept_and_told(tmp_path, there, is_kept):
    saved = checkpoint(tmp_path / "checkpoints" / "fox_000002.safetensors", 2.0, name="fox", started=5, step=2)
    plain, told = checkpoint(tmp_path / "out" / "fox.safetensors", 1.0, **there), Told()
    assert export_one(saved, plain.parent, "fox", told) == plain
    assert load_file(plain)["a"] == 2
    kept = plain.with_name("fox_before.safetensors")
    assert told.texts == [("warning", f"{plain} was not of this run; it is now {kept.name}.")] * is_kept
    assert kept.exists() == is_kept
    assert not is_kept or load_file(kept)["a"] == 1
