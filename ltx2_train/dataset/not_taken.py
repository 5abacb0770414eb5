"""Media that lie in the folders of datasets and that none of them takes: of other kinds, or in sub-folders."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from ..files import below
from ..media.names import is_file
from .companions import folders_beside
from .entry import DatasetRef, DatasetSettings
from .scan import MEDIA_SUFFIXES, SHOWN_AT_MOST


def not_taken(refs: Sequence[DatasetRef]) -> Iterator[str]:
    """A sentence for each folder of media with such media; `refs` are all datasets of the file."""
    of_folder: dict[Path, list[DatasetSettings]] = {}
    for ref in refs:
        if ref.entry.source_key.endswith("_directory") and not ref.entry.from_caches and ref.entry.source.is_dir():
            of_folder.setdefault(ref.entry.source.absolute(), []).append(ref.entry)
    named = {folder.absolute() for ref in refs for _, _, folder, _ in folders_beside(ref.entry)} | set(of_folder)
    for folder, entries in of_folder.items():
        others, deeper = _rest(folder, entries, named - {folder, *folder.parents})
        if others:
            kinds = " and ".join(f"{kind}_directory" for kind in dict.fromkeys(kind for kind, _ in others))
            paths = [path for _, path in others]
            yield (
                f"{_listed(folder, paths)} {_are(paths)} not used. Name the folder as {kinds} too, or move them "
                "elsewhere."
            )
        if deeper:
            yield (
                f"{_listed(folder, deeper)} {_are(deeper)} in sub-folders and not used. Set recursive = true to use "
                "what is of the kind of the folder, or move them elsewhere."
            )


def _rest(
    folder: Path, entries: Sequence[DatasetSettings], named: set[Path]
) -> tuple[list[tuple[str, Path]], list[Path]]:
    """(kind, file) of what the datasets `entries` of a folder have no use for, and the files that they do not reach."""
    kinds = {entry.kind for entry in entries} | {"audio" for entry in entries if entry.audio_source == "audio_files"}
    beside = {
        ending for entry in entries for _, _, at, those in folders_beside(entry) if at == folder for ending in those
    }
    recursive = any(entry.recursive for entry in entries)
    others: list[tuple[str, Path]] = []
    deeper: list[Path] = []
    for path, problem in below(folder, True):
        ending = path.suffix.lower()
        kind = next((kind for kind, endings in MEDIA_SUFFIXES.items() if ending in endings), None)
        if kind is None or problem or not named.isdisjoint(path.absolute().parents) or not is_file(path):
            continue
        if path.parent != folder and not recursive:
            deeper.append(path)
        elif kind not in kinds and ending not in beside:
            others.append((kind, path))
    return others, deeper


def _listed(folder: Path, paths: Sequence[Path]) -> str:
    names = ", ".join(path.relative_to(folder).as_posix() for path in paths[:SHOWN_AT_MOST])
    more = len(paths) - SHOWN_AT_MOST
    return f"{folder.name}: {names}{f' and {more} more' if more > 0 else ''}"


def _are(paths: Sequence[Path]) -> str:
    return "is" if len(paths) == 1 else "are"
