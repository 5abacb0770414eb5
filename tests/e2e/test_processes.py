"""Runs that several processes train together, on the CPU by gloo."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ltx2_train import load_run, read_manifest, read_rows, train
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
    """Two processes, then one, then two again; beside it one process alone. Masks of dropout, noise and dropped
    captions are those of the batches, whoever takes them."""
    settings = ("lora.dropout=0.1", "train.caption_dropout=0.3", "train.steps=3", "train.save_precision=fp32")
    folder = run_file.parent / "runs"
    found = run_jobs(
        run_file.parent,
        job(run_file, "moved", 2, *settings, ask={"1": "stop"}),
        job(run_file, "moved", 1, *settings, accumulation=2, ask={"2": "stop"}),
        job(run_file, "moved", 2, *settings),
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
