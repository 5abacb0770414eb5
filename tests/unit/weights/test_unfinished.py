"""A download that did not end is told: of full size, and zero where nothing has come yet."""

from __future__ import annotations

import torch
from safetensors.torch import save_file

from ltx2_train.config import make_run
from ltx2_train.config.base_files import BaseFiles
from ltx2_train.events import Events
from ltx2_train.weights.reader import TensorFile
from ltx2_train.weights.unfinished import unfinished


class Said(Events):
    def __init__(self):
        self.texts = []

    def message(self, text, level="info"):
        self.texts.append((level, text))


def write(path, count=100, zero=()):
    tensors = {f"{number:03d}.weight": torch.ones(200, 200) for number in range(count)}
    tensors |= {"bias": torch.zeros(100_000), "small.weight": torch.zeros(100)}
    save_file(tensors, path)
    with TensorFile(path) as file:
        places = {name: (info.offset, info.nbytes) for name, info in file.tensors.items()}
    data = bytearray(path.read_bytes())
    for name in zero:
        begin, size = places[name]
        data[begin : begin + size] = bytes(size)
    path.write_bytes(data)
    return path


def test_weights_that_are_zero_are_told_and_small_ones_may_be(tmp_path):
    assert unfinished(write(tmp_path / "whole.safetensors")) == ""
    cut = write(tmp_path / "cut.safetensors", zero=[f"{number:03d}.weight" for number in range(90, 100)])
    assert unfinished(cut).startswith("cut.safetensors: 10 of ")
    assert "cut.safetensors, 090.weight" in unfinished(cut)
    assert "cut.safetensors, 099.weight" in unfinished(write(tmp_path / "cut.safetensors", zero=["099.weight"]))
    assert unfinished(tmp_path).startswith(f"{tmp_path.name}: 1 of ")


def test_a_file_that_is_no_file_of_weights_is_left_to_others(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"no")
    assert unfinished(tmp_path / "a.safetensors") == ""
    assert unfinished(tmp_path) == ""


def test_every_run_looks_at_its_base(tiny, monkeypatch):
    monkeypatch.setattr("ltx2_train.config.base_files.unfinished", lambda path: f"{path.name} is looked at.")
    events = Said()
    paths = {"checkpoint": tiny.checkpoint, "text_encoder": tiny.text_encoder}
    BaseFiles.find(make_run({"model": {name: str(path) for name, path in paths.items()}}), events)
    assert events.texts == [("warning", f"{path.name} is looked at.") for path in paths.values()]


def test_tiny_files_are_whole(tiny):
    assert unfinished(tiny.checkpoint) == unfinished(tiny.text_encoder) == ""
