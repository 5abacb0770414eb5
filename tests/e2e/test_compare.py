"""Checkpoints beside each other: what it costs, what is kept, and what the grid shows and sounds like."""

from __future__ import annotations

import shutil

import av
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from ltx2_train import compare, load_run
from ltx2_train.cli import main
from ltx2_train.errors import ConfigError, Stopped
from ltx2_train.events import Events
from ltx2_train.lora.inject import inject
from ltx2_train.lora.save import save_lora
from ltx2_train.lora.settings import LoraSettings
from ltx2_train.media.sound_media import read_sound
from ltx2_train.sampling import compare as comparing
from ltx2_train.sampling import prompt_text, render, studio
from ltx2_train.weights.load import load_transformer

RUN = """\
[model]
checkpoint = '{checkpoint}'
text_encoder = '{encoder}'
precision = "fp32"
device = "cpu"
mode = "av"
[cache]
vae_dtype = "fp32"
[sample]
width = 64
height = 64
frames = 9
steps = 1
stg = 0.0
guidance = 1.0
[run]
name = "fox"
"""


class Counted(Events):
    """Counts what is costly, and stops where it is told to."""

    def __init__(self, stop_after=10**6):
        self.cells, self.said, self.stop_after = [], [], stop_after

    def sample(self, path, info):
        if "label" in info:
            self.cells.append(info["label"])

    def message(self, text, level="info"):
        self.said.append((level, text))

    def should_stop(self):
        return len(self.cells) >= self.stop_after


@pytest.fixture
def costs(monkeypatch):
    """How often the base and the text encoder are loaded, and how often something is drawn."""
    from ltx2_train import placement

    found = {"base": 0, "text": 0, "samples": 0}

    def counting(name, call):
        def counted(*args, **more):
            found[name] += 1
            return call(*args, **more)

        return counted

    monkeypatch.setattr(placement, "load_transformer", counting("base", placement.load_transformer))
    monkeypatch.setattr(prompt_text.TextEncoder, "load", counting("text", prompt_text.TextEncoder.load))
    monkeypatch.setattr(render, "denoise", counting("samples", render.denoise))
    return found


@pytest.fixture(scope="module")
def saves(tiny, tmp_path_factory):
    """The folder of a run "fox" with three LoRAs that each change a lot, and none like the other."""
    folder = tmp_path_factory.mktemp("runs") / "fox"
    model = load_transformer(tiny.checkpoint, "av", torch.float32)
    for step in (10, 20, 30):
        generator = torch.Generator().manual_seed(step)
        loras = inject(model, LoraSettings(rank=2), generator)
        with torch.no_grad():
            for layer in loras.layers.values():
                layer.lora_B.normal_(std=0.3, generator=generator)
        save_lora(folder / "lora" / f"fox_{step:06d}.safetensors", loras, {"base": {"version": "2.3"}}, "fp32")
        loras.remove()
    return folder


