"""Our example workflows in ComfyUI's templates dialog: each with its picture, in the order of their numbers."""

from __future__ import annotations

import re

from comfy_server import PACK, ROOT
from workflow_pictures import SIZE

NAMES = sorted(path.stem for path in (ROOT / "example_workflows").glob("*.json"))
CARDS = re.compile(r"^\d\d_[a-z_]+$")
# the width of the picture that stands over a title, 0 until it is there
WIDTH = """(title) => {
  let box = title
  while (box && !box.querySelector("img")) box = box.parentElement
  return box?.querySelector("img").naturalWidth ?? 0
}"""


def test_the_templates_dialog_shows_our_workflows_with_pictures_in_order(page, tmp_path):
    page.evaluate("() => app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    page.get_by_text(PACK, exact=True).first.click()
    cards = page.get_by_text(CARDS)
    cards.first.wait_for()
    for place in range(len(NAMES)):  # the dialog loads what comes into view
        cards.nth(place).scroll_into_view_if_needed()
        for _ in range(100):
            if cards.nth(place).evaluate(WIDTH) == SIZE[0]:
                break
            page.wait_for_timeout(100)
        assert cards.nth(place).evaluate(WIDTH) == SIZE[0], NAMES[place]
    assert [text for text in cards.all_inner_texts() if text in NAMES] == NAMES
    page.screenshot(path=tmp_path / "templates.png")
