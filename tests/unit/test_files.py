"""A write is whole or not there at all."""

import errno
import json
import os
import shutil
import time

import pytest
import torch
from refusing import Refusing, for_good, once
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


class Held:
    """os.replace of a system on which another program holds the target open, for the first `times` tries."""

    def __init__(self, monkeypatch, times):
        self.tries, self.waited, self._times, self._replace = 0, [], times, os.replace
        monkeypatch.setattr(files.os, "replace", self)
        monkeypatch.setattr(files.time, "sleep", self.waited.append)

    def __call__(self, source, target):
        self.tries += 1
        if self.tries <= self._times:
            raise PermissionError(errno.EACCES, "Access is denied")
        self._replace(source, target)


def test_a_file_that_another_program_holds_is_tried_again(tmp_path, monkeypatch):
    files.write_text(tmp_path / "a.txt", "old")
    held = Held(monkeypatch, times=3)
    files.write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "new"
    assert held.waited == list(files.WAITS[:3])


def test_a_file_that_stays_held_is_named_with_what_to_do(tmp_path, monkeypatch):
    files.write_text(tmp_path / "a.txt", "old")
    held = Held(monkeypatch, times=99)
    with pytest.raises(RunError, match=r"a\.txt: Access is denied\. Another program may hold it open"):
        files.write_text(tmp_path / "a.txt", "new")
    assert held.tries == 1 + len(files.WAITS)
    assert (tmp_path / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("refused", ["chmod", "fsync"])
def test_a_drive_without_modes_or_flushing_is_written_to(tmp_path, monkeypatch, refused):
    def unsupported(*_):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(files.os, refused, unsupported)
    files.write_text(tmp_path / "a.txt", "x")
    assert (tmp_path / "a.txt").read_text() == "x"


def test_names_as_long_as_the_system_takes_can_be_written(tmp_path):
    name = "\u72d0" * 80 + "." + "x" * 14  # 255 bytes
    files.write_text(tmp_path / name, "x")
    assert names(tmp_path) == [name]


def test_a_full_disk_that_the_writer_of_tensors_meets_is_told_as_one(tmp_path, monkeypatch):
    import safetensors.torch

    def full(*_, **__):
        raise safetensors.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(RunError, match=r"a\.safetensors.*No space left.*Free some space"):
        files.write_tensors(tmp_path / "a.safetensors", {"x": torch.zeros(1)})


def test_what_killed_writers_left_is_cleared_away_once_it_is_old(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    old, new, foreign, visible = (
        folder / name for name in (".a.mp4.x1_zabcd.part", ".b.part12345.part", ".mine.part", "film.abcdefgh.part")
    )
    for path in (old, new, foreign, visible):
        path.write_bytes(b"half")
        if path is not new:
            os.utime(path, (1, 1))
    files.write_tensors(folder / "whole.safetensors", {"x": torch.zeros(9)})
    tensors, other_tmp = folder / ".tmpJg3FwO", folder / ".tmpAbCd12"  # of the library of safetensors; of who knows
    tensors.write_bytes((folder / "whole.safetensors").read_bytes()[:80])
    other_tmp.write_bytes(b"something else")
    for path in (tensors, other_tmp):
        os.utime(path, (1, 1))
    (folder / "whole.safetensors").unlink()
    files._swept.clear()
    own, other = folder / ".c.txt.abcdefgh.part", folder / ".c.txt2.abcdefgh.part"
    for path in (own, other):
        path.write_bytes(b"half")
        os.utime(path, (time.time() - 90, time.time() - 90))  # a minute is enough for what is written anew
    files.write_text(folder / "c.txt", "x")
    assert names(folder) == sorted([new.name, foreign.name, visible.name, other.name, other_tmp.name, "c.txt"])


def test_a_copy_replaces_its_target_and_takes_no_room_where_links_work(tmp_path, monkeypatch):
    source, target = tmp_path / "a.bin", tmp_path / "deep" / "b.bin"
    source.write_bytes(b"new")
    files.write_bytes(target, b"old")
    files.copy_file(source, target)
    assert (target.read_bytes(), target.stat().st_ino) == (b"new", source.stat().st_ino)
    files.copy_file(source, target)  # the same file under both names already
    assert names(target.parent) == ["b.bin"]

    def no_links(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(files.os, "link", no_links)
    files.copy_file(source, tmp_path / "c.bin")
    assert (tmp_path / "c.bin").read_bytes() == b"new"


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


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("how", [once, for_good])
def test_of_texts_that_are_written_together_all_are_there_or_none(tmp_path, monkeypatch, how, there):
    monkeypatch.setattr(files, "WAITS", ())
    kinds = ("folder", "make", "open", "flush", "rename")
    texts = {tmp_path / "out" / name: f"new {name}" for name in ("a.toml", "b.toml")}
    old = {path: f"old {path.name}" for path in texts} if there else {}
    for at in range(99):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        files.write_texts(old)
        refused = None
        with pytest.MonkeyPatch.context() as patch:
            system = Refusing(patch, tmp_path, how(at), kinds)
            try:
                files.write_texts(texts)
            except RunError as error:
                refused = error
        assert refused is None or str(tmp_path / "out") in str(refused)
        if how is once or not there:  # a disk that takes nothing any more cannot be given back what it had
            found = {path: path.read_text() for path in tmp_path.rglob("*.toml")}
            assert found == (old if refused else {path: f"new {path.name}" for path in texts}), system.failed
        assert (tmp_path / "out").exists() == (there or not refused)
        if not system.failed:
            break
    assert at > 6


def test_digests_tell_lists_apart():
    assert files.digest("ab", "c") != files.digest("a", "bc")
    assert files.digest("ab", "c") == files.digest(b"ab", "c")
