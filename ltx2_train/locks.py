"""Locks of the operating system on small hidden files; they end with the process that holds them, however it ends."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from .files import digest

if TYPE_CHECKING:
    from filelock import BaseFileLock

PREFIX, LOCK = ".ltx2_", ".lock"
_SHARED = "shared"


@contextlib.contextmanager
def alone(folder: Path, seconds: float = 10.0) -> Iterator[None]:
    """For the moment in which a small shared file in `folder` is read, changed and written again.

    After `seconds`, or where nothing can be locked, it goes on without the lock.
    """
    lock = None
    if folder.is_dir():
        with contextlib.suppress(OSError, NotImplementedError):
            lock = locked(lock_file(folder / _SHARED), seconds)
    try:
        yield
    finally:
        if lock is not None:
            release_lock(lock)


def lock_file(path: Path) -> Path:
    return path.with_name(PREFIX + digest(path.name) + LOCK)


def locked(file: Path, seconds: float = 0.0) -> BaseFileLock | None:
    """The lock on `file`; None where somebody else has it. Raises OSError where it cannot be locked at all."""
    from filelock import FileLock, Timeout

    lock = FileLock(str(file))
    try:
        lock.acquire(timeout=seconds, poll_interval=0.02)
    except Timeout:
        return None
    return lock


def release_lock(lock: BaseFileLock) -> None:
    # Deleted while it is held: whoever opened it in the meantime finds that it is gone, and tries again. Windows does
    # not delete open files; there the library does it, after the lock was given back.
    if os.name == "posix":
        with contextlib.suppress(OSError):
            os.unlink(lock.lock_file)
    with contextlib.suppress(OSError):
        lock.release()
