"""Finding media and their captions, and saying plainly what was found where nothing can be used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import DataError
from .captions import read_caption, rewrite
from .dataset import DatasetSettings
from .entry import LIST_KEYS
from .images import IMAGE_SUFFIXES
from .listed import Candidate, read_list
from .media import VIDEO_SUFFIXES
from .sound_media import AUDIO_SUFFIXES

__all__ = ["SUFFIXES", "Candidate", "Skipped", "find_media", "nothing_left", "with_captions"]

SHOWN_AT_MOST = 5
SUFFIXES = {"image": IMAGE_SUFFIXES, "video": VIDEO_SUFFIXES, "audio": AUDIO_SUFFIXES}


@dataclass(frozen=True)
class Skipped:
    """A file that is not used, and why."""

    path: Path
    reason: str


def find_media(name: str, entry: DatasetSettings) -> tuple[list[Candidate], list[Skipped]]:
    """All media of a dataset in a fixed order. Where two would share their cache files, the first is kept."""
    listed = entry.source_key in LIST_KEYS or entry.source_key == "data_root"
    found = list(read_list(name, entry) if listed else _in_folder(name, entry))
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
    suffixes = SUFFIXES[entry.kind]
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
    text = f"{name}.{entry.source_key}: no {entry.noun} in {folder}. It holds {there}."
    for other, suffixes in SUFFIXES.items():
        if other != entry.kind and any(ending in suffixes for ending in endings):
            return f"{text} For these use {other}_directory."
    if not entry.recursive:
        suffixes = SUFFIXES[entry.kind]
        for sub in sorted(path for path in listed if path.is_dir()):
            if any(path.suffix.lower() in suffixes for path in sub.iterdir()):
                return (
                    f"{text} There are {entry.noun} in its sub-folder {sub.name}; name that, or set recursive = true."
                )
    return f"{text} Put {entry.noun} there, each with its caption ({entry.caption_extension}), or name another folder."


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
            skipped.append(Skipped(candidate.path, f"empty caption: write what is to be seen or heard into {where}"))
            continue
        candidate.caption = rewrite(candidate.caption, entry.caption_replace, entry.caption_prefix, entry.trigger_word)
        ready.append(candidate)
    return ready


def nothing_left(name: str, entry: DatasetSettings, found: int, skipped: list[Skipped]) -> str:
    reasons = Counter(skip.reason.split(":")[0] for skip in skipped)
    if found and set(reasons) == {"no caption"}:
        return (
            f"{name}.{entry.source_key}: {found} {entry.noun} in {entry.source}, but not one caption. "
            f"Each needs a text file of the same name ending in {entry.caption_extension}, "
            f"for example {skipped[0].path.with_suffix(entry.caption_extension).name}; "
            "or set caption_extension to the ending yours have."
        )
    shown = "\n".join(f"  {skip.path.name}: {skip.reason}" for skip in skipped[:SHOWN_AT_MOST])
    more = f"\n  and {len(skipped) - SHOWN_AT_MOST} more" if len(skipped) > SHOWN_AT_MOST else ""
    return f"{name}: none of the {found} {entry.noun} in {entry.source} can be used.\n{shown}{more}"
