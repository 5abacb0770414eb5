"""The first workflow in the real page, with classic nodes and with Nodes 2.0."""

from __future__ import annotations

import fcntl
import json
import shutil
import time

import pytest
from comfy_server import ROOT

WORKFLOW = (ROOT / "example_workflows" / "01_first_lora.json").read_text(encoding="utf-8")
SMALL = {
    "LTX2T_LoadBaseModel": {"precision": "fp32"},
    "LTX2T_LoadTrainingClips": {"folder": "ball"},
    "LTX2T_PrepareDataset": {"width": 64, "height": 64, "frames": 9},
    "LTX2T_TrainLoRA": {"rank": 2, "sample_prompts": "ohwx --w 64 --h 64 --f 9 --s 2"},
    "LTX2T_SampleLoRA": {"width": 64, "height": 64, "frames": 9, "steps": 2},
}
SET = """(values) => {
  for (const node of app.graph.nodes)
    for (const [name, value] of Object.entries(values[node.type] ?? {}))
      node.widgets.find((widget) => widget.name === name).value = value
}"""
# how many pixels of the chart have the colour of the line
INK = """() => {
  const canvas = document.querySelector(".ltx2-live canvas")
  const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data
  let count = 0
  for (let i = 0; i < data.length; i += 4) if (data[i + 3] > 200 && data[i + 2] > data[i] + 60) count++
  return count
}"""


@pytest.fixture
def opened(page):
    page.evaluate("async (text) => await app.loadGraphData(JSON.parse(text))", WORKFLOW)
    page.locator(".ltx2-live").wait_for()
    page.evaluate(
        "() => { app.canvas.ds.scale = 0.9; app.canvas.ds.offset = [60, 60]; app.canvas.setDirty(true, true) }"
    )
    page.wait_for_timeout(500)
    return page


def run(page, **train):
    page.evaluate(SET, {**SMALL, "LTX2T_TrainLoRA": {**SMALL["LTX2T_TrainLoRA"], **train}})
    page.evaluate("() => app.queuePrompt(0, 1)")


def state(page):
    return page.locator(".ltx2-live").get_attribute("data-state")


def wait_for_state(page, wanted, seconds=240):
    page.wait_for_function(
        "(wanted) => document.querySelector('.ltx2-live')?.dataset.state === wanted", arg=wanted, timeout=seconds * 1000
    )


def test_the_workflow_opens_whole_and_comes_out_as_its_twin(opened):
    types = opened.evaluate("() => app.graph.nodes.map((node) => node.type)")
    assert sorted(types) == sorted(node["type"] for node in json.loads(WORKFLOW)["nodes"])
    assert (
        opened.evaluate("() => app.graph.nodes.filter((node) => node.has_errors || !node.widgets?.length).length") == 0
    )

    prompt = opened.evaluate("async () => (await app.graphToPrompt()).output")
    twin = json.loads((ROOT / "example_workflows/api/01_first_lora.json").read_text(encoding="utf-8"))
    for number, node in twin.items():
        assert prompt[number]["inputs"].items() >= node["inputs"].items()
    saved = opened.evaluate("() => app.graph.serialize()")
    stored = {node["id"]: node["widgets_values"] for node in json.loads(WORKFLOW)["nodes"]}
    assert {node["id"]: node["widgets_values"] for node in saved["nodes"]} == stored, "our own widgets are not stored"


def test_the_live_view_lies_inside_its_node(opened):
    assert state(opened) == "idle"
    assert opened.locator(".ltx2-live button:visible").count() == 0, "there is nothing to do yet"
    inside = opened.evaluate("""() => {
      const node = app.graph.nodes.find((node) => node.type === "LTX2T_TrainLoRA")
      const box = document.querySelector(".ltx2-live").getBoundingClientRect()
      const scale = app.canvas.ds.scale
      const [x, y] = app.canvas.ds.convertOffsetToCanvas(node.pos)
      const slack = 12
      const frame = document.querySelector(`[data-node-id="${node.id}"]`)?.getBoundingClientRect()
      const bottom = frame ? frame.bottom : app.canvas.canvas.getBoundingClientRect().top + y + node.size[1] * scale
      return { fits: box.bottom <= bottom + slack, width: box.width, height: box.height }
    }""")
    assert inside["fits"], inside
    assert inside["width"] > 250
    assert inside["height"] > 150


def test_advanced_widgets_are_folded_at_first(opened):
    if opened.renderer == "classic":
        hidden = (
            "() => app.graph.nodes.find((n) => n.type === 'LTX2T_TrainLoRA').widgets.filter((w) => w.hidden).length"
        )
        assert opened.evaluate(hidden) > 10
        opened.evaluate("""() => {
          const node = app.graph.nodes.find((n) => n.type === "LTX2T_TrainLoRA")
          node.widgets.find((widget) => widget.name === "settings").callback()
        }""")
        assert opened.evaluate(hidden) == 0
    else:
        node = opened.locator("[data-node-id='5']")
        assert node.get_by_text("save every").count() == 0
        node.get_by_text("Show advanced inputs").click()
        node.get_by_text("save every").first.wait_for()


