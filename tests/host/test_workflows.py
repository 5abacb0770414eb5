"""The example workflows speak of nodes, widgets and sockets that exist, and their API twins say the same."""

from __future__ import annotations

import json
from pathlib import Path

import fake_comfy
import pytest
from PIL import Image
from workflow_pictures import MOST_BYTES, SIZE

FOLDER = Path(fake_comfy.ROOT) / "example_workflows"
WORKFLOWS = sorted(FOLDER.glob("*.json"))
WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
DYNAMIC = "COMFY_DYNAMICCOMBO_V3"
NOTES = {"Note", "MarkdownNote"}
# nodes of ComfyUI itself: what they take and give, and their widgets
CORE_INPUTS = {"PreviewAudio": {"audio": "AUDIO"}, "LoadImageTextDataSetFromFolder": {}}
CORE_OUTPUTS = {"LoadImageTextDataSetFromFolder": ["IMAGE", "STRING"]}
CORE_WIDGETS = {"PreviewAudio": [], "LoadImageTextDataSetFromFolder": ["folder"]}
CORE = set(CORE_INPUTS)
GOALS = {"01_first_lora": "video", "02_talking_character": "av", "03_voice": "audio", "05_dataset_from_lists": "video"}
GOALS |= {"11_slider": "video", "12_low_vram": "video", "13_go_on_extend_fork": "video"}
GOALS |= {"06_ic_lora": "video", "07_voice_reference": "av", "08_sound_for_silent_film": "av"}
RECIPES = {"06_ic_lora": "ic_lora", "07_voice_reference": "voice_reference", "08_sound_for_silent_film": "foley"}
MODEL_FREE = {"04_make_a_dataset", "09_compare_checkpoints", "10_lora_tools"}


@pytest.fixture
def schemas(nodes):
    return {node.define_schema().node_id: node.define_schema() for node in nodes.NODES}


def widgets_of(schema, stored):
    """Widgets in the order in which a workflow stores their values; a seed is followed by its control, a choice by the
    widgets that come with it."""
    at = 0
    for shown in schema.inputs:
        if shown.io_type == DYNAMIC:
            yield shown.id, shown
            chosen = next(option for option in shown.options["options"] if option.key == stored[at])
            yield from ((f"{shown.id}.{inner.id}", inner) for inner in chosen.inputs)
            at += 1 + len(chosen.inputs)
        elif shown.io_type in WIDGET_TYPES:
            yield shown.id, shown
            at += 1
            if shown.options.get("control_after_generate"):
                yield f"{shown.id}.control", None
                at += 1


def values_of(node, schema):
    ids = [name for name, _ in widgets_of(schema, node["widgets_values"])]
    assert len(node["widgets_values"]) == len(ids), (node["type"], ids)
    return dict(zip(ids, node["widgets_values"], strict=True))


def test_the_workflows_are_these():
    names = sorted(f"{name}.json" for name in [*GOALS, *MODEL_FREE])
    assert [path.name for path in WORKFLOWS] == names
    assert sorted(path.name for path in (FOLDER / "api").glob("*.json")) == names


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_has_a_picture_for_the_templates_dialog(path):
    picture = path.with_suffix(".jpg")  # `python tests/workflow_pictures.py` takes them anew
    assert picture.stat().st_size < MOST_BYTES
    with Image.open(picture) as seen:
        assert (seen.format, seen.size) == ("JPEG", SIZE)


def test_the_goal_of_each_workflow_is_set_where_the_base_is_chosen(schemas):
    goals = {}
    for path in WORKFLOWS:
        nodes = json.loads(path.read_text(encoding="utf-8"))["nodes"]
        if path.stem in MODEL_FREE:
            assert not any(
                shown.io_type == "LTX2T_MODEL"
                for n in nodes
                if n["type"] in schemas
                for shown in schemas[n["type"]].inputs
            ), "no base has to be there"
            continue
        (base,) = (node for node in nodes if node["type"] == "LTX2T_LoadBaseModel")
        goals[path.stem] = values_of(base, schemas[base["type"]])["mode"]
    assert goals == GOALS


