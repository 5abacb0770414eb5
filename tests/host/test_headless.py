"""The client that needs no browser, against a real ComfyUI: it trains, stops, goes on, and fetches what was made."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys

import pytest
from comfy_server import ROOT, ComfyServer, why_not

pytestmark = [pytest.mark.comfy, pytest.mark.slow, pytest.mark.skipif(bool(why_not()), reason=why_not())]

CLIENT = ROOT / "example_workflows" / "headless.py"
TWIN = ROOT / "example_workflows" / "api" / "01_first_lora.json"
COMPARISON = ROOT / "example_workflows" / "api" / "09_compare_checkpoints.json"
SMALL = [
    "checkpoint=tiny.safetensors",
    "text_encoder=gemma.safetensors",
    "precision=fp32",
    "folder=ball",
    "PrepareDataset.width=64",
    "PrepareDataset.height=64",
    "PrepareDataset.frames=9",
    "rank=2",
    "SampleLoRA.width=64",
    "SampleLoRA.height=64",
    "SampleLoRA.frames=9",
    "SampleLoRA.steps=1",
    "sample_prompts=ohwx --w 64 --h 64 --f 9 --s 1",
]


@pytest.fixture(scope="module")
def base(tmp_path_factory, tiny, drawn_clip):
    base = tmp_path_factory.mktemp("comfyui")
    for source, place in (
        (tiny.checkpoint, "models/checkpoints/tiny.safetensors"),
        (tiny.text_encoder, "models/text_encoders/gemma.safetensors"),
        (drawn_clip, "input/ball/clip.mp4"),
    ):
        (base / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, base / place)
    (base / "input/ball/clip.txt").write_text("a red ball bounces")
    return base


def started(server, *words):
    command = [sys.executable, "-S", "-E", str(CLIENT), *map(str, words), "--server", server.url]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def said(server, *words, code=0):
    """All that the client says; without site-packages, so the standard library is all it has."""
    client = started(server, *words)
    out, error = client.communicate(timeout=240)
    assert client.returncode == code, out + error
    return out + error


def training(out, name, *more):
    sets = [*SMALL, f"run_name={name}", *more]
    return ["train", TWIN, "--out", out, *(word for one in sets for word in ("--set", one))]


def test_a_run_is_trained_stopped_gone_on_with_and_fetched_without_a_browser(base, tmp_path):
    steps = base / "output/ltx2_runs/fox/metrics.jsonl"

    def rows():
        return [json.loads(row)["step"] for row in steps.read_text().splitlines()] if steps.exists() else []

    with ComfyServer(base) as server:
        wrong = said(server, *training(tmp_path, "fox", "stepps=4"), code=1)
        assert "no node of the workflow has a widget 'stepps'" in wrong
        assert "a/b" in said(server, *training(tmp_path, "a/b"), code=1), "the server's words"
        assert "There is no run 'fox'" in said(server, "follow", "fox", code=1)

        client = started(server, *training(tmp_path, "fox", "TrainLoRA.steps=5000", "sample_every=0"))
        server.wait(lambda: len(rows()) > 2, 120, "three steps")
        said(server, "stop", "fox")
        assert "fox: stopped, step" in said(server, "follow", "fox", code=3)
        out, error = client.communicate(timeout=60)
        assert client.returncode == 3, out + error
        assert "goes on" in out
        saved = rows()[-1]
        assert (tmp_path / "fox" / f"fox_{saved:06d}.safetensors").stat().st_size > 1000

        client = started(server, *training(tmp_path, "fox", "TrainLoRA.steps=5000", "sample_every=0"))
        server.wait(lambda: len(rows()) > saved + 1, 120, "steps after the stop")
        client.send_signal(signal.SIGINT)
        out, error = client.communicate(timeout=60)
        assert client.returncode == 3, out + error
        saved = rows()[-1]

        last = [f"TrainLoRA.steps={saved + 2}", "sample_every=2", "TrainLoRA.sample_at_start=false"]
        out = said(server, *training(tmp_path, "fox", *last))
        assert f"fox: step {saved + 2}, fox_{saved + 2:06d}.safetensors" in out
        assert rows() == list(range(1, saved + 3)), "no step twice, none left out"
        assert list((tmp_path / "fox").glob("step_*.mp4")), "its samples came too"

    with ComfyServer(base) as server:  # a finished run tells of itself, whoever asks
        out = said(server, *training(tmp_path / "again", "fox", *last))
        assert f"fox: step {saved + 2}, fox_{saved + 2:06d}.safetensors" in out
        assert (tmp_path / "again/fox" / f"fox_{saved + 2:06d}.safetensors").is_file()
        assert len(rows()) == saved + 2, "nothing was trained"
        assert "finished" in said(server, "follow", "fox")
        assert "step_" in said(server, "fetch", "fox", "--out", tmp_path / "third")
        small = ["CompareCheckpoints.width=64", "CompareCheckpoints.height=64", "frames=9", "steps=1", "prompts=ohwx"]
        sets = ["run_name=fox", *small]
        sets = [word for one in sets for word in ("--set", one)]
        out = said(server, "train", COMPARISON, "--out", tmp_path / "grids", *sets)
        grid = next((tmp_path / "grids" / COMPARISON.stem).glob("*.mp4"))
        assert str(grid) in out
        assert grid.stat().st_size > 1000
