"""Train Slider and Run from File in the real page: one press each, and what is seen of it."""

from __future__ import annotations

import shutil

import pytest

SLIDER = {
    "positive": "a bright red ball",
    "negative": "a dark ball",
    "target_class": "a ball",
    "steps": 2,
    "rank": 2,
    "guidance": 1,
    "sample_every": 2,
    "sample_prompts": "a ball",
    "width": 64,
    "height": 64,
    "sample_width": 64,
    "sample_height": 64,
    "sample_steps": 1,
    "sample_guidance": 1,
    "sample_at_start": False,
}
BUILD = """([kind, values, base]) => {
  app.graph.clear()
  const add = (type, pos, values) => {
    const node = LiteGraph.createNode(type)
    node.pos = pos
    app.graph.add(node)
    for (const [name, value] of Object.entries(values))
      node.widgets.find((widget) => widget.name === name).value = value
    return node
  }
  const node = add(kind, [520, 80], values)
  if (base) add("LTX2T_LoadBaseModel", [60, 80], base).connect(0, node, node.findInputSlot("model"))
  app.canvas.ds.scale = 0.85
  app.canvas.ds.offset = [60, 20]
  window.__ended = ""
  for (const name of ["execution_success", "execution_error"])
    app.api.addEventListener(name, (event) => (window.__ended = name + (event.detail.exception_message ?? "")))
  app.queuePrompt(0, 1)
}"""


def pressed(page, kind, values, base=None):
    page.evaluate(BUILD, [kind, values, base])
    page.wait_for_function("() => window.__ended", timeout=240_000)
    assert page.evaluate("() => window.__ended") == "execution_success"
    page.wait_for_timeout(2500)


@pytest.fixture
def tag(page):
    return page.renderer.replace(" ", "_").replace(".", "")


def test_a_slider_shows_its_curve_and_its_strip(page, tag, tmp_path):
    pressed(page, "LTX2T_TrainSlider", {**SLIDER, "run_name": f"slide_{tag}"}, {"precision": "fp32"})
    page.wait_for_function("() => document.querySelector('.ltx2-live')?.dataset.state === 'finished'")
    assert "step 2" in page.locator(".ltx2-live").inner_text()
    page.screenshot(path=tmp_path / "slider.png")
    (shown,) = page.evaluate("() => Object.values(app.nodeOutputs).flatMap((one) => one.images ?? [])")
    assert shown["filename"].endswith("_strip.png")


def test_a_run_file_is_trained_as_it_is(page, tag, server, tiny, drawn_clip, tmp_path):
    folder = server.base / "files" / tag
    folder.mkdir(parents=True)
    shutil.copy2(drawn_clip, folder / "clip.mp4")
    (folder / "clip.txt").write_text("a ball")
    (folder / "dataset.toml").write_text(
        "[general]\nresolution = [64, 64]\n[[datasets]]\nvideo_directory = '.'\ntarget_frames = [9]\n"
    )
    (folder / "run.toml").write_text(
        f"[run]\nname = 'file_{tag}'\n[model]\ncheckpoint = '{tiny.checkpoint}'\ntext_encoder = '{tiny.text_encoder}'\n"
        "precision = 'fp32'\n[data]\nconfig = 'dataset.toml'\n[lora]\nrank = 2\n[sample]\nevery = 0\n"
    )
    pressed(page, "LTX2T_RunFromFile", {"path": str(folder / "run.toml"), "changes": "train.steps = 2"})
    assert (folder / "runs" / f"file_{tag}" / "lora" / f"file_{tag}_000002.safetensors").is_file()
    page.screenshot(path=tmp_path / "file.png")
    texts = page.evaluate("() => app.graph.nodes[0].widgets.map((widget) => String(widget.value ?? ''))")
    assert any(f"file_{tag}" in text and "is in" in text for text in texts), texts
