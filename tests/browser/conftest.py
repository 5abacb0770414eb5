"""A real ComfyUI with tiny models, and its page in headless Chromium."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from comfy_server import ComfyServer, why_not

CHROMIUM = os.environ.get("CHROMIUM_PATH") or shutil.which("chromium") or shutil.which("google-chrome") or ""
ARGUMENTS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
# the page opens a workflow of its own at first, and would put it over one that a test loads before
READY = """() => window.app?.extensionManager?.workflow?.activeWorkflow?.isLoaded
  && window.LiteGraph?.registered_node_types["LTX2T_TrainLoRA"]"""
# what ComfyUI's own page asks for and does not find in a fresh folder
HARMLESS = ("user.css", "userdata", "comfy.templates.json", "/docs/", "favicon")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)
            item.add_marker(pytest.mark.slow)


def _why_not() -> str:
    if reason := why_not():
        return reason
    try:
        import playwright  # noqa: F401
    except ImportError:
        return "playwright is not installed"
    return "" if CHROMIUM else "no Chromium found; name one by CHROMIUM_PATH"


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    if reason := _why_not():
        pytest.skip(reason)
    tiny, clip = request.getfixturevalue("tiny"), request.getfixturevalue("drawn_clip")
    base = tmp_path_factory.mktemp("comfyui")
    for source, place in (
        (tiny.checkpoint, "models/checkpoints/ltx-2.3-22b-dev.safetensors"),  # the names the workflow gives
        (tiny.text_encoder, "models/text_encoders/gemma_3_12B_it.safetensors"),
        (clip, "input/ball/clip.mp4"),
    ):
        (base / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, base / place)
    (base / "input/ball/clip.txt").write_text("a red ball bounces")
    with ComfyServer(base) as running:
        yield running


@pytest.fixture(scope="session")
def browser(server):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture(params=["classic", "nodes 2.0"])
def page(request, server, browser):
    """The page with our extension set up, once with each kind of node; its complaints are collected in `page.wrong`."""
    server.post("/settings", {"Comfy.VueNodes.Enabled": request.param == "nodes 2.0"})
    page = browser.new_page(viewport={"width": 1700, "height": 1000}, locale="en-US")
    page.wrong = []
    page.on("pageerror", lambda error: page.wrong.append(str(error)))
    page.on("console", lambda message: "Unhandled message" in message.text and page.wrong.append(message.text))
    page.on(
        "response",
        lambda answer: (
            answer.status >= 400
            and "ltx2" in answer.url
            and not any(word in answer.url for word in HARMLESS)
            and page.wrong.append(f"{answer.status} {answer.url}")
        ),
    )
    page.renderer = request.param
    page.goto(server.url)
    page.settle = lambda: page.wait_for_function(READY)
    page.settle()
    yield page
    page.close()
    assert page.wrong == []
