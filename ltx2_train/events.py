"""The seam to whoever runs the core: a terminal, a ComfyUI node, a test.

The core never prints. It tells an `Events` object what it does and asks it whether to stop, whether the host can make
room, and what it leaves of card and RAM. `Events` itself ignores everything, so it is both the
interface and the silent implementation; a host overrides the methods it cares for.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from .errors import Stopped, TrainerError

T = TypeVar("T")
logger = logging.getLogger(__name__)


class Events:
    """Receives progress. All methods are called from the thread that called the core, never concurrently."""

    def stage(self, name: str, total: int | None = None) -> None:
        """A new stage begins, for example "encode video"; `total` counts its units of work where known.

        The same stage again: what took time until now was no work of it, such as loading its model.
        """

    def progress(self, done: int, total: int, text: str = "") -> None:
        """`done` of `total` units of the current stage are finished; `text` names the one at hand.

        Units take about equally long, so that the time left can be told from them. Where what is done is of unlike
        size, they are parts of the work (bytes, or parts of a million); a total of a million or more is no count that
        people would want to read, and `text` has one.
        """

    def step(self, metrics: dict[str, Any]) -> None:
        """One optimizer step is done. `metrics` is the row written to metrics.jsonl: plain numbers, str and None."""

    def sample(self, path: Path, info: dict[str, Any]) -> None:
        """A sample was written: `path` is an mp4, png, wav or flac; `info` holds prompt, seed, step, strength."""

    def saved(self, kind: str, path: Path) -> None:
        """A file worth knowing was written; `kind` is "lora", "state", "chart" or "report"."""

    def message(self, text: str, level: str = "info") -> None:
        """A sentence for the user; `level` is "info" or "warning"."""

    def should_stop(self) -> bool:
        """True once the user has asked to stop. Polled between units of work, at least once a micro-step."""
        return False

    def make_room(self, needed: int, device: Any, ram: int = 0) -> None:
        """Asked before `needed` bytes are put on `device`, and `ram` bytes in RAM: the host may unload what it holds
        there."""

    def kept_free(self, device: Any) -> int | None:
        """Bytes of `device` that the host leaves free for other programs; None where it has no wish."""
        return None

    def may_lock(self) -> int | None:
        """Bytes of RAM that may be locked besides what the host has locked; None where it knows no limit."""
        return None

    def locked(self, nbytes: int) -> None:
        """The core holds `nbytes` of locked RAM in all from now on."""

    def holding(self, owner: Any, needed: int, device: Any) -> None:
        """`owner` (anything with `to(device)`) now keeps `needed` bytes on `device`; 0 bytes: it no longer does."""

    def check_stop(self, *progress: object) -> None:
        """Raise `Stopped` if the user asked to stop. For stages whose finished units are already on disk.

        Whoever loads something may be given this to tell of its `progress`, which nobody is told.
        """
        if self.should_stop():
            raise Stopped("Stopped on request. Finished items are kept; run again to go on.")

    def heeded(self, items: Iterable[T]) -> Iterator[T]:
        """`items`, each once it was asked whether to stop: a video of many large frames takes long to be written."""
        for item in items:
            self.check_stop()
            yield item


TOLD = ("stage", "progress", "step", "sample", "saved", "message")


class Passing(Events):
    """Passes on to `host` what is told of the kinds `tells`, and all that is asked: the base of every filter."""

    def __init__(self, host: Events, tells: Collection[str] = TOLD) -> None:
        self._host = host
        self._tells = frozenset(tells)

    def stage(self, name: str, total: int | None = None) -> None:
        self._tell("stage", name, total)

    def progress(self, done: int, total: int, text: str = "") -> None:
        self._tell("progress", done, total, text)

    def step(self, metrics: dict[str, Any]) -> None:
        self._tell("step", metrics)

    def sample(self, path: Path, info: dict[str, Any]) -> None:
        self._tell("sample", path, info)

    def saved(self, kind: str, path: Path) -> None:
        self._tell("saved", kind, path)

    def message(self, text: str, level: str = "info") -> None:
        self._tell("message", text, level)

    def should_stop(self) -> bool:
        return self._host.should_stop()

    def make_room(self, needed: int, device: Any, ram: int = 0) -> None:
        self._host.make_room(needed, device, ram)

    def kept_free(self, device: Any) -> int | None:
        return self._host.kept_free(device)

    def may_lock(self) -> int | None:
        return self._host.may_lock()

    def locked(self, nbytes: int) -> None:
        self._host.locked(nbytes)

    def holding(self, owner: Any, needed: int, device: Any) -> None:
        self._host.holding(owner, needed, device)

    def _tell(self, what: str, *arguments: Any) -> None:
        if what in self._tells:
            getattr(self._host, what)(*arguments)


class _Shielded(Passing):
    def __init__(self, host: Events) -> None:
        super().__init__(host)
        self._failed: set[str] = set()

    def _tell(self, what: str, *arguments: Any) -> None:
        try:
            super()._tell(what, *arguments)
        except TrainerError:  # raised on purpose, such as Stopped
            raise
        except Exception:
            if what not in self._failed:
                self._failed.add(what)
                logger.warning("What the core tells its host (%s) fails; the work goes on.", what, exc_info=True)


def shielded(events: Events | None) -> Events:
    """`events`, of which nothing that goes wrong in showing ends the work: a closed terminal, a page that is gone.

    The first failure of each kind is logged. None is silent, as `Events` itself.
    """
    if events is None or type(events) is Events or isinstance(events, _Shielded):
        return events or Events()
    return _Shielded(events)
