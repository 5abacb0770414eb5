"""A picture of each example workflow for ComfyUI's templates dialog, taken of the real page:
`COMFYUI_PATH=... PYTHONPATH=.:tests python tests/workflow_pictures.py [NAME ...]` in the top folder.

The dialog looks for NAME.jpg beside NAME.json.
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path
from typing import Any

from comfy_server import ROOT, ComfyServer
from PIL import Image

FOLDER = ROOT / "example_workflows"
SIZE = (960, 640)  # pixels; as wide as the pictures of ComfyUI's own templates
MOST_BYTES = 100_000
# the whole graph in the middle of the page, without what lies over it; models that this machine has not are no fault of
# the workflow
ALONE = """([width, height]) => {
  const seen = "#graph-canvas, .dom-widget"
  const hide = (one) => {
    if (one.matches(seen)) return
    if (one.querySelector(seen)) [...one.children].forEach(hide)
    else one.style.opacity = 0 // what is made visible inside of it too
  }
  hide(document.body)
  const boxes = app.graph.nodes.map((node) => node.getBounding())
  const left = Math.min(...boxes.map((box) => box[0]))
  const top = Math.min(...boxes.map((box) => box[1]))
  const right = Math.max(...boxes.map((box) => box[0] + box[2]))
  const bottom = Math.max(...boxes.map((box) => box[1] + box[3]))
  const scale = Math.min((width - 80) / (right - left), (height - 80) / (bottom - top), 1.8)
  app.canvas.show_info = false
  app.canvas.ds.scale = scale
  app.canvas.ds.offset = [(width / scale - left - right) / 2, (height / scale - top - bottom) / 2]
  for (const node of app.graph.nodes) {
    node.has_errors = false
    for (const input of node.inputs ?? []) input.hasErrors = false
  }
  app.canvas.setDirty(true, true)
}"""


def take(page: Any, name: str) -> bytes:
    """The workflow `name` as a JPEG of SIZE."""
    text = (FOLDER / f"{name}.json").read_text(encoding="utf-8")
    page.evaluate("async (text) => await app.loadGraphData(JSON.parse(text))", text)
    page.wait_for_timeout(1000)
    page.evaluate(ALONE, [2 * side for side in SIZE])
    page.wait_for_timeout(1000)
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB").resize(SIZE, Image.Resampling.LANCZOS)
    for quality in (85, 75, 65, 55):
        held = io.BytesIO()
        picture.save(held, "JPEG", quality=quality, optimize=True)
        if len(held.getvalue()) < MOST_BYTES:
            break
    return held.getvalue()


def main(names: list[str]) -> None:
    from browser.conftest import ARGUMENTS, CHROMIUM, READY
    from playwright.sync_api import sync_playwright

    names = names or sorted(path.stem for path in FOLDER.glob("*.json"))
    with (
        tempfile.TemporaryDirectory() as base,
        ComfyServer(Path(base)) as server,
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS) as chromium,
    ):
        page = chromium.new_page(viewport={"width": SIZE[0] * 2, "height": SIZE[1] * 2}, locale="en-US")
        for name in names:
            page.goto(server.url)
            page.wait_for_function(READY)
            FOLDER.joinpath(f"{name}.jpg").write_bytes(take(page, name))


if __name__ == "__main__":
    main(sys.argv[1:])
