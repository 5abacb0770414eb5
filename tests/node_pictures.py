"""A picture of each node for its help page, from its schema: `python tests/node_pictures.py` in the top folder."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import fake_comfy
import pytest

LINE = "![The node as it is added](pictures/{}.svg)"  # in the help page, below its title
PICTURES = Path(fake_comfy.ROOT, "web", "docs", "pictures")
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COMFY_DYNAMICCOMBO_V3"}
WIDTH, TITLE, ROW, TEXT_BOX = 380, 34, 24, 54  # pixels
CHARACTERS = 24  # of a value that is shown
COLOURS = {"LORA_MODEL": "#b39ddb", "VIDEO": "#81c784", "AUDIO": "#90caf9", "IMAGE": "#64b5f6", "STRING": "#a5d6a7"}
OTHER = "#e0a458"  # of sockets of our own types


def _words(name: str) -> str:
    return name.replace("_", " ")


def _value(shown: Any) -> str:
    """What the widget holds in a node that was just added."""
    options = shown.options.get("options") or []
    first = getattr(options[0], "key", options[0]) if options else ""
    value = shown.options.get("default")
    value = first if value is None else value
    text = {True: "on", False: "off"}.get(value, str(value)) if isinstance(value, bool) else str(value)
    text = text.splitlines()[0] if text else ""
    return text if len(text) <= CHARACTERS else text[: CHARACTERS - 1] + "…"


def _text(x: int, y: int, text: str, colour: str, anchor: str = "start", size: int = 13) -> str:
    place = f'x="{x}" y="{y}" fill="{colour}" font-size="{size}" text-anchor="{anchor}"'
    return f"<text {place}>{escape(text)}</text>"


def _socket(x: int, y: int, io_type: str) -> str:
    return f'<circle cx="{x}" cy="{y}" r="5" fill="{COLOURS.get(io_type, OTHER)}"/>'


def _widget(shown: Any, y: int) -> tuple[list[str], int]:
    """The parts of a widget whose top is at `y`, and its height."""
    large = bool(shown.options.get("multiline"))
    height = TEXT_BOX if large else ROW
    parts = [
        f'<rect x="12" y="{y + 2}" width="{WIDTH - 24}" height="{height - 4}" rx="{6 if large else 10}" fill="#222"/>',
        _text(24, y + 16, _words(shown.id), "#999"),
        _text(WIDTH - 24, y + 16, _value(shown), "#ddd", "end"),
    ]
    return parts, height


def picture(node: Any) -> str:
    """The node as SVG: title, sockets, and the widgets that are seen at once with what they hold at first."""
    schema = node.define_schema()
    sockets = [one for one in schema.inputs if one.io_type not in WIDGETS]
    widgets = [one for one in schema.inputs if one.io_type in WIDGETS]
    seen = [one for one in widgets if not one.options.get("advanced")]
    parts, y = [], TITLE + 6
    for row in range(max(len(sockets), len(schema.outputs))):
        middle = y + ROW // 2
        if row < len(sockets):
            name = _words(sockets[row].id) + (" (optional)" if sockets[row].optional else "")
            parts += [_socket(10, middle, sockets[row].io_type), _text(22, middle + 4, name, "#ccc")]
        if row < len(schema.outputs):
            output = schema.outputs[row]
            parts += [
                _socket(WIDTH - 10, middle, output.io_type),
                _text(WIDTH - 22, middle + 4, _words(output.display_name or output.id), "#ccc", "end"),
            ]
        y += ROW
    for shown in seen:
        drawn, height = _widget(shown, y)
        parts += drawn
        y += height
    if len(seen) < len(widgets):
        parts.append(
            _text(WIDTH // 2, y + 16, f"{len(widgets) - len(seen)} more behind Advanced", "#888", "middle", 12)
        )
        y += ROW
    height = y + 8
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
            ' font-family="Arial, sans-serif">',
            f'<rect width="{WIDTH}" height="{height}" rx="10" fill="#353535"/>',
            f'<path d="M0 {TITLE} V10 Q0 0 10 0 H{WIDTH - 10} Q{WIDTH} 0 {WIDTH} 10 V{TITLE} Z" fill="#2a2a2a"/>',
            _text(14, 22, schema.display_name, "#eee", size=15),
            *parts,
            "</svg>",
            "",
        ]
    )


def main() -> None:
    PICTURES.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as monkeypatch, tempfile.TemporaryDirectory() as folder:
        fake_comfy.install(monkeypatch, Path(folder))
        for node in fake_comfy.load_pack().nodes.NODES:
            PICTURES.joinpath(f"{node.define_schema().node_id}.svg").write_text(picture(node), encoding="utf-8")


if __name__ == "__main__":
    main()
