"""What a medium was when something was made from it: size, time and content, and whether it is still that."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from stat import S_ISDIR
from typing import Any

from ..threads import heed


def source_stat(path: Path) -> tuple[int, int]:
    """Size and modification time in ns of a medium; of a folder of frames all sizes together and the newest time."""
    stat = path.stat()
    if not S_ISDIR(stat.st_mode):
        return stat.st_size, stat.st_mtime_ns
    inside = [entry.stat() for entry in os.scandir(path) if entry.is_file()]
    return sum(one.st_size for one in inside), max((one.st_mtime_ns for one in inside), default=stat.st_mtime_ns)


def source_record(path: Path) -> dict[str, Any]:
    """Size, modification time and content hash of a medium, as written into metadata."""
    size, mtime_ns = source_stat(path)
    return {"size": size, "mtime_ns": mtime_ns, "sha256": content_hash(path, size, mtime_ns)}


def source_change(record: Mapping[str, Any], path: Path) -> str | None:
    """Why `path` is not what `record` says, or None. The content is read only where nothing but the time differs."""
    try:
        size, mtime_ns = source_stat(path)
    except OSError:
        return None  # training goes on without its sources; what is gone has not changed
    if size != record.get("size"):
        return f"{path.name} changed ({record.get('size')} -> {size} bytes)"
    if mtime_ns != record.get("mtime_ns") and content_hash(path, size, mtime_ns) != record.get("sha256"):
        return f"{path.name} changed (same size, other content)"
    return None


def content_change(record: Mapping[str, Any], path: Path) -> str | None:
    """As `source_change`, where size and time are those of `record`: whether the content is too. Reads all of it."""
    try:
        size, mtime_ns = source_stat(path)
        same = (size, mtime_ns) != (record.get("size"), record.get("mtime_ns"))
        same = same or content_hash(path, size, mtime_ns) == record.get("sha256")
    except OSError:
        return None
    return None if same else f"{path.name} changed (same size and time, other content)"


def copies(paths: Iterable[Path]) -> dict[Path, Path]:
    """Of files that are copies of an earlier one: the file -> the first of its content. Few have to be read."""
    by_size: dict[int, dict[Path, int]] = {}
    for path in paths:
        size, mtime_ns = source_stat(path)
        by_size.setdefault(size, {})[path] = mtime_ns
    of: dict[Path, Path] = {}
    for size, group in by_size.items():
        first: dict[str, Path] = {}
        for path, mtime_ns in group.items() if len(group) > 1 else ():
            original = first.setdefault(content_hash(path, size, mtime_ns), path)
            if original != path:
                of[path] = original
    return of


@functools.lru_cache(maxsize=256)
def content_hash(path: Path, size: int, mtime_ns: int) -> str:
    """SHA-256 of a file. Size and time tell one version from the next, so a source with many windows is read once."""
    sha = hashlib.sha256()
    folder = path.is_dir()
    for part in sorted(one for one in path.iterdir() if one.is_file()) if folder else [path]:
        if folder:
            sha.update(part.name.encode("utf-8", "surrogateescape") + b"\0")
        with open(part, "rb") as file:
            while block := file.read(1 << 20):
                heed()
                sha.update(block)
    return sha.hexdigest()
