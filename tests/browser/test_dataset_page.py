"""The workflows for datasets in the real page: they open whole, and what they show lies inside its node."""

from __future__ import annotations

import json

import media
import pytest
import tiny_listeners
from comfy_server import ROOT

SIZE = {"width": 64, "height": 64}
CHOSEN = {
    "04_make_a_dataset": {
        "LTX2T_CutLongVideos": {"folder": "films"},
        "LTX2T_CaptionClips": {"model": "LLM/eye", "whisper": "LLM/ear"},
    },
    "05_dataset_from_lists": {
        "LoadImageTextDataSetFromFolder": {"folder": "pictures"},
        "LTX2T_LoadTrainingClips": {"folder": "shots"},
        "LTX2T_LoadBaseModel": {"precision": "fp32"},
        "LTX2T_CheckDataset": SIZE,
        "LTX2T_PrepareDataset": SIZE,
        "LTX2T_PreviewItem": SIZE,
        "LTX2T_TrainLoRA": {"rank": 2, "steps": 4, "sample_every": 0},
    },
}
SET = """(values) => {
  for (const node of app.graph.nodes)
    for (const [name, value] of Object.entries(values[node.type] ?? {}))
      node.widgets.find((widget) => widget.name === name).value = value
}"""
LISTEN = """() => {
  window.__ended = ""
  for (const name of ["execution_success", "execution_error"])
    app.api.addEventListener(name, (event) => (window.__ended = name + (event.detail.exception_message ?? "")))
}"""
# the frames of all nodes on the screen: [type, left, top, right, bottom]
FRAMES = """() => app.graph.nodes.map((node) => {
  const frame = document.querySelector(`[data-node-id="${node.id}"]`)?.getBoundingClientRect()
  if (frame) return [node.type, frame.left, frame.top, frame.right, frame.bottom]
  const scale = app.canvas.ds.scale
  const [left, top] = app.canvas.ds.convertOffsetToCanvas([node.pos[0], node.pos[1] - 30])
  return [node.type, left, top, left + node.size[0] * scale, top + (node.size[1] + 30) * scale]
})"""
TEXTS = """() => app.graph.nodes.flatMap((node) => (node.widgets ?? []).map((widget) => String(widget.value ?? "")))"""
VIEW = """([scale, x, y]) => {
  app.canvas.ds.scale = scale
  app.canvas.ds.offset = [x, y]
  app.canvas.setDirty(true, true)
}"""


@pytest.fixture(scope="module")
def material(server):
    """Films, clips and pictures in the input folder, and models that write captions; there before the page asks."""
    tiny_listeners.make_describer(server.base / "models/LLM/eye")
    tiny_listeners.make_whisper(server.base / "models/LLM/ear")
    films = server.base / "input/films"
    media.write_video(films / "film.mp4", media.moving_square(225, 320, 180), sound=media.tone(9.0))
    media.write_video(films / "second film.mp4", media.moving_square(120, 180, 320)[::-1])
    for number in range(3):
        media.write_image(server.base / f"input/pictures/p{number}.png", 96, 64, f"a picture, number {number}")
    for name in ("a", "b"):
        clip = media.moving_square(60, 96, 64)[:: 1 if name == "a" else -1]
        media.write_captioned(
            server.base / f"input/shots/{name}.mp4", clip, f"a square crosses <img src=x onerror=hurt=1>, clip {name}"
        )


def opened(page, name):
    text = (ROOT / "example_workflows" / f"{name}.json").read_text(encoding="utf-8")
    page.evaluate("async (text) => await app.loadGraphData(JSON.parse(text))", text)
    page.evaluate(VIEW, [0.54 if name.startswith("05") else 0.64, 120, 90])
    page.wait_for_timeout(800)
    return json.loads(text)


def run(page, name):
    page.evaluate(SET, CHOSEN[name])
    page.evaluate(LISTEN)
    page.evaluate("() => app.queuePrompt(0, 1)")
    page.wait_for_function("() => window.__ended", timeout=240_000)
    assert page.evaluate("() => window.__ended") == "execution_success"
    page.wait_for_timeout(3000)


def overlaps(page):
    frames = page.evaluate(FRAMES)
    return [
        (one[0], other[0])
        for index, one in enumerate(frames)
        for other in frames[:index]
        if min(one[3], other[3]) - max(one[1], other[1]) > 1 and min(one[4], other[4]) - max(one[2], other[2]) > 1
    ]


@pytest.mark.parametrize("name", CHOSEN)
def test_each_value_of_the_workflow_comes_to_stand_in_its_widget(material, page, name):
    opened(page, name)
    twin = json.loads((ROOT / "example_workflows" / "api" / f"{name}.json").read_text(encoding="utf-8"))
    prompt = page.evaluate("async () => (await app.graphToPrompt()).output")
    for number, node in twin.items():
        assert prompt[number]["inputs"].items() >= node["inputs"].items()
    assert overlaps(page) == []


def test_a_dataset_is_made_and_seen_in_the_page(material, page, tmp_path):
    opened(page, "04_make_a_dataset")
    run(page, "04_make_a_dataset")
    page.screenshot(path=tmp_path / "page.png")
    assert overlaps(page) == []
    texts = page.evaluate(TEXTS)
    assert any("3 files" in text for text in texts), texts
    assert any("3 clips" in text for text in texts), texts
    assert any("ohwx" in text for text in texts), "the caption as it is trained on"


def test_pictures_and_clips_are_mixed_in_the_page(material, page, tmp_path):
    opened(page, "05_dataset_from_lists")
    name = f"mixed_{page.renderer[:4]}"  # of its own: what comes from ComfyUI's cache is not told of again
    page.evaluate(SET, {"LTX2T_TrainLoRA": {"run_name": name}, "LTX2T_DatasetFromLists": {"name": name}})
    run(page, "05_dataset_from_lists")
    page.screenshot(path=tmp_path / "page.png")
    assert overlaps(page) == []
    assert any("a square crosses" in text for text in page.evaluate(TEXTS))
    assert page.evaluate("() => typeof hurt") == "undefined", "a caption is text, whatever it holds"
    assert any("82%" in text for text in page.evaluate(TEXTS))
    assert page.locator(".ltx2-live").get_attribute("data-state") == "finished"
