"""What was found damaged is remembered until it is made again; folders that cannot be written are told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ltx2_train.caching import notes, writable
from ltx2_train.caching.cache_file import KEPT_AS, CacheFile, write_cache
from ltx2_train.dataset.dataset_file import DatasetConfig
from ltx2_train.errors import CacheError, RunError
from ltx2_train.files import CHECK_SUMS


def latents(path, value):
    save_file({"latents_1x2x2_float32": torch.full((128, 1, 2, 2), value)}, str(path))
    return path


def test_damage_is_remembered_for_that_very_file(tmp_path):
    path = latents(tmp_path / "a_0064x0064_ltx2.safetensors", torch.nan)
    assert notes.damage(path) is None  # its header is fine
    with pytest.raises(CacheError, match="not finite.*cache build"):
        CacheFile(path).latents()
    assert notes.damage(path) == "it holds numbers that are not finite"
    latents(path, 1.0)
    assert notes.damage(path) is None
    other = latents(tmp_path / "b_0064x0064_ltx2.safetensors", 1.0)
    notes.note_damage(other, "reason")
    assert "a_0064" not in (tmp_path / notes.DAMAGED.file).read_text()  # what was mended is forgotten


def test_a_cache_that_may_not_be_read_is_no_damaged_one(tmp_path, monkeypatch):
    path = latents(tmp_path / "a_0064x0064_ltx2.safetensors", 1.0)
    really = open

    def refuse(name, *more, **given):  # who runs tests may be allowed everything
        if Path(name) == path:
            raise PermissionError(13, "Permission denied")
        return really(name, *more, **given)

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(CacheError, match="ltx2.safetensors cannot be opened: Permission denied. Allow this user"):
        CacheFile(path)


def flip(path, share=0.9):
    data = bytearray(path.read_bytes())
    data[int(len(data) * share)] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.uint8, torch.bool])
def test_a_bit_that_changed_on_the_disk_is_seen_when_it_is_read(tmp_path, dtype):
    path = tmp_path / "a_0064x0064_ltx2.safetensors"
    tensors = {"mask": torch.ones(3, 40, 50).to(dtype), "one": torch.tensor(1, dtype=torch.int32)}
    write_cache(path, tensors, {"settings": "{}"})
    file = CacheFile(path)
    file.verify()
    assert torch.equal(file.tensor("mask"), tensors["mask"])
    assert sorted(file.record(CHECK_SUMS)) == ["mask", "one"]
    flip(path)
    assert notes.damage(path) is None
    with pytest.raises(CacheError, match="bytes of mask are not those that were written"):
        CacheFile(path).tensor("mask", torch.float32)
    assert notes.damage(path) == "its bytes are not those that were written"


def test_a_cache_that_another_program_has_rewritten_is_damaged(tmp_path):
    path = tmp_path / "a_0064x0064_ltx2.safetensors"
    write_cache(path, {"mask": torch.ones(3)}, {"settings": "{}", KEPT_AS: path.name})
    metadata = CacheFile(path).metadata
    for left in ({}, {"other": "00"}):
        save_file({"mask": torch.zeros(3)}, path, metadata | {CHECK_SUMS: json.dumps(left)})
        with pytest.raises(CacheError, match="another program has rewritten it: mask has lost its check sum"):
            CacheFile(path).tensor("mask")


def test_caches_from_before_check_sums_are_read_as_they_are(tmp_path):
    path = latents(tmp_path / "a_0064x0064_ltx2.safetensors", 1.0)
    flip(path)
    assert CacheFile(path).latents().isfinite().all()
    CacheFile(path).verify()


def test_notes_that_cannot_be_read_or_written_are_none(tmp_path, monkeypatch):
    path = latents(tmp_path / "a_0064x0064_ltx2.safetensors", 1.0)
    (tmp_path / notes.DAMAGED.file).write_text("{ rubbish")
    assert notes.damage(path) is None

    def refuse(*arguments):
        raise RunError("read-only")

    monkeypatch.setattr(notes, "write_json", refuse)
    notes.note_damage(path, "reason")
    assert notes.damage(path) is None


@pytest.mark.parametrize("key", ["cache_directory", "reference_cache_directory", "reference_audio_cache_directory"])
def test_a_folder_that_cannot_be_written_is_told_with_its_setting(tmp_path, monkeypatch, key):
    entry = {"video_directory": "clips", "reference_directory": "refs", "reference_audio_directory": "sounds"}
    folders = {one: one for one in ("cache_directory", "reference_cache_directory", "reference_audio_cache_directory")}
    config = DatasetConfig.from_table({"datasets": [{**entry, **folders}]}, tmp_path)
    writable.require_writable(config)
    assert sorted(path.name for path in tmp_path.rglob("*")) == sorted(folders)  # and nothing is left in them
    make = writable.tempfile.mkstemp

    def read_only(prefix, suffix, dir):  # as a read-only disk does, which its mode does not tell the root user
        if dir.name == key:
            raise OSError(30, "Read-only file system")
        return make(prefix=prefix, suffix=suffix, dir=dir)

    monkeypatch.setattr(writable.tempfile, "mkstemp", read_only)
    with pytest.raises(RunError, match=rf"datasets\[0\]\.{key}: .*Read-only file system\. Set {key}"):
        writable.require_writable(config)


def test_a_folder_below_a_file_is_told(tmp_path):
    (tmp_path / "file").write_text("x")
    table = {"datasets": [{"video_directory": "clips", "cache_directory": "file/cache"}]}
    with pytest.raises(RunError, match="cache_directory"):
        writable.require_writable(DatasetConfig.from_table(table, tmp_path))
