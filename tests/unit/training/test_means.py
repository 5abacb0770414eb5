"""Runs whose saved LoRA is not what is trained: a running mean beside it, and an optimizer without a schedule."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_run import SmallRuns

from ltx2_train import Events, Stopped, make_run, mean_of_loras
from ltx2_train.cli import main
from ltx2_train.errors import ConfigError
from ltx2_train.lora.file import load_lora_state
from ltx2_train.lora.mean import _of_several_runs
from ltx2_train.lora.places import CHANGED
from ltx2_train.training.optimizing import check_optimizer
from ltx2_train.training.state import list_states, load_state


class StopAt(Events):
    def __init__(self, step: int) -> None:
        self.at, self.done = step, 0
        self.messages: list[str] = []

    def step(self, metrics):
        self.done = metrics["step"]

    def message(self, text, level="info"):
        self.messages.append(text)

    def should_stop(self):
        return self.done >= self.at


def changes(path):
    return {name: entry.up @ entry.down for name, entry in load_lora_state(path).entries.items()}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


@pytest.mark.parametrize(
    "more", [{"ema": {"decay": 0.7}}, {"optimizer": {"name": "schedule_free"}}], ids=["ema", "free"]
)
def test_a_run_with_saves_and_a_stop_equals_one_without(monkeypatch, tmp_path, more):
    whole = SmallRuns(monkeypatch, tmp_path / "whole")
    whole.train(steps=6, save_every=0, **more)
    broken = SmallRuns(monkeypatch, tmp_path / "broken")
    with pytest.raises(Stopped):
        broken.train(StopAt(3), steps=6, save_every=1, sample={"every": 1}, **more)
    broken.train(steps=6, save_every=1, sample={"every": 1}, **more)
    assert broken.taken == [0, 1, 2, 3, 4, 5]
    for name in ("fox.safetensors", *(["fox_ema.safetensors"] if "ema" in more else [])):
        one, other = whole.path / "lora" / name, broken.path / "lora" / name
        assert equal(changes(one), changes(other)), name
    state = load_state(list_states(broken.path / "states")[-1][1])
    trained = {path: layer["B"] @ layer["A"] for path, layer in state["lora"].items()}
    saved = changes(broken.path / "lora" / "fox.safetensors")
    assert equal(saved, trained) == ("ema" in more), "without a schedule the mean is saved, and the rest is trained on"


def test_the_mean_is_saved_and_drawn_beside_the_lora(monkeypatch, tmp_path):
    runs = SmallRuns(monkeypatch, tmp_path)
    runs.train(steps=4, export=tmp_path / "loras", keep_loras=1, sample={"every": 2}, ema={"decay": 0.7})
    names = sorted(path.name for path in (runs.path / "lora").glob("*.safetensors"))
    assert names == ["fox.safetensors", "fox_000004.safetensors", "fox_ema.safetensors", "fox_ema_000004.safetensors"]
    assert not equal(*(changes(runs.path / "lora" / name) for name in ("fox.safetensors", "fox_ema.safetensors")))
    file = load_lora_state(runs.path / "lora" / "fox_ema.safetensors")
    assert (file.metadata["ema_decay"], file.metadata["ss_output_name"]) == ("0.7", "fox_ema")
    assert (tmp_path / "loras" / "fox" / "fox_ema.safetensors").is_file()
    drawn = sorted(path.stem for path in (runs.path / "samples").iterdir())
    assert drawn == ["step_000002_p01_s1", "step_000002_p01_s1_ema", "step_000004_p01_s1", "step_000004_p01_s1_ema"]


def test_a_mean_that_begins_or_ends_in_the_middle_is_said(monkeypatch, tmp_path):
    runs = SmallRuns(monkeypatch, tmp_path)
    runs.train(steps=2)
    events = StopAt(100)
    runs.train(events, steps=4, ema={"decay": 0.7})
    assert any("holds no running mean" in text for text in events.messages)
    events = StopAt(100)
    runs.train(events, steps=6)
    assert any("ema.decay is 0 from here on" in text for text in events.messages)


def test_a_mean_of_a_mean_is_refused_before_training():
    config = make_run({"ema": {"decay": 0.9}, "optimizer": {"name": "schedule_free"}})
    with pytest.raises(ConfigError, match=r"ema.decay is 0.9, and what optimizer.name = schedule_free saves is a mean"):
        check_optimizer(config, ["transformer_blocks.0.attn1.to_q"])


def test_loras_of_several_runs_are_told():
    files = [SimpleNamespace(metadata={"name": name}, path=Path(f"{name}.safetensors")) for name in ("fox", "hen", "")]
    assert list(_of_several_runs(files)) == [
        "These are LoRAs of 2 runs (fox.safetensors of fox, hen.safetensors of hen); a mean is meant for those that "
        "one run saved."
    ]
    assert not list(_of_several_runs(files[:1] * 2))


def test_the_mean_of_saved_loras_is_that_of_their_changes(monkeypatch, tmp_path, capsys):
    runs = SmallRuns(monkeypatch, tmp_path)
    runs.train(steps=4, save_every=1)
    folder = runs.path / "lora"
    files = [folder / f"fox_{step:06d}.safetensors" for step in (1, 3, 4)]
    report = mean_of_loras(files, tmp_path / "mean.safetensors", decay=0.5, rank=4)
    # two steps before the first of them, two and one after it; 0.5 for each step further back
    weights = [2 * 0.125, 2 * 0.5, 1.0]
    assert list(report.shares.values()) == pytest.approx([weight / sum(weights) for weight in weights])
    assert report.kept == pytest.approx(1.0)
    each, mean = [changes(path) for path in files], changes(tmp_path / "mean.safetensors")
    for name, found in mean.items():
        expected = sum(weight * one[name] for weight, one in zip(weights, each, strict=True)) / sum(weights)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)
    assert load_lora_state(tmp_path / "mean.safetensors").metadata["mean_of_steps"] == "[1, 3, 4]"

    tensors, metadata = load_file(files[0]), load_lora_state(files[0]).metadata
    zero = tmp_path / "zero.safetensors"
    save_file({name: tensor * ("lora_A" in name) for name, tensor in tensors.items()}, zero, dict(metadata))
    assert not report.idle
    half = mean_of_loras([zero, files[1]], tmp_path / "half.safetensors", rank=4)
    assert half.text().splitlines()[1:] == [
        "zero.safetensors does nothing: every B is zero.",
        f"zero.safetensors: {CHANGED}",
    ]
    save_file(tensors, other := tmp_path / "other.safetensors", {**metadata, "name": "hen"})
    both = mean_of_loras([other, *files], tmp_path / "both.safetensors")
    assert "other.safetensors is left out: fox_000001.safetensors is of its step, too." in both.idle
    assert any("hen" in text and "fox" in text for text in both.idle)

    assert main(["lora", "ema", str(runs.path), "--out", str(tmp_path / "all.safetensors")]) == 0
    assert "the mean of 4 LoRAs (step 1 " in capsys.readouterr().out
    assert load_lora_state(tmp_path / "all.safetensors").ranks == [2], "that of the files"
    for given, words in (
        ([files[0]], "at least two steps"),
        ([files[0], files[1]], "is there already"),
    ):
        out = tmp_path / ("new.safetensors" if len(given) == 1 else "mean.safetensors")
        with pytest.raises(ConfigError, match=words):
            mean_of_loras(given, out)
    for rank, words in ((0, "It is at least 1"), (-9, "It is at least 1"), (5, "has 4 at most")):
        with pytest.raises(ConfigError, match=f"rank is {rank}.*{words}"):
            mean_of_loras(files, tmp_path / "new.safetensors", rank=rank)
    assert not (tmp_path / "new.safetensors").exists()
