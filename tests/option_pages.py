"""The help pages of the option nodes, written from the settings: `python tests/option_pages.py` in the top folder."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import fake_comfy
import node_pictures
import pytest


def _below(choices: list[Any]) -> list[str]:
    """A row for each widget below a choice, with the choices that have it; "" where all have."""
    found: dict[tuple[str, str], list[str]] = {}
    for choice in choices:
        for shown in choice.inputs:
            found.setdefault((shown.id, shown.tooltip), []).append(choice.key)
    return [
        _row(f"{name} *({', '.join(having)})*" if len(having) < len(choices) else name, text)
        for (name, text), having in found.items()
    ]


def _row(name: str, text: str) -> str:
    return f"| {name} | {text.replace('|', chr(92) + '|')} |"


def page(node: Any) -> str:
    """The page of an option node: what it is for, and a row for each of its widgets."""
    schema = node.define_schema()
    rows = []
    for shown in schema.inputs:
        if shown.io_type == "LTX2T_OPTIONS":
            continue
        rows.append(_row(shown.id, shown.tooltip))
        if shown.io_type == "COMFY_DYNAMICCOMBO_V3":
            rows += _below(shown.options["options"])
    return "\n".join(
        [
            f"# {schema.display_name}",
            "",
            node_pictures.LINE.format(schema.node_id),
            "",
            schema.description,
            "",
            "| Input | |",
            "|---|---|",
            *rows,
            "| options *(socket)* | Another Options node, to bring both over one wire; one of another kind. |",
            "",
            "Settings that a node shows itself are not repeated here.",
            "",
        ]
    )


def main() -> None:
    with pytest.MonkeyPatch.context() as monkeypatch, tempfile.TemporaryDirectory() as folder:
        fake_comfy.install(monkeypatch, Path(folder))
        nodes = fake_comfy.load_pack().nodes
        for node in (*nodes.option_nodes.OPTION_NODES, *nodes.option_choices.CHOICE_NODES):
            name = node.define_schema().node_id
            Path(fake_comfy.ROOT, "web", "docs", f"{name}.md").write_text(page(node), encoding="utf-8")


if __name__ == "__main__":
    main()
