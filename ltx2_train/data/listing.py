"""Finding media and their captions, and saying plainly what was found where nothing can be used."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import DataError
from .captions import read_caption, with_trigger
from .dataset import DatasetSettings
from .images import IMAGE_SUFFIXES
from .media import VIDEO_SUFFIXES
from .sound_media import AUDIO_SUFFIXES

SHOWN_AT_MOST = 5
SUFFIXES = {"image": IMAGE_SUFFIXES, "video": VIDEO_SUFFIXES, "audio": AUDIO_SUFFIXES}


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
    sound: Path | None = None  # named by the list that names the video


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
        sound = row.get("audio_path") if entry.kind == "video" else None
        yield Candidate(
            media,
            media.stem,
            caption=None if caption is None else " ".join(caption.split()),
            sound=path.parent / Path(sound).expanduser() if isinstance(sound, str) else None,
        )


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
        candidate.caption = with_trigger(candidate.caption, entry.trigger_word)
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


class SoundFinder:
    """Finds the sound file that belongs to a medium, by name; a folder is listed once."""

    def __init__(self, entry: DatasetSettings) -> None:
        self.entry = entry
        self._listed: dict[Path, dict[str, list[Path]]] = {}

    def apart(self, candidate: Candidate) -> tuple[Path | None, str]:
        """The file with the sound of a video, or None and why there is none."""
        if candidate.sound is not None:
            missing = "" if candidate.sound.is_file() else f"{candidate.sound} is not there; correct its audio_path"
            return (None if missing else candidate.sound), missing
        entry = self.entry
        folder = entry.audio_files_directory or candidate.path.parent
        explicit = "audio_extension" in entry.model_fields_set
        endings = [entry.audio_extension.lower()] + ([] if explicit else sorted(AUDIO_SUFFIXES))
        for place in self._places(folder, candidate):
            found = {path.suffix.lower(): path for path in self._named(place, candidate.path.stem)}
            for ending in endings:
                if ending in found:
                    return found[ending], ""
        key = "audio_source" if entry.audio_files_directory is None else "audio_files_directory"
        return None, f"no {candidate.path.stem}{entry.audio_extension} in {folder}; add it, or correct {key}"

    def reference(self, candidate: Candidate) -> Path | None:
        """The reference sound of a medium, or None."""
        folder = self.entry.reference_audio_directory
        for place in self._places(folder, candidate) if folder is not None else ():
            named = self._named(place, candidate.path.stem)
            if found := [path for path in named if path.suffix.lower() in AUDIO_SUFFIXES]:
                return found[0]
        return None

    def _places(self, folder: Path, candidate: Candidate) -> list[Path]:
        """The folder at the same place below `folder` as the medium is below its own, then `folder`."""
        source, parent = self.entry.source, candidate.path.parent
        inner = [folder / parent.relative_to(source)] if parent.is_relative_to(source) else []
        return list(dict.fromkeys([*inner, folder]))

    def _named(self, folder: Path, stem: str) -> list[Path]:
        """Files of a folder called `stem`, whatever their ending; case counts only where it decides."""
        if folder not in self._listed:
            table: dict[str, list[Path]] = {}
            for path in sorted(folder.iterdir()) if folder.is_dir() else ():
                if path.is_file():
                    table.setdefault(path.stem.casefold(), []).append(path)
            self._listed[folder] = table
        near = self._listed[folder].get(stem.casefold(), [])
        return [path for path in near if path.stem == stem] or near
