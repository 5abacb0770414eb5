"""Media named by a list, in whichever form the list comes.

    {image,video,audio}_jsonl_file  one JSON object a line: {image_path | video_path | audio_path, caption}, and where
                        there are any audio_path (of a video), control_path or reference_path, reference_audio_path,
                        mask_path, audio_mask_path
    dataset_file        JSON (a list of objects, or one object of lists), JSON lines or CSV with named columns, as the
                        official trainer's: caption, video (or media_path), audio, reference_video (or ref_media_path),
                        reference_audio, video_mask, audio_mask
    data_root           a folder with videos.txt and prompts.txt, one a line

Paths are relative to the list. A video may be a folder of pictures, its frames.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..files import parse_json
from ..media.names import cache_stem, is_dir, readable
from .dataset_file import DatasetSettings

VIDEOS_FILE, CAPTIONS_FILE = "videos.txt", "prompts.txt"
# Columns in the order in which they are looked for.
_MEDIA = ("video", "media_path", "video_path", "image", "image_path", "audio", "audio_path")
_SOUND = ("audio", "audio_path")
_REFERENCE = ("reference_video", "ref_media_path", "reference_path", "control_path", "control_path_0")
_REFERENCE_AUDIO = ("reference_audio", "reference_audio_path")
_MASK = ("video_mask", "mask_path")
_AUDIO_MASK = ("audio_mask", "audio_mask_path")


@dataclass
class Candidate:
    """A medium that was found; `stem` will name its caches."""

    path: Path
    stem: str
    caption: str | None = None
    caption_path: Path | None = None
    # named by the list that names the medium
    sound: Path | None = None
    reference: Path | None = None
    reference_audio: Path | None = None
    mask: Path | None = None
    audio_mask: Path | None = None


def read_list(name: str, entry: DatasetSettings) -> Iterator[Candidate]:
    """The media of a list. Raises DataError that names the list and the line where it cannot be understood."""
    if entry.source_key == "data_root":
        yield from _two_files(name, entry)
        return
    columns = _MEDIA if entry.source_key == "dataset_file" else (f"{entry.kind}_path",)
    if entry.video_column is not None:
        columns = (entry.video_column,)
    told = entry.caption_column or "caption"
    for where, row in _rows(name, entry):
        key = next((column for column in columns if isinstance(row.get(column), str) and row[column].strip()), None)
        if key is None:
            raise DataError(
                f'{where}: expected {{"{columns[0]}": ..., "{told}": ...}}, got {str(dict(row))[:80]}', entry.source
            )
        caption = row.get(told)
        if caption is not None and not isinstance(caption, str):
            raise DataError(f"{where}: the caption is not text but {caption!r}.", entry.source)
        if not readable(f"{caption}{row[key]}"):
            raise DataError(f"{where}: it holds half a character or a zero byte. Write it anew.", entry.source)
        media = _path(entry.source, row[key])
        yield Candidate(
            media,
            _stem(media),
            caption=None if caption is None else " ".join(caption.split()),
            sound=None if key in _SOUND or entry.kind == "image" else _named(entry.source, row, _SOUND),
            reference=_named(entry.source, row, _REFERENCE),
            reference_audio=_named(entry.source, row, _REFERENCE_AUDIO),
            mask=_named(entry.source, row, _MASK),
            audio_mask=_named(entry.source, row, _AUDIO_MASK),
        )


def _stem(media: Path) -> str:
    return cache_stem(media.name if is_dir(media) else media.stem)


def _path(source: Path, text: str) -> Path:
    return source.parent / Path(text.strip()).expanduser()


def _named(source: Path, row: Mapping[str, Any], columns: Sequence[str]) -> Path | None:
    found = next((row[column] for column in columns if isinstance(row.get(column), str) and row[column].strip()), None)
    return None if found is None else _path(source, found)


def _text(name: str, key: str, path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        reason = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
        raise DataError(f"{name}.{key}: {path} {reason}. Check the path.", path) from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8: {error}. Save it as UTF-8.", path) from error


def _lines(text: str) -> list[str]:
    """The lines of a file; other separators that Unicode has are part of them, as JSON wants it."""
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def _rows(name: str, entry: DatasetSettings) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each row of a list with the words for where it stands."""
    path = entry.source
    text = _text(name, entry.source_key, path)
    if not text.strip():
        raise DataError(f"{name}.{entry.source_key}: {path} is empty. Write one JSON object a line.", path)
    if entry.source_key == "dataset_file" and path.suffix.lower() == ".csv":
        try:
            for number, row in enumerate(csv.DictReader(io.StringIO(text)), 2):
                yield f"{path}, line {number}", row
        except csv.Error as error:
            raise DataError(f"{path}: not CSV: {error}. Save it as CSV with commas, in UTF-8.", path) from error
    elif entry.source_key == "dataset_file" and path.suffix.lower() == ".json":
        yield from _json_rows(path, text)
    else:
        yield from _json_lines(path, text)


def _json_lines(path: Path, text: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number, line in enumerate(_lines(text), 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            raise DataError(f"{path}, line {number}: not JSON ({error}). Write one object a line.", path) from error
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number}: expected an object, got {line[:80]}", path)
        yield f"{path}, line {number}", row


def _json_rows(path: Path, text: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        table = parse_json(text)
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}).", path) from error
    if isinstance(table, dict) and table and all(isinstance(column, list) for column in table.values()):
        lengths = {len(column) for column in table.values()}
        if len(lengths) > 1:
            raise DataError(f"{path}: its columns have {sorted(lengths)} rows; all need the same number.", path)
        table = [dict(zip(table, values, strict=True)) for values in zip(*table.values(), strict=True)]
    if not isinstance(table, list) or not all(isinstance(row, dict) for row in table):
        raise DataError(f'{path}: expected a list of objects, as [{{"video": ..., "caption": ...}}, ...].', path)
    for number, row in enumerate(table, 1):
        yield f"{path}, entry {number}", row


def _two_files(name: str, entry: DatasetSettings) -> Iterator[Candidate]:
    videos = entry.source / (entry.video_column or VIDEOS_FILE)
    prompts = entry.source / (entry.caption_column or CAPTIONS_FILE)
    for key, file in (("video_column", videos), ("caption_column", prompts)):
        if not file.resolve().is_relative_to(entry.source.resolve()):
            raise DataError(f"{name}.{key}: {file} is not in {entry.source}. Name a file of that folder.", file)
    paths, captions = (_lines(_text(name, "data_root", file)) for file in (videos, prompts))
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
    for path, caption in zip(paths, captions, strict=True):
        if path.strip():
            media = _path(videos, path)
            yield Candidate(media, _stem(media), caption=" ".join(caption.split()))
