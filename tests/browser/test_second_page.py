"""Two browsers on one server, and a server that is started anew: either shows what is true of a run."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from comfy_server import ROOT, ComfyServer

WORKFLOW = (ROOT / "example_workflows" / "01_first_lora.json").read_text(encoding="utf-8")
SMALL = {
    "LTX2T_LoadBaseModel": {"precision": "fp32"},
    "LTX2T_LoadTrainingClips": {"folder": "ball"},
    "LTX2T_PrepareDataset": {"width": 64, "height": 64, "frames": 9},
    "LTX2T_TrainLoRA": {
        "rank": 2,
        "steps": 3000,
        "sample_every": 0,
        "sample_prompts": "ohwx --w 64 --h 64 --f 9 --s 1",
    },
    "LTX2T_SampleLoRA": {"width": 64, "height": 64, "frames": 9, "steps": 1},
}
SET = """(values) => {
  for (const node of app.graph.nodes)
    for (const [name, value] of Object.entries(values[node.type] ?? {}))
      node.widgets.find((widget) => widget.name === name).value = value
}"""
STEP = "() => Number(/step (\\d+)/.exec(document.querySelector('.ltx2-live')?.innerText)?.[1] ?? 0)"
STATE = "() => document.querySelector('.ltx2-live')?.dataset.state"


@pytest.fixture
def own(server, tmp_path):
    """A server that the test may end, with the files of the shared one."""
    for folder in ("models", "input"):
        shutil.copytree(server.base / folder, tmp_path / "comfyui" / folder)
    return tmp_path / "comfyui"


def shown(browser, server, renderer, name):
    """A page of a browser of its own, with the first workflow for the run `name`."""
    server.post("/settings", {"Comfy.VueNodes.Enabled": renderer == "nodes 2.0"})  # a start forgets it
    page = browser.new_page(viewport={"width": 1440, "height": 900}, locale="en-US")
    page.goto(server.url)
    page.wait_for_function("() => window.app?.extensionManager?.workflow?.activeWorkflow?.isLoaded")
    page.evaluate("async (text) => await app.loadGraphData(JSON.parse(text))", WORKFLOW)
    page.locator(".ltx2-live").wait_for()
    train = {**SMALL["LTX2T_TrainLoRA"], "run_name": name}
    page.evaluate(SET, {**SMALL, "LTX2T_TrainLoRA": train})
    graph = page.evaluate("() => app.graph.serialize()")
    page.evaluate("async (graph) => await app.loadGraphData(graph)", graph)  # as a saved workflow has it
    assert page.evaluate("() => Boolean(LiteGraph.vueNodesMode)") == (renderer == "nodes 2.0")
    page.renderer = renderer
    return page


def look(page, name):
    if folder := os.environ.get("LOOK_AT"):
        page.evaluate("() => { app.canvas.ds.scale = 0.7; app.canvas.ds.offset = [120, 90] }")
        page.wait_for_timeout(800)
        page.screenshot(path=str(Path(folder, f"{name}_{page.renderer.replace(' ', '_')}.png")))


@pytest.mark.parametrize("renderer", ["classic", "nodes 2.0"])
def test_a_second_browser_and_a_server_started_anew_show_what_is_true(own, browser, renderer):
    name = "seen_twice"
    manifest = own / "output/ltx2_runs" / name / "manifest.json"
    with ComfyServer(own) as server:
        first = shown(browser, server, renderer, name)
        first.evaluate("() => app.queuePrompt(0, 1)")
        first.wait_for_function(f"() => ({STEP})() >= 3", timeout=300_000)
        second = shown(browser, server, renderer, name)
        second.wait_for_function(f"() => ({STEP})() >= 3", timeout=30_000)
        assert second.evaluate(STATE) == "running"
        at = second.evaluate(STEP)
        second.wait_for_function(f"() => ({STEP})() > {at}", timeout=60_000)  # it goes on there too
        look(second, "second_browser")
        second.locator(".ltx2-live").get_by_text("Stop and save").click()
        for page in (first, second):
            page.wait_for_function(f"() => ({STATE})() === 'stopped'", timeout=60_000)
        steps = json.loads(manifest.read_text())["step"]
        assert first.evaluate(STEP) == second.evaluate(STEP) == steps
    with ComfyServer(own) as server:  # it has never seen the run
        late = shown(browser, server, renderer, name)
        late.wait_for_function(f"() => ({STATE})() === 'stopped'", timeout=30_000)
        assert late.evaluate(STEP) == steps
        late.evaluate("() => app.queuePrompt(0, 1)")
        late.wait_for_function(f"() => ({STEP})() > {steps + 1}", timeout=300_000)
        server.kill()  # in the middle of a run, as a crash
    with ComfyServer(own) as server:
        after = shown(browser, server, renderer, name)
        after.wait_for_function(f"() => ({STATE})() === 'stopped'", timeout=30_000)
        assert "Its process ended without a word" in after.locator(".ltx2-live").inner_text()
        look(after, "after_a_crash")
    for page in (first, second, late, after):
        page.close()
