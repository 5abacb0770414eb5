"""What lies in the folders of datasets and that none of them takes: media of other kinds or in sub-folders, and what is
no medium."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from ..files import below
from ..media.names import is_dir, is_file, name_key, readable, shown_path, why_unreadable
from ..media.sound_media import is_sound_alone
from ..paths import is_run_folder
from .companions import folders_beside
from .entry import DatasetRef, DatasetSettings
from .layouts import is_laid, is_list
from .notes import SHOWN_AT_MOST
from .scan import MEDIA_SUFFIXES, unread_kind

LONE_CAPTION = "caption"
SOUND_ALONE = "sound alone"
RENAME = "holds sound alone and has the ending of a video; give it the ending of a sound, as .m4a or .mka"
A_LIST = "is a list of media by its name, and a folder does not read it"
NO_MEDIUM, ALONE = "is not a medium", "is a caption without its medium"
_KINDS = {ending: kind for kind, endings in reversed(MEDIA_SUFFIXES.items()) for ending in endings}
OTHER_TEXT = "is text beside a medium, and caption_extension names another ending"
SETTINGS = frozenset((".toml",))  # which may well lie beside the media they are about
ABOUT = frozenset(("readme", "license", "licence", "credits", "changelog"))  # of the folder itself


def not_taken(refs: Sequence[DatasetRef], used: Collection[Path], told: set[Path]) -> Iterator[str]:
    """Sentences on each folder of media with what is not used; `refs` are all datasets of the file, `used` the files
    that they use or leave out by name. What is said to be not used goes to `told`."""
    of_folder: dict[Path, list[DatasetSettings]] = {}
    for ref in refs:
        if ref.entry.source_key.endswith("_directory") and not ref.entry.from_caches and ref.entry.source.is_dir():
            of_folder.setdefault(ref.entry.source, []).append(ref.entry)
    named = named_places([ref.entry for ref in refs])
    for folder, entries in of_folder.items():
        others: dict[Path, str] = {}
        deeper: list[Path] = []
        why: dict[str, list[Path]] = {}
        for path, kind, reached in unreached(folder, entries, named):
            if path not in used and kind == SOUND_ALONE:
                why.setdefault(RENAME, []).append(path)
            elif path not in used and reached:
                others[path] = kind
            elif path not in used:
                deeper.append(path)
        told.update(others, deeper)
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
        for path, reason in strays(folder, entries, named):
            if path not in used:
                why.setdefault(reason, []).append(path)
        told.update(*why.values())
        for reason, paths in why.items():
            each = "each " if len(paths) > 1 else "it "
            yield f"{_listed(folder, paths)} {_are(paths)} not used: {each}{reason}."


def named_places(entries: Sequence[DatasetSettings]) -> set[Path]:
    """The folders and lists that datasets name."""
    found = {entry.source.absolute() for entry in entries}
    return found | {folder.absolute() for entry in entries for _, _, folder, _ in folders_beside(entry)}


def strays(folder: Path, entries: Sequence[DatasetSettings], named: Collection[Path]) -> Iterator[tuple[Path, str]]:
    """(file, why it is not used) of what lies where the datasets `entries` of `folder` look, and is no medium."""
    endings, kinds = _caption_endings(entries), {entry.kind for entry in entries}
    media: dict[str, set[str]] = {}  # names of media, however they are written
    captions: dict[str, dict[Path, str]] = {}
    texts: list[Path] = []
    for path in _within(folder, folder, any(entry.recursive for entry in entries), named):
        if not readable(path.name):
            if _kind(path) not in kinds:  # of those there is more to be said
                yield path, why_unreadable(path.name)[0]
        elif path.name.lower().endswith(endings):
            stem = _without(path, endings)
            captions.setdefault(name_key(stem), {})[path] = stem
        elif _kind(path) or unread_kind(path):
            stem = str(path.with_suffix(""))
            media.setdefault(name_key(stem), set()).add(stem)
            if (unread := unread_kind(path)) and unread[0] not in kinds:
                yield path, f"is {unread[1]}"
        elif path.suffix.lower() in (".txt", ".caption"):
            texts.append(path)
        elif is_laid(path) and not (is_of_a_folder(path) or is_dir(path)):
            yield path, A_LIST if is_list(path) else NO_MEDIUM
    for path in texts:
        if (beside := name_key(str(path.with_suffix(""))) in media) or not (_is_about(path) or is_dir(path)):
            yield path, OTHER_TEXT if beside else NO_MEDIUM
    for key, paths in captions.items():
        exact = [path for path, stem in paths.items() if stem in media.get(key, ())]
        for path in paths:
            if key not in media and _kind(stem := Path(paths[path])) and name_key(str(stem.with_suffix(""))) in media:
                right = stem.stem + path.name[len(stem.name) :]
                there = name_key(str(stem.with_suffix(""))) in captions
                do = f"{right} is there already, keep one of the two" if there else f"call it {right}"
                yield path, f"is a caption with the ending of its medium in its name; {do}"
            elif key not in media and not (_is_about(path) or is_dir(path)):
                yield path, ALONE
            elif exact and path not in exact:
                yield path, f"is a caption beside {exact[0].name}, which has the very name of the medium"


def unreached(
    folder: Path, entries: Sequence[DatasetSettings], named: Collection[Path], part: Path | None = None
) -> Iterator[tuple[Path, str, bool]]:
    """(file, kind, whether it lies where they look) of the media below `folder`, or a `part` of it, that its datasets
    `entries` do not take; of captions in sub-folders without media of their names the kind is LONE_CAPTION,
    and of files among recordings that are videos by their ending alone SOUND_ALONE.

    What lies in another one of the `named` folders, or was drawn by a run, is not of this folder.
    """
    kinds = {entry.kind for entry in entries}
    kinds |= {
        "audio"
        for entry in entries
        if entry.audio_source == "audio_files" and entry.audio_files_directory in (None, entry.source)
    }
    beside = {
        ending for entry in entries for _, _, at, those in folders_beside(entry) if at == folder for ending in those
    }
    recursive, endings = any(entry.recursive for entry in entries), _caption_endings(entries)
    captions: dict[Path, str] = {}
    media: set[str] = set()
    for path in _within(folder, part or folder, True, named):
        reached = path.parent == folder or recursive
        if (kind := _kind(path)) is None:
            if not reached and path.name.lower().endswith(endings):
                captions[path] = name_key(_without(path, endings))
            continue
        if not reached:
            media.add(name_key(str(path.with_suffix(""))))
        if not (reached and (kind in kinds or path.suffix.lower() in beside)) and is_file(path):
            unlike = reached and kind == "video" and kinds == {"audio"}  # as an MP4 with a voice is
            yield path, SOUND_ALONE if unlike and is_sound_alone(path) else kind, reached
    for path, key in captions.items():
        if key not in media and not (_is_about(path) or is_dir(path)):
            yield path, LONE_CAPTION, False


def is_of_a_folder(path: Path) -> bool:
    """Whether a file may well lie beside media, of which it says something: settings, and what is to be read of all."""
    return path.suffix.lower() in SETTINGS or _is_about(path)


def _is_about(path: Path) -> bool:
    return path.stem.lower() in ABOUT


def _within(folder: Path, part: Path, recursive: bool, named: Collection[Path]) -> Iterator[Path]:
    """What lies in `part` of `folder`, folders too, but for what is of runs or in places below it that are `named`."""
    inside = {place for place in named if folder.absolute() in place.parents}
    runs: dict[Path, bool] = {}
    for path, problem in below(part, recursive):
        if problem:
            continue
        if inside and not inside.isdisjoint((own := path.absolute(), *own.parents)):
            continue
        above = () if path.parent == folder else path.relative_to(folder).parents[:-1]
        for at in above:
            if at not in runs:
                runs[at] = is_run_folder(folder / at)
        if not any(runs[at] for at in above):
            yield path


def _kind(path: Path) -> str | None:
    return _KINDS.get(path.suffix.lower())


def _caption_endings(entries: Sequence[DatasetSettings]) -> tuple[str, ...]:
    return tuple({entry.caption_extension.lower() for entry in entries})


def _without(path: Path, endings: Sequence[str]) -> str:
    """A path without the longest of `endings` that it has."""
    return str(path)[: -max(len(ending) for ending in endings if path.name.lower().endswith(ending))]


def _listed(folder: Path, paths: Sequence[Path]) -> str:
    names = ", ".join(shown_path(path.relative_to(folder)).as_posix() for path in paths[:SHOWN_AT_MOST])
    more = len(paths) - SHOWN_AT_MOST
    return f"{folder.name}: {names}{f' and {more} more' if more > 0 else ''}"


def _are(paths: Collection[Path]) -> str:
    return "is" if len(paths) == 1 else "are"
