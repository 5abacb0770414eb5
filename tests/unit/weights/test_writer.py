"""A safetensors file that is written tensor by tensor."""

from __future__ import annotations

import types

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from ltx2_train.errors import RunError
from ltx2_train.weights.reader import TensorFile
from ltx2_train.weights.writer import TensorEntry, TensorWriter, require_space

TENSORS = {
    "odd": torch.arange(3, dtype=torch.uint8),
    "whole": torch.tensor([3, 4]),
    "half": torch.randn(3, 1).bfloat16(),
    "single": torch.randn(5),
    "number": torch.tensor(1.5),
    "empty": torch.zeros(0, 4),
    "eighth": torch.randn(3, 7).to(torch.float8_e4m3fn),
    "long": torch.randn(16, 16).half(),
}


def test_other_readers_find_what_was_written_in_any_order(tmp_path):
    path = tmp_path / "x.safetensors"
    entries = {name: TensorEntry.of(tensor) for name, tensor in TENSORS.items()}
    with TensorWriter(path, entries, {"note": "größer"}) as writer:
        for name in sorted(TENSORS):
            writer.write(name, TENSORS[name])
    assert path.stat().st_size == writer.size
    for found in (load_file(path), {name: TensorFile(path).read(name) for name in TENSORS}):
        assert found.keys() == TENSORS.keys()
        for name, tensor in TENSORS.items():
            assert found[name].dtype == tensor.dtype
            assert torch.equal(found[name].float(), tensor.float())
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"note": "größer"}
    with TensorFile(path) as file:  # programs that map the file need this
        assert all(info.offset % info.torch_dtype.itemsize == 0 for info in file.tensors.values() if info.nbytes)


def test_a_tensor_that_is_not_as_announced_or_missing_is_a_fault(tmp_path):
    with (
        pytest.raises(AssertionError, match="announced"),
        TensorWriter(tmp_path / "x", {"a": TensorEntry("F32", (2,))}, {}) as writer,
    ):
        writer.write("a", torch.zeros(3))
    with (
        pytest.raises(AssertionError, match="never written"),
        TensorWriter(tmp_path / "x", {"a": TensorEntry("F32", (2,))}, {}),
    ):
        pass


def test_a_folder_that_is_read_only_is_said_to_be(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(RunError, match="read-only"):
        require_space(tmp_path / "x", 1000)


def test_the_disk_is_looked_at_first(tmp_path):
    require_space(tmp_path / "not" / "there" / "x", 1000)
    with pytest.raises(RunError, match="needs .* MB, and 67 MB are left free, but the disk of .* has .* MB free"):
        require_space(tmp_path / "x", 1 << 60)


def test_a_small_file_asks_for_no_more_room_than_it_takes_twice(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: types.SimpleNamespace(free=2_000_000))
    require_space(tmp_path / "x", 1_000_000)
    with pytest.raises(RunError, match="needs 1 MB, and 1 MB are left free"):
        require_space(tmp_path / "x", 1_100_000)
