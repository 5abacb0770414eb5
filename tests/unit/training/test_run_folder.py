"""A run folder is recognised, locked, and never shared by two different runs."""

import json

import pytest

from ltx2_train.config import RunSettings
from ltx2_train.errors import RunError
from ltx2_train.training.run_folder import open_run, read_manifest, recorded_run


def settings(tmp_path, **more):
    return RunSettings(name="a", folder=tmp_path, **more)


def test_a_new_folder_has_a_manifest_at_once(tmp_path):
    folder = open_run(settings(tmp_path), {"rank": "4"})
    folder.close()
    manifest = read_manifest(tmp_path / "a")
    assert manifest["status"] == "running"
    assert manifest["step"] == 0


def test_the_record_of_the_run_to_go_on_with_is_found(tmp_path):
    assert recorded_run(settings(tmp_path)) == (tmp_path / "a", None)
    open_run(settings(tmp_path), {"lora.rank": 4}).close()
    assert recorded_run(settings(tmp_path)) == (tmp_path / "a", {"lora.rank": 4})
    assert recorded_run(settings(tmp_path, if_exists="new")) == (tmp_path / "a_2", None)


def test_new_takes_a_free_name(tmp_path):
    open_run(settings(tmp_path), {"rank": "4"}).close()
    folder = open_run(settings(tmp_path, if_exists="new"), {"rank": "8"})
    folder.close()
    assert folder.path.name == "a_2"


def test_error_refuses_an_existing_run(tmp_path):
    open_run(settings(tmp_path), {}).close()
    with pytest.raises(RunError, match="if_exists"):
        open_run(settings(tmp_path, if_exists="error"), {})


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "thesis.txt").write_text("x")
    with pytest.raises(RunError, match=r"thesis\.txt"):
        open_run(settings(tmp_path), {})
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["thesis.txt"]


def test_two_processes_cannot_train_one_run(tmp_path):
    folder = open_run(settings(tmp_path), {})
    with pytest.raises(RunError, match="another process"):
        open_run(settings(tmp_path), {})
    folder.close()
    open_run(settings(tmp_path), {}).close()


def test_a_folder_that_is_a_file_is_a_clear_error(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("x")
    with pytest.raises(RunError, match=r"run\.folder"):
        open_run(RunSettings(name="a", folder=blocked), {})


def test_leftovers_of_a_killed_writer_are_removed(tmp_path):
    open_run(settings(tmp_path), {}).close()
    leftover = tmp_path / "a" / "states" / ".x.part"
    leftover.write_bytes(b"half")
    open_run(settings(tmp_path), {}).close()
    assert not leftover.exists()


@pytest.mark.parametrize("data", [b"{", b"\xff\x00\xfe", b"[" * 100_000, b'{"step": Infinity}'])
def test_a_damaged_manifest_is_named(tmp_path, data):
    open_run(settings(tmp_path), {}).close()
    (tmp_path / "a" / "manifest.json").write_bytes(data)
    with pytest.raises(RunError, match="damaged"):
        open_run(settings(tmp_path), {})


def test_manifest_is_json(tmp_path):
    folder = open_run(settings(tmp_path), {"x": "y"})
    folder.write_manifest("stopped", 3, loss=0.5)
    folder.close()
    assert json.loads((tmp_path / "a" / "manifest.json").read_text())["loss"] == 0.5
