"""What is seen of runs that were trained: the table of samples, marks and validation, the tab, the comparison."""

from __future__ import annotations

import json

import pytest
from comfy_server import ROOT
from saved_run import write_run

VIDEOS = ".ltx2-grid .cell video"
SET = """(values) => {
  for (const node of app.graph.nodes)
    for (const [name, value] of Object.entries(values[node.type] ?? {})) {
      const widget = node.widgets.find((widget) => widget.name === name)
      widget.value = value
      widget.callback?.(value)
    }
}"""
# how many pixels of the chart have the colours of validation and of the mark where a run went on
INK = """(root) => {
  const canvas = document.querySelector(`${root} canvas`)
  const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data
  const count = { validation: 0, resume: 0, save: 0 }
  const near = (i, r, g, b) => Math.abs(data[i] - r) + Math.abs(data[i + 1] - g) + Math.abs(data[i + 2] - b) < 40
  for (let i = 0; i < data.length; i += 4) {
    if (data[i + 3] < 200) continue
    if (near(i, 0xe0, 0x5a, 0x9a)) count.validation++
    if (near(i, 0xe0, 0xb0, 0x2e)) count.resume++
    if (near(i, 0x43, 0xa5, 0x56)) count.save++
  }
  return count
}"""


@pytest.fixture(scope="module")
def saved(server, tiny, drawn_clip):
    return write_run(server.base / "output/ltx2_runs/seen_fox", tiny, drawn_clip)


def opened(page, name):
    text = (ROOT / "example_workflows" / f"{name}.json").read_text(encoding="utf-8")
    page.evaluate("async (text) => await app.loadGraphData(JSON.parse(text))", text)
    page.evaluate(
        "() => { app.canvas.ds.scale = 0.75; app.canvas.ds.offset = [90, 60]; app.canvas.setDirty(true, true) }"
    )
    page.wait_for_timeout(800)


def test_all_samples_are_seen_in_a_table_and_played_together(page, saved, tmp_path):
    page.reload()  # the run is in the list now
    page.settle()
    page.evaluate(
        """async (name) => {
          app.graph.clear()
          const node = LiteGraph.createNode("LTX2T_Monitor")
          node.pos = [200, 120]
          app.graph.add(node)
          node.setSize([560, 420])
          const widget = node.widgets.find((widget) => widget.name === "run_name")
          widget.value = name
          widget.callback(name)
        }""",
        saved.name,
    )
    page.wait_for_function("() => document.querySelector('.ltx2-live')?.dataset.state === 'finished'")
    page.wait_for_timeout(800)
    ink = page.evaluate(INK, ".ltx2-live")
    assert ink["validation"] > 20, ink
    assert ink["resume"] > 20, ink
    assert ink["save"] >= 3, ink
    assert "validation 0.3333" in page.locator(".ltx2-live .label").inner_text()
    page.screenshot(path=tmp_path / "monitor.png")

    page.locator(".ltx2-live").get_by_text("All samples").click()
    page.locator(".ltx2-grid").wait_for()
    assert page.locator(".ltx2-grid .step").all_inner_texts() == ["step 0", "step 10", "step 20", "step 30"]
    assert page.locator(".ltx2-grid .head").all_inner_texts()[1:] == ["prompt 1, seed 7", "prompt 2, seed 7"]
    page.wait_for_function(f"() => [...document.querySelectorAll('{VIDEOS}')].every((video) => video.readyState >= 1)")
    page.get_by_role("button", name="Play together").click()
    page.wait_for_function(f"() => [...document.querySelectorAll('{VIDEOS}')].filter((one) => !one.paused).length > 3")
    page.locator(".ltx2-grid .cell").first.hover()
    assert page.evaluate(f"() => document.querySelectorAll('{VIDEOS}')[0].muted") is False, "its sound is heard"
    assert page.evaluate(f"() => document.querySelectorAll('{VIDEOS}')[1].muted") is True
    page.screenshot(path=tmp_path / "grid.png")
    page.locator(".ltx2-grid .cell").first.click()
    assert "step 0, prompt 1" in page.locator(".ltx2-grid .large").inner_text()
    page.keyboard.press("ArrowDown")
    assert "step 10, prompt 1" in page.locator(".ltx2-grid .large").inner_text()
    page.screenshot(path=tmp_path / "large.png")
    page.keyboard.press("Escape")
    assert page.locator(".ltx2-grid .table").is_visible()
    page.keyboard.press("Escape")
    assert page.locator(".ltx2-grid").count() == 0
    assert page.evaluate("() => app.graph.nodes.length") == 1, "the keys did not reach the graph"


def test_the_tab_lists_the_runs_and_shows_the_chosen_one(page, saved, tmp_path):
    page.evaluate("() => app.extensionManager.sidebarTab.toggleSidebarTab('ltx2_trainer.runs')")
    page.locator(".ltx2-runs .run", has_text=saved.name).click()
    page.wait_for_function("() => document.querySelector('.ltx2-runs .ltx2-live')?.dataset.state === 'finished'")
    page.wait_for_timeout(800)
    assert "finished, 30" in page.locator(".ltx2-runs .run.chosen").inner_text()
    assert page.evaluate(INK, ".ltx2-runs .ltx2-live")["validation"] > 20
    page.wait_for_function("() => document.querySelector('.ltx2-runs video')?.readyState >= 2")
    page.screenshot(path=tmp_path / "tab.png")
    page.evaluate("() => app.extensionManager.sidebarTab.toggleSidebarTab('ltx2_trainer.runs')")
    page.wait_for_function("() => !document.querySelector('.ltx2-runs')")


def test_checkpoints_are_compared_in_the_page(page, saved, tmp_path):
    page.reload()
    page.settle()
    opened(page, "09_compare_checkpoints")
    seed = "1" if page.renderer == "classic" else "2"  # of its own: what comes from ComfyUI's cache is not shown again
    chosen = {
        "LTX2T_PickCheckpoints": {"run_name": saved.name, "pick.count": 2},
        "LTX2T_CompareCheckpoints": {
            "prompts": "a fox runs\na dog sits",
            "seeds": seed,
            "width": 64,
            "height": 64,
            "frames": 9,
            "steps": 1,
        },
    }
    page.evaluate(SET, chosen)
    page.evaluate(
        """() => {
          window.__ended = ""
          for (const name of ["execution_success", "execution_error"])
            app.api.addEventListener(name, (event) => (window.__ended = name + (event.detail.exception_message ?? "")))
          app.queuePrompt(0, 1)
        }"""
    )
    page.wait_for_function("() => window.__ended", timeout=240_000)
    assert page.evaluate("() => window.__ended") == "execution_success"
    page.wait_for_function("() => [...document.querySelectorAll('video')].some((one) => one.videoWidth > 500)")
    page.wait_for_timeout(2500)
    page.screenshot(path=tmp_path / "compare.png")
    (shown,) = page.evaluate("() => Object.values(app.nodeOutputs).flatMap((one) => one.images ?? [])")
    assert json.dumps(shown).count("ltx2_compare/seen_fox")
