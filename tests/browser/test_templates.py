"""Our example workflows in ComfyUI's templates dialog: each with its picture, in the order of their numbers."""

from __future__ import annotations

import re

from comfy_server import PACK, ROOT

NAMES = sorted(path.stem for path in (ROOT / "example_workflows").glob("*.json"))
CARDS = re.compile(r"^\d\d_[a-z_]+$")


def test_the_templates_dialog_shows_our_workflows_with_pictures_in_order(page, tmp_path):
    page.evaluate("() => app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    page.get_by_text(PACK, exact=True).first.click()
    cards = page.get_by_text(CARDS)
    for place in range(len(NAMES)):  # the dialog draws what comes into view
        cards.nth(place).scroll_into_view_if_needed()
        page.wait_for_timeout(100)
    assert [text for text in cards.all_inner_texts() if text in NAMES] == NAMES
    seen = "() => [...document.querySelectorAll('img')].filter((one) => one.naturalWidth === 960).length"
    page.wait_for_function(f"() => ({seen})() === {len(NAMES)}", timeout=20_000)
    page.screenshot(path=tmp_path / "templates.png")
