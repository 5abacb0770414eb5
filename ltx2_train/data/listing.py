"""Finding media and their captions, and saying plainly what was found where nothing can be used."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..errors import DataError
from .captions import read_caption, with_trigger
from .dataset import DatasetSettings
from .images import IMAGE_SUFFIXES
from .media import VIDEO_SUFFIXES

SHOWN_AT_MOST = 5


@dataclass(frozen=True)
class Skipped:
    """A file that is not used, and why."""

    path: Path
    reason: str


@dataclass
class Candidate:
    """A medium that was found; `stem` will name its caches."""

    path: Path
    stem: str
    caption: str | None = None
    caption_path: Path | None = None


def find_media(name: str, entry: DatasetSettings) -> tuple[list[Candidate], list[Skipped]]:
    """All media of a dataset in a fixed order. Where two would share their cache files, the first is kept."""
    found = list(_listed(name, entry) if entry.source_key.endswith("jsonl_file") else _in_folder(name, entry))
    owners: dict[str, Path] = {}
    kept, skipped = [], []
    for candidate in found:
        owner = owners.setdefault(candidate.stem.casefold(), candidate.path)
        if owner is candidate.path:
            kept.append(candidate)
        else:
            reason = f"its name without the ending is that of {owner.name}, so both would share one cache; rename one"
            skipped.append(Skipped(candidate.path, reason))
    return kept, skipped


def _in_folder(name: str, entry: DatasetSettings) -> Iterator[Candidate]:
    folder = entry.source
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise DataError(f"{name}.{entry.source_key}: {folder} {what}. Check the path.", folder)
    suffixes = IMAGE_SUFFIXES if entry.kind == "image" else VIDEO_SUFFIXES
    listed = sorted(folder.rglob("*") if entry.recursive else folder.iterdir())
    media = [path for path in listed if path.suffix.lower() in suffixes and path.is_file()]
    if not media:
        raise DataError(_empty_folder(name, entry, listed), folder)
    for path in media:
        if path.name.startswith("."):
            continue
        # A folder becomes part of the cache name, so that equal names in two folders do not meet.
        stem = "__".join(path.relative_to(folder).with_suffix("").parts)
        yield Candidate(path, stem, caption_path=path.with_suffix(entry.caption_extension))


def _empty_folder(name: str, entry: DatasetSettings, listed: list[Path]) -> str:
    folder = entry.source
    endings = Counter(path.suffix.lower() or "without ending" for path in listed if path.is_file())
    there = ", ".join(f"{number} {ending}" for ending, number in endings.most_common(6)) or "nothing"
    text = f"{name}.{entry.source_key}: no {entry.kind}s in {folder}. It holds {there}."
    other: Literal["image", "video"] = "image" if entry.kind == "video" else "video"
    other_suffixes = IMAGE_SUFFIXES if other == "image" else VIDEO_SUFFIXES
    if any(ending in other_suffixes for ending in endings):
        return f"{text} For these use {other}_directory."
    if not entry.recursive:
        suffixes = IMAGE_SUFFIXES if entry.kind == "image" else VIDEO_SUFFIXES
        for sub in sorted(path for path in listed if path.is_dir()):
            if any(path.suffix.lower() in suffixes for path in sub.iterdir()):
                return (
                    f"{text} There are {entry.kind}s in its sub-folder {sub.name}; name that, or set recursive = true."
                )
    return f"{text} Put {entry.kind}s there, each with its caption ({entry.caption_extension}), or name another folder."


def _listed(name: str, entry: DatasetSettings) -> Iterator[Candidate]:
    path, key = entry.source, f"{entry.kind}_path"
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        reason = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
        raise DataError(f"{name}.{entry.source_key}: {path} {reason}. Check the path.", path) from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8: {error}. Save it as UTF-8.", path) from error
    if not any(line.strip() for line in lines):
        raise DataError(f"{name}.{entry.source_key}: {path} is empty. Write one JSON object a line.", path)
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}, line {number}: not JSON ({error}). Write one object a line.", path) from error
        if not isinstance(row, dict) or not isinstance(row.get(key), str):
            raise DataError(f'{path}, line {number}: expected {{"{key}": ..., "caption": ...}}, got {line[:80]}', path)
        caption = row.get("caption")
        if caption is not None and not isinstance(caption, str):
            raise DataError(f"{path}, line {number}: the caption is not text but {caption!r}.", path)
        media = path.parent / Path(row[key]).expanduser()
        yield Candidate(media, media.stem, caption=None if caption is None else " ".join(caption.split()))


def with_captions(
    entry: DatasetSettings, candidates: list[Candidate], skipped: list[Skipped], warnings: list[str]
) -> list[Candidate]:
    ready = []
    for candidate in candidates:
        beside = candidate.caption_path
        if beside is not None:
            if not beside.is_file():
                skipped.append(Skipped(candidate.path, f"no caption: {beside.name} is not there"))
                continue
            try:
                candidate.caption, warning = read_caption(beside)
            except DataError as error:
                skipped.append(Skipped(candidate.path, str(error)))
                continue
            if warning:
                warnings.append(warning)
        if not candidate.caption:
            where = beside.name if beside is not None else "its line in the list"
            skipped.append(Skipped(candidate.path, f"empty caption: write what is to be seen into {where}"))
            continue
        candidate.caption = with_trigger(candidate.caption, entry.trigger_word)
        ready.append(candidate)
    return ready


def nothing_left(name: str, entry: DatasetSettings, found: int, skipped: list[Skipped]) -> str:
    reasons = Counter(skip.reason.split(":")[0] for skip in skipped)
    if found and set(reasons) == {"no caption"}:
        return (
            f"{name}.{entry.source_key}: {found} {entry.kind}s in {entry.source}, but not one caption. "
            f"Each needs a text file of the same name ending in {entry.caption_extension}, "
            f"for example {skipped[0].path.with_suffix(entry.caption_extension).name}; "
            "or set caption_extension to the ending yours have."
        )
    shown = "\n".join(f"  {skip.path.name}: {skip.reason}" for skip in skipped[:SHOWN_AT_MOST])
    more = f"\n  and {len(skipped) - SHOWN_AT_MOST} more" if len(skipped) > SHOWN_AT_MOST else ""
    return f"{name}: none of the {found} {entry.kind}s in {entry.source} can be used.\n{shown}{more}"
