"""The runs over HTTP: a server of its own with the pack's routes, asked as a browser would."""

from __future__ import annotations

import asyncio
import json

import numpy as np
import pytest


@pytest.fixture
def ask(nodes, comfy):
    """Send one request and give back its status and what came."""
    aiohttp = pytest.importorskip("aiohttp", reason="aiohttp is part of ComfyUI")
    from aiohttp.test_utils import TestClient, TestServer

    def once(path, method="get"):
        async def go():
            routes = aiohttp.web.RouteTableDef()
            nodes.host.rest.add_run_routes(routes)
            app = aiohttp.web.Application()
            app.add_routes(routes)
            async with TestClient(TestServer(app)) as client:
                response = await client.request(method, f"/ltx2_train/runs{path}")
                text = await response.text()
                return response.status, json.loads(text) if response.status == 200 else text

        return asyncio.run(go())

    return once


@pytest.fixture
def fox(nodes, comfy):
    """A run that ended at step 40 of 40."""
    folder = nodes.host.runs_folder() / "fox"
    for name in ("lora", "samples"):
        (folder / name).mkdir(parents=True)
    manifest = {"format": 1, "name": "fox", "status": "finished", "step": 40, "total": 40, "updated": "2026"}
    more = {"identity": {"base": "/home/me/base.safetensors"}, "resumes": [20]}
    (folder / "manifest.json").write_text(json.dumps({**manifest, **more}))
    rows = [{"step": step, "loss": 1.0 if step % 2 else float("inf")} for step in range(1, 41)]
    rows[32]["val_loss"] = 0.5
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    for name in (
        "step_000000_p01_s7.mp4",
        "step_000040_p01_s7.mp4",
        "step_000040_p02_s7.wav",
        "step_000040_p01_s7.wav",
        "step_000040_p02_s7.sound.png",
    ):
        (folder / "samples" / name).touch()
    (folder / "lora" / "fox_000040.safetensors").touch()
    return folder


def test_runs_are_listed_and_looked_at(ask, fox):
    status, runs = ask("")
    assert (status, [run["name"] for run in runs]) == (200, ["fox"])
    _, run = ask("/fox")
    assert run == runs[0]
    assert (run["status"], run["step"], run["loras"]) == ("finished", 40, [[40, "fox_000040.safetensors"]])
    assert "/home/me" not in json.dumps(runs)
    assert str(fox) not in json.dumps(runs)


def test_metrics_come_in_as_many_points_as_are_wanted(ask, fox):
    _, rows = ask("/fox/metrics?points=10")
    assert [row["step"] for row in rows] == [1, 5, 9, 13, 17, 21, 25, 29, 33, 37, 40]
    assert rows[-1]["loss"] is None, "what is not finite cannot be sent"
    assert ask("/fox/metrics?points=many")[0] == 400
    assert len(ask("/fox/metrics")[1]) == 40


def test_the_view_has_the_marks_of_the_folder(ask, fox):
    _, view = ask("/fox/view")
    assert view["marks"] == {"save": [40], "sample": [0, 40], "resume": [20]}
    assert view["validation"] == [[33, 0.5]]


def test_samples_have_addresses_and_no_paths(ask, fox):
    _, samples = ask("/fox/samples")
    assert [(one["step"], one["prompt"], one["file"]["filename"]) for one in samples] == [
        (0, 1, "step_000000_p01_s7.mp4"),
        (40, 1, "step_000040_p01_s7.mp4"),
        (40, 2, "step_000040_p02_s7.wav"),
    ]
    assert samples[0]["file"] == {
        "filename": "step_000000_p01_s7.mp4",
        "subfolder": "ltx2_runs/fox/samples",
        "type": "output",
    }
    assert samples[2]["picture"]["filename"] == "step_000040_p02_s7.sound.png", "a sound alone is seen by its spectrum"
    assert "picture" not in samples[1]
    assert samples[0]["text"] == "", "nothing is in that file"


def test_the_first_sample_of_a_prompt_has_its_text(ask, fox, nodes):
    for step in (0, 20):
        path = fox / "samples" / f"step_{step:06d}_p03_s9.png"
        nodes.host.rest.core.write_image(path, np.zeros((8, 8, 3), np.uint8), {"prompt": "a <b>fox</b>"})
    found = [one for one in ask("/fox/samples")[1] if one["prompt"] == 3]
    assert [one.get("text") for one in found] == ["a <b>fox</b>", None]


def test_loras_have_steps_and_addresses(ask, fox):
    (lora,) = ask("/fox/loras")[1]
    assert (lora["step"], lora["name"]) == (40, "fox_000040.safetensors")
    assert lora["file"] == {"filename": lora["name"], "subfolder": "ltx2_runs/fox/lora", "type": "output"}


@pytest.mark.parametrize(
    "path", ["/cat", "/..%2F..%2Fetc", "/%2Fetc", "/..", "/fox%2Flora", "/fox%2F..%2Ffox", "/C:%5Cruns"]
)
def test_anything_but_the_name_of_a_run_is_not_there(ask, fox, path):
    for method, end in (("get", ""), ("get", "/metrics"), ("post", "/stop")):
        assert ask(f"{path}{end}", method)[0] in (404, 405), path


def test_a_run_is_asked_by_post_alone(ask, fox, nodes, monkeypatch):
    assert ask("/fox/stop")[0] in (404, 405)
    status, text = ask("/fox/stop", "post")
    assert (status, text) == (409, "Nobody trains fox at the moment.")
    asked = []
    monkeypatch.setattr(nodes.host.rest.core, "ask_run", lambda folder, what: asked.append((folder, what)))
    assert ask("/fox/pause", "post") == (200, {"asked": "pause"})
    assert ask("/fox/dance", "post")[0] == 404
    assert asked == [(fox, "pause")]
