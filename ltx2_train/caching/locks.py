"""Locks in cache folders, so that several processes can fill one folder, each cache is made once, and none is torn.

Whoever makes a cache first claims it: a lock of the operating system on a small hidden file beside it, which ends with
the process that holds it, however that ends. So nothing has to be guessed from ages or process numbers; a file that a
killed process left behind is not locked and keeps nobody waiting. The holder's name lies in a second file, for people.

A folder that cannot be locked (read only, some network drives) is used without, and the user is told once.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ..events import Events
from ..files import sweep
from ..locks import LOCK, PREFIX, lock_file, locked, release_lock

if TYPE_CHECKING:
    from filelock import BaseFileLock

OWNER = ".by"
POLL = 0.2  # seconds between two looks at what somebody else is making


class Claims:
    """What this process is making, so that no other one does. A context manager; at its end all is free again."""

    def __init__(self, events: Events | None = None) -> None:
        self._events = events or Events()
        self._held: dict[Path, BaseFileLock | None] = {}
        self._unlocked: set[Path] = set()
        self._told: set[Path] = set()

    def __enter__(self) -> Claims:
        return self

    def __exit__(self, *error: object) -> None:
        for path in list(self._held):
            self.free(path)

    def take(self, path: Path) -> bool:
        """Claim `path`, unless it is claimed already, by whomever. It is a name and need not be a file."""
        if path in self._held:
            return False
        lock = None
        if path.parent not in self._unlocked:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                lock = locked(lock_file(path))
                if lock is None:
                    return False
                with contextlib.suppress(OSError):
                    _owner_file(path).write_text(_myself(), encoding="utf-8")
            except (OSError, NotImplementedError) as error:
                self._go_without(path.parent, error)
        self._held[path] = lock
        return True

    def free(self, path: Path) -> None:
        """Give a claim back."""
        lock = self._held.pop(path)
        if lock is not None:
            with contextlib.suppress(OSError):
                _owner_file(path).unlink()
            release_lock(lock)

    def wait(self, path: Path, what: str = "") -> None:
        """Some time until `path` is worth another try; says once for whom. Raises Stopped on request."""
        if path not in self._told:
            self._told.add(path)
            self._events.message(f"Waiting for {_owner(path)}, which is making {what or path.name}.")
        self._events.check_stop()
        time.sleep(POLL)

    def take_or_wait(self, path: Path, what: str = "") -> None:
        """Claim `path`, after whoever holds it now. Nothing else may be held, or two could wait for each other."""
        assert not self._held, self._held
        while not self.take(path):
            self.wait(path, what)

    def _go_without(self, folder: Path, error: Exception) -> None:
        if not self._unlocked:
            reason = getattr(error, "strerror", None) or error
            self._events.message(
                f"Files in {folder} cannot be locked ({reason}). The caches are made all the same; let only one "
                "program at a time fill this folder.",
                "warning",
            )
        self._unlocked.add(folder)


def tidy(folders: Iterable[Path]) -> None:
    """Delete what killed processes left in cache folders: locks that nobody holds, and files half written long ago."""
    for folder in set(folders):
        sweep(folder)
        with contextlib.suppress(OSError, NotImplementedError):
            left = [Path(entry.path) for entry in os.scandir(folder) if entry.name.startswith(".")]
            for path in left:
                if path.name.startswith(PREFIX) and path.suffix == LOCK:
                    lock = locked(path)
                    if lock is not None:
                        path.with_suffix(OWNER).unlink(missing_ok=True)
                        release_lock(lock)


def _owner_file(path: Path) -> Path:
    return lock_file(path).with_suffix(OWNER)


def _myself() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def _owner(path: Path) -> str:
    with contextlib.suppress(OSError, ValueError):
        return _owner_file(path).read_text(encoding="utf-8").strip() or "another process"
    return "another process"
