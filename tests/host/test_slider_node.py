"""Train Slider on the pretended ComfyUI: what its widgets come to, what is refused, and a run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from fake_comfy import InterruptProcessingException

from ltx2_train.lora.report import inspect_lora

TEXT = {"positive": "a bright\nred ball", "negative": "a dark ball", "target_class": "a ball"}
SMALL = {"run_name": "slide", "steps": 1, "rank": 2, "learning_rate": 1e-3, "guidance": 1.0, "width": 64, "height": 64}
SAMPLE = {"sample_width": 64, "sample_height": 64, "sample_steps": 2, "sample_guidance": 1.0, "sample_every": 1}


@pytest.fixture(autouse=True)
def inference_mode():
    with torch.inference_mode():
        yield


@pytest.fixture
def asked(nodes, monkeypatch):
    """The settings that the node hands to the core, in place of a run."""
    found = []

    def train_slider(run, events):
        found.append(run)
        raise nodes.train.Stopped("enough")

    monkeypatch.setattr(nodes.slider.core, "train_slider", train_slider, raising=False)
    return found


def press(nodes, **more):
    model = nodes.handles.BaseModel({"model": {"mode": "video"}}, "a base")
    empty = {"positive": "", "negative": "", "target_class": ""}
    return nodes.TrainSlider.execute(model=model, **{**empty, **SMALL, **more})


def test_the_widgets_become_targets(nodes, comfy, asked):
    with pytest.raises(InterruptProcessingException):
        press(nodes, **TEXT, more_targets="fast | slow | | 0.5\n\nold", strengths="-1, 0, 1")
    (run,) = asked
    first, second, third = run.slider.targets
    assert (first.positive, first.negative, first.target_class) == ("a bright red ball", "a dark ball", "a ball")
    assert (second.positive, second.negative, second.target_class, second.weight) == ("fast", "slow", "", 0.5)
    assert (third.positive, third.weight) == ("old", 1.0)
    assert (run.slider.mode, run.slider.strengths, run.slider.width) == ("text", [-1.0, 0.0, 1.0], 64)
    assert (run.lora.rank, run.train.steps, run.sample.frames, run.run.name) == (2, 1, 1, "slide")


def test_two_datasets_become_pairs(nodes, comfy, asked, tmp_path):
    handles = []
    for name in ("more", "less"):
        file = tmp_path / f"{name}.toml"
        file.write_text(f"[general]\n[[datasets]]\ncache_only = true\ncache_directory = '{tmp_path / name}'\n")
        handles.append(nodes.handles.PreparedDataset(file, {}))
    pictures = dict(zip(("positive_pictures", "negative_pictures"), handles, strict=True))
    with pytest.raises(InterruptProcessingException):
        press(nodes, **pictures)
    (run,) = asked
    slider = run.slider
    assert (slider.mode, slider.positive_caches, slider.negative_caches) == (
        "reference",
        tmp_path / "more",
        tmp_path / "less",
    )
    with pytest.raises(RuntimeError, match="Pictures are connected, so the prompts have no effect: 'a ball'"):
        press(nodes, **pictures, target_class="a ball")
    with pytest.raises(RuntimeError, match="`negative_pictures` is not connected"):
        press(nodes, positive_pictures=handles[0])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "There is nothing to learn: write `positive`, or connect"),
        ({"negative": "dark", "more_targets": "fast"}, "`negative` is written and `positive` is not"),
        ({"more_targets": "a | b | c | much"}, "more_targets: 'much' is no number"),
        ({"more_targets": " | b"}, "more_targets: ' | b' is not: positive"),
    ],
)
def test_what_cannot_be_learned_is_told_plainly(nodes, comfy, asked, given, message):
    with pytest.raises(RuntimeError, match=message):
        press(nodes, **given)
    assert not asked


@pytest.mark.slow
def test_a_press_makes_a_slider_and_shows_its_strip(nodes, comfy, tiny):
    for source, kind, name in (
        (tiny.checkpoint, "checkpoints", "tiny.safetensors"),
        (tiny.text_encoder, "text_encoders", "gemma.safetensors"),
    ):
        shutil.copy2(source, comfy.folder("models", kind) / name)
    base = {"checkpoint": "tiny.safetensors", "text_encoder": "gemma.safetensors", "precision": "fp32", "device": "cpu"}
    (model,) = nodes.LoadBaseModel.execute(**base).args
    given = {**SMALL, **SAMPLE, **TEXT, "strengths": "-1, 1", "sample_at_start": False}
    out = nodes.TrainSlider.execute(model=model, **given)
    lora, run, path = out.args
    assert inspect_lora(Path(path)).metadata["ss_slider_mode"] == "text"
    assert set(lora)
    assert run.step == 1
    assert Path(path).is_relative_to(comfy.folder("output", "ltx2_runs"))
    (shown,) = out.ui["images"]
    assert shown["filename"].endswith("_strip.png")
    assert list(comfy.folder("models", "loras").rglob("slide*.safetensors"))
