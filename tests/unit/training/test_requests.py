"""What is asked of a run in its folder, and what the files of runs tell."""

from __future__ import annotations

import errno
import json
import threading
import time
from pathlib import Path

import pytest

from ltx2_train import Events, Stopped, ask_run, list_runs, list_samples, load_run, run_facts, thinned_metrics, train
from ltx2_train.cli import main
from ltx2_train.errors import ConfigError, RunError
from ltx2_train.training.requests import Asked, is_paused
from ltx2_train.training.run_folder import is_trained


class AskAt(Events):
    """Asks for something as soon as a step is told of."""

    def __init__(self, folder, wanted):
        self.folder, self.wanted, self.said, self.asked = folder, wanted, [], []

    def step(self, metrics):
        for what in self.wanted.get(metrics["step"], ()):
            self.asked.append(ask_run(self.folder, what))

    def message(self, text, level="info"):
        self.said.append(text)


def settings(run_file, *more):
    return load_run(run_file, ["train.steps=4", "sample.every=0", *more])


def test_a_run_saves_draws_and_ends_as_it_is_asked(run_file):
    drawn = ("sample.every=4", 'sample.prompts=["a ball --f 9"]', "sample.at_start=false")
    run = settings(run_file, "run.name=asked", *drawn)
    folder = run.run.folder / "asked"
    events = AskAt(folder, {1: ["save"], 2: ["sample"], 3: ["stop"]})
    with pytest.raises(Stopped, match="after step 3 of 4"):
        train(run, events)
    assert events.asked[0] == "asked saves after the step at hand."
    facts = run_facts(folder)
    assert facts is not None
    assert (facts.status, facts.step, facts.total) == ("stopped", 3, 4)
    assert [step for step, _ in facts.loras] == [1, 3]
    assert [(one.step, one.prompt) for one in list_samples(folder)] == [(2, 1)]
    assert list((folder / "asked").iterdir()) in ([], [folder / "asked" / "stop"])
    train(run)  # what was asked of the part before does not end this one
    assert run_facts(folder).status == "finished"
    assert not is_trained(folder)


def test_a_pause_lasts_until_it_is_taken_back(run_file):
    run = settings(run_file, "run.name=paused")
    folder = run.run.folder / "paused"
    events = AskAt(folder, {2: ["pause"]})
    failed = []

    def follow():
        for _ in range(2000):
            if "Paused after step 2 of 4." in events.said:
                break
            time.sleep(0.01)
        else:
            failed.append("it never paused")
        if (facts := run_facts(folder)).status != "paused":
            failed.append("it does not say that it is paused")
        if facts.step != 2:  # its last save was at the start
            failed.append(f"it says step {facts.step}")
        ask_run(folder, "go")

    other = threading.Thread(target=follow)
    other.start()
    train(run, events)
    other.join()
    assert not failed
    assert run_facts(folder).status == "finished"


def test_a_pause_can_end_in_a_stop(tmp_path):
    asked = Asked(Events(), tmp_path)
    for what in ("pause", "stop"):
        (tmp_path / "asked").mkdir(exist_ok=True)
        (tmp_path / "asked" / what).touch()
    with pytest.raises(Stopped):
        asked.wait()
    assert is_paused(tmp_path)
    Asked(Events(), tmp_path)
    assert not is_paused(tmp_path), "a new part of the run begins unasked"


def test_only_a_run_that_is_trained_can_be_asked(tmp_path):
    with pytest.raises(RunError, match="holds no run"):
        ask_run(tmp_path, "save")
    (tmp_path / "manifest.json").write_text('{"format": 1, "name": "x", "status": "running", "step": 3}')
    with pytest.raises(RunError, match="Nobody trains"):
        ask_run(tmp_path, "save")
    with pytest.raises(ConfigError, match="cannot be asked for 'dance'"):
        ask_run(tmp_path, "dance")
    assert run_facts(tmp_path).status == "interrupted"


def test_rows_are_thinned_and_what_is_rare_is_kept(tmp_path):
    rows = [{"step": step, "loss": 1.0 / step} for step in range(1, 1001)]
    rows[500]["val_loss"] = 0.5
    rows[700]["skipped"] = ["a.mp4"]
    rows[701]["loss"] = float("nan")
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    steps = [row["step"] for row in thinned_metrics(tmp_path, 50)]
    assert {1, 501, 701, 1000} <= set(steps)
    assert 50 <= len(steps) <= 54


def refused(path):
    raise PermissionError(errno.EACCES, "Permission denied", str(path))


def test_the_terminal_lists_the_runs(tmp_path, capsys, monkeypatch):
    for name, updated in (("old", "2025"), ("new", "2026")):
        (tmp_path / name / "lora").mkdir(parents=True)
        manifest = {"format": 1, "name": name, "status": "finished", "step": 3, "total": 3, "updated": updated}
        (tmp_path / name / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "datasets").mkdir()
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "manifest.json").write_text("{")
    (tmp_path / "new" / "lora" / "new_000003.safetensors").touch()
    assert main(["runs", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["new", "old", "torn"]
    assert "unreadable" in lines[2]
    assert lines[0].endswith("step 3 of 3  new_000003.safetensors")
    assert main(["runs", str(tmp_path / "elsewhere")]) == 2
    assert "elsewhere is no folder" in capsys.readouterr().err
    assert main(["runs", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["loras"] == [[3, "new_000003.safetensors"]]
    assert [facts.name for facts in list_runs(tmp_path)] == ["new", "old", "torn"]
    plain = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda path: refused(path) if path.name == "lora" else plain(path))
    assert {facts.status for facts in list_runs(tmp_path)} == {"unreadable"}
    assert main(["ask", str(tmp_path / "new"), "save"]) == 1
    assert "Nobody trains new" in capsys.readouterr().err
