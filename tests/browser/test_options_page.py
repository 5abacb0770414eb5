"""Options nodes with a choice in the real page: another choice swaps the numbers, and a saved graph keeps them."""

from __future__ import annotations

from comfy_server import ROOT
from page_driver import CHOOSE, look, sent

WORKFLOW = (ROOT / "example_workflows" / "01_first_lora.json").read_text(encoding="utf-8")
NODES = ["LTX2T_OptimizerOptions", "LTX2T_RegularizersOptions", "LTX2T_ValidationOptions"]
OPTIMIZER, REGULARIZERS, VALIDATION = NODES
TRAIN = "LTX2T_TrainLoRA"
JOIN = """(types) => {
  let behind = app.graph.nodes.find((node) => node.type === "LTX2T_TrainLoRA")
  const [left, top] = behind.pos
  types.forEach((type, at) => {
    const node = LiteGraph.createNode(type)
    node.pos = [left + 460 * at, top + 900]
    app.graph.add(node)
    node.connect(0, behind, behind.inputs.findIndex((input) => input.name === "options"))
    behind = node
  })
  app.canvas.ds.scale = 0.75
  app.canvas.ds.offset = [240 - left, 160 - top - 880]
  app.canvas.setDirty(true, true)
}"""
SHOWN = """(type) => app.graph.nodes.find((node) => node.type === type).widgets
  .filter((widget) => !widget.hidden && widget.name !== "settings").map((widget) => widget.name)"""
HELD = """([type, name]) => {
  const widget = app.graph.nodes.find((node) => node.type === type).widgets.find((widget) => widget.name === name)
  return [widget.value, Boolean(widget.disabled)]
}"""
UNFOLD = """(type) => app.graph.nodes.find((node) => node.type === type).widgets
  .find((widget) => widget.name === "settings").callback()"""


IDS = "(type) => String(app.graph.nodes.find((node) => node.type === type).id)"


def choose(page, type_, name, value):
    """Set the choice of a node; with Nodes 2.0 by hand."""
    if page.renderer == "classic":
        page.evaluate(CHOOSE, [type_, name, value])
        return
    box = page.locator(f"[data-node-id='{page.evaluate(IDS, type_)}']")
    box.get_by_text(page.evaluate(HELD, [type_, name])[0], exact=True).first.click()
    page.get_by_role("option", name=value, exact=True).click()
    page.wait_for_timeout(300)


def own_sent(page, type_):
    return {name: value for name, value in sent(page, type_).items() if name != "options"}


def test_another_choice_swaps_the_numbers_and_a_saved_graph_keeps_them(page):
    page.evaluate("async (text) => await app.loadGraphData(JSON.parse(text))", WORKFLOW)
    page.wait_for_timeout(800)
    page.evaluate(JOIN, NODES)
    page.wait_for_timeout(800)
    rest = ["args", "ema_decay", "ema_sample"]
    below = [f"optimizer.{name}" for name in ("betas", "eps", "weight_decay")]
    assert page.evaluate(SHOWN, OPTIMIZER) == ["optimizer", *below, *rest]
    look(page, "options_first")

    page.evaluate(CHOOSE, [OPTIMIZER, "ema_decay", 0.5])
    page.evaluate(CHOOSE, [OPTIMIZER, "args", "momentum = 0.9"])
    page.evaluate(CHOOSE, [OPTIMIZER, "optimizer.betas", "0.5, 0.6"])
    choose(page, OPTIMIZER, "optimizer", "prodigy")
    assert page.evaluate(HELD, [OPTIMIZER, "optimizer.betas"])[0] == "0.9, 0.999"
    assert own_sent(page, OPTIMIZER)["optimizer.betas"] == "0.9, 0.999", "the numbers of another choice are its own"
    choose(page, OPTIMIZER, "optimizer", "muon")
    assert page.evaluate(SHOWN, OPTIMIZER) == ["optimizer", *below[1:], *rest]
    page.evaluate(CHOOSE, [OPTIMIZER, "optimizer.weight_decay", 0.25])
    choose(page, REGULARIZERS, "regularizer", "crepa")
    page.evaluate(CHOOSE, [REGULARIZERS, "regularizer.crepa_weight", 0.3])
    choose(page, VALIDATION, "when", "steps and epochs")
    page.evaluate(CHOOSE, [VALIDATION, "when.every_epochs", 3])
    page.evaluate(CHOOSE, [VALIDATION, "levels", 2])
    page.wait_for_timeout(1000)
    in_view = [f"regularizer.crepa_{name}" for name in ("weight", "mode", "student_block", "teacher_block")]
    if page.renderer == "classic":  # Nodes 2.0 folds by itself
        assert page.evaluate(SHOWN, REGULARIZERS) == ["regularizer", *in_view]
        page.evaluate(UNFOLD, REGULARIZERS)
        assert len(page.evaluate(SHOWN, REGULARIZERS)) == 12
        page.evaluate(UNFOLD, REGULARIZERS)
    look(page, "options_chosen")
    assert page.evaluate(HELD, [TRAIN, "optimizer"]) == ["muon", True], "in view where it is used"
    assert page.evaluate(HELD, [TRAIN, "weight_decay"]) == [0.25, True]

    before = {one: own_sent(page, one) for one in [*NODES, TRAIN]}
    muon = {"optimizer": "muon", "optimizer.eps": 1e-8, "optimizer.weight_decay": 0.25}
    assert before[OPTIMIZER] == {**muon, "args": "momentum = 0.9", "ema_decay": 0.5, "ema_sample": True}
    assert before[REGULARIZERS]["regularizer.crepa_weight"] == 0.3
    assert len(before[REGULARIZERS]) == 12
    assert (before[VALIDATION]["when.every"], before[VALIDATION]["when.every_epochs"]) == (250, 3)
    saved = page.evaluate("() => JSON.stringify(app.graph.serialize())")
    page.evaluate("async (graph) => await app.loadGraphData(JSON.parse(graph))", saved)
    page.wait_for_timeout(1000)
    assert {one: own_sent(page, one) for one in [*NODES, TRAIN]} == before
    if page.renderer == "classic":
        assert page.evaluate(SHOWN, REGULARIZERS) == ["regularizer", *in_view]
    look(page, "options_loaded")

    choose(page, REGULARIZERS, "regularizer", "self_flow")
    choose(page, OPTIMIZER, "optimizer", "by class")
    page.evaluate(CHOOSE, [OPTIMIZER, "optimizer.class_name", "torch.optim.RAdam"])
    page.wait_for_timeout(1000)
    assert page.evaluate(HELD, [TRAIN, "optimizer"]) == ["auto", False], "which has no such choice"
    look(page, "options_class")
    assert own_sent(page, OPTIMIZER)["optimizer.class_name"] == "torch.optim.RAdam"