def test_a_run_is_shown_as_it_goes_and_after_a_reload(opened, tmp_path):
    name = f"page_{opened.renderer.replace(' ', '_').replace('.', '')}"
    run(opened, run_name=name, steps=6, sample_every=3)
    wait_for_state(opened, "running")
    wait_for_state(opened, "finished")
    view = opened.locator(".ltx2-live")
    assert "step 6" in view.inner_text()
    assert "loss" in view.inner_text()
    assert opened.evaluate(INK) > 100, "no curve"
    opened.wait_for_function("() => document.querySelector('.ltx2-live video')?.readyState >= 2")
    opened.wait_for_function("() => !app.ui.lastQueueSize", timeout=120_000)
    opened.wait_for_timeout(1500)
    picture = tmp_path / f"{name}.png"
    opened.screenshot(path=picture)
    assert picture.stat().st_size > 20_000

    graph = opened.evaluate("() => JSON.stringify(app.graph.serialize())")
    opened.reload()
    opened.settle()
    opened.evaluate("async (text) => await app.loadGraphData(JSON.parse(text))", graph)
    wait_for_state(opened, "finished", 20)
    assert "step 6" in opened.locator(".ltx2-live").inner_text()


def test_run_is_pressed_again_below_the_video_of_the_first(opened):
    """The page sends the player that it puts on a node, as it does a widget."""
    ended = """() => {
      window.__ended = ""
      for (const name of ["execution_success", "execution_error"])
        app.api.addEventListener(name, (event) => (window.__ended = `${name} ${event.detail.exception_message ?? ""}`))
    }"""
    opened.evaluate(ended)
    for steps in (1, 2):
        opened.evaluate("() => (window.__ended = '')")
        run(opened, run_name=f"again_{opened.renderer[:1]}", steps=steps, sample_every=0)
        opened.wait_for_function("() => window.__ended", timeout=240_000)
        assert opened.evaluate("() => window.__ended").strip() == "execution_success"
        player = ".comfy-img-preview video" if opened.renderer == "classic" else ".video-preview video"
        opened.locator(player).first.wait_for(timeout=20_000)
    sent = opened.evaluate("async () => Object.values((await app.graphToPrompt()).output).map((node) => node.inputs)")
    assert any("video-preview" in inputs for inputs in sent) == (opened.renderer == "classic")


def test_a_run_that_this_server_never_saw_is_shown_with_its_samples(opened, server, drawn_clip):
    name = f"before_{opened.renderer.replace(' ', '_').replace('.', '')}"
    folder = server.base / "output/ltx2_runs" / name
    (folder / "samples").mkdir(parents=True)
    manifest = {"format": 1, "name": name, "status": "stopped", "step": 30, "total": 40, "updated": "2026"}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    rows = [json.dumps({"step": step, "loss": 1 / step}) + "\n" for step in range(1, 31)]
    (folder / "metrics.jsonl").write_text("".join(rows))
    for step in (0, 30):
        shutil.copy2(drawn_clip, folder / "samples" / f"step_{step:06d}_p01_s7.mp4")
    opened.evaluate(
        """async (name) => {
          const graph = app.graph.serialize()
          for (const node of graph.nodes) if (node.type === "LTX2T_TrainLoRA") node.widgets_values[0] = name
          await app.loadGraphData(graph)
        }""",
        name,
    )
    wait_for_state(opened, "stopped", 20)
    view = opened.locator(".ltx2-live")
    assert name in view.inner_text()
    assert "step 30" in view.inner_text()
    assert opened.evaluate(INK) > 100, "no curve"
    opened.wait_for_function("() => document.querySelector('.ltx2-live video')?.src.includes('step_000030')")
    opened.locator(".ltx2-live").get_by_title("the sample before").click()
    opened.wait_for_function("() => document.querySelector('.ltx2-live video')?.src.includes('step_000000')")


