"""Runs that several processes train together, on the CPU by gloo."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ltx2_train import build_caches, load_run, read_manifest, read_rows, train
from ltx2_train.errors import RunError
from ltx2_train.files import TEMPORARY_SUFFIX
from ltx2_train.training.state import list_states, load_state
from ltx2_train.weights.reader import TensorFile

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the processes are forked")


def run_jobs(folder: Path, *jobs: dict) -> list[dict]:
    """What forked_runs.py says of each job."""
    (folder / "jobs.json").write_text(json.dumps(jobs))
    command = [sys.executable, str(ROOT / "tests" / "forked_runs.py"), str(folder / "jobs.json")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def job(run_file: Path, name: str, count: int, *settings: str, accumulation: int = 1, **more) -> dict:
    everywhere = [f"run.name={name}", f"train.accumulation={accumulation}", "sample.at_start=false"]
    return {"file": str(run_file), "settings": [*everywhere, *settings], "count": count, **more}


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    with TensorFile(path) as file:
        return {name: file.read(name) for name in file.tensors}


def command(*arguments: object, launcher: tuple[str, ...] = (), **environment: str) -> subprocess.CompletedProcess[str]:
    python = [sys.executable, "-m"]
    words = [*python, *launcher, *(("-m",) if launcher else ()), "ltx2_train", *map(str, arguments)]
    paths = {"PYTHONPATH": str(ROOT), "COLUMNS": "400"}
    return subprocess.run(
        words, env={**os.environ, **paths, **environment}, capture_output=True, text=True, timeout=600
    )


def test_two_processes_learn_what_one_learns_and_their_number_may_change(run_file):
    """Two processes, then one, then two that share the blocks out; beside it one process alone. Masks of dropout, noise
    and dropped captions are those of the batches, whoever takes them."""
    settings = ("lora.dropout=0.1", "train.caption_dropout=0.3", "train.steps=3", "train.save_precision=fp32")
    folder = run_file.parent / "runs"
    found = run_jobs(
        run_file.parent,
        job(run_file, "moved", 2, *settings, ask={"1": "stop"}),
        job(run_file, "moved", 1, *settings, accumulation=2, ask={"2": "stop"}),
        job(run_file, "moved", 2, *settings, "memory.shard=true"),
    )
    assert [one["codes"] for one in found] == [[130, 130], [130], [0, 0]], found
    alone = job(run_file, "one", 1, *settings, accumulation=2)
    train(load_run(run_file, alone["settings"]))

    # the same losses, norms and rates, and in the end the same LoRA
    apart, together = (read_rows(folder / name / "metrics.jsonl") for name in ("one", "moved"))
    assert [row["step"] for row in together] == [1, 2, 3]
    for name in ("loss", "grad_norm", "lr", "sigma", "epoch"):
        assert [row[name] for row in together] == pytest.approx([row[name] for row in apart], rel=1e-5), name
    assert len({row["loss"] for row in apart}) == 3
    before, after = (tensors_of(folder / name / "lora" / f"{name}.safetensors") for name in ("one", "moved"))
    assert before.keys() == after.keys()
    for key, tensor in before.items():
        torch.testing.assert_close(after[key], tensor, rtol=2e-4, atol=2e-6)

    # a step of another number of batches would be another run, in whichever way it comes about
    with pytest.raises(RunError, match=r"train\.accumulation: was 2, now 1 batches a step; here .* 1 x 1"):
        train(load_run(run_file, job(run_file, "moved", 1, *settings, "train.steps=4")["settings"]))


@pytest.mark.slow
def test_a_process_that_dies_ends_the_run_with_what_was_learned(run_file):
    (died,) = run_jobs(run_file.parent, job(run_file, "died", 2, "train.steps=50", kill=2))
    assert died["codes"] == [1, -9]
    assert "Another process of this run has ended" in died["said"][0]
    assert "State and LoRA are saved." in died["said"][0]
    folder = run_file.parent / "runs" / "died"
    steps = [load_state(path)["step"] for _, path in list_states(folder / "states")]
    assert steps
    assert steps[-1] in (2, 3)
    assert read_manifest(folder)["status"] == "failed"
    assert not [path for path in folder.rglob("*") if path.name.endswith(TEMPORARY_SUFFIX)]
    assert not (folder / ".lock").exists()


@pytest.mark.slow
def test_both_ways_to_start_several_processes(run_file):
    settings = ("--set", "train.steps=2", "--set", "sample.at_start=false")
    ours = command("train", run_file, "--processes", 2, *settings)
    assert ours.returncode == 0, ours.stderr
    assert ours.stderr.count("2 processes train together: 1 x 2 batches a step.") == 1  # the first speaks for all
    assert ours.stdout.count("2 of 2 steps done") == 1
    launched = ("torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0", "--standalone")
    theirs = command("train", run_file, *settings, "--set", "run.name=theirs", launcher=launched)
    assert theirs.returncode == 0, theirs.stderr
    first, second = (read_rows(run_file.parent / "runs" / name / "metrics.jsonl") for name in ("r", "theirs"))
    assert [row["loss"] for row in first] == [row["loss"] for row in second]
    again = command("train", run_file, *settings, "--set", "run.name=theirs", "--set", "train.accumulation=2")
    assert again.stdout.startswith("Finished before: 2 steps.")
    other = command("train", run_file, "--processes", 2, "--set", "train.accumulation=2", "--set", "train.steps=4")
    assert other.returncode == 2 or other.returncode == 1
    assert "was 2, now 4 batches a step; here train.accumulation 2 x 2" in other.stderr
    assert "process 1: error: The first process of this run has ended. Its own message says why." in other.stderr
    twice = command("train", run_file, "--processes", 2, "--set", "train.processes=3")
    assert twice.returncode == 2
    assert "train.processes is given twice, as 3 and as 2" in twice.stderr
    slider = command("slider", run_file, "--set", "train.processes=2")
    assert slider.returncode == 2
    assert "this is one process" in slider.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        ("memory.fit=custom", "memory.blocks_to_swap=2", "quant.format=nf4", "ema.decay=0.9"),
        (
            "regularizers.dop.weight=1",
            'regularizers.dop.class_prompt="a ball"',
            "regularizers.crepa.weight=0.1",
            "regularizers.crepa.student_block=1",
            "regularizers.crepa.teacher_block=2",
        ),
    ],
)
def test_swapped_quantized_and_regularized_runs_are_the_same_in_two_processes(run_file, settings):
    every = ("train.steps=2", *settings)
    found = run_jobs(run_file.parent, job(run_file, "one", 1, *every, accumulation=2), job(run_file, "two", 2, *every))
    assert [one["codes"] for one in found] == [[0], [0, 0]], found
    one, two = (read_rows(run_file.parent / "runs" / name / "metrics.jsonl") for name in ("one", "two"))
    for name in ("loss", "grad_norm"):
        assert [row[name] for row in two] == pytest.approx([row[name] for row in one], rel=1e-4), name


@pytest.mark.slow
def test_blocks_that_are_shared_out_serve_samples_and_validation_too(sound_run_file):
    """Picture and sound, DoRA (which measures the base), samples before and after, a mean, and clips held out."""
    folder = sound_run_file.parent
    shutil.copytree(folder / "clips", folder / "other")
    reversed_clip = ["ffmpeg", "-v", "error", "-y", "-i", "clips/clip.mp4", "-vf", "hflip", "other/clip.mp4"]
    subprocess.run(reversed_clip, cwd=folder, check=True)
    with (folder / "dataset.toml").open("a") as file:
        file.write('[[validation_datasets]]\nvideo_directory = "other"\ncache_directory = "held"\n')
    settings = (
        "train.steps=2",
        "train.save_every=0",
        "lora.algo=dora",
        "validation.every=1",
        "sample.every=2",
        'sample.prompts=["a ball --f 9"]',
        "ema.decay=0.5",
        "sample.at_start=true",
    )
    build_caches(load_run(sound_run_file, settings))
    one, shared = (
        {**job(sound_run_file, name, count, accumulation=2 // count), "settings": [*base, *settings, *more]}
        for name, count, more in (("one", 1, ()), ("shared", 2, ("memory.shard=true",)))
        for base in ([f"run.name={name}", f"train.accumulation={2 // count}"],)
    )
    found = run_jobs(folder, one, shared)
    assert [one["codes"] for one in found] == [[0], [0, 0]], found
    first, second = (read_rows(folder / "runs" / name / "metrics.jsonl") for name in ("one", "shared"))
    assert [row["step"] for row in second] == [row["step"] for row in first]
    for name in ("loss", "grad_norm", "val_loss"):
        told = [[row.get(name) for row in rows if row.get(name) is not None] for rows in (first, second)]
        assert told[0]
        assert told[1] == pytest.approx(told[0], rel=1e-4), name
    names = [sorted(path.name for path in (folder / "runs" / name / "samples").iterdir()) for name in ("one", "shared")]
    assert names[0] == names[1]
    assert any("step_000000" in name for name in names[0])
    assert any("_ema" in name for name in names[0])


@pytest.mark.slow
def test_a_run_goes_on_with_its_blocks_shared_out_or_not_in_bf16(run_file):
    """Two processes that share the blocks out, one, two that do not, two that do; and a sample drawn by one."""
    settings = ("train.steps=4", "model.precision=bf16", "train.save_precision=fp32")
    found = run_jobs(
        run_file.parent,
        job(run_file, "moved", 2, *settings, "memory.shard=true", ask={"1": "stop"}),
        job(run_file, "moved", 1, *settings, accumulation=2, ask={"2": "stop"}),
        job(run_file, "moved", 2, *settings, ask={"3": "stop"}),
        job(run_file, "moved", 2, *settings, "memory.shard=true"),
        job(run_file, "one", 1, *settings, accumulation=2),
    )
    assert [one["codes"] for one in found] == [[130, 130], [130], [130, 130], [0, 0], [0]], found
    apart, together = (read_rows(run_file.parent / "runs" / name / "metrics.jsonl") for name in ("one", "moved"))
    assert [row["step"] for row in together] == [1, 2, 3, 4]
    for name in ("loss", "grad_norm"):
        assert [row[name] for row in together] == pytest.approx([row[name] for row in apart], rel=1e-3), name
    folder = run_file.parent / "runs" / "moved"
    assert not [path for path in folder.rglob("*") if path.name.endswith(TEMPORARY_SUFFIX)]
    words = ("--lora", folder / "lora" / "moved.safetensors", "--out", run_file.parent / "drawn")
    alone = command("sample", run_file, *words, "--set", "memory.shard=true", "--prompt", "a ball")
    assert alone.returncode == 0, alone.stderr


@pytest.mark.slow
def test_a_process_that_dies_while_blocks_are_shared_out_is_told_of(run_file):
    (died,) = run_jobs(run_file.parent, job(run_file, "died", 2, "train.steps=50", "memory.shard=true", kill=2))
    assert died["codes"] == [1, -9]
    assert "Another process of this run has ended" in died["said"][0]
    assert "State and LoRA are saved." in died["said"][0]


FULL = ("train.what=full", "train.steps=3", "train.learning_rate=1e-4", "optimizer.name=adamw", "lora.rank=32")


def trained_alike(folder: Path, first: str, second: str) -> None:
    """The same losses, norms and weights, but for the last digits."""
    apart, together = (read_rows(folder / name / "metrics.jsonl") for name in (first, second))
    assert [row["step"] for row in together] == [row["step"] for row in apart]
    for name in ("loss", "grad_norm"):
        assert [row[name] for row in together] == pytest.approx([row[name] for row in apart], rel=1e-4), name
    one, two = (tensors_of(folder / name / "checkpoints" / f"{name}.safetensors") for name in (first, second))
    assert one.keys() == two.keys()
    for key, tensor in one.items():
        # the first steps of AdamW are as long as the rate, whatever the gradient: noise in one of 0 turns one about
        torch.testing.assert_close(two[key].float(), tensor.float(), rtol=1e-2, atol=1e-3)
        assert float((two[key].float() - tensor.float()).abs().mean()) < 2e-6, key


@pytest.mark.slow
def test_weights_that_are_shared_out_become_the_checkpoint_of_one_process(run_file):
    """Two processes that share them out, one, two that share them out again; and two that hold them whole."""
    shared = ("memory.shard=true",)
    found = run_jobs(
        run_file.parent,
        job(run_file, "moved", 2, *FULL, *shared, "train.save_every=1", ask={"1": "stop"}),
        job(run_file, "moved", 1, *FULL, accumulation=2, ask={"2": "stop"}),
        job(run_file, "moved", 2, *FULL, *shared),
        job(run_file, "one", 1, *FULL, accumulation=2),
        job(run_file, "whole", 2, *FULL),
    )
    assert [one["codes"] for one in found] == [[130, 130], [130], [0, 0], [0], [0, 0]], found
    folder = run_file.parent / "runs"
    trained_alike(folder, "one", "moved")
    trained_alike(folder, "one", "whole")
    assert not [path for path in folder.rglob("*") if path.name.endswith(TEMPORARY_SUFFIX)]
