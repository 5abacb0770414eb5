"""Workflows that other page tests do not drive: opened, queued and run to their end on tiny files; one of them is
stopped on the way, and the page is reloaded before it goes on."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import media
import pytest
from comfy_server import ROOT
from lora_files import pair, write_lora
from saved_run import Q

NAMES = {
    "06_ic_lora": 1,
    "07_voice_reference": 1,
    "08_sound_for_silent_film": 1,
    "10_lora_tools": 0,
    "11_slider": 1,
    "12_low_vram": 1,
    "13_go_on_extend_fork": 2,
}  # workflow -> how many nodes of it train
PROMPT = "a square --w 64 --h 64 --f 9 --s 1"
SMALL = {
    "LTX2T_LoadBaseModel": {"precision": "fp32"},
    "LTX2T_LoadTrainingClips": {"folder": "after"},
    "LTX2T_LoadTrainingPairs": {"folder": "after", "reference_folder": "before"},
    "LTX2T_PrepareDataset": {"width": 64, "height": 64, "frames": 9, "frame_extraction": "head"},
    "LTX2T_TrainLoRA": {"steps": 3, "rank": 2, "sample_every": 3, "sample_prompts": PROMPT},
    "LTX2T_TrainSlider": {"steps": 3, "rank": 2, "width": 64, "height": 64, "sample_every": 0},
    "LTX2T_SampleLoRA": {"width": 64, "height": 64, "frames": 9, "steps": 1},
    "LTX2T_ResizeLoRA": {"rank": 2},
}
MORE = {"07_voice_reference": {"LTX2T_LoadTrainingPairs": {"folder": "after", "reference_folder": "voices"}}}
# every run has a name of its own: what comes from ComfyUI's cache is not told of again
SET = """([values, mark]) => {
  for (const node of app.graph.nodes)
    for (const widget of node.widgets ?? []) {
      const value = values[node.type]?.[widget.name]
      if (value !== undefined) widget.value = value
      if (widget.name === "run_name" && !widget.value.startsWith("(")) widget.value += mark
      if (widget.name === "save_name" && widget.value) widget.value += mark
    }
}"""
QUEUE = """() => {
  window.__ended = ""
  for (const name of ["execution_success", "execution_error", "execution_interrupted"])
    app.api.addEventListener(name, (event) => (window.__ended = name + " " + (event.detail.exception_message ?? "")))
  app.queuePrompt(0, 1)
}"""
STATES = "() => [...document.querySelectorAll('.ltx2-live')].map((view) => view.dataset.state)"
FIT = """(scale) => {
  const boxes = app.graph.nodes.map((node) => node.getBounding())
  app.canvas.ds.scale = scale
  const [left, top] = [0, 1].map((at) => Math.min(...boxes.map((box) => box[at])))
  app.canvas.ds.offset = [90 / scale - left, 70 / scale - top]
  app.canvas.setDirty(true, true)
}"""
# what hangs out of its node or lies on another: the frames of all nodes on the screen
FRAMES = """() => app.graph.nodes.map((node) => {
  const frame = document.querySelector(`[data-node-id="${node.id}"]`)?.getBoundingClientRect()
  if (frame) return [node.type, frame.left, frame.top, frame.right, frame.bottom]
  const scale = app.canvas.ds.scale
  const [left, top] = app.canvas.ds.convertOffsetToCanvas([node.pos[0], node.pos[1] - 30])
  return [node.type, left, top, left + node.size[0] * scale, top + (node.size[1] + 30) * scale]
})"""


@pytest.fixture(scope="module")
def material(server):
    """Pairs, voices and two LoRAs; in the folders before the page asks for them."""
    folder = server.base / "input"
    for name, way in (("a", 1), ("b", -1)):
        frames = media.moving_square(30, 64, 64)[::way]
        media.write_video(folder / f"after/{name}.mp4", frames, sound=media.tone(1.2))
        (folder / f"after/{name}.txt").write_text("a square moves")
        media.write_video(folder / f"before/{name}.mp4", frames[:, :, ::-1])
        media.write_sound(folder / f"voices/{name}.wav", media.tone(0.8, 300.0))
    for seed, name in enumerate(("fox", "style")):
        write_lora(server.base / f"models/loras/{name}.safetensors", {Q: pair(4, (160, 160), seed)})


def look(page, name):
    """A picture for whoever wants to look, where LOOK_AT names a folder."""
    if folder := os.environ.get("LOOK_AT"):
        page.screenshot(path=str(Path(folder, f"{name}_{page.renderer.replace(' ', '_')}.png")))


def opened(page, name):
    """The workflow with small numbers."""
    text = (ROOT / "example_workflows" / f"{name}.json").read_text(encoding="utf-8")
    page.evaluate("async (text) => await app.loadGraphData(JSON.parse(text))", text)
    page.wait_for_timeout(800)
    mark = f"_{page.renderer[:1]}"
    page.evaluate(SET, [{**SMALL, **MORE.get(name, {})}, mark])
    page.evaluate(FIT, 0.62)
    page.wait_for_timeout(500)


def ended(page):
    page.wait_for_function("() => window.__ended", timeout=300_000)
    return page.evaluate("() => window.__ended").strip()


def overlaps(page):
    frames = page.evaluate(FRAMES)
    return [
        (one[0], other[0])
        for index, one in enumerate(frames)
        for other in frames[:index]
        if min(one[3], other[3]) - max(one[1], other[1]) > 1 and min(one[4], other[4]) - max(one[2], other[2]) > 1
    ]


@pytest.fixture
def there(material, page):
    page.reload()  # the list of folders that the page has is older than the material
    page.settle()
    return page


@pytest.mark.parametrize("name", NAMES)
def test_a_workflow_runs_to_its_end_in_the_page(there, name):
    page = there
    opened(page, name)
    look(page, f"{name}_opened")
    assert overlaps(page) == []
    page.evaluate(QUEUE)
    assert ended(page) == "execution_success"
    page.wait_for_timeout(2500)
    look(page, f"{name}_ended")
    assert page.evaluate(STATES) == ["finished"] * NAMES[name]
    assert overlaps(page) == []


def test_a_workflow_that_is_stopped_goes_on_after_a_reload_of_the_page(there, server):
    page = there
    opened(page, "12_low_vram")
    name = f"reloaded_{page.renderer[:1]}"
    train = {"LTX2T_TrainLoRA": {"run_name": name, "steps": 3000, "sample_every": 0}}
    page.evaluate(SET, [train, ""])
    page.evaluate(QUEUE)
    shown = "() => Number(/step (\\d+)/.exec(document.querySelector('.ltx2-live')?.innerText)?.[1] ?? 0)"
    page.wait_for_function(f"() => ({shown})() >= 3", timeout=300_000)
    graph = page.evaluate("() => JSON.stringify(app.graph.serialize())")
    page.reload()
    page.settle()
    page.evaluate("async (text) => await app.loadGraphData(JSON.parse(text))", graph)
    page.wait_for_function(f"() => ({shown})() >= 3", timeout=30_000)
    assert page.evaluate(STATES) == ["running"], "the reload has not ended it"
    page.locator(".ltx2-live").get_by_text("Stop and save").click()
    page.wait_for_function("() => document.querySelector('.ltx2-live').dataset.state === 'stopped'", timeout=60_000)
    page.evaluate(FIT, 0.62)
    page.wait_for_timeout(800)
    look(page, "stopped_and_reloaded")
    rows = (server.base / f"output/ltx2_runs/{name}/metrics.jsonl").read_text().splitlines()
    steps = int(re.findall(r"step (\d+)", page.locator(".ltx2-live").inner_text())[0])
    assert steps == len(rows), "what is shown is what was trained"
    page.evaluate(SET, [{"LTX2T_TrainLoRA": {"steps": steps + 2}}, ""])
    page.evaluate(QUEUE)
    assert ended(page) == "execution_success"
    rows = (server.base / f"output/ltx2_runs/{name}/metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == list(range(1, steps + 3))
