"""The numbers of a run: one JSON row a step."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import RunError
from ..events import Events
from ..files import write_advice, write_bytes

SMOOTHING = 0.95
KEPT_ROWS = 4096  # in memory, for the chart; a longer run keeps its whole curve, at half the detail
LOSS = "loss"  # what is minimised; each of its terms has a column loss_<name>
VALIDATION = "val_"  # in front of a column of the loss: on clips that are not trained on, in rows where it was measured
_BEGINS = re.compile(r'\{"step": (\d+),')  # a row as it is written
_TAIL = 1 << 16  # bytes: more than a row
STREAMS = ("video", "audio")  # terms whose column every row has, null where the step lacks the stream


def loss_column(term: str) -> str:
    """The column of the metrics that holds the loss term `term`."""
    return f"{LOSS}_{term}"


def terms_of(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """The loss terms that have a value in any of `rows`: picture, sound, then others as they come."""
    begins = loss_column("")
    seen = dict.fromkeys(name for row in rows for name, value in row.items() if value is not None)
    names = [name.removeprefix(begins) for name in seen if name.startswith(begins)]
    return sorted(names, key=lambda name: STREAMS.index(name) if name in STREAMS else len(STREAMS))


def terms_text(row: Mapping[str, Any]) -> str:
    """The terms of one row for people, " (video 0.2500, audio 0.7500)"; empty where there is one alone."""
    names = terms_of([row])
    apart = ", ".join(f"{name} {row[loss_column(name)]:.4f}" for name in names)
    return f" ({apart})" if len(names) > 1 else ""


def validated(row: Mapping[str, Any]) -> bool:
    """Whether the loss on clips that are not trained on was measured after this step."""
    return row.get(f"{VALIDATION}{LOSS}") is not None


def clean_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with every number that is not finite replaced by None, which JSON can carry."""
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}


class MetricsLog:
    """Appends rows to metrics.jsonl. On opening, rows after `step` are dropped: that part is run again.

    A row that the disk refuses waits for the next one, and `events` is told once: a run is worth more than its curve.
    `last` is the newest row, None before the first. Raises RunError where the file cannot be opened.
    """

    last: dict[str, Any] | None = None

    def __init__(self, path: Path, step: int, events: Events | None = None) -> None:
        self.path = path
        self._events = events or Events()
        self._waiting = b""
        self._kept: list[dict[str, Any]] = []
        self._every = self._every_validation = 1
        self._validations = 0
        try:
            rows = [row for row in read_rows(path) if row["step"] <= step]
            text = "".join(json.dumps(row) + "\n" for row in rows).encode("utf-8")
            if path.exists() and path.read_bytes() != text:
                write_bytes(path, text)
            self._file: BinaryIO = open(path, "ab", buffering=0)
        except OSError as error:
            raise RunError(f"Could not open {path}: {error.strerror or error}. See that it can be written.") from error
        self._end = len(text)
        for row in rows:
            self._keep(row)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The steps and losses of the run for its chart: all of a short one, evenly thinned of a long one."""
        return list(self._kept)

    def append(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Write one row and return it as written."""
        cleaned = clean_row(row)
        told = bool(self._waiting)
        self._waiting += json.dumps(cleaned, allow_nan=False).encode("utf-8") + b"\n"
        self._keep(cleaned)
        try:
            self._write()
        except OSError as error:
            if not told:
                self._events.message(
                    f"Could not write {self.path}: {error.strerror or error}. Its rows wait. "
                    f"{write_advice(error, self.path)}",
                    "warning",
                )
        return cleaned

    def close(self) -> None:
        """Close the file; the rows stay, and how many could not be written is told."""
        try:
            self._write()
        except OSError as error:
            rows = self._waiting.count(b"\n")
            self._events.message(
                f"The last {rows} rows of {self.path} could not be written and are lost: {error.strerror or error}.",
                "warning",
            )
        finally:
            with contextlib.suppress(OSError):
                self._file.close()

    def _keep(self, row: dict[str, Any]) -> None:
        """Remember a row without growing with the run."""
        self.last = row
        due = row["step"] % self._every == 0
        if validated(row):
            self._validations += 1
            due = self._validations % self._every_validation == 0
        if due:
            names = ("step", LOSS, f"{VALIDATION}{LOSS}")
            self._kept.append({name: value for name, value in row.items() if name.startswith(names)})
        if len(self._kept) > KEPT_ROWS:
            self._thin()

    def _thin(self) -> None:
        """Keep every second row; all that were validated, unless these are most of them."""
        self._every *= 2
        held = [row for row in self._kept if validated(row)]
        if len(held) > KEPT_ROWS // 2:
            self._every_validation *= 2
            held = held[1::2]
        plain = [row for row in self._kept if not validated(row) and row["step"] % self._every == 0]
        self._kept = sorted([*held, *plain], key=lambda row: row["step"])

    def _follow(self) -> None:
        """Open the file again where another one has taken its place, or it was deleted."""
        try:
            if os.path.samestat(os.stat(self.path), os.fstat(self._file.fileno())):
                return
        except FileNotFoundError:
            pass
        file: BinaryIO = open(self.path, "ab", buffering=0)
        self._file.close()
        self._file, self._end = file, file.tell()
        what = "was replaced or deleted while the run went on; rows that it does not hold are lost"
        self._events.message(f"{self.path} {what}.", "warning")

    def _write(self) -> None:
        """Write what waits, wholly or not at all."""
        if not self._waiting:
            return
        self._follow()
        try:
            written = self._file.write(self._waiting)
            if written != len(self._waiting):  # the disk is full
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            with contextlib.suppress(OSError):
                self._file.truncate(self._end)
            raise
        self._end += len(self._waiting)
        self._waiting = b""


def read_rows(path: Path, every: int = 1) -> list[dict[str, Any]]:
    """The rows of a metrics file; a line cut short by a kill is left out.

    Above 1, `every` leaves out steps that it does not divide, but for those with a validation loss: of a long run most
    of the time goes into rows that a curve has no room for.
    """
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if every > 1 and (begins := _BEGINS.match(line)) and int(begins[1]) % every and f'"{VALIDATION}' not in line:
            continue
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows


def newest_step(path: Path) -> int:
    """The step of the last whole row of a metrics file; 0 where there is none. Reads the end of the file alone."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL))
            rows = file.read().splitlines(keepends=True)
    except OSError:
        return 0
    begins = (_BEGINS.match(row.decode(errors="replace")) for row in reversed(rows) if row.endswith(b"\n"))
    return next((int(found[1]) for found in begins if found), 0)


def smooth(values: Sequence[float | None], factor: float = SMOOTHING) -> list[float | None]:
    """Exponential moving average without the bias towards its start (as Adam's); gaps stay gaps."""
    out: list[float | None] = []
    average = weight = 0.0
    for value in values:
        if value is None:
            out.append(out[-1] if out else None)
            continue
        average = factor * average + (1 - factor) * value
        weight = factor * weight + (1 - factor)
        out.append(average / weight)
    return out
