"""Pick Checkpoints and Compare Checkpoints on the pretended ComfyUI: what is picked, asked for and shown."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from lora_files import changes, pair, write_lora

Q = "transformer_blocks.0.attn1.to_q"
DRAW = {"seeds": "1, 2", "strengths": "0.5 1", "width": 64, "height": 64, "frames": 1, "steps": 1, "sound_cell": 0}
NEWEST = {"pick": "the newest", "count": 2}


@pytest.fixture(autouse=True)
def inference_mode():
    with torch.inference_mode():
        yield


@pytest.fixture
def run_folder(nodes, comfy, tiny):
    """A run of the output folder with three LoRAs."""
    folder = comfy.folder("output", "ltx2_runs", "fox")
    base = f"checkpoint = '{tiny.checkpoint}'\ntext_encoder = '{tiny.text_encoder}'\n"
    text = (
        f'[run]\nname = "fox"\n[model]\n{base}precision = "fp32"\ndevice = "cpu"\n[sample]\nguidance = 1.0\nstg = 0.0\n'
    )
    (folder / "lora").mkdir()
    (folder / "run.toml").write_text(text)
    (folder / "manifest.json").write_text('{"status": "finished", "step": 30}')
    for step in (10, 20, 30):
        write_lora(folder / "lora" / f"fox_{step:06d}.safetensors", {Q: pair(2, size=(160, 160), seed=step)})
    return folder


def compared(nodes, checkpoints, **more):
    given = {"prompts": "a fox", **DRAW, **more}
    return nodes.CompareCheckpoints.execute(checkpoints=checkpoints, guidance=1.0, stg=0.0, **given)


def picked(nodes, **more):
    return nodes.PickCheckpoints.execute(**{"run_name": "fox", "pick": NEWEST, **more}).args


def test_checkpoints_of_a_run_are_picked_and_read_when_they_are_used(nodes, run_folder):
    checkpoints, loras, labels = picked(nodes)
    assert labels == ["fox step 20", "fox step 30"]
    assert checkpoints.folder == run_folder
    assert checkpoints.tables["model"]["precision"] == "fp32"
    lora = loras[0]
    assert len(lora) == 2
    assert all(lora[name].shape == tensor.shape for name, tensor in lora.items())
    path = nodes.wire.lora_file(lora)
    assert path == run_folder / "lora" / "fox_000020.safetensors", "its own file, and no copy"
    assert set(changes(path)) == {Q}
    path.unlink()
    assert list(lora), "its names are known"
    with pytest.raises(FileNotFoundError):
        lora[next(iter(lora))]


def test_two_picks_are_joined_and_a_connected_run_is_taken(nodes, run_folder):
    first = picked(nodes, pick={"pick": "by number", "numbers": "1"})[0]
    run = nodes.handles.FinishedRun(run_folder, run_folder / "x", 30, {"model": {"mode": "av"}})
    given = {"run_name": "(the connected run)", "run": run, "more": first}
    joined, _, labels = picked(nodes, pick={"pick": "by step", "steps": "30"}, **given)
    assert labels == ["fox step 10", "fox step 30"]
    assert joined.tables == first.tables, "the base is that of the first"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"run_name": "(the connected run)"}, "No run is given: connect `run`, or choose one in `run_name`"),
        ({"run_name": "wolf"}, "run_name: there is no run wolf"),
        ({"run_name": "../fox"}, "run_name: there is no run"),
        ({"pick": {"pick": "by step", "steps": ""}}, "steps is empty"),
        ({"pick": {"pick": "by step", "steps": "ten"}}, "steps: 'ten' is not one of them. Write whole numbers"),
        ({"pick": {"pick": "by step", "steps": "15"}}, "no LoRA of step 15. It has those of 10, 20, 30"),
    ],
)
def test_what_cannot_be_picked_is_told_plainly(nodes, run_folder, given, message):
    with pytest.raises(RuntimeError, match=message):
        picked(nodes, **given)


def test_a_run_that_is_wired_and_chosen_is_one_too_many(nodes, run_folder):
    run = nodes.handles.FinishedRun(run_folder, run_folder / "x", 30, {})
    with pytest.raises(RuntimeError, match="`run` is connected, and run_name is 'fox' too"):
        picked(nodes, run=run)


def test_a_press_draws_a_grid_and_the_next_one_what_is_missing(nodes, run_folder):
    checkpoints, before = picked(nodes)[0], nodes.CompareCheckpoints.fingerprint_inputs()
    out = compared(nodes, checkpoints, prompts="a fox\n\n")
    video, path, audio, report = out.args
    assert report.startswith("5 columns, 10 samples: 10 drawn")
    assert "single pictures" in video.message
    assert "no sound" in audio.message
    assert out.ui["images"][0]["subfolder"] == "ltx2_compare/fox"
    assert nodes.CompareCheckpoints.fingerprint_inputs() == before
    Path(path).write_bytes(b"damaged")
    assert nodes.CompareCheckpoints.fingerprint_inputs() != before
    next((Path(path).parent / "cells").glob("base_*.png")).write_bytes(b"damaged")
    again = compared(nodes, checkpoints).args
    assert (again[1], again[3].splitlines()[0]) == (path, "5 columns, 10 samples: 1 drawn, 9 there before")
    checkpoints = picked(nodes, pick={**NEWEST, "count": 3})[0]
    again = compared(nodes, checkpoints)
    assert again.args[3].startswith("7 columns, 14 samples: 4 drawn, 10 there before")
    before = nodes.PickCheckpoints.fingerprint_inputs(run_name="fox")
    shutil.copy2(run_folder / "lora/fox_000010.safetensors", run_folder / "lora/fox_000040.safetensors")
    assert nodes.PickCheckpoints.fingerprint_inputs(run_name="fox") != before, "a new save is seen"
    for given, message in (
        ({"prompts": " "}, "prompts: none is written"),
        ({"strengths": ""}, "strengths is empty"),
        ({"seeds": "1.5"}, "seeds: '1.5' is not one of them"),
        ({"sound_cell": 1}, "sound_cell is 1, but there is no sound to hear"),
    ):
        with pytest.raises(RuntimeError, match=message):
            compared(nodes, checkpoints, **given)
