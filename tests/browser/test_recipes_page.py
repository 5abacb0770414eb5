"""Recipes in the real page: their numbers stand in the nodes that they go into, and are what is sent."""

from __future__ import annotations

from comfy_server import ROOT
from page_driver import CHOOSE, look, sent

WORKFLOW = (ROOT / "example_workflows" / "01_first_lora.json").read_text(encoding="utf-8")
JOIN = """() => {
  const train = app.graph.nodes.find((node) => node.type === "LTX2T_TrainLoRA")
  const made = ["LTX2T_TrainingRecipe", "LTX2T_SamplesRecipe", "LTX2T_SamplesOptions"].map((type, at) => {
    const node = LiteGraph.createNode(type)
    node.pos = [train.pos[0] - 20, train.pos[1] + 560 + 330 * at]
    app.graph.add(node)
    return node
  })
  const socket = (node) => node.inputs.findIndex((input) => input.name === "options")
  made[0].connect(0, train, socket(train))
  made[1].connect(0, made[0], socket(made[0]))
  made[2].connect(0, made[1], socket(made[1]))
}"""
SHOWN = """([type, name]) => {
  const widget = app.graph.nodes.find((node) => node.type === type).widgets.find((widget) => widget.name === name)
  return [widget.value, Boolean(widget.disabled)]
}"""
REMOVE = "(type) => app.graph.remove(app.graph.nodes.find((node) => node.type === type))"
TRAIN = "LTX2T_TrainLoRA"


def test_the_numbers_of_a_recipe_are_seen_and_sent_wherever_it_goes(page):
    page.evaluate("async (text) => await app.loadGraphData(JSON.parse(text))", WORKFLOW)
    page.wait_for_timeout(800)
    page.evaluate(CHOOSE, [TRAIN, "steps", 777])
    page.evaluate(JOIN)
    page.evaluate(CHOOSE, ["LTX2T_TrainingRecipe", "recipe", "style"])
    page.wait_for_timeout(1000)
    assert page.evaluate(SHOWN, [TRAIN, "steps"]) == [3000, True]
    assert page.evaluate(SHOWN, [TRAIN, "rank"]) == [32, True]
    assert page.evaluate(SHOWN, [TRAIN, "sample_steps"]) == [8, True], "of the other recipe"
    assert page.evaluate(SHOWN, [TRAIN, "train_seed"])[1] is False
    assert page.evaluate(SHOWN, ["LTX2T_SamplesOptions", "modality_guidance"]) == [1.0, True]
    page.evaluate(CHOOSE, ["LTX2T_TrainingRecipe", "recipe.steps", 450])
    page.wait_for_timeout(1000)
    page.evaluate(
        """() => {
          const [x, y] = app.graph.nodes.find((node) => node.type === "LTX2T_TrainLoRA").pos
          app.canvas.ds.scale = 0.75
          app.canvas.ds.offset = [200 - x, 60 - y]
          app.canvas.setDirty(true, true)
        }"""
    )
    look(page, "recipes")
    assert sent(page, TRAIN)["steps"] == sent(page, "LTX2T_TrainingRecipe")["recipe.steps"] == 450
    saved = page.evaluate("() => app.graph.serialize()")
    page.evaluate("async (graph) => await app.loadGraphData(graph)", saved)
    page.wait_for_timeout(1000)
    assert page.evaluate(SHOWN, [TRAIN, "steps"]) == [450, True]
    page.evaluate(REMOVE, "LTX2T_TrainingRecipe")
    page.wait_for_timeout(1000)
    assert page.evaluate(SHOWN, [TRAIN, "steps"]) == [777, False], "what it held before"
    assert sent(page, TRAIN)["steps"] == 777
