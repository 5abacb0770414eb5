"""A file system that refuses: every change below a folder is counted, and the one that is asked for fails.

What can fail: making files and folders, opening to write, appending, flushing, renaming, linking and deleting.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import tempfile
from collections.abc import Callable, Collection
from pathlib import Path

Decide = Callable[[int], BaseException | None]
ALL = ("folder", "make", "open", "write", "flush", "rename", "link", "delete")
NO_SPACE = ("make", "open", "write", "flush")


class Killed(BaseException):
    """The process ends here: nothing that would tidy up can be done either."""


class Refusing:
    """`decide(number)` gives the error that change `number` (from 0) meets, or None. `changes` lists what was tried.

    `kinds` are the changes that are counted; what is not counted works, until the process is killed.
    """

    def __init__(self, monkeypatch, root: Path, decide: Decide = lambda number: None, kinds: Collection[str] = ALL):
        self.root, self.decide, self.kinds = str(root), decide, kinds
        self.dead = False
        self.changes: list[tuple[str, str]] = []
        self.failed: list[str] = []
        mkstemp, replace, link, unlink, mkdir = tempfile.mkstemp, os.replace, os.link, os.unlink, os.mkdir
        fsync, plain_open = os.fsync, builtins.open

        def refusing_open(file, mode="r", *args, **kwargs):
            writes = isinstance(file, (str, os.PathLike)) and set(mode) & set("wax+")
            if writes:
                self.change("open", file)
            handle = plain_open(file, mode, *args, **kwargs)
            return _Appending(handle, self, file) if writes and isinstance(handle, io.FileIO) else handle

        def refusing_mkstemp(suffix=None, prefix=None, dir=None, text=False):
            self.change("make", os.path.join(dir or "", prefix or ""))
            return mkstemp(suffix, prefix, dir, text)

        def refusing_fsync(handle):
            self.change("flush", os.readlink(f"/proc/self/fd/{handle}"))
            fsync(handle)

        def of(kind, function, which=0):
            def refusing(*paths, **options):
                self.change(kind, paths[which])
                return function(*paths, **options)

            return refusing

        for module in (builtins, io):
            monkeypatch.setattr(module, "open", refusing_open)
        monkeypatch.setattr(tempfile, "mkstemp", refusing_mkstemp)
        monkeypatch.setattr(os, "fsync", refusing_fsync)
        monkeypatch.setattr(os, "replace", of("rename", replace, 1))
        monkeypatch.setattr(os, "link", of("link", link, 1))
        monkeypatch.setattr(os, "unlink", of("delete", unlink))
        monkeypatch.setattr(os, "mkdir", of("folder", mkdir))

    def change(self, kind: str, path) -> None:
        """Count a change of `path`, and fail if it is the one."""
        path = os.fspath(path)
        if not isinstance(path, str) or not os.path.abspath(path).startswith(self.root):
            return
        if self.dead:
            raise Killed
        if kind not in self.kinds:
            return
        number = len(self.changes)
        self.changes.append((kind, os.path.relpath(path, self.root)))
        error = self.decide(number)
        if error is not None:
            self.failed.append(f"{kind} {path}")
            self.dead = isinstance(error, Killed)
            raise error if self.dead else refusal(kind)


class _Appending:
    """A raw file whose writes are counted; everything else is the file's."""

    def __init__(self, file: io.FileIO, system: Refusing, path) -> None:
        self._file, self._system, self._path = file, system, path

    def write(self, data) -> int | None:
        self._system.change("write", self._path)
        return self._file.write(data)

    def __getattr__(self, name: str):
        return getattr(self._file, name)

    def __enter__(self):
        self._file.__enter__()
        return self

    def __exit__(self, *error):
        return self._file.__exit__(*error)


def refusal(kind: str) -> OSError:
    """What a system says: no space where something grows, another program's hold where something is replaced."""
    number = errno.ENOSPC if kind in NO_SPACE else errno.EACCES
    return OSError(number, os.strerror(number))


def once(at: int) -> Decide:
    """Change `at` is refused, and no other."""
    return lambda number: OSError() if number == at else None


def for_good(at: int) -> Decide:
    """Change `at` is refused, and all after it."""
    return lambda number: OSError() if number >= at else None


def killed(at: int) -> Decide:
    """The process is killed before change `at`."""
    return lambda number: Killed() if number >= at else None
