"""When a node has to run again: always where what it looks at is not known, once where what it wrote changed."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any

from .. import ltx2_train as core
from ..ltx2_train.errors import CheckpointError
from ..ltx2_train.files import digest

NEVER = (-1, -1)  # the mark of no file

Mark = tuple[int, int] | None

# by what was asked for: a node with its widgets, or the folder of a run
_files: dict[Hashable, dict[Path, Mark]] = {}  # what was written, as it was left
_times: dict[Hashable, int] = {}  # how often that was found changed
_asked: dict[str, str] = {}  # number of a node -> what it was last asked for
_ours: set[Path] = set()  # all that was written


def always() -> float:
    """What makes ComfyUI run a node at each press: a number that equals nothing.

    A new one each time, since math.nan is one object, and a tuple that holds it equals another that does.
    """
    return float("nan")


def compared(node: str | None, given: Mapping[str, Any], *stamps: Any) -> Any:
    """What ComfyUI compares of `node` with the widgets `given`: it changes with the `stamps` of what the node reads,
    and when what it wrote for them (see `keep_made`) is gone or is another."""
    key = _asked[str(node)] = f"{node} {digest(repr(sorted(given.items())))}"
    # a NaN inside a list may be equal to itself, and would hide what is not known
    return next((mark for mark in stamps if isinstance(mark, float)), [times_changed(key), *stamps])


def keep_made(node: str | None, paths: Iterable[Path | None]) -> None:
    """Remember what `node` has just written for what it was last asked for."""
    keep_files(_asked.get(str(node), str(node)), [path for path in paths if path is not None])


def keep_files(key: Hashable, paths: Iterable[Path], complete: bool = True) -> None:
    """Remember what was just written for `key`; what is not `complete` counts as changed."""
    files = {path: _mark(path) for path in paths}
    for others in _files.values():  # the same was written again
        others.update((path, mark) for path, mark in files.items() if path in others)
    _ours.update(files)
    _files[key] = files if complete else {**files, Path(): NEVER}


def times_changed(key: Hashable, good: Callable[[], bool] = lambda: True) -> int:
    """A number that changes when a file that was kept for `key` is gone or is another, or they are not
    `good` any more; part of what ComfyUI compares."""
    files = _files.get(key)
    if files is not None and not (good() and all(_mark(path) == mark for path, mark in files.items())):
        del _files[key]
        _times[key] = _times.get(key, 0) + 1
    return _times.get(key, 0)


def make_way(path: Path) -> None:
    """Remove a weight file that a node wrote to `path` and that has been damaged since, so that it is written anew."""
    if path not in _ours or not path.is_file():
        return
    try:
        core.probe(path)
    except CheckpointError:
        path.unlink()


def _mark(path: Path) -> Mark:
    """What changes when the file does; None where there is none."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns
