"""What the page shows of a node: its live view, progress and text, sent as the core reports them.

The views of this process are served to a page that is opened in the middle of a run.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...ltx2_train.events import Events
from ..live import LiveView, json_safe
from ..sent import note_values
from ..words import in_widget_words
from .folders import view_address
from .memory import DeviceShare, device_memory
from .rest import add_run_routes

logger = logging.getLogger("ltx2_trainer")

EVENT_SECONDS = 0.5
WARNED = 3  # warnings that stand below the last word
MOST_LINES = 30  # of all that is told of a dataset there
_RANKS = {"left out": 0, "caption": 1, "count": 3}  # what matters first of what is told of a dataset; others are 2
PICTURE_SECONDS = 4.0

_views: dict[str, LiveView] = {}
_pages: set[str] = set()
_lock = threading.Lock()


class ComfyEvents(Events):
    """Shows on one node what the core does, and tells the core what ComfyUI wants.

    `widget` says that the page draws a live view in this node; a client that has not opened our page gets pictures
    and text instead. At most two messages a second are sent.
    """

    def __init__(self, node: str | None, title: str = "", widget: bool = False, clock: Any = time.monotonic) -> None:
        self.view = LiveView(str(node or ""), title, clock)
        self._widget = widget
        self._clock = clock
        self._sent = self._pictured = -math.inf
        self._share = DeviceShare()
        self._warnings: list[str] = []
        self._told: dict[str, int] = {}  # what was told of a dataset or warned of, by how much it matters
        if node is not None:
            with _lock:
                _views.pop(self.view.node, None)  # the newest is the last
                _views[self.view.node] = self.view

    # What the core tells.

    def stage(self, name: str, total: int | None = None) -> None:
        logger.info("%s%s", name, f" ({total})" if total else "")
        self.view.begin(name, total)
        self._show(now=True)

    def progress(self, done: int, total: int, text: str = "") -> None:
        self.view.progress(done, total, text)
        self._show(now=done >= total)

    def step(self, metrics: dict[str, Any]) -> None:
        self.view.step(metrics)
        self._show()

    def sample(self, path: Path, info: dict[str, Any]) -> None:
        self.view.sample_file = path
        self.view.sample = {**info, "file": view_address(path)}
        self.view.mark("sample", info.get("step"))
        logger.info("sample: %s", path)
        self._pictured = -math.inf
        if self._widget:
            about = {"node": self.view.node, "title": self.view.title, "sample": self.view.sample}
            self._send("ltx2_train.sample", about)
        self._show(now=True)

    def saved(self, kind: str, path: Path) -> None:
        if kind == "lora":
            self.view.mark("save", self.view.metrics.get("step"))
        logger.info("saved %s: %s", kind, path)

    def message(self, text: str, level: str = "info") -> None:
        kind = getattr(text, "kind", "")  # which what is told of a dataset has
        text = in_widget_words(text)
        if level == "warning":
            self._warnings.append(text)
        if level == "warning" or kind:
            self._told.setdefault(text, _RANKS.get(kind, 2))
        logger.log(logging.WARNING if level == "warning" else logging.INFO, "%s", text)
        self.view.say(text, level == "warning")
        self._show(now=level == "warning" or bool(self.view.waits))  # nothing else comes while a run waits

    def told(self, text: str) -> list[str]:
        """All that was told of a dataset or warned of and that `text` has not, what matters most first."""
        return [said for said in sorted(self._told, key=self._told.__getitem__) if said not in text]

    def with_told(self, summary: str) -> str:
        """`summary` of a dataset with all that was told of it below; it names itself what is left out."""
        return "\n".join([summary, *(said for said in self.told(summary) if self._told[said])])

    def finish(self, state: str, text: str, of_dataset: bool = False) -> None:
        """The last word: `state` is finished, stopped or failed. What was warned of stands below it: the newest, or
        `of_dataset` all that was told, as far as there is room."""
        text = in_widget_words(text)
        if state == "finished":
            text = "\n".join([text, *(self._of_dataset(text) if of_dataset else self._newest(text))])
        self.view.state, self.view.message, self.view.waits = state, text, ""
        self.view.sample_file = None
        self._show(now=True, last=text)

    def _newest(self, text: str) -> list[str]:
        """The newest warnings, which say how it ended; what `text` tells already is not said twice."""
        told = [said for said in dict.fromkeys(reversed(self._warnings)) if said not in text]
        more = [f"... and {len(told) - WARNED} before, in the log"] if len(told) > WARNED else []
        return [*more, *told[:WARNED][::-1]]

    def _of_dataset(self, text: str) -> list[str]:
        """All that was told, but for what matters least of very much."""
        told, lines = self.told(text), 0
        for number, said in enumerate(told):
            lines += said.count("\n") + 1
            if lines > MOST_LINES:
                return [*told[:number], f"... and {len(told) - number} more, in the log"]
        return told

    def shown(self) -> dict[str, Any]:
        """The view as it stands, for what a node leaves on the page."""
        return json_safe(self.view.payload())

    # What the core asks.

    def should_stop(self) -> bool:
        import comfy.model_management as management

        # The flag is only looked at: consuming it is left to training_job, once everything is saved.
        return bool(management.processing_interrupted())

    def make_room(self, needed: int, device: Any, ram: int = 0) -> None:
        self._share.make_room(needed, device, ram)

    def kept_free(self, device: Any) -> int | None:
        return self._share.kept_free(device)

    def may_lock(self) -> int | None:
        return self._share.may_lock()

    def locked(self, nbytes: int) -> None:
        self._share.lock(nbytes)

    def holding(self, owner: Any, needed: int, device: Any) -> None:
        self._share.hold(owner, needed, device)

    def close(self) -> None:
        """Take what is still registered off ComfyUI's list and give the memory back.

        What does not say afterwards how it ended has ended all the same.
        """
        self._share.close()
        if self.view.state == "running":
            self.view.state = "stopped"

    # Sending.

    def _show(self, now: bool = False, last: str = "") -> None:
        moment = self._clock()
        if not self.view.node or (not now and moment - self._sent < EVENT_SECONDS):
            return
        self._sent = moment
        self.view.memory = device_memory()
        page = self._widget and _page_is_open()
        picture = None
        if not page and self._widget and moment - self._pictured >= PICTURE_SECONDS:
            self._pictured = moment
            picture = self.view.picture()
        _progress(self.view.node, self.view.done, self.view.total, picture)
        if not page:
            _text(self.view.node, last or self.view.status_line())
        if self._widget:
            self._send("ltx2_train.step", self.view.payload())

    def _send(self, event: str, data: Mapping[str, Any]) -> None:
        if self.view.node and (server := _server()) is not None:
            server.send_sync(event, json_safe(data), None)  # to every page: a reloaded one has another id


def add_routes() -> None:
    """Serve the live views, so that a page opened in the middle of a run shows it at once."""
    server = _server()
    if server is None:
        return
    from aiohttp import web

    @server.routes.get("/ltx2_train/live")
    async def live(request: web.Request) -> web.Response:
        if client := request.query.get("client"):
            _pages.add(client)
        with _lock:
            views = list(_views.values())
        return web.json_response({view.node: json_safe(view.payload()) for view in views})

    add_run_routes(server.routes)
    server.add_on_prompt_handler(note_values)


def _server() -> Any:
    try:
        from server import PromptServer
    except ImportError:
        return None
    return getattr(PromptServer, "instance", None)


def _page_is_open() -> bool:
    server = _server()
    return server is not None and getattr(server, "client_id", None) in _pages


def _progress(node: str, done: int, total: int | None, picture: Any) -> None:
    # Not comfy.utils.ProgressBar: it raises on an interrupt and clears the flag, before the core could save.
    from comfy_execution.progress import get_progress_state

    image = None if picture is None else ("JPEG", picture, None)
    get_progress_state().update_progress(node, float(done), float(total or 1), image)


def _text(node: str, text: str) -> None:
    if (server := _server()) is not None:
        server.send_progress_text(_harmless(text), node)


def _harmless(text: str) -> str:
    """`text` as the page can show it, which takes it for HTML: a caption or the name of a file must not be run.

    Nodes 2.0 takes it for Markdown, where a line ends after two spaces only.
    """
    return text.replace("<", "\u2039").replace(">", "\u203a").replace("[[", "[ [").replace("\n", "  \n")


def preview(path: Path, picture: Path | None = None) -> dict[str, Any]:
    """What a node returns so that the page shows a file of the output folder in it.

    `picture` is shown for a sound, which the page plays in nodes of its own only.
    """
    address = view_address(path)
    if address is None:
        return {}
    if path.suffix.lower() in (".wav", ".flac"):
        seen = None if picture is None else view_address(picture)
        return {"audio": [address], **({} if seen is None else {"images": [seen], "animated": (False,)})}
    return {"images": [address], "animated": (path.suffix.lower() != ".png",)}


def preview_all(pictures: Sequence[Path]) -> dict[str, Any]:
    """What a node returns so that the page shows several pictures of the output folder in it."""
    seen = [address for path in pictures if (address := view_address(path)) is not None]
    return {"images": seen, "animated": (False,)} if seen else {}
