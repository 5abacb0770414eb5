"""Notes on files, kept beside the caches: what could not be made, and what was found damaged.

A note is about a file as it is now, by size and time, and is void once the file changes.

FAILED   "ltx2_failed.json": caches that cannot be made; about the medium. Training leaves out what caching did, instead
         of asking for its caches.
DAMAGED  "ltx2_damaged.json": caches that hold numbers that are not finite, or cannot be read as a whole; about the
         cache itself. Looking at caches before training reads their headers alone, so whoever finds such a file notes
         it; from then on it is stale, and is made again like any other.
"""

from __future__ import annotations

import contextlib
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..dataset.sources import source_stat
from ..errors import RunError
from ..files import parse_json, write_json
from ..locks import alone


@dataclass(frozen=True)
class Notes:
    """The notes in the file `file` of each cache folder. One that cannot be read or written remembers nothing.

    `of_caches`: the notes are about the caches of those names; a note on one that was made again is dropped.
    """

    file: str
    of_caches: bool = False

    def put(self, folder: Path, name: str, reason: str, about: Path) -> None:
        """Remember `reason` under `name`, for as long as `about` stays as it is."""
        with contextlib.suppress(OSError, RunError):
            size, mtime_ns = source_stat(about)
            with alone(folder):
                table = _read(folder / self.file)
                if self.of_caches:
                    table = {name: row for name, row in table.items() if _fits(folder / name, row)}
                table[name] = {"reason": reason, "size": size, "mtime_ns": mtime_ns}
                write_json(folder / self.file, table)

    def get(self, folder: Path, name: str, about: Path) -> str | None:
        """What was noted under `name`, if `about` is still the same."""
        notes = folder / self.file
        try:
            stat = notes.stat()
        except OSError:
            return None
        row = _known(notes, stat.st_ino, stat.st_mtime_ns).get(name)
        return str(row.get("reason")) if isinstance(row, dict) and _fits(about, row) else None


FAILED = Notes("ltx2_failed.json")
DAMAGED = Notes("ltx2_damaged.json", of_caches=True)
UNREADABLE = "damaged"  # why a cache is stale whose header cannot be read


def note_damage(path: Path, reason: str) -> None:
    """Remember why the cache `path`, as it is now, is of no use."""
    DAMAGED.put(path.parent, path.name, reason, path)


def damage(path: Path) -> str | None:
    """Why the cache `path`, as it is now, is of no use; None where nobody has found anything."""
    return DAMAGED.get(path.parent, path.name, path)


def is_damage(path: Path, stale: str) -> bool:
    """Whether the cache `path` is `stale` for damage, not for what it was made from."""
    return stale == UNREADABLE or stale == damage(path)


@functools.lru_cache(maxsize=64)
def _known(notes: Path, inode: int, mtime_ns: int) -> dict[str, Any]:
    return _read(notes)


def _read(notes: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        table = parse_json(notes.read_text(encoding="utf-8"))
        return table if isinstance(table, dict) else {}
    return {}


def _fits(path: Path, row: Any) -> bool:
    """Whether `path` is still what a note was made about."""
    try:
        size, mtime_ns = source_stat(path)
    except OSError:
        return False
    return isinstance(row, dict) and (row.get("size"), row.get("mtime_ns")) == (size, mtime_ns)
