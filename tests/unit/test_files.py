"""A write is whole or not there at all."""

import errno
import json

import pytest
import torch
from safetensors.torch import load_file

from ltx2_train import files
from ltx2_train.errors import RunError


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_an_error_while_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    files.write_text(path, "old")

    def write():
        with files.atomic(path) as temporary:
            temporary.write_text("new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_full_disk_is_a_plain_error_and_leaves_nothing(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(RunError, match=r"a\.txt.*No space left"):
        files.write_text(tmp_path / "a.txt", "x")
    assert names(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_a_plain_error(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match="Could not write"):
        files.write_text(tmp_path / "file" / "a.txt", "x")


def test_tensors_are_made_contiguous_and_keep_their_metadata(tmp_path):
    value = torch.arange(6.0).view(2, 3).T
    files.write_tensors(tmp_path / "a.safetensors", {"x": value}, {"k": "v"})
    assert torch.equal(load_file(tmp_path / "a.safetensors")["x"], value)


def test_json_refuses_what_other_readers_choke_on(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(tmp_path / "a.json", {"x": float("nan")})
    files.write_json(tmp_path / "a.json", {"x": "\u00e4"})
    assert json.loads((tmp_path / "a.json").read_text("utf-8")) == {"x": "\u00e4"}


def test_digests_tell_lists_apart():
    assert files.digest("ab", "c") != files.digest("a", "bc")
    assert files.digest("ab", "c") == files.digest(b"ab", "c")
