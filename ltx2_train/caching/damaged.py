"""Damage that only shows when a cache is read as a whole: numbers that are not finite, data that cannot be read.

Looking at caches before training reads their headers alone. So whoever finds such a file notes it beside the caches,
`ltx2_damaged.json`, by its size and time; from then on it counts as stale, and is made again like any other.
"""

from __future__ import annotations

import contextlib
import functools
from pathlib import Path
from typing import Any

from ..errors import RunError
from ..files import parse_json, write_json

NOTES = "ltx2_damaged.json"


def note_damage(path: Path, reason: str) -> None:
    """Remember why the cache `path`, as it is now, is of no use. A folder that cannot be written remembers nothing."""
    notes = path.parent / NOTES
    with contextlib.suppress(OSError, RunError):
        kept = {name: row for name, row in _read(notes).items() if _fits(path.with_name(name), row)}
        stat = path.stat()
        kept[path.name] = {"reason": reason, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
        write_json(notes, kept)


def damage(path: Path) -> str | None:
    """Why the cache `path`, as it is now, is of no use; None where nobody has found anything."""
    notes = path.parent / NOTES
    try:
        changed = notes.stat().st_mtime_ns
    except OSError:
        return None
    row = _known(notes, changed).get(path.name)
    return str(row.get("reason")) if isinstance(row, dict) and _fits(path, row) else None


@functools.lru_cache(maxsize=64)
def _known(notes: Path, changed: int) -> dict[str, Any]:
    return _read(notes)


def _read(notes: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        table = parse_json(notes.read_text(encoding="utf-8"))
        return table if isinstance(table, dict) else {}
    return {}


def _fits(path: Path, row: Any) -> bool:
    try:
        stat = path.stat()
    except OSError:
        return False
    return isinstance(row, dict) and (row.get("size"), row.get("mtime_ns")) == (stat.st_size, stat.st_mtime_ns)