@pytest.fixture
def run(tiny, tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(RUN.format(checkpoint=tiny.checkpoint, encoder=tiny.text_encoder))
    return load_run(path)


@pytest.fixture
def silent(run, tmp_path):
    """The same without sound, which draws fastest; what it was trained on is gone."""
    return load_run(tmp_path / "run.toml", ["model.mode=video", f"data.config={tmp_path / 'gone.toml'}"])


def loras_of(saves, *steps):
    return {f"step {step}": saves / "lora" / f"fox_{step:06d}.safetensors" for step in steps}


def test_checkpoints_cost_their_samples_one_encoding_and_one_load(silent, saves, costs, tmp_path):
    asked = {"prompts": ["a fox --f 1"], "seeds": [1, 2]}
    out, events = tmp_path / "out", Counted()
    made = compare(silent, loras_of(saves, 10, 20), out, events, **asked)
    assert costs == {"base": 1, "text": 1, "samples": 3 * 2}, "base and two LoRAs, two seeds"
    assert [cell.column.label for cell in made.cells[:3]] == ["base", "step 10", "step 20"]
    assert [(cell.prompt.text, cell.prompt.seed) for cell in made.cells[::3]] == [("a fox", 1), ("a fox", 2)]
    assert made.drawn == 6
    assert len({cell.path.read_bytes() for cell in made.cells}) == 6, "each cell is a picture of its own"
    with Image.open(made.grid) as picture:
        grid = np.asarray(picture)
    assert grid.shape[:2] == (30 + 2 * (30 + 192 + 4), 4 + 3 * (192 + 4))
    assert all((grid[:30, left : left + 192] > 200).any() for left in (4, 200, 396)), "a label for each column"
    with Image.open(made.cells[4].path) as picture:
        cell = np.asarray(picture.convert("RGB").resize((192, 192)))
    top = 30 + 226 + 30
    assert np.abs(grid[top : top + 192, 200 : 200 + 192].astype(int) - cell).max() <= 1, "each in its place"

    again = compare(silent, loras_of(saves, 10, 20), out, Counted(), **asked)
    assert costs == {"base": 1, "text": 1, "samples": 6}, "nothing is missing, so nothing is read"
    assert (again.grid, again.drawn) == (made.grid, 0)
    more = compare(silent, loras_of(saves, 10, 20, 30), out, Counted(), **asked)
    assert costs == {"base": 2, "text": 1, "samples": 8}, "the new checkpoint alone is drawn"
    assert (more.drawn, len(more.cells)) == (2, 8)


def test_the_grid_plays_with_the_sound_of_the_chosen_cell(run, saves, tmp_path):
    grids = {}
    for cell in (0, 1):
        made = compare(run, loras_of(saves, 10), tmp_path, prompts=["a fox"], seeds=[1], sound_cell=cell)
        assert made.sound == made.cells[1 if cell == 0 else 0].audio_path, "the newest, where nothing is said"
        with av.open(str(made.grid)) as container:
            assert container.streams.video[0].frames == 9
            assert container.streams.audio[0].rate == 48000
        heard, own = read_sound(made.grid).samples[0], read_sound(made.sound).samples[0]
        length = min(len(heard), len(own))
        assert np.corrcoef(heard[:length], own[:length])[0, 1] > 0.95
        grids[cell] = made.grid
    assert made.drawn == 0
    assert grids[0] != grids[1]


def test_what_was_drawn_before_a_stop_is_there_afterwards(silent, saves, costs, tmp_path):
    asked = {"prompts": ["a fox --f 1"], "strengths": [0.5, 1.0]}
    with pytest.raises(Stopped):
        compare(silent, loras_of(saves, 10, 20), tmp_path, Counted(stop_after=3), **asked)
    assert costs["samples"] == 4, "the fourth was begun"
    made = compare(silent, loras_of(saves, 10, 20), tmp_path, events := Counted(), **asked)
    assert costs == {"base": 2, "text": 1, "samples": 6}
    assert events.cells == ["step 20 x0.5", "step 20 x1"]
    assert [column.label for column in made.columns] == ["base", "step 10 x0.5", "step 10 x1", *events.cells]


def test_what_cannot_be_compared_is_named_before_anything_is_loaded(run, saves, costs, tmp_path, monkeypatch):
    loras = loras_of(saves, 10)
    with pytest.raises(ConfigError, match="the cells of this comparison are 1 to 2"):
        compare(run, loras, tmp_path, prompts=["a fox"], sound_cell=3)
    with pytest.raises(ConfigError, match=r"sound_cell is 1.*has one frame"):
        compare(run, loras, tmp_path, prompts=["a fox --f 1"], sound_cell=1)
    with pytest.raises(ConfigError, match="A seed is -1"):
        compare(run, loras, tmp_path, prompts=["a fox"], seeds=[-1])
    with pytest.raises(ConfigError, match="A strength is nan"):
        compare(run, loras, tmp_path, prompts=["a fox"], strengths=[float("nan")])
    with pytest.raises(ConfigError, match="is named twice"):
        compare(run, loras, tmp_path, prompts=["a fox"], beside=[(path, 0.5) for path in (*loras.values(),) * 2])
    with pytest.raises(ConfigError, match="fox_000010.safetensors is named twice, so its columns would be alike"):
        compare(run, {**loras, "again": next(iter(loras.values()))}, tmp_path, prompts=["a fox"])
    with pytest.raises(ConfigError, match="There is no LoRA to compare"):
        compare(run, {}, tmp_path, prompts=["a fox"])
    old = {
        f"diffusion_model.transformer_blocks.0.attn1.to_q.lora_{half}.weight": torch.ones(shape)
        for half, shape in (("A", (2, 160)), ("B", (160, 2)))
    }
    save_file(old, tmp_path / "old.safetensors", {"ss_ltx_version": "2.0"})
    twin = shutil.copy2(next(iter(loras.values())), tmp_path / "twin.safetensors")
    events = Counted()
    monkeypatch.setattr(studio, "prompt_features", lambda *_, **__: pytest.fail("something was loaded"))
    with pytest.raises(pytest.fail.Exception):
        compare(run, {**loras, "old": tmp_path / "old.safetensors", "twin": twin}, tmp_path, events, prompts=["a fox"])
    warned = [text for level, text in events.said if level == "warning"]
    assert any("old.safetensors is a LoRA of LTX-2.0, and the base is LTX-2.3" in text for text in warned)
    assert "fox_000010.safetensors and twin.safetensors hold the same LoRA, so their columns are alike." in warned
    assert costs == {"base": 0, "text": 0, "samples": 0}


def test_a_prompt_that_names_its_seed_is_drawn_with_that_alone(run):
    _, rows = comparing._rows(run, ["a fox", "a dog --d 7"], [1, 2, 1], "2.3")
    assert [(row.text, row.seed) for row in rows] == [("a fox", 1), ("a fox", 2), ("a dog", 7)]
    _, rows = comparing._rows(run, ["a fox", "a dog --d 7"], [], "2.3")
    assert [row.seed for row in rows] == [42, 7]


def test_the_command_compares_what_the_run_has_saved(run, saves, tmp_path, capsys):
    file = tmp_path / "run.toml"
    common = ["compare", str(file), "--set", f"run.folder={saves.parent}", "--out", str(tmp_path / "out")]
    assert main([*common, "--index", "-1", "--prompt", "a fox --f 1", "--no-base"]) == 0
    assert "1 columns, 1 samples: 1 drawn" in capsys.readouterr().out
    for option in ("--newest", "--spread"):
        assert main([*common, option, "0", "--prompt", "a fox"]) == 2
        assert f"{option} is 0. Give a number from 1 on, or leave it out." in capsys.readouterr().err
    assert main([*common, "--step", "25", "--prompt", "a fox"]) == 2
    assert "has no LoRA of step 25. It has those of 10, 20, 30." in capsys.readouterr().err
