"""What tests of ComfyUI's page do alike: look at it, and see what it would send."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

# sets a widget of the node of a type, as a click would
CHOOSE = """([type, name, value]) => {
  const widget = app.graph.nodes.find((node) => node.type === type).widgets.find((widget) => widget.name === name)
  widget.value = value
  widget.callback?.(value)
}"""


def look(page: Any, name: str) -> None:
    """A picture for whoever wants to look, where LOOK_AT names a folder."""
    if folder := os.environ.get("LOOK_AT"):
        page.wait_for_timeout(700)
        page.screenshot(path=str(Path(folder, f"{name}_{page.renderer.replace(' ', '_')}.png")))


def sent(page: Any, type_: str) -> dict[str, Any]:
    """The inputs that the page would send for the node of a type."""
    prompt = page.evaluate("async () => (await app.graphToPrompt()).output")
    return next(node["inputs"] for node in prompt.values() if node["class_type"] == type_)
