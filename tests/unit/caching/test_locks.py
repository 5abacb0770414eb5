"""Claims on caches, and small files that several write to."""

from __future__ import annotations

import json
import os
import threading

from ltx2_train.caching import locks
from ltx2_train.caching.locks import Claims, tidy
from ltx2_train.caching.notes import FAILED
from ltx2_train.dataset.media_index import INDEX_NAME, MediaIndex
from ltx2_train.events import Events
from ltx2_train.locks import alone
from ltx2_train.media.info import MediaInfo


class Heard(Events):
    def __init__(self):
        self.said = []

    def message(self, text, level="info"):
        self.said.append((level, text))


def test_a_claim_is_of_one_until_it_is_free(tmp_path):
    path = tmp_path / "cache" / "a.safetensors"
    with Claims() as mine, Claims() as theirs:
        assert mine.take(path)
        assert not mine.take(path)
        assert not theirs.take(path)
        assert theirs.take(path.with_name("b.safetensors"))
        mine.free(path)
        assert theirs.take(path)
    assert list(path.parent.iterdir()) == []


def test_what_a_killed_process_left_keeps_nobody_waiting_and_is_tidied_up(tmp_path):
    path = tmp_path / "a.safetensors"
    with Claims() as claims:
        claims.take(path)
        left = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert len(left) == 2
    for name, data in left.items():
        (tmp_path / name).write_bytes(data)
    with Claims() as claims:
        assert claims.take(path)
    for name, data in left.items():
        (tmp_path / name).write_bytes(data)
    half, fresh = tmp_path / ".a.safetensors.abcd_123.part", tmp_path / ".b.safetensors.efgh_456.part"
    for file in (half, fresh, tmp_path / "b.safetensors"):
        file.write_text("x")
    os.utime(half, (1, 1))
    with Claims() as other:
        other.take(tmp_path / "b.safetensors")
        tidy([tmp_path, tmp_path / "not there"])
        assert not other.take(tmp_path / "b.safetensors")
        assert len(list(tmp_path.glob(".ltx2_*.lock"))) == 1, "one in use stays"
    assert sorted(file.name for file in tmp_path.iterdir()) == [fresh.name, "b.safetensors"]


def test_a_folder_that_cannot_be_locked_is_said_once_and_used(tmp_path, monkeypatch):
    def no_locks(file, seconds=0.0):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(locks, "locked", no_locks)
    heard = Heard()
    with Claims(heard) as claims:
        assert claims.take(tmp_path / "a")
        assert claims.take(tmp_path / "b")
        claims.free(tmp_path / "a")
    ((level, text),) = heard.said
    assert level == "warning"
    assert "cannot be locked (Operation not supported)" in text
    assert "let only one program at a time fill this folder" in text
    with alone(tmp_path):
        pass


def test_where_the_system_refuses_a_lock_the_work_goes_on(tmp_path):
    locks.lock_file(tmp_path / "a").mkdir()  # cannot be opened, whoever asks
    heard = Heard()
    with Claims(heard) as claims:
        assert claims.take(tmp_path / "a")
    assert len(heard.said) == 1


def in_threads(count, work):
    # a lock is of an open file, so that threads exclude each other as processes do
    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_failures_that_several_record_at_once_are_all_kept(tmp_path):
    source = tmp_path / "a.mp4"
    source.write_text("x")

    def record(number):
        for turn in range(5):
            FAILED.put(tmp_path, f"{number}-{turn}", "broken", source)

    in_threads(6, record)
    table = json.loads((tmp_path / FAILED.file).read_text())
    assert len(table) == 30
    assert FAILED.get(tmp_path, "5-4", source) == "broken"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", FAILED.file]


def test_an_index_keeps_what_others_added(tmp_path):
    def add(number):
        index = MediaIndex(tmp_path)
        index.put(MediaInfo(tmp_path / f"{number}.png", "image", 1, 8, 8), 1, 1)
        index.save()

    in_threads(8, add)
    assert len(json.loads((tmp_path / INDEX_NAME).read_text())["media"]) == 8
    assert [path.name for path in tmp_path.iterdir()] == [INDEX_NAME]


def test_a_lock_that_is_never_given_back_does_not_keep_a_small_file_from_being_written(tmp_path):
    with alone(tmp_path):
        (lock,) = tmp_path.iterdir()
        with alone(tmp_path, seconds=0.05):
            assert locks.locked(lock) is None, "whoever holds it still does"
            (tmp_path / "notes.json").write_text("{}")
        assert lock.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["notes.json"]
