"""Nodes of conditions in the real page: their choices with their numbers, and what is folded away."""

from __future__ import annotations

import json

from comfy_server import ROOT
from page_driver import look

PAIRS = (ROOT / "example_workflows" / "06_ic_lora.json").read_text(encoding="utf-8")
ADD = """([type, x, y]) => {
  const node = LiteGraph.createNode(type)
  node.pos = [x, y]
  app.graph.add(node)
  return String(node.id)
}"""
CHOOSE = """([id, name, value]) => {
  const widget = app.graph.getNodeById(id).widgets.find((widget) => widget.name === name)
  widget.value = value
  widget.callback?.(value)
}"""
SHOWN = "(id) => app.graph.getNodeById(id).widgets.filter((w) => !w.hidden && w.type !== 'button').map((w) => w.name)"
PRESS = """(id) => app.graph.getNodeById(id).widgets.find((widget) => widget.name === "settings").callback()"""
BUTTONS = "(id) => app.graph.getNodeById(id).widgets.filter((widget) => widget.name === 'settings').length"


def test_a_condition_shows_the_numbers_of_its_choice_and_hides_none(page):
    page.evaluate("() => { app.graph.clear(); app.canvas.ds.scale = 1; app.canvas.ds.offset = [40, 40] }")
    node = page.evaluate(ADD, ["LTX2T_VideoConditions", 60, 60])
    for choice, numbers in (("prefix", 3), ("spatial_crop", 5), ("reference", 1), ("whole", 0)):
        page.evaluate(CHOOSE, [node, "condition", choice])
        page.wait_for_timeout(500)
        shown = page.evaluate(SHOWN, node)
        assert len(shown) == 1 + numbers, shown
        assert page.evaluate(BUTTONS, node) == 0, "nothing of it is folded away"
        look(page, f"condition_{choice}")


def test_pairs_and_further_references_fold_what_is_advanced_and_open_it(page):
    page.evaluate("async (text) => await app.loadGraphData(JSON.parse(text))", PAIRS)
    page.wait_for_timeout(1500)
    stored = {node["type"]: str(node["id"]) for node in json.loads(PAIRS)["nodes"]}
    pairs = stored["LTX2T_LoadTrainingPairs"]
    page.evaluate(
        "(id) => { const [x, y] = app.graph.getNodeById(id).pos;"
        " app.canvas.ds.scale = 0.8; app.canvas.ds.offset = [60 - x, 60 - y]; app.canvas.setDirty(true, true) }",
        pairs,
    )
    look(page, "pairs_folded")
    if page.renderer == "classic":
        assert "mask_folder" not in page.evaluate(SHOWN, pairs)
        page.evaluate(PRESS, pairs)
        assert "mask_folder" in page.evaluate(SHOWN, pairs)
        look(page, "pairs_open")
        page.evaluate(PRESS, pairs)
        assert "mask_folder" not in page.evaluate(SHOWN, pairs)
    else:
        box = page.locator(f"[data-node-id='{pairs}']")
        assert box.get_by_text("mask folder").count() == box.get_by_text("mask_folder").count() == 0
        box.get_by_text("Show advanced inputs").click()
        page.wait_for_timeout(500)
        assert box.get_by_text("mask_folder").count() + box.get_by_text("mask folder").count() > 0
        look(page, "pairs_open")
    further = page.evaluate(ADD, ["LTX2T_AddReference", 400, 900])
    assert page.evaluate(SHOWN, further) == ["reference_folder", "reference_path", "reference_frames"]
    page.evaluate(
        """([from, to]) => {
          const node = app.graph.getNodeById(from), other = app.graph.getNodeById(to)
          const after = app.graph.links.get?.(node.outputs[0].links[0]) ?? app.graph.links[node.outputs[0].links[0]]
          const [target, slot] = [app.graph.getNodeById(after.target_id), after.target_slot]
          node.connect(0, other, 0)
          other.connect(0, target, slot)
        }""",
        [pairs, further],
    )
    prompt = page.evaluate("async () => (await app.graphToPrompt()).output")
    assert prompt[further]["inputs"]["pairs"] == [pairs, 0]
    assert any([further, 0] in one["inputs"].values() for one in prompt.values())
    page.evaluate(
        "(id) => { const [x, y] = app.graph.getNodeById(id).pos;"
        " app.canvas.ds.offset = [200 - x, 300 - y]; app.canvas.setDirty(true, true) }",
        further,
    )
    look(page, "add_reference")
