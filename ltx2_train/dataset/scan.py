"""Finding media and their captions, and saying plainly what was found where nothing can be used."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import DataError
from ..media.images import IMAGE_SUFFIXES
from ..media.names import cache_stem, is_file, readable, same, shown
from ..media.sound_media import AUDIO_SUFFIXES
from ..media.video import VIDEO_SUFFIXES
from .captions import read_caption, rewrite
from .dataset_file import DatasetSettings
from .entry import LIST_KEYS
from .lists import Candidate, read_list

__all__ = ["MEDIA_SUFFIXES", "Candidate", "Skipped", "find_media", "nothing_left", "with_captions"]

SHOWN_AT_MOST = 5
MEDIA_SUFFIXES = {"image": IMAGE_SUFFIXES, "video": VIDEO_SUFFIXES, "audio": AUDIO_SUFFIXES}


@dataclass(frozen=True)
class Skipped:
    """A file that is not used, and why."""

    path: Path
    reason: str


def find_media(name: str, entry: DatasetSettings) -> tuple[list[Candidate], list[Skipped]]:
    """All media of a dataset in a fixed order. Where two would share their cache files, the first is kept."""
    listed = entry.source_key in LIST_KEYS or entry.source_key == "data_root"
    owners: dict[str, Path] = {}
    kept, skipped = [], []
    for candidate in read_list(name, entry) if listed else _in_folder(name, entry):
        if isinstance(candidate, Skipped):
            skipped.append(candidate)
            continue
        owner = owners.setdefault(same(candidate.stem), candidate.path)
        if owner is candidate.path:
            kept.append(candidate)
        elif owner == candidate.path:
            skipped.append(Skipped(candidate.path, "is listed twice; num_repeats repeats a dataset"))
        else:
            reason = f"its name without the ending is that of {owner.name}, so both would share one cache; rename one"
            skipped.append(Skipped(candidate.path, reason))
    return kept, skipped


def _in_folder(name: str, entry: DatasetSettings) -> Iterator[Candidate | Skipped]:
    folder = entry.source
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise DataError(f"{name}.{entry.source_key}: {folder} {what}. Check the path.", folder)
    try:
        listed = sorted(folder.rglob("*") if entry.recursive else folder.iterdir())
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"{name}.{entry.source_key}: {folder} cannot be opened: {reason}.", folder) from error
    # what a file manager or a Mac leaves behind ("._clip.mp4") has the endings of media
    listed = [path for path in listed if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    media = [path for path in listed if path.suffix.lower() in MEDIA_SUFFIXES[entry.kind]]
    if not any(path.is_file() for path in media):
        raise DataError(_empty_folder(name, entry, listed), folder)
    names = {(path.parent, same(path.name)): path for path in reversed(listed)}
    for path in media:
        if not readable(path.name):
            yield Skipped(shown(path), "its name is in another encoding than UTF-8; rename it")
        elif reason := _no_file(path):
            yield Skipped(path, reason)
        else:
            # A folder becomes part of the cache name, so that equal names in two folders do not meet.
            stem = "__".join(path.relative_to(folder).with_suffix("").parts)
            wanted = path.with_suffix(entry.caption_extension)
            beside = wanted if is_file(wanted) else names.get((path.parent, same(wanted.name)), wanted)
            yield Candidate(path, cache_stem(stem), caption_path=beside)


def _no_file(path: Path) -> str:
    """Why something with the ending of a medium is none, or ""."""
    try:
        path.stat()
    except OSError as error:
        loop = error.errno == errno.ELOOP
        return "is a link that leads to itself" if loop else "is a link to a file that is gone"
    if path.is_dir():
        return "is a folder, not a file"
    return "" if path.is_file() else "is not a file that can be read, but a pipe, a socket or a device"


def _empty_folder(name: str, entry: DatasetSettings, listed: Sequence[Path]) -> str:
    folder = entry.source
    endings = Counter(path.suffix.lower() or "without ending" for path in listed if path.is_file())
    there = ", ".join(f"{number} {ending}" for ending, number in endings.most_common(6)) or "nothing"
    text = f"{name}.{entry.source_key}: no {entry.noun} in {folder}. It holds {there}."
    for other, suffixes in MEDIA_SUFFIXES.items():
        if other != entry.kind and any(ending in suffixes for ending in endings):
            return f"{text} For these use {other}_directory."
    if not entry.recursive:
        suffixes = MEDIA_SUFFIXES[entry.kind]
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
            if not is_file(beside):
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
