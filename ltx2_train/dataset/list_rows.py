"""The rows of a list of media, whatever file they stand in: CSV, JSON, JSON lines.

A row that makes no sense is handed on with what is wrong with it, so that the others can be used. A file of which
nobody can say where a row ends is an error as a whole.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..files import parse_json
from ..media.images import IMAGE_SUFFIXES
from ..media.sound_media import AUDIO_SUFFIXES
from ..media.video import VIDEO_SUFFIXES
from ..text_files import read_text
from .captions import text_lines

_SHOWN = 80  # letters of a row in a message
_OTHER_SEPARATORS = {";": "semicolons", "\t": "tabs"}
_MEDIA_SUFFIXES = tuple(
    f"{ending}{mark}" for ending in IMAGE_SUFFIXES | AUDIO_SUFFIXES | VIDEO_SUFFIXES for mark in ',"'
)


@dataclass(frozen=True)
class ListRow:
    """What one row says, by the names of its columns. `problem` says why it cannot be used; `where` it stands."""

    where: str
    cells: dict[str, Any] = field(default_factory=dict)
    problem: str = ""


def list_text(name: str, key: str, path: Path) -> str:
    """The text of a list that the setting `name`.`key` names. Raises DataError."""
    try:
        return read_text(path)
    except OSError as error:
        reason = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
        raise DataError(f"{name}.{key}: {path} {reason}. Check the path.", path) from None
    except UnicodeError as error:
        raise DataError(f"{name}.{key}: {path} {error}", path) from error


def csv_rows(path: Path, text: str) -> Iterator[ListRow]:
    """The rows of a CSV file below its header, whose names lose the blanks around them. Raises DataError."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    first = 0
    try:
        header = [cell.strip() for cell in next(reader, [])]
        _check_header(path, header)
        first = reader.line_num + 1
        for cells in reader:
            if cells:
                yield _csv_row(path, header, cells, first)
            first = reader.line_num + 1
    except csv.Error as error:
        quote = "" if "field" in str(error) else " A quote may be open: in quotes, write a quote twice."
        raise DataError(
            f"{path}, line {first or 1}: not CSV: {error}.{quote} Save it as CSV with commas, in UTF-8.", path
        ) from error


def _check_header(path: Path, header: list[str]) -> None:
    if len(header) == 1:
        for mark, what in _OTHER_SEPARATORS.items():
            if mark in header[0]:
                raise DataError(f"{path}: its columns are parted by {what}. Save it as CSV with commas.", path)
    folded = [name.casefold() for name in header]
    twice = list(dict.fromkeys(name for name in header if name and folded.count(name.casefold()) > 1))
    if twice:
        names = f"called {twice[0]}" if len(twice) == 1 else f"one, as capitals do not count: {', '.join(twice)}"
        raise DataError(f"{path}: two columns are {names}. Rename one.", path)


def _csv_row(path: Path, header: list[str], cells: list[str], line: int) -> ListRow:
    where = f"line {line}"
    swallowed = [part for cell in cells for part in cell.splitlines()[1:] if _looks_like_a_row(part)]
    if swallowed:
        raise DataError(
            f"{path}, {where}: a quote is opened there and not closed before {swallowed[0][:_SHOWN]!r}. Close it.", path
        )
    more = cells[len(header) :]
    if any(cell.strip() for cell in more) or len(cells) < len(header):
        problem = f"it has {len(cells)} cells and the header {len(header)}; put a text with commas in quotes"
        return ListRow(where, problem=f"{problem} ({','.join(cells)[:_SHOWN]})")
    named = {
        name or f"(number {place}, without a name)": cell
        for place, (name, cell) in enumerate(zip(header, cells, strict=False), 1)
    }
    return ListRow(where, {name: cell for name, cell in named.items() if name in header or cell.strip()})


def _looks_like_a_row(line: str) -> bool:
    return any(ending in line.lower() for ending in _MEDIA_SUFFIXES)


def json_line_rows(text: str) -> Iterator[ListRow]:
    """The rows of a file with one JSON object a line."""
    for number, line in enumerate(text_lines(text), 1):
        if line.strip():
            where = f"line {number}"
            try:
                yield _json_row(where, parse_json(line))
            except ValueError as error:
                form = (
                    "parted by tabs; save the list as CSV"
                    if "\t" in line
                    else f"not JSON ({error}); write one object a line"
                )
                yield ListRow(where, problem=form)


def json_rows(path: Path, text: str) -> Iterator[ListRow]:
    """The rows of a JSON file: a list of objects, or one object whose values are columns. Raises DataError."""
    try:
        table = parse_json(text)
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}).", path) from error
    if isinstance(table, dict) and table and all(isinstance(column, list) for column in table.values()):
        lengths = {len(column) for column in table.values()}
        if len(lengths) > 1:
            raise DataError(f"{path}: its columns have {sorted(lengths)} rows; all need the same number.", path)
        table = [dict(zip(table, values, strict=True)) for values in zip(*table.values(), strict=True)]
    if not isinstance(table, list) or not any(isinstance(row, dict) for row in table):
        raise DataError(f'{path}: expected a list of objects, as [{{"video": ..., "caption": ...}}, ...].', path)
    for number, row in enumerate(table, 1):
        yield _json_row(f"entry {number}", row)


def _json_row(where: str, row: Any) -> ListRow:
    if not isinstance(row, dict):
        return ListRow(where, problem=f"expected an object, got {str(row)[:_SHOWN]}")
    return ListRow(where, {str(key).strip(): value for key, value in row.items()})
