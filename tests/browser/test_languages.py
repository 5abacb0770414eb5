"""The page in other languages than English: names of nodes and widgets, and help on hover."""

from __future__ import annotations

import json

import pytest
from comfy_server import ROOT

WORKFLOW = (ROOT / "example_workflows" / "01_first_lora.json").read_text(encoding="utf-8")
SHOWN = """() => Object.fromEntries(app.graph.nodes.filter((node) => node.type.startsWith("LTX2T_")).map((node) =>
  [node.type, { title: node.title, widgets: node.widgets.map((widget) => widget.label ?? widget.name),
    outputs: node.outputs.map((output) => output.localized_name ?? output.name) }]))"""


@pytest.mark.parametrize(("language", "title"), [("zh", "训练 LoRA"), ("ja", "LoRAを学習する")])
def test_nodes_speak_the_language_of_the_page(page, server, language: str, title: str) -> None:
    words = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))
    server.post("/settings", {"Comfy.Locale": language})
    try:
        page.reload()
        page.settle()
        page.evaluate("async (text) => await app.loadGraphData(JSON.parse(text))", WORKFLOW)
        shown = page.evaluate(SHOWN)
        train, inputs = shown["LTX2T_TrainLoRA"], words["LTX2T_TrainLoRA"]["inputs"]
        assert page.evaluate("() => LiteGraph.registered_node_types.LTX2T_TrainLoRA.title") == title
        assert inputs["steps"]["name"] in train["widgets"]
        assert inputs["learning_rate"]["name"] in train["widgets"]
        assert words["LTX2T_TrainLoRA"]["outputs"]["1"]["name"] in train["outputs"]
    finally:
        server.post("/settings", {"Comfy.Locale": "en"})
