"""Each node's page of help shows the node as it is today."""

from __future__ import annotations

from xml.etree import ElementTree

import node_pictures


def test_pictures_are_of_the_nodes_of_today(nodes) -> None:
    for node in nodes.NODES:
        name = node.define_schema().node_id
        stored = node_pictures.PICTURES.joinpath(f"{name}.svg").read_text(encoding="utf-8")
        assert stored == node_pictures.picture(node), "run `python tests/node_pictures.py`"
        page = node_pictures.PICTURES.parent.joinpath(f"{name}.md").read_text(encoding="utf-8")
        assert node_pictures.LINE.format(name) in page.splitlines()
    assert len(list(node_pictures.PICTURES.iterdir())) == len(nodes.NODES)


def test_a_picture_shows_what_is_seen_at_once(nodes) -> None:
    train = next(node for node in nodes.NODES if node.define_schema().node_id == "LTX2T_TrainLoRA")
    drawing = ElementTree.fromstring(node_pictures.picture(train))
    texts = [text.text for text in drawing.iter("{http://www.w3.org/2000/svg}text")]
    assert texts[0] == "Train LoRA"
    assert {"prepared", "lora", "run name", "steps", "2000"} <= set(texts)
    assert "accumulation" not in texts  # advanced
