"""The workflows with sound in the real page: two curves for picture and sound, a player for a sound alone."""

from __future__ import annotations

import json

import pytest
from comfy_server import ROOT

from ltx2_train.cli.demo_media import draw_sound

SMALL = {
    "LTX2T_LoadBaseModel": {"precision": "fp32"},
    "LTX2T_LoadTrainingClips": {"folder": "ball"},
    "LTX2T_PrepareDataset": {"width": 64, "height": 64, "frames": 9, "frame_extraction": "head"},
    "LTX2T_TrainLoRA": {
        "rank": 2,
        "steps": 6,
        "sample_every": 3,
        "sample_prompts": "ohwx --w 64 --h 64 --f 9 --s 2",
    },
    "LTX2T_SampleLoRA": {"width": 64, "height": 64, "frames": 9, "steps": 2},
}
SET = """(values) => {
  for (const node of app.graph.nodes)
    for (const [name, value] of Object.entries(values[node.type] ?? {}))
      node.widgets.find((widget) => widget.name === name).value = value
}"""
# how many pixels of the chart are clearly blue, and how many orange
INK = """() => {
  const canvas = document.querySelector(".ltx2-live canvas")
  const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data
  const count = { blue: 0, orange: 0 }
  for (let i = 0; i < data.length; i += 4) {
    if (data[i + 3] <= 200) continue
    if (data[i + 2] > data[i] + 60) count.blue++
    if (data[i] > data[i + 2] + 60) count.orange++
  }
  return count
}"""


@pytest.fixture
def voice(server):
    folder = server.base / "input/voice"
    for number, seconds in enumerate((0.6, 0.9)):
        path = draw_sound(folder / f"tune{number}.wav", seconds)
        path.with_suffix(".txt").write_text(f"tune number {number}")
    return folder


def opened(page, name):
    text = (ROOT / "example_workflows" / f"{name}.json").read_text(encoding="utf-8")
    page.evaluate("async (text) => await app.loadGraphData(JSON.parse(text))", text)
    page.locator(".ltx2-live").wait_for()
    page.evaluate(
        "() => { app.canvas.ds.scale = 0.8; app.canvas.ds.offset = [60, 60]; app.canvas.setDirty(true, true) }"
    )
    page.wait_for_timeout(500)
    return json.loads(text)


def trained(page, voice, name):
    """Run the workflow on the page until the run is finished."""
    run_name = f"{name}_{page.renderer.replace(' ', '_').replace('.', '')}"
    more = {"LTX2T_LoadTrainingAudio": {"path": str(voice)}}
    train = {"LTX2T_TrainLoRA": {**SMALL["LTX2T_TrainLoRA"], "run_name": run_name}}
    page.evaluate(SET, SMALL | more | train)
    page.evaluate("() => app.queuePrompt(0, 1)")
    page.wait_for_function("() => document.querySelector('.ltx2-live')?.dataset.state === 'finished'", timeout=240_000)
    page.wait_for_function("() => !app.ui.lastQueueSize", timeout=120_000)
    page.wait_for_timeout(1500)


@pytest.mark.parametrize("name", ["02_talking_character", "03_voice"])
def test_each_value_of_the_workflow_comes_to_stand_in_its_widget(page, name):
    workflow = opened(page, name)
    twin = json.loads((ROOT / "example_workflows" / "api" / f"{name}.json").read_text(encoding="utf-8"))
    prompt = page.evaluate("async () => (await app.graphToPrompt()).output")
    for number, node in twin.items():
        assert prompt[number]["inputs"].items() >= node["inputs"].items()
    saved = page.evaluate("() => app.graph.serialize()")
    ours = {node["id"]: node["widgets_values"] for node in workflow["nodes"] if node["type"] != "PreviewAudio"}
    assert {node["id"]: node["widgets_values"] for node in saved["nodes"] if node["id"] in ours} == ours


def test_picture_and_sound_have_a_curve_and_a_colour_each(page, voice, tmp_path):
    opened(page, "02_talking_character")
    trained(page, voice, "02_talking_character")
    ink = page.evaluate(INK)
    assert ink["blue"] > 60, ink
    assert ink["orange"] > 60, ink
    text = page.locator(".ltx2-live .label").inner_text()
    assert "video" in text
    assert "audio" in text
    assert page.evaluate("() => document.querySelector('.ltx2-live video').controls"), "its sound can be switched on"
    page.screenshot(path=tmp_path / "page.png")


def test_a_sound_alone_has_a_player(page, voice, tmp_path):
    opened(page, "03_voice")
    trained(page, voice, "03_voice")
    page.wait_for_function("() => document.querySelector('.ltx2-live audio')?.duration > 0.3")
    ink = page.evaluate(INK)
    assert ink["blue"] > 60, ink
    assert ink["orange"] == 0, ink
    assert page.locator(".ltx2-live video").count() == 0
    page.screenshot(path=tmp_path / "page.png")