def test_a_task_beside_a_plain_lora_has_its_recipe():
    found = {}
    for path in WORKFLOWS:
        nodes = json.loads(path.read_text(encoding="utf-8"))["nodes"]
        for node in nodes:
            if node["type"] == "LTX2T_ConditionsRecipe":
                found[path.stem] = node["widgets_values"][0]
    assert found == RECIPES


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_uses_our_nodes_alone_and_says_what_to_do(path, schemas):
    workflow = json.loads(path.read_text(encoding="utf-8"))
    types = [node["type"] for node in workflow["nodes"]]
    assert set(types) - NOTES - CORE <= set(schemas)
    assert any(kind in NOTES for kind in types)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_nodes_do_not_lie_on_each_other(path):
    nodes = json.loads(path.read_text(encoding="utf-8"))["nodes"]
    head = 30  # the title is drawn above the place of a node
    boxes = [(*n["pos"], n["pos"][0] + n["size"][0], n["pos"][1] + n["size"][1], n["type"]) for n in nodes]
    for index, (left, top, right, bottom, kind) in enumerate(boxes):
        for other in boxes[:index]:
            apart = right <= other[0] or other[2] <= left or bottom + head <= other[1] or other[3] + head <= top
            assert apart, (kind, other[4])


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_each_value_stands_in_its_widget(path, schemas):
    workflow = json.loads(path.read_text(encoding="utf-8"))
    for node in workflow["nodes"]:
        if node["type"] in NOTES | CORE:
            continue
        schema = schemas[node["type"]]
        values = values_of(node, schema)
        for name, shown in widgets_of(schema, node["widgets_values"]):
            value = values[name]
            if shown is None:
                assert value == "fixed", "a seed that changes would train anew at each press"
            elif shown.io_type == "COMBO" and name not in ("checkpoint", "text_encoder"):
                assert value in shown.options["options"], (node["type"], name)
            elif shown.io_type in ("INT", "FLOAT"):
                assert shown.min <= value <= shown.max, (node["type"], name)
            elif shown.io_type == "BOOLEAN":
                assert isinstance(value, bool), (node["type"], name)
            elif shown.io_type == "STRING":
                assert isinstance(value, str), (node["type"], name)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_links_join_sockets_of_one_type(path, schemas):
    workflow = json.loads(path.read_text(encoding="utf-8"))
    nodes = {node["id"]: node for node in workflow["nodes"]}
    for number, source, source_slot, target, target_slot, kind in workflow["links"]:
        out, into = nodes[source]["outputs"][source_slot], nodes[target]["inputs"][target_slot]
        assert out["type"] == into["type"] == kind
        assert number in out["links"]
        assert into["link"] == number
        given, taken = nodes[source]["type"], nodes[target]["type"]
        kinds = CORE_OUTPUTS.get(given) or [shown.io_type for shown in schemas[given].outputs]
        assert kinds[source_slot] == kind
        kinds = CORE_INPUTS.get(taken) or {shown.id: shown.io_type for shown in schemas[taken].inputs}
        assert kinds[into["name"]] == kind


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_the_api_twin_says_the_same_in_visible_widgets_alone(path, schemas):
    workflow = json.loads(path.read_text(encoding="utf-8"))
    twin = json.loads((FOLDER / "api" / path.name).read_text(encoding="utf-8"))
    origin = {number: (str(source), slot) for number, source, slot, *_ in workflow["links"]}
    ours = {str(node["id"]): node for node in workflow["nodes"] if node["type"] not in NOTES}
    assert set(twin) == set(ours)
    for number, node in ours.items():
        if node["type"] in CORE:
            linked = {slot["name"]: list(origin[slot["link"]]) for slot in node["inputs"] if slot["link"] is not None}
            shown = dict(zip(CORE_WIDGETS[node["type"]], node["widgets_values"], strict=True))
            assert (twin[number]["class_type"], twin[number]["inputs"]) == (node["type"], shown | linked)
            continue
        schema = schemas[node["type"]]
        stored = values_of(node, schema)
        expected = {
            name: stored[name]
            for name, shown in widgets_of(schema, node["widgets_values"])
            if shown and not shown.options.get("advanced")
        }
        expected |= {slot["name"]: list(origin[slot["link"]]) for slot in node["inputs"] if slot["link"] is not None}
        assert twin[number]["inputs"] == expected
        assert twin[number]["class_type"] == node["type"]
        for name, shown in widgets_of(schema, node["widgets_values"]):
            if shown and shown.options.get("advanced"):
                assert stored[name] == shown.default, f"{name} would differ between page and API"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_note_can_be_read_in_both_renderers(path):
    """Code in a note is blue on blue in Nodes 2.0."""
    notes = [node for node in json.loads(path.read_text(encoding="utf-8"))["nodes"] if node["type"] in NOTES]
    assert notes
    assert not [text for note in notes for text in note["widgets_values"] if "`" in text]
