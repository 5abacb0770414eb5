"""Media named by a list, in whichever form the list comes.

    {image,video,audio}_jsonl_file  one JSON object a line: {image_path | video_path | audio_path, caption}, and where
                        there are any audio_path (of a video), control_path or reference_path, reference_audio_path,
                        mask_path, audio_mask_path; of further references reference_path_2, reference_path_3 ... or
                        control_path_0, control_path_1 ...
    dataset_file        JSON (a list of objects, or one object of lists), JSON lines or CSV with named columns, as the
                        official trainer's: caption, video (or media_path), audio, reference_video (or ref_media_path),
                        reference_audio, video_mask, audio_mask
    data_root           a folder with videos.txt and prompts.txt, one a line

Paths are relative to the list. A video may be a folder of pictures, its frames. A caption may be a list of captions, of
which one is drawn whenever the medium is trained on. A row that makes no sense is named with its line and costs itself
alone; columns that nobody reads are named.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..media.names import cache_stem, is_dir, readable
from ..paths import from_folder
from ..registry import nearest
from .captions import EMPTY_IN_LIST, TWICE, distinct_captions, is_repeated, text_lines
from .dataset_file import DatasetSettings
from .list_rows import ListRow, csv_rows, json_line_rows, json_rows, list_text
from .notes import DataNote

VIDEOS_FILE, CAPTIONS_FILE = "videos.txt", "prompts.txt"
# Columns in the order in which they are looked for.
_MEDIA = ("video", "media_path", "video_path", "image", "image_path", "audio", "audio_path")
_SOUND = ("audio", "audio_path")
_CAPTION = "caption"
_CONTROL = "control_path"
_REFERENCE = ("reference_video", "ref_media_path", "reference_path", _CONTROL, f"{_CONTROL}_0")
_REFERENCE_AUDIO = ("reference_audio", "reference_audio_path")
_MASK = ("video_mask", "mask_path")
_AUDIO_MASK = ("audio_mask", "audio_mask_path")
# what each kind of list calls them by its own habit; both are read in both
_OFFICIAL = ("audio", "reference_video", "reference_audio", "video_mask", "audio_mask")
_OURS = ("audio_path", "reference_path", _CONTROL, "reference_audio_path", "mask_path", "audio_mask_path")
_COLUMNS = frozenset((*_MEDIA, *_SOUND, *_REFERENCE, *_REFERENCE_AUDIO, *_MASK, *_AUDIO_MASK))
_FORM = "one JSON object a line"
_FORMS = {".csv": "the names of its columns, and one medium a line", ".json": "a list of JSON objects"}
_UNREAD = {
    ".tsv": "a list whose columns are parted by tabs",
    ".parquet": "a Parquet table, a kind that is not read",
    ".arrow": "an Arrow table, a kind that is not read",
    ".xlsx": "an Excel table, a kind that is not read",
    ".xls": "an Excel table, a kind that is not read",
    ".ods": "an OpenDocument table, a kind that is not read",
    ".yaml": "YAML, a kind that is not read",
    ".yml": "YAML, a kind that is not read",
    ".xml": "XML, a kind that is not read",
}
_NUMBERED = re.compile(r"_(\d{1,2})$")  # columns of a second, third ... reference


@dataclass(frozen=True)
class Skipped:
    """A file that is not used, and why."""

    path: Path
    reason: str


@dataclass
class MediaFile:
    """A medium that was found; `stem` will name its caches."""

    path: Path
    stem: str
    caption: str | None = None
    more_captions: tuple[str, ...] = ()  # others of the same medium
    unused: frozenset[str] = frozenset()  # what is not used of its captions, to stand behind its name
    caption_path: Path | None = None
    # named by the list that names the medium
    sound: Path | None = None
    references: tuple[Path | None, ...] = ()
    reference_audios: tuple[Path | None, ...] = ()
    mask: Path | None = None
    audio_mask: Path | None = None


def read_list(name: str, entry: DatasetSettings, notes: list[DataNote]) -> Iterator[MediaFile | Skipped]:
    """The media of a list; a row that cannot be used is skipped by its line. What is not used of it goes to `notes`.

    Raises DataError where the list as a whole cannot be understood.
    """
    if entry.source_key == "data_root":
        yield from _two_files(name, entry)
        return
    reader = _Reader(entry)
    yield from map(reader.candidate, _rows(name, entry))
    notes += [DataNote("settings", note, name) for note in reader.notes()]


class _Reader:
    """Makes media of the rows of one list, and remembers what it made no use of."""

    def __init__(self, entry: DatasetSettings) -> None:
        self.entry, self.source = entry, entry.source
        whole = entry.source_key == "dataset_file"
        self.media = (entry.video_column,) if entry.video_column else _MEDIA if whole else (f"{entry.kind}_path",)
        self.caption = entry.caption_column or _CAPTION
        self.known = {name.casefold(): name for name in (*_COLUMNS, *self.media, self.caption)}
        self.unused: dict[str, str] = {}  # column -> where it first stands
        self.used: set[str] = set()  # columns that some row is read from

    def candidate(self, row: ListRow) -> MediaFile | Skipped:
        try:
            return self._candidate(row)
        except ValueError as error:
            return Skipped(self.source, f"{row.where}: {error}")

    def _candidate(self, row: ListRow) -> MediaFile:
        if row.problem:
            raise ValueError(row.problem)
        cells = self._by_name(row.cells)
        used = [self.caption]
        media, column = self._path(cells, self.media, used)
        if media is None:
            raise ValueError(
                f'expected {{"{self.media[0]}": ..., "{self.caption}": ...}}, got {str(row.cells)[:80]}; if the '
                "column with the media has another name, set video_column"
            )
        captions = self._told(cells.get(self.caption))
        silent = column in _SOUND or self.entry.kind == "image"
        file = MediaFile(
            media,
            cache_stem(media.name if is_dir(media) else media.stem),
            caption=captions[0] if captions else None,
            more_captions=tuple(captions[1:]),
            unused=self._left_of(cells.get(self.caption), captions),
            sound=None if silent else self._path(cells, _SOUND, used)[0],
            references=self._paths(cells, _REFERENCE, used),
            reference_audios=self._paths(cells, _REFERENCE_AUDIO, used),
            mask=self._path(cells, _MASK, used)[0],
            audio_mask=self._path(cells, _AUDIO_MASK, used)[0],
        )
        self.used.update(used)
        for key in cells:
            if key not in used:
                self.unused.setdefault(key, row.where)
        return file

    def _by_name(self, cells: Mapping[str, Any]) -> dict[str, Any]:
        """The cells that are filled in, by the names of columns that are read, whatever capitals theirs have."""
        found: dict[str, Any] = {}
        said: dict[str, str] = {}
        for key, value in cells.items():
            name = self.known.get(key.casefold(), key)
            if (number := _NUMBERED.search(key)) and key[: number.start()].casefold() in self.known:
                name = key.lower()
            if value is None or not str(value).strip():
                continue
            if name in found:
                raise ValueError(f"{said[name]!r} and {key!r} are one column, as capitals do not count; keep one")
            found[name], said[name] = value, key
        return found

    def _told(self, caption: Any) -> list[str]:
        """The captions of a row; none where the cell has no text."""
        captions = caption if isinstance(caption, (list, tuple)) else [] if caption is None else [caption]
        for one in captions:
            if not isinstance(one, str):
                raise ValueError(f"the caption is not text but {one!r}")
            if not readable(one):
                raise ValueError("it holds half a character or a zero byte; write it anew")
        return distinct_captions(captions)

    def _left_of(self, cell: Any, captions: list[str]) -> frozenset[str]:
        """What is not used of a cell with `captions`."""
        if not captions or not isinstance(cell, (list, tuple)):
            return frozenset()
        told = {EMPTY_IN_LIST} if _some_empty(cell) else set()
        return frozenset(told | ({TWICE} if is_repeated([one for one in cell if one]) else set()))

    def _path(self, cells: Mapping[str, Any], columns: Sequence[str], used: list[str]) -> tuple[Path | None, str]:
        """What the first of `columns` names that there is, and which one that is."""
        column = next((column for column in columns if column in cells), "")
        value = cells.get(column)
        if value is None:
            return None, ""
        used.append(column)
        if not isinstance(value, str):
            raise ValueError(f"expected a path as {column}, got {value!r}")
        if not readable(value):
            raise ValueError("it holds half a character or a zero byte; write it anew")
        return _path(self.source, value), column

    def _paths(self, cells: Mapping[str, Any], columns: Sequence[str], used: list[str]) -> tuple[Path | None, ...]:
        """What `columns` name, and behind it what columns of the same names with a number do: _2, _3 ..."""
        paths = [self._path(cells, columns, used)[0]]
        numbers = [int(match[1]) for key in cells if (match := _NUMBERED.search(key)) is not None]
        paths += [
            self._path(cells, _numbered(columns, number), used)[0] for number in range(2, max(numbers, default=0) + 2)
        ]
        while paths and paths[-1] is None:
            paths.pop()
        return tuple(paths)

    def notes(self) -> Iterator[str]:
        theirs = _OFFICIAL if self.entry.source_key == "dataset_file" else _OURS
        known = {*self.media, self.caption, *theirs}
        for column, where in self.unused.items():
            if column in self.used:
                yield (
                    f"{self.source.name}: the column {column!r} is not used where another of its meaning is filled in "
                    f"as well (first in {where})."
                )
                continue
            near = [] if column in _COLUMNS else nearest(column, known, 1)
            hint = f" Did you mean {near[0]}?" if near else ""
            if column == _CAPTION:
                hint = f" caption_column names {self.caption!r}."
            if column in DatasetSettings.model_fields:
                hint = " It is a setting of the dataset."
            yield f"{self.source.name}: the column {column!r} (first in {where}) is not used.{hint}"


def _some_empty(caption: Any) -> bool:
    return isinstance(caption, (list, tuple)) and not all(one.strip() for one in caption)


def _numbered(columns: Sequence[str], number: int) -> list[str]:
    """What `columns` are called of the reference `number`; the community trainer counts its control_path from 0."""
    named = [f"{column}_{number}" for column in columns if not column.startswith(_CONTROL)]
    return [*named, f"{_CONTROL}_{number - 1}"] if _CONTROL in columns else named


def _path(source: Path, text: str) -> Path:
    return from_folder(source.parent, text.strip())


def _rows(name: str, entry: DatasetSettings) -> Iterator[ListRow]:
    path = entry.source
    _require_form(name, entry)
    text = list_text(name, entry.source_key, path)
    form = path.suffix.lower() if entry.source_key == "dataset_file" else ""
    if not text.strip():
        raise DataError(f"{name}.{entry.source_key}: {path} is empty. Write {_FORMS.get(form, _FORM)}.", path)
    if form == ".csv":
        return csv_rows(path, text)
    return json_rows(path, text) if form == ".json" else json_line_rows(text)


def _require_form(name: str, entry: DatasetSettings) -> None:
    """Raise DataError where a list is of a form that is read otherwise, or not at all."""
    ending, lines = entry.source.suffix.lower(), entry.source_key != "dataset_file"
    if ending in _UNREAD or (lines and ending == ".csv"):
        what = _UNREAD.get(ending, "CSV, and not one JSON object a line")
        save = "" if ending == ".csv" else "Save it as CSV with commas. "
        mend = f"{save}The key for CSV is dataset_file."
        raise DataError(f"{name}.{entry.source_key}: {entry.source} is {what}. {mend}", entry.source)


def list_files(entry: DatasetSettings) -> tuple[Path, ...]:
    """The files of a list: itself, or those of a data_root with the paths of media and with their captions."""
    if entry.source_key != "data_root":
        return (entry.source,)
    return entry.source / (entry.video_column or VIDEOS_FILE), entry.source / (entry.caption_column or CAPTIONS_FILE)


def _two_files(name: str, entry: DatasetSettings) -> Iterator[MediaFile | Skipped]:
    videos, prompts = list_files(entry)
    for key, file in (("video_column", videos), ("caption_column", prompts)):
        if not file.resolve().is_relative_to(entry.source.resolve()):
            raise DataError(f"{name}.{key}: {file} is not in {entry.source}. Name a file of that folder.", file)
    paths, captions = (text_lines(list_text(name, "data_root", file)) for file in (videos, prompts))
    for lines in (paths, captions):
        if lines[-1] == "":  # behind the last line break
            lines.pop()
    while captions and not captions[-1].strip() and len(captions) > len(paths):
        captions.pop()
    if len(paths) != len(captions):
        raise DataError(
            f"{name}.data_root: {videos.name} has {len(paths)} lines and {prompts.name} has {len(captions)}. "
            "Line n of one is the caption of line n of the other.",
            videos,
        )
    for number, (path, caption) in enumerate(zip(paths, captions, strict=True), 1):
        if path.strip():
            media = _path(videos, path)
            stem = cache_stem(media.name if is_dir(media) else media.stem)
            yield MediaFile(media, stem, caption=" ".join(caption.split()))
        elif caption.strip():
            yield Skipped(videos, f"line {number}: it is empty, and {prompts.name} has a caption for it")
