"""Media that lie in the folders of datasets and that none of them takes: of other kinds, or in sub-folders."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from ..files import below
from ..media.names import is_file
from .companions import folders_beside
from .entry import DatasetRef, DatasetSettings
from .scan import MEDIA_SUFFIXES, SHOWN_AT_MOST

RUN_RECORD = "manifest.json"  # of the folder of a run, whose samples are no media


def not_taken(refs: Sequence[DatasetRef], used: Collection[Path]) -> Iterator[str]:
    """A sentence for each folder of media with such media; `refs` are all datasets of the file, `used` the files that
    they use or leave out by name."""
    of_folder: dict[Path, list[DatasetSettings]] = {}
    for ref in refs:
        if ref.entry.source_key.endswith("_directory") and not ref.entry.from_caches and ref.entry.source.is_dir():
            of_folder.setdefault(ref.entry.source, []).append(ref.entry)
    named = named_places([ref.entry for ref in refs])
    for folder, entries in of_folder.items():
        others: dict[Path, str] = {}
        deeper: list[Path] = []
        for path, kind, reached in unreached(folder, entries, named):
            if path not in used and reached:
                others[path] = kind
            elif path not in used:
                deeper.append(path)
        if others:
            kinds = " and ".join(f"{kind}_directory" for kind in dict.fromkeys(others.values()))
            yield (
                f"{_listed(folder, list(others))} {_are(others)} not used. Name the folder as {kinds} of a dataset "
                "with a cache_directory of its own, or move them elsewhere."
            )
        if deeper:
            yield (
                f"{_listed(folder, deeper)} {_are(deeper)} in sub-folders and not used. Set recursive = true to use "
                "what is of the kind of the folder, or move them elsewhere."
            )


def named_places(entries: Sequence[DatasetSettings]) -> set[Path]:
    """The folders and lists that datasets name."""
    found = {entry.source.absolute() for entry in entries}
    return found | {folder.absolute() for entry in entries for _, _, folder, _ in folders_beside(entry)}


def unreached(
    folder: Path, entries: Sequence[DatasetSettings], named: Collection[Path], part: Path | None = None
) -> Iterator[tuple[Path, str, bool]]:
    """(file, kind, whether it lies where they look) of the media below `folder`, or a `part` of it, that its datasets
    `entries` do not take.

    What lies in another one of the `named` folders, or was drawn by a run, is not of this folder.
    """
    kinds = {entry.kind for entry in entries} | {"audio" for entry in entries if entry.audio_source == "audio_files"}
    beside = {
        ending for entry in entries for _, _, at, those in folders_beside(entry) if at == folder for ending in those
    }
    recursive = any(entry.recursive for entry in entries)
    inside = {place for place in named if folder.absolute() in place.parents}
    runs: dict[Path, bool] = {}
    for path, problem in below(part or folder, True):
        ending = path.suffix.lower()
        kind = next((kind for kind, endings in MEDIA_SUFFIXES.items() if ending in endings), None)
        if kind is None or problem or not inside.isdisjoint(path.absolute().parents) or not is_file(path):
            continue
        reached = path.parent == folder or recursive
        if reached and (kind in kinds or ending in beside):
            continue
        above = path.relative_to(folder).parents
        if not any(runs.setdefault(at, (folder / at / RUN_RECORD).is_file()) for at in above[:-1]):
            yield path, kind, reached


def _listed(folder: Path, paths: Sequence[Path]) -> str:
    names = ", ".join(path.relative_to(folder).as_posix() for path in paths[:SHOWN_AT_MOST])
    more = len(paths) - SHOWN_AT_MOST
    return f"{folder.name}: {names}{f' and {more} more' if more > 0 else ''}"


def _are(paths: Collection[Path]) -> str:
    return "is" if len(paths) == 1 else "are"
