"""A stop asked for in any stage ends it cleanly, and the next run goes on to the end."""

from __future__ import annotations

import json
import shutil

import pytest

from ltx2_train import Events, Stopped, build_caches, load_run, train
from ltx2_train.sampling.sample import prompt_folder

STAGES = [
    "check",
    "read clips",
    "encode video",
    "encode text",
    "load the text encoder",
    "encode prompts",
    "check caches",
    "prepare captions",
    "load the transformer",
    "sample",
    "train",
]


class StopIn(Events):
    """Asks for a stop from the moment a stage begins; keeps the names of all stages."""

    def __init__(self, name: str | None) -> None:
        self.name, self.seen, self.asked = name, [], False

    def stage(self, name, total=None):
        self.seen.append(name)
        self.asked = self.asked or name == self.name

    def should_stop(self):
        return self.asked


def whole(run, events):
    build_caches(run, events)
    shutil.rmtree(prompt_folder(run))  # so that training has to encode its prompts
    return train(run, events)


def test_these_are_all_the_stages(run_file):
    shutil.rmtree(run_file.parent / "cache")
    events = StopIn(None)
    whole(load_run(run_file, ["sample.every=3"]), events)
    assert set(events.seen) == set(STAGES)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stop_in_any_stage_leaves_nothing_half_written(run_file, stage):
    shutil.rmtree(run_file.parent / "cache")
    run = load_run(run_file, ["sample.every=3"])
    with pytest.raises(Stopped):
        whole(run, StopIn(stage))
    assert not list(run_file.parent.rglob("*.part"))
    assert whole(run, Events()).step == 6


class StopInStep(Events):
    """Counts how often it is asked in the first steps; asks for a stop at the call `at` of them after step 2."""

    def __init__(self, at: int | None = None) -> None:
        self.done, self.asked, self.at = 0, 0, at

    def step(self, metrics):
        self.done, self.asked = metrics["step"], 0

    def should_stop(self):
        self.asked += self.done == 2
        return self.at is not None and self.asked >= self.at


def losses(run):
    rows = (run.run.folder / run.run.name / "metrics.jsonl").read_text().splitlines()
    return [(row["step"], row["loss"]) for row in map(json.loads, rows)]


def test_a_stop_in_the_middle_of_a_step_ends_it_and_the_step_is_taken_again(run_file):
    names = ["run.name=unbroken", "run.name=forward", "run.name=backward"]
    unbroken, forward, backward = (load_run(run_file, [name, "train.steps=4"]) for name in names)
    train(unbroken, Events())
    blocks = 2
    for run, at in ((forward, 3), (backward, 3 + blocks)):  # once before the step, then before each block
        events = StopInStep(at)
        with pytest.raises(Stopped, match=r"Stopped after step 2 of 4"):
            train(run, events)
        assert events.asked == at, "nothing more was done"
        assert len(losses(run)) == 2
        assert train(run, Events()).step == 4
        assert losses(run) == losses(unbroken)


class StopInSave(Events):
    """Asks for a stop once a state has been written, before the LoRA is."""

    def __init__(self):
        self.written, self.asked = [], False

    def saved(self, kind, path):
        self.written.append(kind)
        self.asked = True

    def should_stop(self):
        return self.asked


def test_a_stop_in_a_save_waits_for_that_save_alone(run_file):
    run = load_run(run_file, ["train.save_every=2", "train.steps=4", "sample.every=2"])
    events = StopInSave()
    with pytest.raises(Stopped, match=r"Stopped after step 2 of 4. State and LoRA are saved."):
        train(run, events)
    assert events.written == ["state", "lora"], "not a second time, though nothing was trained since"
    manifest = json.loads((run.run.folder / run.run.name / "manifest.json").read_text())
    assert (manifest["status"], manifest["step"]) == ("stopped", 2)
    assert train(run, Events()).step == 4
    assert [step for step, _ in losses(run)] == [1, 2, 3, 4]
