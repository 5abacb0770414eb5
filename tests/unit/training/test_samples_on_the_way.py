from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest
import torch
from small_run import SmallRuns
from torch import nn

from ltx2_train.config import make_run
from ltx2_train.errors import RunError, Stopped
from ltx2_train.events import Events
from ltx2_train.lora.inject import inject
from ltx2_train.lora.settings import LoraSettings
from ltx2_train.training import loop


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.transformer_blocks = nn.ModuleList([nn.ModuleDict({"attn1": nn.ModuleDict({"to_q": nn.Linear(4, 4)})})])


def test_samples_of_a_run_are_drawn_at_the_strength_of_its_settings(tmp_path):
    loras = inject(Tiny(), LoraSettings(rank=2), torch.Generator())
    drawn = []

    def draw(prompts, name, info, failed):
        drawn.append(([layer.strength for layer in loras.layers.values()], info["strength"]))

    run = SimpleNamespace(
        config=make_run({"sample": {"strength": 0.5}}), loras=loras, slider=None, step=3, prompts=["a fox"],
        peers=SimpleNamespace(first=True), renderer=SimpleNamespace(draw=draw),
        folder=SimpleNamespace(samples=tmp_path, name="fox"),
    )  # fmt: skip
    loop._draw_as_they_are(run, Events(), [])
    assert drawn == [([0.5], 0.5)]
    assert [layer.strength for layer in loras.layers.values()] == [1.0]


class Ends(Events):
    """Keeps a copy of the run as it is when a LoRA has just been saved; samples of step `stop` are stopped."""

    def __init__(self, runs, aside=None, stop=None):
        self.runs, self.aside, self.told = runs, aside, []
        runs.stop = stop

    def saved(self, kind, path):
        if kind == "lora" and self.aside is not None and not self.aside.exists():
            shutil.copytree(self.runs.path, self.aside, ignore=shutil.ignore_patterns(".lock"))

    def message(self, text, level="info"):
        self.told.append(text)


def drawn(runs):
    return sorted({path.name[:11] for path in (runs.path / "samples").iterdir()})


@pytest.fixture
def runs(monkeypatch, tmp_path):
    runs = SmallRuns(monkeypatch, tmp_path)
    runs.full = None
    plain = runs._draw

    def draw(prompts, name, info, failed):
        if runs.run.step == runs.stop:
            raise Stopped
        if runs.run.step == runs.full:
            failed.append(RunError)
            return None
        return plain(prompts, name, info, failed)

    runs._draw = draw
    return runs


@pytest.mark.parametrize("steps", [2, 4])
def test_samples_of_a_save_that_a_kill_cut_off_are_drawn_by_the_next_start(runs, tmp_path, steps):
    runs.train(Ends(runs, tmp_path / "aside"), steps=steps, sample={"every": 2})  # the copy is of step 2
    shutil.rmtree(runs.path)
    shutil.move(tmp_path / "aside", runs.path)
    assert drawn(runs) == []
    told = Ends(runs)
    runs.train(told, steps=steps, sample={"every": 2})
    assert drawn(runs) == [f"step_{step:06d}" for step in range(2, steps + 1, 2)]
    assert any(text.startswith("The samples of step 2 are drawn now: the run was ended") for text in told.told)


@pytest.mark.parametrize(("step", "every", "rest"), [(4, 2, ""), (2, 2, " and go on"), (3, 3, " and go on")])
def test_samples_that_a_stop_cut_off_are_drawn_once_by_the_next_start(runs, step, every, rest):
    with pytest.raises(Stopped, match=rf"Run again to draw the samples of step {step}{rest}\."):
        runs.train(Ends(runs, stop=step), sample={"every": every})
    assert f"step_{step:06d}" not in drawn(runs)
    runs.train(Ends(runs), sample={"every": every})
    assert f"step_{step:06d}" in drawn(runs)
    assert f"step_{4:06d}" in drawn(runs)
    shutil.rmtree(runs.path / "samples")  # what a person takes away is not missed
    told = Ends(runs)
    assert runs.train(told, sample={"every": every}).summary.startswith("Finished before")
    assert not [text for text in told.told if "samples" in text]


def test_samples_that_are_not_wanted_any_more_are_not_drawn(runs):
    with pytest.raises(Stopped):
        runs.train(Ends(runs, stop=4), sample={"every": 2})
    assert runs.train(Ends(runs), sample={"every": 0}).summary.startswith("Finished before")
    assert drawn(runs) == ["step_000002"]


@pytest.mark.parametrize("step", [2, 4])
def test_samples_that_the_disk_refused_are_drawn_by_the_next_start_where_they_are_of_the_last_step(runs, step):
    runs.full = step
    told = Ends(runs)
    runs.train(told, steps=step, sample={"every": 2})
    missing = f"Samples of step {step} are missing, since the disk refused them. The next start draws them."
    assert missing in told.told
    assert f"step_{step:06d}" not in drawn(runs)
    again = Ends(runs)
    runs.train(again, steps=step, sample={"every": 2})
    assert missing in again.told, "the disk is full still"
    runs.full = None
    runs.train(told, steps=step, sample={"every": 2})
    assert f"step_{step:06d}" in drawn(runs)
    last = Ends(runs)
    assert runs.train(last, steps=step, sample={"every": 2}).summary.startswith("Finished before")
    assert not [text for text in last.told if "samples" in text.lower()]
