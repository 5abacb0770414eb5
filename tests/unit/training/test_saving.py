"""What a save writes and in which order, what may fail without ending a run, and how its LoRAs are called.

It is long: each file of a save may fail in its own way.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load, load_file, save_file
from small_run import SmallRuns

from ltx2_train import Events, RunError, Stopped, TrainerError, files, inspect_lora
from ltx2_train.training import saving, setup
from ltx2_train.training.lora_files import with_its_step
from ltx2_train.training.metrics import read_rows
from ltx2_train.training.run_folder import read_manifest
from ltx2_train.training.state import list_states
from ltx2_train.weights.reader import TensorFile


class Heard(Events):
    """Keeps what it is told; asks for a stop once `stop` steps are done."""

    def __init__(self, stop=None):
        self.saves, self.warnings, self.done, self.stop = [], [], 0, stop

    def step(self, metrics):
        self.done = metrics["step"]

    def saved(self, kind, path):
        self.saves.append((kind, path.name))

    def message(self, text, level="info"):
        if level == "warning":
            self.warnings.append(text)

    def should_stop(self):
        return self.stop is not None and self.done >= self.stop


@pytest.fixture
def runs(monkeypatch, tmp_path):
    return SmallRuns(monkeypatch, tmp_path)


def test_a_run_that_is_further_than_it_is_to_end_takes_no_step_and_says_so(runs):
    heard = Heard(stop=3)
    with pytest.raises(Stopped):
        runs.train(heard, steps=9)
    told = []
    heard.message = lambda text, level="info": told.append(text)
    heard.stop = None
    result = runs.train(heard, steps=2)
    assert (result.step, result.total, runs.taken) == (3, 2, [0, 1, 2])
    assert "fox is at step 3, and was to end with 2: no step is taken." in told
    assert result.summary.startswith("3 steps done (0 in ")


def loras(folder):
    return sorted(path.name for path in folder.glob("*.safetensors"))


def states(runs):
    return [step for step, _ in list_states(runs.path / "states")]


def same(a, b):
    first, second = load_file(a), load_file(b)
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def refuse(monkeypatch, *names):
    """os.replace of a system that lets none of `names` be written."""
    plain = os.replace

    def replace(source, target):
        if os.path.basename(target) in names:
            raise PermissionError(errno.EACCES, "Access is denied")
        plain(source, target)

    monkeypatch.setattr(files.os, "replace", replace)


def test_the_state_comes_first_and_every_lora_has_its_step_in_its_name(runs, tmp_path):
    events = Heard()
    result = runs.train(events, steps=5, export=tmp_path / "loras")
    assert events.saves[:3] == [
        ("state", "state_00000002.safetensors"),
        ("lora", "fox_000002.safetensors"),
        ("export", "fox.safetensors"),
    ]
    names = ["fox.safetensors", "fox_000002.safetensors", "fox_000004.safetensors", "fox_000005.safetensors"]
    assert loras(runs.path / "lora") == loras(tmp_path / "loras" / "fox") == names
    assert result.lora == runs.path / "lora" / "fox.safetensors"
    assert inspect_lora(result.lora).step == 5
    assert same(result.lora, runs.path / "lora" / "fox_000005.safetensors")
    assert result.lora.stat().st_ino == (result.lora.parent / "fox_000005.safetensors").stat().st_ino
    assert events.warnings == []


def test_a_longer_run_replaces_no_finished_lora(runs, tmp_path):
    exported = tmp_path / "loras"
    first = runs.train(steps=4, export=exported)
    before = {path: path.read_bytes() for path in (first.lora.parent / "fox_000004.safetensors",
                                                   exported / "fox" / "fox_000004.safetensors")}  # fmt: skip
    longer = runs.train(steps=7, export=exported, keep_loras=1)
    assert inspect_lora(longer.lora).step == 7
    assert all(path.read_bytes() == data for path, data in before.items())
    assert loras(first.lora.parent) == ["fox.safetensors", "fox_000004.safetensors", "fox_000007.safetensors"]
    assert read_manifest(runs.path)["finished"] == [4, 7]


def test_a_run_of_an_earlier_version_goes_on_and_keeps_its_last_lora(runs, tmp_path):
    """They named the last LoRA after the run alone, and wrote no step with it."""
    exported = tmp_path / "loras" / "fox"
    result = runs.train(steps=4, export=exported.parent)
    finished = result.lora.read_bytes()
    for folder in (result.lora.parent, exported):
        (folder / "fox_000002.safetensors").rename(folder / "fox-step00000002.safetensors")
        (folder / "fox_000004.safetensors").unlink()
    manifest = read_manifest(runs.path)
    del manifest["state"], manifest["finished"]
    files.write_json(runs.path / "manifest.json", manifest)
    runs.train(steps=6, export=exported.parent)
    for folder in (result.lora.parent, exported):
        assert loras(folder) == ["fox-step00000002.safetensors", "fox.safetensors", "fox_000004.safetensors",
                                 "fox_000006.safetensors"]  # fmt: skip
        assert same(folder / "fox_000004.safetensors", _written(tmp_path, finished))
    assert runs.taken == list(range(6))


def _written(folder, data):
    (folder / "copy.safetensors").write_bytes(data)
    return folder / "copy.safetensors"


def test_another_lora_of_that_step_is_never_written_over(runs, tmp_path):
    exported = tmp_path / "loras" / "fox"
    runs.train(steps=2, export=exported.parent)
    old = load_file(exported / "fox_000002.safetensors")
    shutil.rmtree(runs.path)
    told = Heard()
    told.message = lambda text, level="info": told.warnings.append(text)
    for _ in range(2):  # pressing again changes nothing
        runs.train(told, steps=2, export=exported.parent, learning_rate=1e-3)
        assert loras(exported) == ["fox.safetensors", "fox_000002.safetensors", "fox_000002_2.safetensors"]
        assert all(
            torch.equal(old[key], value) for key, value in load_file(exported / "fox_000002.safetensors").items()
        )
        assert same(exported / "fox.safetensors", exported / "fox_000002_2.safetensors")
    assert sum("Another LoRA is called fox_000002.safetensors in" in text for text in told.warnings) == 1


def test_a_copy_with_changed_bytes_is_named_with_the_one_that_takes_its_place(runs, tmp_path):
    exports = tmp_path / "loras" / "fox"
    runs.train(steps=2, export=exports.parent)
    changed = exports / "fox_000002.safetensors"
    whole = changed.read_bytes()
    changed.unlink()
    changed.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    (exports / "fox.safetensors").unlink()
    runs.train(events := Heard(), steps=2, export=exports.parent)
    assert loras(exports) == ["fox.safetensors", "fox_000002.safetensors", "fox_000002_2.safetensors"]
    assert events.warnings[0].startswith(f"{changed} is damaged, or was changed since it was written")
    assert "the whole one is fox_000002_2.safetensors. Delete fox_000002.safetensors" in events.warnings[0]


def test_what_stands_under_the_plain_name_without_a_step_is_kept(runs, tmp_path):
    exported = tmp_path / "loras" / "fox"
    exported.mkdir(parents=True)
    save_file({"a": torch.ones(1)}, exported / "fox.safetensors")
    runs.train(events := Heard(), steps=2, export=exported.parent)
    assert loras(exported) == ["fox.safetensors", "fox_000002.safetensors", "fox_before.safetensors"]
    assert list(load_file(exported / "fox_before.safetensors")) == ["a"]
    assert events.warnings == [f"{exported / 'fox.safetensors'} was another LoRA; it is now fox_before.safetensors."]


@pytest.mark.parametrize("step", ["2", "240"])
def test_a_lora_of_another_run_under_the_plain_name_is_kept_and_told(runs, tmp_path, step):
    exported = tmp_path / "loras" / "fox"
    exported.mkdir(parents=True)
    save_file({"a": torch.ones(1)}, exported / "fox.safetensors", {"step": step, "ss_output_name": "hen"})
    runs.train(events := Heard(), steps=2, export=exported.parent)
    assert loras(exported) == ["fox.safetensors", "fox_000002.safetensors", "fox_before.safetensors"]
    assert list(load_file(exported / "fox_before.safetensors")) == ["a"]
    assert events.warnings == [
        f"{exported / 'fox.safetensors'} was another LoRA (of hen, step {step}); it is now fox_before.safetensors."
    ]


def test_a_damaged_lora_is_replaced(runs):
    (runs.path / "lora").mkdir(parents=True)
    for name in ("fox.safetensors", "fox_000002.safetensors"):
        (runs.path / "lora" / name).write_bytes(b"half")
    files.write_json(runs.path / "manifest.json", {"identity": {"lora.rank": "2"}, "status": "running", "step": 0})
    runs.train(steps=2)
    assert loras(runs.path / "lora") == ["fox.safetensors", "fox_000002.safetensors"]
    assert inspect_lora(runs.path / "lora" / "fox_000002.safetensors").step == 2


def test_a_plain_name_that_another_program_holds_keeps_the_run_going_and_is_said(runs, monkeypatch):
    runs.train(steps=2)
    refuse(monkeypatch, "fox.safetensors")
    events = Heard()
    result = runs.train(events, steps=4)
    assert result.lora.name == "fox_000004.safetensors"
    assert inspect_lora(runs.path / "lora" / "fox.safetensors").step == 2
    assert inspect_lora(result.lora).step == 4
    assert any("fox.safetensors" in text and "Another program" in text for text in events.warnings)
    assert read_manifest(runs.path) | {"status": "finished", "lora": "fox_000004.safetensors"} == read_manifest(
        runs.path
    )


def test_an_export_folder_out_of_reach_costs_nothing_but_the_copy(runs, tmp_path):
    (tmp_path / "loras").mkdir()
    (tmp_path / "loras" / "fox").write_text("in place of the run's own folder")
    events = Heard(stop=3)
    with pytest.raises(Stopped, match="State and LoRA are saved"):
        runs.train(events, steps=5, export=tmp_path / "loras")
    assert states(runs) == [2, 3]
    events.stop = None
    result = runs.train(events, steps=5, export=tmp_path / "loras")
    assert (result.step, result.exported) == (5, None)
    assert runs.taken == list(range(5))
    assert sum("run.export_folder" in text for text in events.warnings) == 4


def test_a_copy_that_broke_off_is_written_anew_and_a_missing_one_of_the_newest(runs, tmp_path):
    exports, events = tmp_path / "loras" / "fox", Heard()
    result = runs.train(events, export=tmp_path / "loras")
    assert (result.exported, events.warnings) == (exports / "fox.safetensors", [])
    cut = exports / "fox_000002.safetensors"
    whole = cut.read_bytes()
    cut.unlink()  # of its own, where the disk has links
    cut.write_bytes(whole[:500])
    (exports / "fox_000004.safetensors").unlink()
    (exports / "fox.safetensors").unlink()
    again = runs.train(events, export=tmp_path / "loras")
    assert again.exported == exports / "fox.safetensors"
    assert cut.read_bytes() == whole
    assert loras(exports) == ["fox.safetensors", "fox_000002.safetensors", "fox_000004.safetensors"]
    (told,) = events.warnings
    names = "fox_000002.safetensors, fox_000004.safetensors, fox.safetensors"
    assert told == f"{names} in {exports} were damaged or missing, and were written anew."
    cut.unlink()  # an older one that somebody has deleted stays away
    assert runs.train(events, export=tmp_path / "loras").exported
    assert (len(events.warnings), cut.exists()) == (1, False)
    (exports / "fox_000004.safetensors").unlink()
    assert runs.train(events, export=tmp_path / "loras").exported
    assert events.warnings[1].startswith("fox_000004.safetensors in")


def test_a_copy_of_the_mean_that_was_refused_comes_with_the_next_start(runs, tmp_path, monkeypatch):
    copy, plain = tmp_path / "loras" / "fox" / "fox_ema.safetensors", os.replace

    def replace(source, target):
        if os.fspath(target) == str(copy):
            raise PermissionError(errno.EACCES, "Access is denied")
        plain(source, target)

    settings = {"export": tmp_path / "loras", "ema": {"decay": 0.5}, "keep_loras": 1}
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", replace)
        runs.train(events := Heard(), **settings)
    assert any(text.startswith("The copy of the running mean in run.export_folder was") for text in events.warnings)
    assert not copy.exists()
    assert "fox_ema_000002.safetensors" not in loras(runs.path / "lora"), "older ones go all the same"
    runs.train(events := Heard(), **settings)
    assert same(copy, runs.path / "lora" / "fox_ema.safetensors")
    assert events.warnings == [f"fox_ema.safetensors in {copy.parent} was damaged or missing, and was written anew."]
    runs.train(again := Heard(), **settings)
    assert again.warnings == []


@pytest.mark.parametrize("how", ["damaged", "missing"])
def test_a_lora_that_is_written_anew_is_told_of(runs, how):
    whole = runs.train().lora.read_bytes()
    for name in ("fox.safetensors", "fox_000004.safetensors"):  # an older one is there
        (path := runs.path / "lora" / name).unlink()
        if how == "damaged":
            path.write_bytes(whole[:500])
    events = Heard()
    assert runs.train(events).lora.name == "fox.safetensors"
    assert events.warnings == ["The LoRA of fox is damaged or missing, and is written anew from the state of step 4."]
    assert runs.taken == list(range(4))
    assert inspect_lora(runs.path / "lora" / "fox_000004.safetensors").step == 4


def test_a_whole_lora_of_the_last_step_takes_the_place_of_damaged_ones(runs, tmp_path):
    exports, folder = tmp_path / "loras" / "fox", runs.path / "lora"
    whole = runs.train(export=exports.parent).lora.read_bytes()
    cut, changed = folder / "fox.safetensors", folder / "fox_000004.safetensors"
    for path, data in ((cut, whole[:500]), (changed, whole[:-1] + bytes([whole[-1] ^ 1]))):
        path.unlink()  # of its own, where the disk has links
        path.write_bytes(data)
    (folder / "fox_000004_2.safetensors").write_bytes(whole)
    (folder / "fox_000004_3.safetensors").write_bytes(b"")
    events = Heard()
    result = runs.train(events, export=exports.parent)
    assert result.lora.read_bytes() == cut.read_bytes() == whole
    assert result.exported is not None
    assert with_its_step(result.lora, "fox", 4).name == "fox_000004_2.safetensors"
    left = f"{changed} is damaged, or was changed since it was written (its hash says so), and stays; the whole one is "
    assert events.warnings[0].startswith(left)
    assert events.warnings[1] == "fox.safetensors was damaged or missing, and was copied from fox_000004_2.safetensors."
    assert loras(exports) == ["fox.safetensors", "fox_000002.safetensors", "fox_000004.safetensors"]
    assert runs.train(quiet := Heard(), export=exports.parent).lora == cut
    assert [text.startswith(left) for text in quiet.warnings] == [True]
    changed.unlink()
    assert runs.train(quiet := Heard(), export=exports.parent).lora == cut
    assert quiet.warnings == []
    assert runs.taken == list(range(4)), "nothing is loaded for it"


def test_a_manifest_of_a_later_step_than_all_else_is_not_believed(runs):
    """As where a folder was put together from two copies of a run."""
    with pytest.raises(Stopped):
        runs.train(Heard(stop=2))
    files.write_json(
        runs.path / "manifest.json",
        {**read_manifest(runs.path), "status": "finished", "step": 4, "total": 4, "finished": [4]},
    )
    runs.unused = ("sample.every",)
    result = runs.train(events := Heard())
    runs.unused = ()
    assert inspect_lora(result.lora).step == 4
    assert runs.taken == list(range(4))
    assert events.warnings.pop(0).startswith("sample.every was changed since its last step and was not used.")
    assert events.warnings == [
        "The LoRA of fox is damaged or missing, and is trained again from the state of step 2 on."
    ]
    shutil.rmtree(runs.path / "states")
    for name in ("fox.safetensors", "fox_000004.safetensors"):
        (runs.path / "lora" / name).unlink()
    assert runs.train(late := Heard()).lora.name == "fox_000002.safetensors"
    assert late.warnings == ["What step 4 made is gone, and so are the states: fox_000002.safetensors is of step 2."]


@pytest.mark.parametrize("how", ["missing", "cut", "older"])
def test_the_mean_of_a_finished_run_is_written_anew_where_it_is_not_whole(runs, how):
    runs.train(ema={"decay": 0.5})
    mean = runs.path / "lora" / "fox_ema.safetensors"
    whole = load_file(mean)
    for path in (mean, mean.with_name("fox_ema_000004.safetensors")):
        data = path.read_bytes()
        path.unlink()
        if how == "cut":
            path.write_bytes(data[:500])
    if how == "older":
        shutil.copy(mean.with_name("fox_ema_000002.safetensors"), mean)
    runs.train(events := Heard(), ema={"decay": 0.5})
    assert any("is damaged or missing, and is written anew" in text for text in events.warnings)
    assert all(torch.equal(whole[key], value) for key, value in load_file(mean).items())
    assert inspect_lora(mean).step == 4
    assert inspect_lora(mean.with_name("fox_ema_000004.safetensors")).step == 4
    runs.train(again := Heard(), ema={"decay": 0.5})
    assert again.warnings == []


def test_a_lora_of_another_run_under_a_name_of_this_one_is_told(runs):
    runs.train()
    other = runs.path / "lora" / "fox.safetensors"
    data = load_file(other)
    other.unlink()
    with TensorFile(runs.path / "lora" / "fox_000004.safetensors") as file:
        save_file(data, other, {**file.metadata, "ss_seed": "7"})
    runs.train(told := Heard())
    assert [text for text in told.warnings if "are two LoRAs of step 4, and one is of another run" in text]


def test_a_copy_of_an_earlier_step_is_no_copy(runs, tmp_path, monkeypatch):
    exports = tmp_path / "loras" / "fox"
    with monkeypatch.context() as full:
        taken = os.replace

        def replace(source, target):
            if Path(target).parent == exports and (exports / "fox.safetensors").exists():
                raise OSError(errno.ENOSPC, "No space left on device")
            taken(source, target)

        full.setattr(files.os, "replace", replace)
        result = runs.train(events := Heard(), export=exports.parent)
    assert loras(exports) == ["fox.safetensors", "fox_000002.safetensors"]
    assert result.exported is None, "fox.safetensors is that of step 2, of the same size"
    assert "No space left" in " ".join(events.warnings)
    again = runs.train(export=exports.parent)
    assert again.exported == exports / "fox.safetensors"
    assert inspect_lora(again.exported).step == 4
    assert (exports / "fox_000004.safetensors").is_file()


@pytest.mark.parametrize("name", ["loss.png", "fox_000002.json", "manifest.json"])
def test_what_only_tells_about_the_run_may_fail(runs, monkeypatch, name):
    events = Heard()
    runs.train(steps=1, save_every=0)  # the folder is there
    refuse(monkeypatch, name)
    assert runs.train(events, steps=4).step == 4
    assert events.warnings
    assert all(name in text for text in events.warnings)


def test_old_states_and_loras_that_cannot_be_deleted_are_said(runs, monkeypatch):
    plain, events = os.unlink, Heard()

    def unlink(path, *more, **named):
        if os.path.basename(path) in ("state_00000002.safetensors", "fox_000002.safetensors"):
            raise PermissionError(errno.EACCES, "Access is denied")
        plain(path, *more, **named)

    monkeypatch.setattr(os, "unlink", unlink)
    assert runs.train(events, steps=6, keep_states=1, keep_loras=1).step == 6
    assert states(runs) == [2, 6]
    assert {text.split(" could")[0].rsplit("/", 1)[-1] for text in events.warnings} == {
        "state_00000002.safetensors",
        "fox_000002.safetensors",
    }


def test_a_lora_that_cannot_be_written_on_the_way_is_made_up_for(runs, monkeypatch):
    events = Heard()
    with monkeypatch.context() as patch:
        refuse(patch, "fox_000002.safetensors")
        runs.train(events, steps=4)
    assert any("LoRA of step 2 is missing, its state is saved" in text for text in events.warnings)
    assert loras(runs.path / "lora") == ["fox.safetensors", "fox_000004.safetensors"]
    left = f"What was to be saved of step 2 was refused by the disk, and is not in {runs.path / 'lora'}."
    assert events.warnings[-1] == left
    for keep, told in ((0, True), (1, False), (2, True)):
        again = Heard()
        assert runs.train(again, steps=4, keep_loras=keep).summary.startswith("Finished before")
        assert (left in again.warnings) is told, keep


def test_a_disk_without_room_for_what_a_run_leaves_is_told_before_it(runs):
    runs.train(steps=2)
    heard, folder = Heard(), runs.run.folder
    there = sum(path.stat().st_size for place in (folder.states, folder.loras) for path in place.iterdir())
    plan = SimpleNamespace(prediction=SimpleNamespace(disk=3e9))
    setup._tell_disk(folder, plan, 3e9 - there, heard)
    assert heard.warnings == []
    setup._tell_disk(folder, plan, 3e9 - there - 1, heard)
    assert len(heard.warnings) == 1
    assert "about 3 GB of states, samples and lora, and 3 GB are free" in heard.warnings[0]


def test_a_last_lora_that_cannot_be_written_is_an_error_and_comes_with_the_next_start(runs, monkeypatch):
    with monkeypatch.context() as patch:
        refuse(patch, "fox_000004.safetensors")
        with pytest.raises(RunError, match=r"fox_000004.*The state is saved, the LoRA is not"):
            runs.train(steps=4)
    assert states(runs)[-1] == 4
    assert read_manifest(runs.path)["status"] == "failed"
    assert inspect_lora(runs.train(steps=4).lora).step == 4
    assert runs.taken == [0, 1, 2, 3]


def test_a_state_that_cannot_be_written_ends_the_run_with_its_lora_and_the_last_state(runs, monkeypatch):
    events = Heard()
    with monkeypatch.context() as patch:
        refuse(patch, "state_00000004.safetensors")
        with pytest.raises(
            RunError, match=r"state_00000004.*The state of step 2 is kept\. The LoRA of step 4 is saved"
        ):
            runs.train(events, steps=6)
    assert events.saves.count(("lora", "fox_000004.safetensors")) == 1
    assert loras(runs.path / "lora") == ["fox.safetensors", "fox_000002.safetensors", "fox_000004.safetensors"]
    assert states(runs) == [2]
    manifest = read_manifest(runs.path)
    assert (manifest["status"], manifest["step"], manifest["state"]) == ("failed", 2, 2)
    assert runs.train(steps=6).step == 6
    assert runs.taken == [0, 1, 2, 3, 2, 3, 4, 5]


def test_a_state_that_is_refused_for_a_moment_is_tried_again(runs, monkeypatch):
    plain, tries = saving.save_state, []

    def refusing(path, content):
        tries.append(path.name)
        if len(tries) < 3:
            raise RunError("Could not write it.")
        return plain(path, content)

    monkeypatch.setattr(saving, "save_state", refusing)
    runs.train(steps=2)
    assert tries == ["state_00000002.safetensors"] * 3
    assert runs.taken == [0, 1]


def test_good_states_stay_where_the_new_lora_would_not_work(runs):
    def spoil(step):
        if step == 3:
            next(runs.run.loras.parameters()).data.fill_(float("nan"))

    with pytest.raises(TrainerError, match="not finite"):
        runs.train(steps=6, keep_states=1, step_hook=spoil)
    assert 2 in states(runs)
    assert inspect_lora(runs.path / "lora" / "fox.safetensors").step == 2


def test_a_run_that_ends_before_its_first_step_is_not_called_running(runs):
    with pytest.raises(Stopped):
        runs.train(Heard(stop=0))
    assert read_manifest(runs.path)["status"] == "stopped"


def test_a_listener_that_fails_loses_nothing(runs):
    class Closed(Events):
        def saved(self, kind, path):
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

        step = message = stage = saved

    assert runs.train(Closed()).step == 4
    assert states(runs) == [2, 4]
    assert [row["step"] for row in read_rows(runs.path / "metrics.jsonl")] == [1, 2, 3, 4]


def test_names_with_signs_of_patterns_are_pruned(monkeypatch, tmp_path):
    runs = SmallRuns(monkeypatch, tmp_path, "a [v1]")
    runs.train(steps=6, keep_loras=2)
    assert loras(runs.path / "lora") == ["a [v1].safetensors", "a [v1]_000004.safetensors", "a [v1]_000006.safetensors"]


def test_a_page_of_prompts_does_not_fill_the_head_of_the_lora(runs):
    """A head above 100 MB cannot be written; programs that list LoRAs read one megabyte."""
    prompts = [f"{index} " + "a fox in the snow " * 2000 for index in range(100)]
    result = runs.train(steps=2, sample={"prompts": prompts, "every": 0})
    with open(result.lora, "rb") as file:
        assert int.from_bytes(file.read(8), "little") < 300_000
    assert "settings" in inspect_lora(result.lora).metadata


@pytest.mark.parametrize("how", ["deleted", "damaged"])
def test_a_finished_run_without_its_states_is_not_begun_anew(runs, how):
    result = runs.train(steps=4)
    for path in (runs.path / "states").iterdir():
        path.unlink() if how == "deleted" else path.write_bytes(path.read_bytes()[:99])
    assert runs.train(steps=4).lora == result.lora, "it is finished and needs none"
    before = {path: path.read_bytes() for path in runs.path.rglob("*") if path.is_file()}
    with pytest.raises(RunError, match=r"(?s)run of 4 steps.*(holds no state|damaged).*choose another run\.name"):
        runs.train(steps=6)
    assert {path: path.read_bytes() for path in runs.path.rglob("*") if path.is_file()} == before
    assert len(runs.taken) == 4


@pytest.mark.parametrize("how", ["damaged", "missing"])
def test_without_its_manifest_a_run_goes_on_from_its_states(runs, how):
    runs.train(steps=4)
    path = runs.path / "manifest.json"
    path.unlink() if how == "missing" else path.write_bytes(b"\xff{")
    events = Heard()
    assert runs.train(events, steps=6).step == 6
    assert runs.taken == list(range(6))
    assert any("state_00000004" in text for text in events.warnings)
    assert read_manifest(runs.path)["status"] == "finished"


def test_the_file_beside_a_lora_comes_with_the_next_start(runs):
    runs.train(Heard(), steps=4)
    beside = runs.path / "lora" / "fox_000004.json"
    said = json.loads(beside.read_text())
    beside.unlink()
    runs.train(Heard(), steps=6)
    assert {**json.loads(beside.read_text()), "time": ""} == {**said, "time": ""}


@pytest.mark.parametrize("size", [0, 400])
def test_a_damaged_lora_of_the_step_that_is_gone_on_from_is_written_anew(runs, size):
    runs.train(steps=4, ema={"decay": 0.5})
    folder = runs.path / "lora"
    names = [f"fox{mean}{step}.safetensors" for mean in ("", "_ema") for step in ("", "_000004")]
    whole = {name: load((folder / name).read_bytes()) for name in names}  # not mapped: the files are cut
    for name in names:
        os.truncate(folder / name, size)
    for name in ("fox.json", "fox_000004.json"):
        os.truncate(folder / name, 5)
    heard = Heard()

    def first(step):  # what is there as the first step more is taken
        if step == 4:
            for name in names:
                now = load_file(folder / name)
                assert all(torch.equal(now[key], whole[name][key]) for key in whole[name]), name
            assert json.loads((folder / "fox.json").read_text())["step"] == 4

    runs.train(heard, steps=6, ema={"decay": 0.5}, step_hook=first)
    assert runs.taken == list(range(6))
    assert "fox_000004.safetensors was damaged, and was written anew from the state of step 4." in heard.warnings
    assert inspect_lora(folder / "fox_000004.safetensors").step == 4


def test_of_two_means_of_one_step_the_whole_one_counts(runs):
    runs.train(steps=4, ema={"decay": 0.5})
    folder = runs.path / "lora"
    whole = load((folder / "fox_ema_000004.safetensors").read_bytes())
    (folder / "fox_ema_000004_2.safetensors").write_bytes(b"cut")
    (folder / "fox_ema.safetensors").unlink()

    def first(step):
        if step == 4:
            now = load_file(folder / "fox_ema.safetensors")
            assert all(torch.equal(now[key], whole[key]) for key in whole)

    runs.train(heard := Heard(), steps=6, ema={"decay": 0.5}, step_hook=first)
    assert runs.taken == list(range(6))
    assert not heard.warnings


def test_a_damaged_second_name_and_file_beside_it_are_written_anew(runs):
    runs.train(steps=4)
    folder = runs.path / "lora"
    for name in ("fox.safetensors", "fox_000004.json"):
        data = (folder / name).read_bytes()
        (folder / name).unlink()  # it may be a second name of one file
        (folder / name).write_bytes(data[:9])
    heard = Heard()
    runs.train(heard, steps=5)
    assert heard.warnings[-2:] == [
        "fox.safetensors was damaged, and was copied from fox_000004.safetensors.",
        "fox_000004.json was damaged, and was written anew.",
    ]
    assert json.loads((folder / "fox_000004.json").read_text())["step"] == 4


@pytest.mark.skipif(os.name == "nt", reason="Windows deletes no folder whose files are open")
@pytest.mark.parametrize("gone", ["", "lora", "moved"])
@pytest.mark.parametrize("stops", [False, True])
def test_what_goes_while_the_last_samples_are_drawn_is_told_and_saved_again(runs, monkeypatch, gone, stops):
    def draw(run, events):
        if gone == "moved":
            runs.path.rename(runs.path.with_name("elsewhere"))
        else:
            shutil.rmtree(runs.path / gone)
        if stops:
            raise Stopped

    monkeypatch.setattr("ltx2_train.training.loop._draw", draw)
    again = "State or LoRA was gone, and both are saved again"
    said = f"was deleted or moved.*{again}" if not stops else f"Stopped after step 4 of 4.*{again}"
    with pytest.raises(Stopped if stops else RunError, match=said):
        runs.train(steps=4, sample={"prompts": ["a ball"], "every": 4})
    assert loras(runs.path / "lora")[-1] == "fox_000004.safetensors"
    assert inspect_lora(runs.path / "lora" / "fox.safetensors").step == 4
    monkeypatch.setattr("ltx2_train.training.loop._draw", lambda run, events: False)
    assert runs.train(steps=4, sample={"prompts": ["a ball"], "every": 4}).step == 4
    assert runs.taken == [0, 1, 2, 3], "the state is that of the last step"


def test_a_copy_that_goes_while_the_last_samples_are_drawn_is_written_again(runs, monkeypatch, tmp_path):
    monkeypatch.setattr("ltx2_train.training.loop._draw", lambda run, events: shutil.rmtree(tmp_path / "loras"))
    heard = Heard()
    result = runs.train(heard, steps=4, export=tmp_path / "loras", sample={"prompts": ["a ball"], "every": 4})
    assert result.exported is not None
    assert inspect_lora(result.exported).step == 4
    assert any("were damaged or missing, and were written anew" in text for text in heard.warnings)


def test_a_folder_that_is_named_as_a_state_is_no_state_that_is_kept(runs):
    (runs.path / "states" / "state_00000002.safetensors" / "mine").mkdir(parents=True)
    files.write_json(runs.path / "manifest.json", {"identity": {"lora.rank": "2"}, "status": "running", "step": 0})
    with pytest.raises(RunError, match=r"state_00000002.*There is no state on disk\. The LoRA of step 2 is saved"):
        runs.train(steps=4)
