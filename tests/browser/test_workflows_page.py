"""Workflows that other page tests do not drive, on tiny files: opened, queued, reloaded, stopped, run to their end."""

from __future__ import annotations

import json

import media
import pytest
from comfy_server import ROOT
from lora_files import pair, write_lora
from page_driver import look
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
    "LTX2T_TrainSlider": {
        "steps": 3,
        "rank": 2,
        "width": 64,
        "height": 64,
        "sample_every": 0,
        "sample_prompts": PROMPT,
        "sample_width": 64,
        "sample_height": 64,
        "sample_steps": 1,
        "sample_guidance": 1,
    },
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
LISTEN = """() => {
  window.__ended = ""
  for (const name of ["execution_success", "execution_error", "execution_interrupted"])
    app.api.addEventListener(name, (event) => (window.__ended = name + " " + (event.detail.exception_message ?? "")))
}"""
TRAINING = ["LTX2T_TrainLoRA", "LTX2T_TrainSlider"]
RUNS = """(kinds) => app.graph.nodes.filter((node) => kinds.includes(node.type))
  .map((node) => node.widgets.find((widget) => widget.name === "run_name").value)"""
# the highest step that a view tells
SHOWN = """() => Math.max(0, ...[...document.querySelectorAll(".ltx2-live .count")].map(
  (count) => Number(/step (\\d+)/.exec(count.innerText)?.[1] ?? 0)))"""
STATES = "() => [...document.querySelectorAll('.ltx2-live')].map((view) => view.dataset.state)"
# all nodes in view: what lies outside of it has no buttons to press
FIT = """() => {
  const boxes = app.graph.nodes.map((node) => node.getBounding())
  const [left, top] = [0, 1].map((at) => Math.min(...boxes.map((box) => box[at])))
  const [right, bottom] = [0, 1].map((at) => Math.max(...boxes.map((box) => box[at] + box[at + 2])))
  const scale = Math.min(0.62, 1500 / (right - left), 880 / (bottom - top))
  app.canvas.ds.scale = scale
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


def opened(page, name):
    """The workflow with small numbers."""
    text = (ROOT / "example_workflows" / f"{name}.json").read_text(encoding="utf-8")
    page.evaluate("async (text) => await app.loadGraphData(JSON.parse(text))", text)
    page.wait_for_timeout(800)
    mark = f"_{page.renderer[:1]}"
    page.evaluate(SET, [{**SMALL, **MORE.get(name, {})}, mark])
    page.evaluate(FIT)
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


def asked_for(page, **train):
    """Set widgets of all nodes that train."""
    page.evaluate(SET, [{kind: train for kind in TRAINING}, ""])


def stopped_on_the_way(page, server):
    """Train, reload the page, stop; looked at after each. The step that was reached."""
    asked_for(page, steps=3000, sample_every=0)
    page.evaluate("() => app.queuePrompt(0, 1)")
    page.wait_for_function(f"() => ({SHOWN})() >= 3", timeout=300_000)
    graph = page.evaluate("() => JSON.stringify(app.graph.serialize())")
    page.reload()
    page.settle()
    page.wrong[:] = [text for text in page.wrong if "Unhandled message" not in text]  # sent before our part was loaded
    page.evaluate("async (text) => await app.loadGraphData(JSON.parse(text))", graph)
    page.evaluate(FIT)
    page.wait_for_function(f"() => ({SHOWN})() >= 3", timeout=30_000)
    assert page.evaluate(STATES).count("running") == 1, "the reload has not ended it"
    page.evaluate(LISTEN)
    page.locator(".ltx2-live[data-state=running]").get_by_text("Stop and save").click()
    assert ended(page) == "execution_interrupted"
    page.wait_for_function("() => document.querySelector('.ltx2-live[data-state=stopped]')", timeout=60_000)
    steps = page.evaluate(SHOWN)
    assert steps == len(trained(page, server)[0]), "what is shown is what was trained"
    return steps


def trained(page, server):
    """The steps in the metrics of each run of the graph that has any; at step 0 something else may be measured."""
    names = page.evaluate(RUNS, TRAINING)
    files = [server.base / f"output/ltx2_runs/{name}/metrics.jsonl" for name in names]
    rows = [map(json.loads, file.read_text().splitlines()) for file in files if file.exists()]
    return [[row["step"] for row in of_run if row["step"] > 0] for of_run in rows]


@pytest.mark.parametrize("name", NAMES)
def test_a_workflow_is_stopped_and_goes_on_to_its_end_in_the_page(there, server, name):
    page = there
    opened(page, name)
    look(page, f"{name}_opened")
    assert overlaps(page) == []
    steps = 0
    if NAMES[name]:
        steps = stopped_on_the_way(page, server) + 2
        page.wait_for_timeout(800)
        look(page, f"{name}_stopped")
        asked_for(page, steps=steps, sample_every=steps)
    page.evaluate(LISTEN)
    page.evaluate("() => app.queuePrompt(0, 1)")
    assert ended(page) == "execution_success"
    page.wait_for_timeout(2500)
    look(page, f"{name}_ended")
    assert page.evaluate(STATES) == ["finished"] * NAMES[name]
    assert trained(page, server) == [list(range(1, steps + 1))] * NAMES[name], "no step twice, none left out"
    assert overlaps(page) == []
