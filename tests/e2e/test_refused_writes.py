"""Each write of a run is refused in turn: once, for good, and by a kill. No saved step is lost, no file is torn."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
import torch
from refusing import ALL, Killed, Refusing, for_good, killed, once
from safetensors.torch import load_file
from small_run import SmallRuns

from ltx2_train import Events, Stopped, TrainerError
from ltx2_train.training.metrics import read_rows
from ltx2_train.training.run_folder import read_manifest
from ltx2_train.training.state import list_states, load_state
from ltx2_train.weights.reader import TensorFile

SETTINGS = {
    "steps": 3,
    "save_every": 2,
    "keep_states": 1,
    "keep_loras": 1,
    "sample": {"every": 3, "prompts": ["a ball"], "at_start": False},
}


class StopAt(Events):
    def __init__(self, step):
        self.at, self.done = step, 0

    def step(self, metrics):
        self.done = metrics["step"]

    def should_stop(self):
        return self.at is not None and self.done >= self.at


def require_whole(folder: Path) -> None:
    """Every file that has its real name can be read to its end."""
    for path in folder.rglob("*"):
        if path.name.startswith(".") or path.is_dir():
            continue
        if path.suffix == ".safetensors":
            with TensorFile(path) as file:
                assert all(file.read(name) is not None for name in file.tensors), path
        elif path.suffix == ".json":
            assert json.loads(path.read_text()), path
        elif path.suffix == ".jsonl":
            assert all(json.loads(line) for line in path.read_text().splitlines()), path
        else:
            assert path.stat().st_size, path


def newest(runs: SmallRuns) -> int:
    found = list_states(runs.path / "states")
    return found[-1][0] if found else 0


def train(runs, stop=None):
    return runs.train(StopAt(stop), export=runs.folder / "loras", **SETTINGS)


def count(folder, stop, kinds):
    """How many changes a run makes that nothing refuses."""
    with pytest.MonkeyPatch.context() as patch:
        runs = SmallRuns(patch, folder)
        system = Refusing(patch, folder, kinds=kinds)
        with contextlib.suppress(Stopped):
            train(runs, stop)
    return len(system.changes)


def refuse(folder, unbroken, decide, stop, kinds, nothing_lost):
    """Train with what `decide` refuses, look at what is left, go on without refusals, and look again."""
    with pytest.MonkeyPatch.context() as patch:
        runs = SmallRuns(patch, folder)
        error = None
        with pytest.MonkeyPatch.context() as refused:
            system = Refusing(refused, folder, decide, kinds)
            try:
                train(runs, stop)
            except (TrainerError, Killed) as caught:
                error = caught
        where = f"{system.failed[:1]}: {error}"
        was_killed = isinstance(error, Killed)
        require_whole(folder)
        saved, trained = newest(runs), len(runs.taken)
        if saved:
            assert load_state(list_states(runs.path / "states")[-1][1])["step"] == saved
        if nothing_lost:
            assert saved == trained, where
        if isinstance(error, TrainerError) and not isinstance(error, Stopped):
            assert str(folder) in str(error), where
        if not was_killed and runs.path.exists() and "manifest.json" not in str(system.failed):
            assert (read_manifest(runs.path) or {}).get("status") != "running", where
        runs.taken.clear()
        result = train(runs)
        assert runs.taken == list(range(saved, 3)), where
        found = load_file(result.lora)
        assert found.keys() == unbroken.keys()
        assert all(torch.equal(found[name], value) for name, value in unbroken.items()), where
        assert load_file(runs.folder / "loras" / "fox" / "fox.safetensors").keys() == unbroken.keys()
        assert (result.step, read_manifest(runs.path)["status"]) == (3, "finished")
        steps = [row["step"] for row in read_rows(runs.path / "metrics.jsonl")]
        assert steps == sorted(set(steps)), where
        assert steps[saved:] == list(range(saved + 1, 4)), where
        assert not list(runs.path.rglob("*.part")), where
        assert list((runs.path / "samples").glob("step_000003*")), where


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        result = train(SmallRuns(patch, tmp_path_factory.mktemp("unbroken")))
    return load_file(result.lora)


WHOLE_FILES = ("make", "write")


@pytest.mark.parametrize(
    ("how", "stop", "kinds"),
    [
        (once, 1, WHOLE_FILES),
        (for_good, None, WHOLE_FILES),
        (killed, None, WHOLE_FILES),
        *(
            pytest.param(how, stop, ALL, marks=pytest.mark.slow)
            for how in (once, for_good, killed)
            for stop in (None, 1)
        ),
    ],
)
def test_no_refused_write_of_a_run_costs_a_step_that_was_saved(tmp_path, unbroken, how, stop, kinds):
    total = count(tmp_path / "counted", stop, kinds)
    assert total > 10
    for at in range(total):
        refuse(tmp_path / str(at), unbroken, how(at), stop, kinds, nothing_lost=how is once)
