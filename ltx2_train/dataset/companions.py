"""Finding the files that go with a medium, by its name: sound, references, masks."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from ..errors import DataError
from ..media.images import IMAGE_SUFFIXES
from ..media.names import is_dir, is_file, name_key, why_no_file
from ..media.sound_media import AUDIO_SUFFIXES
from ..media.video import VIDEO_SUFFIXES
from .dataset_file import DatasetSettings
from .lists import MediaFile

PICTURE_SUFFIXES = VIDEO_SUFFIXES | IMAGE_SUFFIXES
AUDIO_MASK_SUFFIXES = AUDIO_SUFFIXES | {".json"}


class Stems:
    """The files of folders by the name that they share with a medium; a folder is listed once."""

    def __init__(self, source: Path) -> None:
        self._source = source
        self._listed: dict[Path, dict[str, list[Path]]] = {}

    def places(self, folder: Path, candidate: MediaFile) -> list[Path]:
        """The folder at the same place below `folder` as the medium is below its own, then `folder`."""
        source, parent = self._source, candidate.path.parent
        inner = [folder / parent.relative_to(source)] if parent.is_relative_to(source) else []
        return list(dict.fromkeys([*inner, folder]))

    def named(self, folder: Path, stem: str, suffixes: Collection[str]) -> list[Path]:
        """Files of a folder called `stem`, of one of `suffixes`; case and accents count only where they decide."""
        if folder not in self._listed:
            table: dict[str, list[Path]] = {}
            for path in sorted(folder.iterdir()) if folder.is_dir() else ():
                table.setdefault(name_key(path.stem), []).append(path)
            self._listed[folder] = table
        near = [path for path in self._listed[folder].get(name_key(stem), []) if path.suffix.lower() in suffixes]
        return [path for path in near if path.stem == stem] or near

    def reached(self, folder: Path, candidate: MediaFile, suffixes: Collection[str]) -> list[Path]:
        """The files of `folder` of which one is taken for the medium, or that are two and refused."""
        return next(
            (named for at in self.places(folder, candidate) if (named := self._others(at, candidate, suffixes))), []
        )

    def _others(self, place: Path, candidate: MediaFile, suffixes: Collection[str]) -> list[Path]:
        return [path for path in self.named(place, candidate.path.stem, suffixes) if path != candidate.path]

    def find(self, folder: Path | None, candidate: MediaFile, suffixes: Collection[str], role: str) -> Path | None:
        """The file of one of `suffixes` that is called as the medium is, or None.

        Raises DataError where there are two, for nobody can tell which is meant, and where it would be the medium
        itself; `role` is what it would be.
        """
        for place in self.places(folder, candidate) if folder is not None else ():
            named = self.named(place, candidate.path.stem, suffixes)
            if others := [path for path in named if path != candidate.path]:
                return _one(others, role)
            if named:
                raise DataError(f"its {role} would be itself, as {place} is its own folder. Name another folder.")
        return None


def _one(paths: list[Path], role: str) -> Path:
    """The only one of `paths`, whatever it is. Raises DataError where there are more."""
    if len(paths) > 1:
        names = " and ".join(path.name for path in paths)
        raise DataError(
            f"two files could be its {role}: {names} in {paths[0].parent}. Keep one of them, or name it in a list.",
            paths[1],
        )
    return paths[0]


class Companions:
    """References and masks of the media of one dataset. `promised`: the list of media names references."""

    def __init__(self, entry: DatasetSettings, promised: int = 0) -> None:
        self.entry = entry
        self.wanted = max(promised, len(entry.reference_directories))
        self._stems = Stems(entry.source)

    def reference(self, candidate: MediaFile, number: int) -> Path | None:
        """The reference image or video `number` of a medium, counted from 0, or None."""
        if (named := _at(candidate.references, number)) is not None:
            return None if why_no_frames(named) else named
        folder = _at(self.entry.reference_directories, number)
        return _read(self._stems.find(folder, candidate, PICTURE_SUFFIXES, "reference"), "reference")

    def references(self, candidate: MediaFile) -> list[Path | None]:
        """All that a medium should have of them; None where one is missing."""
        return [self.reference(candidate, number) for number in range(self.wanted)]

    def pictures(self, candidate: MediaFile) -> list[Path]:
        """The references and the mask of a medium, as far as they are there."""
        with contextlib.suppress(DataError):  # of two of one name, which is said when the medium is cut
            return [path for path in (*self.references(candidate), self.mask(candidate)) if path is not None]
        return []

    def missing(self, candidate: MediaFile, number: int) -> str:
        """Why a medium without its reference `number` is left out."""
        what, folder = named_reference(number), _at(self.entry.reference_directories, number)
        if (named := _at(candidate.references, number)) is not None:
            return f"no {what}: {named} {why_no_frames(named)}"
        if folder is None:
            return f"no {what}: its line in {self.entry.source.name} names none"
        if not is_dir(folder):
            return f"no {what}: {folder} is {'a file, not' if is_file(folder) else 'not there, or no'} folder"
        return f"no {what}: {folder} has no image or video called {candidate.path.stem}"

    def gone(self, candidate: MediaFile) -> str:
        """Why a medium is left out for which the list names a file that is not there; "" where all are."""
        named = [("mask", candidate.mask), ("mask for sound", candidate.audio_mask)]
        named += [
            (named_reference(number, "reference sound"), path) for number, path in enumerate(candidate.reference_audios)
        ]
        for what, path in named:
            if path is not None and (reason := why_no_frames(path)):
                return f"no {what}: {path} {reason}; correct its line in {self.entry.source.name}"
        return ""

    def mask(self, candidate: MediaFile) -> Path | None:
        """The image or video with the mask of a medium, or None."""
        folder = self.entry.mask_directory
        return candidate.mask or _read(self._stems.find(folder, candidate, PICTURE_SUFFIXES, "mask"), "mask")

    def audio_mask(self, candidate: MediaFile) -> Path | None:
        """The file with the mask of the sound of a medium, or None."""
        folder = self.entry.audio_mask_directory
        role = "mask for sound"
        return candidate.audio_mask or _read(self._stems.find(folder, candidate, AUDIO_MASK_SUFFIXES, role), role)


def folders_beside(entry: DatasetSettings) -> Iterator[tuple[str, str, Path, Collection[str]]]:
    """(setting, what each file there is, folder, endings) of the folders whose files go with media by their names."""
    for number, folder in enumerate(entry.reference_directories):
        key = "more_reference_directories" if number else "reference_directory"
        yield key, "reference", folder, PICTURE_SUFFIXES
    for number, folder in enumerate(entry.reference_audio_directories):
        key = "more_reference_audio_directories" if number else "reference_audio_directory"
        yield key, "reference sound", folder, AUDIO_SUFFIXES
    if entry.mask_directory is not None:
        yield "mask_directory", "mask", entry.mask_directory, PICTURE_SUFFIXES
    if entry.audio_mask_directory is not None:
        yield "audio_mask_directory", "mask for sound", entry.audio_mask_directory, AUDIO_MASK_SUFFIXES
    if entry.audio_source == "audio_files" and entry.audio_files_directory is not None:
        yield "audio_files_directory", "sound", entry.audio_files_directory, sound_endings(entry)


def sound_endings(entry: DatasetSettings) -> set[str]:
    """The endings of files with the sound of videos."""
    explicit = "audio_extension" in entry.model_fields_set
    return {entry.audio_extension.lower()} | (set() if explicit else AUDIO_SUFFIXES)


class SoundFinder:
    """Finds the sound file that belongs to a medium, by name."""

    def __init__(self, entry: DatasetSettings) -> None:
        self.entry = entry
        self._stems = Stems(entry.source)

    def apart(self, candidate: MediaFile) -> tuple[Path | None, str]:
        """The file with the sound of a video, or None and why there is none. Raises DataError where there are two."""
        if candidate.sound is not None:
            reason = why_no_file(candidate.sound)
            return (None, f"{candidate.sound} {reason}; correct its audio_path") if reason else (candidate.sound, "")
        entry = self.entry
        folder = entry.audio_files_directory or candidate.path.parent
        if (found := self._stems.find(folder, candidate, sound_endings(entry), "sound")) is not None:
            reason = why_no_file(found)
            return (None, f"{found} {reason}") if reason else (found, "")
        key = "audio_source" if entry.audio_files_directory is None else "audio_files_directory"
        return None, f"no {candidate.path.stem}{entry.audio_extension} in {folder}; add it, or correct {key}"

    def references(self, candidate: MediaFile) -> tuple[Path | None, ...]:
        """The reference sounds of a medium, None where one is missing; empty where it has none."""
        folders, named, role = self.entry.reference_audio_directories, candidate.reference_audios, "reference sound"
        found = [
            _at(named, number) or _read(self._stems.find(_at(folders, number), candidate, AUDIO_SUFFIXES, role), role)
            for number in range(max(len(folders), len(named)))
        ]
        return tuple(found) if any(found) else ()


def why_no_frames(path: Path) -> str:
    """Why `path` is neither a file nor a folder of frames, or ""."""
    return "" if is_dir(path) else why_no_file(path)


def _read(path: Path | None, role: str) -> Path | None:
    """`path`, which was found by its name. Raises DataError where it is no file, for it would not be used."""
    if path is not None and (reason := why_no_file(path)):
        raise DataError(f"no {role}: {path} {reason}", path)
    return path


def named_reference(number: int, what: str = "reference") -> str:
    """ "reference", "reference 2" ...: what the reference `number`, counted from 0, is called."""
    return what if number == 0 else f"{what} {number + 1}"


def _at(paths: Sequence[Path | None], number: int) -> Path | None:
    return paths[number] if number < len(paths) else None
