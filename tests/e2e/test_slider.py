"""A slider from nothing to a LoRA on the tiny model: from prompts, from pairs; stopped, gone on with, and drawn."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image
from small_slider import RUN

from ltx2_train import Events, Stopped, inspect_lora, load_run, read_rows, sample, train_slider
from ltx2_train.cli import main
from ltx2_train.errors import RunError
from ltx2_train.files import write_tensors
from ltx2_train.lora.file import load_lora_state
from ltx2_train.sampling.prompt_text import prompt_features

pytestmark = pytest.mark.slow

TARGETS = """
strengths = [-1.0, 0.0, 1.0]
[[slider.targets]]
positive = "a bright red ball"
negative = "a dark blue ball"
target_class = "a ball"
[[slider.targets]]
positive = "fast"
weight = 2.0
"""


@pytest.fixture
def run_file(tiny, tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(RUN.format(checkpoint=tiny.checkpoint, encoder=tiny.text_encoder, slider=TARGETS))
    return path


def changes(path):
    return {
        name: entry.scale * entry.up.float() @ entry.down.float()
        for name, entry in load_lora_state(path).entries.items()
    }


def test_prompts_become_a_slider_that_can_be_gone_on_with(run_file, tmp_path, capsys):
    assert main(["slider", str(run_file)]) == 0
    folder = tmp_path / "runs" / "slide"
    whole = folder / "lora" / "slide_000004.safetensors"
    rows = read_rows(folder / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert all(row["loss_positive"] > 0 and row["loss_negative"] > 0 for row in rows)
    report = inspect_lora(whole)
    assert report.problems == []
    assert report.metadata["ss_slider_mode"] == "text"
    assert report.metadata["ss_slider_guidance_strength"] == "1"
    assert json.loads(report.metadata["slider_targets"])[0]["target_class"] == "a ball"

    class StopAfterTwo(Events):
        count = 0

        def step(self, metrics):
            self.count += 1

        def should_stop(self):
            return self.count >= 2

    other = load_run(run_file, ["run.name=again"])
    with pytest.raises(Stopped, match="after step 2 of 4"):
        train_slider(other, StopAfterTwo())
    resumed = train_slider(other)
    assert resumed.step == 4
    unbroken, continued = changes(whole), changes(resumed.lora)
    assert all(torch.equal(unbroken[name], continued[name]) for name in unbroken)
    with pytest.raises(RunError, match=r"slider\.guidance: was 1, now 2"):
        train_slider(load_run(run_file, ["run.name=again", "slider.guidance=2"]))


def test_each_strength_is_drawn_and_shown_in_a_strip(run_file, tmp_path):
    sets = ["train.steps=1", "sample.every=1", "sample.at_start=false", "sample.width=64", "sample.height=64"]
    sets += ["sample.frames=1", "sample.steps=2", "sample.guidance=1", 'sample.prompts=["a ball"]']
    seen = []
    events = Events()
    events.sample = lambda path, info: seen.append((path.name, info.get("strength")))
    result = train_slider(load_run(run_file, sets), events)
    names = {path.name for path in (result.folder / "samples").glob("*.png")}
    assert len([name for name in names if "mult" in name]) == 3
    assert any(name.endswith("_mult-1.0.png") for name in names)
    (strip,) = [name for name in names if name.endswith("_strip.png")]
    with Image.open(result.folder / "samples" / strip) as picture:
        assert picture.size == (3 * 256, 256 + 28)
    assert [strength for name, strength in seen if "mult" in name] == [-1.0, 0.0, 1.0]
    drawn = sample(load_run(run_file, sets), result.lora, tmp_path / "out", prompts=["a ball"], strengths=[-1.0])
    assert drawn[0].path.is_file()


def test_pairs_of_latents_become_a_slider(tiny, tmp_path):
    device = torch.device("cpu")
    prompt_features(["a face"], tmp_path / "made", tiny.text_encoder, tiny.checkpoint, device, Events())
    (text,) = (tmp_path / "made").glob("prompt_*")
    generator = torch.Generator().manual_seed(0)
    for side in ("more", "less"):
        (tmp_path / side).mkdir()
        for name in ("a", "b"):
            latents = {"latents_1x2x2_float32": torch.randn(128, 1, 2, 2, generator=generator)}
            write_tensors(tmp_path / side / f"{name}_0064x0064_ltx2.safetensors", latents)
    for name in ("a", "b"):
        (tmp_path / "more" / f"{name}_ltx2_te_compact.safetensors").write_bytes(text.read_bytes())
    pairs = "mode = 'reference'\npositive_caches = 'more'\nnegative_caches = 'less'\n"
    path = tmp_path / "run.toml"
    run = RUN.format(checkpoint=tiny.checkpoint, encoder=tiny.text_encoder, slider=pairs)
    path.write_text(run.replace("width = 64\nheight = 64\n", ""))  # pairs have sizes of their own
    result = train_slider(load_run(path))
    rows = read_rows(result.folder / "metrics.jsonl")
    assert all(row["loss_positive"] > 0 and row["loss_negative"] > 0 for row in rows)
    assert inspect_lora(result.lora).metadata["ss_slider_mode"] == "reference"
    # the two losses differ, since each half learns latents of its own
    assert rows[0]["loss_positive"] != rows[0]["loss_negative"]
