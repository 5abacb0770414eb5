"""What was found in media, kept beside the caches, so that a dataset is read again without opening its files.

A medium whose size and time are as they were is taken from the index, `ltx2_media.json`. Timestamps are stored as runs
of equal steps; the seconds are worked out of them again and are the very same numbers, or else stored one by one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import threading
from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import accumulate, chain, groupby, pairwise, repeat
from pathlib import Path
from typing import Any

from ..errors import RunError
from ..files import parse_json, write_text
from ..locks import alone
from ..media.info import MediaInfo
from .sources import source_change

INDEX_NAME = "ltx2_media.json"
VERSION = 12
_LARGEST_DENOMINATOR = 10_000_000
_LISTS = ("remarks", "reading", "damage", "tracks")
_PLAIN = tuple(
    field.name for field in dataclasses.fields(MediaInfo) if field.name not in ("path", "times", "stamps", *_LISTS)
)


class MediaIndex:
    """The index in one cache folder. It may be unreadable or unwritable: then media are read, as without it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / INDEX_NAME
        self._lock = threading.Lock()
        self._known = self._read()
        self._new: dict[str, Any] = {}

    def _read(self) -> dict[str, Any]:
        with contextlib.suppress(OSError, ValueError):
            table = parse_json(self.path.read_text(encoding="utf-8"))
            if isinstance(table, dict) and table.get("version") == VERSION and isinstance(table.get("media"), dict):
                return table["media"]
        return {}

    def get(self, path: Path, size: int, mtime_ns: int) -> MediaInfo | None:
        """What `path` holds, if it was read when it had this size and time."""
        row = self._known.get(str(path))
        if not isinstance(row, dict) or (row.get("size"), row.get("mtime_ns")) != (size, mtime_ns):
            return None
        with contextlib.suppress(KeyError, TypeError, ValueError):
            return _unpack(path, row["holds"])
        return None

    def change(self, stem: str, record: Mapping[str, Any]) -> str | None:
        """Why none of the media called `stem` that were read is what `record` says of a cache, or None; see
        `source_change`. Those that are gone have not changed."""
        media = [Path(known) for known in self._known if Path(known).stem == stem]
        found = [source_change(record, path) for path in media if path.is_file()]
        return found[0] if found and all(found) else None

    def put(self, info: MediaInfo, size: int, mtime_ns: int) -> None:
        """Remember what a medium holds; `save` writes it."""
        row = {"size": size, "mtime_ns": mtime_ns, "holds": _pack(info)}
        with self._lock:
            self._known[str(info.path)] = self._new[str(info.path)] = row

    def save(self) -> None:
        """Add what is new to the index, where the folder is there and can be written."""
        if self._new and self.path.parent.is_dir():
            # read again, since another process may have added to it
            with contextlib.suppress(RunError), alone(self.path.parent):
                write_text(self.path, json.dumps({"version": VERSION, "media": {**self._read(), **self._new}}))
                self._new = {}


def _pack(info: MediaInfo) -> dict[str, Any]:
    row: dict[str, Any] = {name: getattr(info, name) for name in _PLAIN}
    row.update((name, list(getattr(info, name))) for name in _LISTS)
    if info.stamps is not None and len(info.stamps) == len(info.times):
        base = _time_base(info.stamps, info.times)
        row["stamps"] = _runs(info.stamps)
        row["time_base"] = base
        if base is None:
            row["times"] = list(info.times)
    elif info.fps and all(time == index / info.fps for index, time in enumerate(info.times)):
        row["counted"] = len(info.times)
    else:
        row["times"] = list(info.times)
    return row


def _unpack(path: Path, row: dict[str, Any]) -> MediaInfo:
    stamps = None if "stamps" not in row else tuple(_from_runs(row["stamps"]))
    if "times" in row:
        times = tuple(row["times"])
    elif stamps is not None:
        above, below = row["time_base"]
        times = tuple(stamp * above / below for stamp in stamps)
    else:
        times = tuple(index / row["fps"] for index in range(row["counted"]))
    plain = {name: row[name] for name in _PLAIN}
    lists: dict[str, Any] = {
        name: tuple(tuple(one) if isinstance(one, list) else one for one in row[name]) for name in _LISTS
    }
    return MediaInfo(path=path, times=times, stamps=stamps, **plain, **lists)


def _runs(stamps: Sequence[int]) -> list[Any]:
    """The first stamp, then [step, how often] in order."""
    steps = (after - before for before, after in pairwise(stamps))
    return [stamps[0] if stamps else 0, *([step, len(list(group))] for step, group in groupby(steps))]


def _from_runs(runs: Sequence[Any]) -> accumulate[int]:
    return accumulate(chain([runs[0]], *(repeat(step, count) for step, count in runs[1:])))


def _time_base(stamps: Sequence[int], times: Sequence[float]) -> list[int] | None:
    """[above, below] so that each time is stamp * above / below to the last bit; None where there is no such."""
    at = next((index for index in range(len(stamps) - 1, -1, -1) if stamps[index]), None)
    if at is None:
        return None
    base = Fraction(times[at] / stamps[at]).limit_denominator(_LARGEST_DENOMINATOR)
    above, below = base.numerator, base.denominator
    exact = all(stamp * above / below == time for stamp, time in zip(stamps, times, strict=True))
    return [above, below] if exact else None