def test_the_monitor_follows_a_run_of_another_process(opened, server):
    name = f"away_{opened.renderer.replace(' ', '_').replace('.', '')}"
    folder = server.base / "output/ltx2_runs" / name
    folder.mkdir(parents=True)

    def told(step, status):
        manifest = {
            "format": 1,
            "name": name,
            "status": status,
            "step": step,
            "total": 40,
            "updated": f"9{time.time_ns()}",
        }
        (folder / "manifest.json").write_text(json.dumps(manifest))
        rows = [json.dumps({"step": number, "loss": 1 / number}) + "\n" for number in range(1, step + 1)]
        (folder / "metrics.jsonl").write_text("".join(rows))

    told(10, "running")
    with open(folder / ".lock", "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        opened.reload()
        opened.settle()
        opened.evaluate("""() => {
          app.graph.clear()
          const node = LiteGraph.createNode("LTX2T_Monitor")
          node.pos = [300, 100]
          app.graph.add(node)
        }""")
        wait_for_state(opened, "running", 60)
        assert "step 10/40" in opened.locator(".ltx2-live").inner_text()
        told(20, "running")
        opened.wait_for_function(
            "() => /step 20.40/.test(document.querySelector('.ltx2-live').innerText)", timeout=20_000
        )
        opened.locator(".ltx2-live").get_by_text("Stop and save").click()
        for _ in range(100):
            if (folder / "asked" / "stop").exists():
                break
            opened.wait_for_timeout(100)
        assert (folder / "asked" / "stop").exists()
        told(21, "stopped")
    wait_for_state(opened, "stopped", 60)


def test_stop_and_save_in_the_node_saves_and_stops(opened, server):
    name = f"stop_{opened.renderer.replace(' ', '_').replace('.', '')}"
    run(opened, run_name=name, steps=5000, sample_every=0)
    opened.wait_for_function(
        "() => /step [3-9]/.test(document.querySelector('.ltx2-live')?.innerText)", timeout=240_000
    )
    opened.get_by_text("Stop and save").click()
    wait_for_state(opened, "stopped", 60)
    manifest = json.loads((server.base / "output/ltx2_runs" / name / "manifest.json").read_text())
    assert manifest["status"] == "stopped"
    assert manifest["step"] >= 3


def test_another_workflow_with_the_same_node_numbers_stays_untouched(opened, server):
    name = f"elsewhere_{opened.renderer.replace(' ', '_').replace('.', '')}"
    prompt = opened.evaluate("async () => (await app.graphToPrompt()).output")
    for node in prompt.values():
        node["inputs"] |= SMALL.get(node["class_type"], {})
        if node["class_type"] == "LTX2T_TrainLoRA":
            node["inputs"] |= {"run_name": name, "steps": 2, "sample_every": 0}
    server.run(prompt)
    opened.wait_for_timeout(500)
    assert state(opened) == "idle"


def test_the_help_page_is_shown(opened, server):
    for node in (
        "LoadBaseModel",
        "LoadTrainingClips",
        "LoadTrainingAudio",
        "PrepareDataset",
        "TrainLoRA",
        "KeepBranch",
    ):
        answer = opened.request.get(f"{server.url}/extensions/ltx2_trainer/docs/LTX2T_{node}.md")
        assert answer.ok
    opened.evaluate("() => app.canvas.selectNode(app.graph.nodes.find((n) => n.type === 'LTX2T_TrainLoRA'))")
    opened.locator("[data-testid='info-button']").first.click()
    opened.get_by_text("Stop, go on, extend").first.wait_for(timeout=10_000)


@pytest.mark.parametrize("name", ["06_ic_lora", "07_voice_reference", "08_sound_for_silent_film"])
def test_the_chosen_recipe_is_shown_and_no_node_lies_on_another(page, name):
    text = (ROOT / "example_workflows" / f"{name}.json").read_text(encoding="utf-8")
    page.evaluate("async (text) => await app.loadGraphData(JSON.parse(text))", text)
    page.wait_for_timeout(1500)
    stored = next(n for n in json.loads(text)["nodes"] if n["type"] == "LTX2T_ConditionsRecipe")
    recipe = stored["widgets_values"][0]
    if page.renderer == "nodes 2.0":
        page.locator(f"[data-node-id='{stored['id']}']").get_by_text(recipe).wait_for(timeout=5000)
    prompt = page.evaluate("async () => (await app.graphToPrompt()).output")
    assert prompt[str(stored["id"])]["inputs"]["recipe"] == recipe
    boxes = page.evaluate("() => app.graph.nodes.map((node) => [node.type, ...node.getBounding()])")
    for place, (one, x, y, width, height) in enumerate(boxes):
        for other, left, top, wide, high in boxes[place + 1 :]:
            apart = x + width <= left or left + wide <= x or y + height <= top or top + high <= y
            assert apart, f"{one} lies on {other}"


def test_after_an_undo_the_view_that_is_seen_is_the_one_that_is_told(opened):
    opened.evaluate("""async () => {
      const tracker = app.extensionManager.workflow.activeWorkflow.changeTracker
      const node = () => app.graph.nodes.find((node) => node.type === "LTX2T_TrainLoRA")
      const before = node()
      tracker.checkState()
      before.widgets.find((widget) => widget.name === "steps").value = 77
      tracker.checkState()
      await tracker.undo()
      window.__same = node() === before
    }""")
    opened.wait_for_timeout(1000)
    assert not opened.evaluate("() => window.__same"), "the undo has made new nodes"
    opened.evaluate("""() => {
      const node = app.graph.nodes.find((node) => node.type === "LTX2T_TrainLoRA")
      const title = node.widgets.find((widget) => widget.name === "run_name").value
      const facts = { state: "running", stage: "train", step: 5, done: 5, total: 9, curve: [] }
      app.api.dispatchCustomEvent("ltx2_train.step", { node: String(node.id), title, ...facts })
    }""")
    opened.wait_for_timeout(300)
    assert opened.locator(".ltx2-live:visible").count() == 1
    assert "step 5/9" in opened.locator(".ltx2-live:visible").inner_text()
