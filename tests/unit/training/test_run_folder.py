"""A run folder is recognised, locked, and never shared by two different runs."""

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ltx2_train.config import RunSettings, make_run
from ltx2_train.errors import CheckpointError, ConfigError, RunError
from ltx2_train.events import Events
from ltx2_train.sampling.studio import require_possible
from ltx2_train.training import loop as loop_of_training
from ltx2_train.training.loop import train_checked
from ltx2_train.training.peers import ALONE
from ltx2_train.training.run_folder import delete_old_states, open_run, read_manifest, recorded_run, require_usable
from ltx2_train.training.state import list_states, save_state, state_name


class Told(Events):
    def __init__(self):
        self.told: list[str] = []

    def message(self, text, level="info"):
        self.told.append(text)


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
    begun = open_run(settings(tmp_path), {"lora.rank": 4})
    if os.name != "nt":  # whoever holds it goes on with it, as the other processes of the run do
        assert recorded_run(settings(tmp_path)) == (tmp_path / "a", {"lora.rank": 4})
    begun.write_manifest("stopped", 1)
    begun.close()
    assert recorded_run(settings(tmp_path)) == (tmp_path / "a", {"lora.rank": 4})
    assert recorded_run(settings(tmp_path, if_exists="new")) == (tmp_path / "a_2", None)


def test_new_takes_a_free_name(tmp_path):
    open_run(settings(tmp_path), {"rank": "4"}).close()
    folder = open_run(settings(tmp_path, if_exists="new"), {"rank": "8"})
    folder.close()
    assert folder.path.name == "a_2"


def test_error_refuses_an_existing_run(tmp_path):
    begun = open_run(settings(tmp_path), {})
    begun.write_manifest("stopped", 1)
    begun.close()
    with pytest.raises(RunError, match="if_exists"):
        open_run(settings(tmp_path, if_exists="error"), {})


@pytest.mark.parametrize("if_exists", ["continue", "error"])
def test_a_start_that_came_to_nothing_holds_nobody_to_its_settings(tmp_path, if_exists):
    first = open_run(settings(tmp_path), {"rank": 4})
    first.write_manifest("failed", 0, state=0, total=8)
    sample = first.samples / "step_000000.png"
    for file in (sample, first.path / "mine.txt", first.path / ".manifest.json.abcdefgh.part"):
        file.write_bytes(b"x")
    first.metrics.write_text('{"step": 0, "val_loss": 1.0}\n')
    first.close()
    events = Told()
    assert recorded_run(settings(tmp_path)) == (tmp_path / "a", None)
    assert require_usable(settings(tmp_path, if_exists=if_exists))[0] == tmp_path / "a"
    again = open_run(settings(tmp_path, if_exists=if_exists), {"rank": 8}, events)
    again.close()
    assert again.begins
    assert [told for told in events.told if "begins anew. Samples in it" in told]
    manifest = read_manifest(tmp_path / "a")
    assert (manifest["identity"], manifest["status"], manifest["step"]) == ({"rank": 8}, "running", 0)
    assert manifest["id"] != first.id
    assert "total" not in manifest
    assert sample.exists()
    assert (tmp_path / "a" / "mine.txt").exists(), "what others laid there stays"
    events.told.clear()
    (same := open_run(settings(tmp_path), {"rank": 8}, events)).close()
    assert not events.told, "nothing is other than it was"
    assert not same.begins, "and what it measured is used"


@pytest.mark.parametrize("kept", ["states", "lora", "checkpoints", "metrics.jsonl", "manifest.json"])
def test_what_has_taken_a_step_is_never_begun_anew(tmp_path, kept):
    first = open_run(settings(tmp_path), {"rank": 4})
    first.close()
    if kept == "states":
        save_state(first.states / state_name(0), {"step": 0, "identity": {"rank": 4}})
    elif kept == "metrics.jsonl":
        first.metrics.write_text('{"step": 1, "loss": 1.0}\n')
    elif kept == "manifest.json":
        first.write_manifest("failed", 1)
    else:
        (first.path / kept).mkdir(exist_ok=True)
        (first.path / kept / "a_000001.safetensors").write_bytes(b"x")
    assert recorded_run(settings(tmp_path)) == (tmp_path / "a", {"rank": 4})
    with pytest.raises(RunError, match="if_exists"):
        require_usable(settings(tmp_path, if_exists="error"))
    again = open_run(settings(tmp_path), {"rank": 4})
    again.close()
    assert not again.begins


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
    with pytest.raises(RunError, match=r"run\.folder: .* is a file, not a folder"):
        open_run(RunSettings(name="a", folder=blocked), {})
    with pytest.raises(RunError, match=r"run\.folder: .* cannot be made, since .* is a file"):
        open_run(RunSettings(name="a", folder=blocked / "x"), {})
    with pytest.raises(RunError, match=r"run\.export_folder: .* is a file, not a folder"):
        open_run(RunSettings(name="a", folder=tmp_path / "runs", export_folder=blocked), {})
    assert not (tmp_path / "runs").exists()
    with pytest.raises(RunError, match=r"The run folder .*file is a file, not a folder\. Move it away, or choose"):
        open_run(RunSettings(name="file", folder=tmp_path), {})
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "lora").write_text("x")
    with pytest.raises(RunError, match=r"lora is a file, not a folder, and the run writes into it"):
        open_run(RunSettings(name="b", folder=tmp_path, if_exists="continue"), {})


@pytest.mark.parametrize("folder", ["out", "out/deeper/still"])
def test_a_folder_that_is_closed_is_told_before_work_begins(tmp_path, monkeypatch, folder):
    (closed := tmp_path / "out").mkdir()
    rights = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != closed and rights(path, mode))
    made = "cannot be written" if folder == "out" else f"cannot be made, since {closed} cannot be written"
    with pytest.raises(RunError, match=f"run.export_folder: {tmp_path / folder} {made}"):
        require_usable(RunSettings(name="fox", folder=tmp_path / "runs", export_folder=tmp_path / folder))
    with pytest.raises(ConfigError, match=f"--out: {tmp_path / folder} {made}"):
        require_possible(tmp_path / folder, [1.0])


def test_leftovers_of_a_killed_writer_are_removed(tmp_path):
    open_run(settings(tmp_path), {}).close()
    leftover = tmp_path / "a" / "states" / ".x.abcdefgh.part"
    leftover.write_bytes(b"half")
    open_run(settings(tmp_path), {}).close()
    assert not leftover.exists()


DAMAGED = [b'{"step": "2"}', b"{", b"\xff\x00\xfe", b"[" * 100_000, b'{"step": Infinity}', b"[]"]


@pytest.mark.parametrize("data", DAMAGED)
def test_a_damaged_manifest_locks_nobody_out(tmp_path, data):
    open_run(settings(tmp_path), {"rank": "4"}).close()
    (tmp_path / "a" / "manifest.json").write_bytes(data)
    save_state(tmp_path / "a" / "states" / state_name(7), {"step": 7, "identity": {"rank": "4"}})
    with pytest.raises(RunError, match=r"damaged"):
        read_manifest(tmp_path / "a")
    with pytest.raises(RunError, match=r"if_exists"):
        open_run(settings(tmp_path, if_exists="error"), {"rank": "4"})
    assert recorded_run(settings(tmp_path)) == (tmp_path / "a", {"rank": "4"})
    folder = open_run(settings(tmp_path), {"rank": "4"})
    folder.require_state()
    folder.close()
    assert folder.manifest["step"] == 7


@pytest.mark.parametrize("kept", ["lora", "checkpoints"])
@pytest.mark.parametrize("data", DAMAGED)
def test_a_damaged_manifest_without_states_is_begun_anew_only_where_nothing_was_made(tmp_path, data, kept):
    open_run(settings(tmp_path), {"rank": "4"}).close()
    manifest, lora = tmp_path / "a" / "manifest.json", tmp_path / "a" / kept / "a.safetensors"
    manifest.write_bytes(data)
    lora.parent.mkdir(exist_ok=True)
    lora.write_bytes(b"LoRA")
    with pytest.raises(RunError, match=r"damaged.*start over.*run\.name"):
        open_run(settings(tmp_path), {"rank": "4"})
    assert manifest.read_bytes() == data
    lora.unlink()
    folder = open_run(settings(tmp_path), {"rank": "4"})
    folder.require_state()
    folder.close()
    assert read_manifest(tmp_path / "a")["status"] == "running"


def test_a_run_that_has_lost_its_states_is_not_begun_anew(tmp_path):
    folder = open_run(settings(tmp_path), {})
    folder.require_state()
    for more in ({"state": 5}, {}):  # earlier versions wrote no `state`
        folder.manifest.pop("state")
        folder.write_manifest("finished", 5, **more)
        with pytest.raises(RunError, match=r"(?s)5 steps.*holds no state.*Put its states back"):
            folder.require_state()
        folder.manifest.setdefault("state", 0)
    folder.write_manifest("running", 5, state=0)  # train.state is off
    folder.require_state()
    folder.close()


def test_the_end_is_noted_where_the_run_was_under_way_and_nowhere_else(tmp_path):
    folder = open_run(settings(tmp_path), {})
    folder.write_manifest("running", 3, loss=0.5)
    folder.ended("failed")
    folder.ended("stopped")
    folder.close()
    manifest = read_manifest(tmp_path / "a")
    assert (manifest["status"], manifest["step"], manifest["loss"]) == ("failed", 3, 0.5)


def test_rotating_keeps_the_newest_and_never_counts_later_ones(tmp_path):
    for step in (10, 20, 30, 99):
        save_state(tmp_path / state_name(step), {"step": step})
    assert delete_old_states(tmp_path, 1, 30) == ""
    assert [step for step, _ in list_states(tmp_path)] == [30, 99], "99 may be the damaged one that 30 went on without"


def test_manifest_is_json(tmp_path):
    folder = open_run(settings(tmp_path), {"x": "y"})
    folder.write_manifest("stopped", 3, loss=0.5)
    folder.close()
    assert json.loads((tmp_path / "a" / "manifest.json").read_text())["loss"] == 0.5


def test_a_run_that_is_further_than_it_is_asked_to_be_says_its_own_step(tmp_path):
    lora = tmp_path / "fox.safetensors"
    checked: Any = SimpleNamespace(
        peers=ALONE,
        config=make_run({"train": {"steps": 1}}),
        total=1,
        finished_lora=lambda: lora,
        undrawn=False,
        folder=SimpleNamespace(path=tmp_path, loras=tmp_path, name="fox", manifest={"step": 24}, close=lambda *_: None),
        unused=(),
    )
    result = train_checked(checked, Events())
    assert result.summary == f"Finished before: 24 steps. Raise train.steps above 24 to go on. LoRA: {lora}"
    assert (result.step, result.total) == (24, 1)


def test_a_save_that_fails_twice_for_one_reason_tells_it_once():
    why = "a.safetensors was written, but would not work:\n  every B is zero."
    loop: Any = SimpleNamespace(
        run=SimpleNamespace(step=2, total=2, product="LoRA", optimizer=None),
        events=Events(),
        finished=False,
        clean=True,
        _keep=lambda *_: f"The state is saved, the LoRA is not: {why}",
    )
    error = loop_of_training._Loop._after(loop, CheckpointError(why))
    assert str(error) == f"{why} The state is saved, the LoRA is not."
