"""Files in the folders beside media (masks, references, sounds) that go with none, and why."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..files import below
from ..media.names import is_dir, name_key
from ..media.sound_media import AUDIO_SUFFIXES
from .companions import Stems, folders_beside, sound_endings
from .entry import DatasetRef, DatasetSettings
from .layouts import is_laid
from .lists import MediaFile
from .notes import DataNote
from .scan import MEDIA_SUFFIXES

NO_MEDIUM = "have no medium of their name"
OTHER_KIND = "are of a kind that is not read there, and not used"
OTHER_ENDING = "are not used, since audio_extension names another ending"
IN_SUB_FOLDER = "lie in sub-folders that are not those of the media of their names, and are not used"
OVERRIDDEN = "are not used, since the lists name others for their media"
OTHER_CASE = "are not used, since another file has the very name of the medium"


@dataclass(frozen=True)
class IdleFile:
    """A file in `folder` that goes with no medium, `reason` being one of the above; `role` is what it would be."""

    ref: DatasetRef
    role: str
    folder: Path
    path: Path
    reason: str


@dataclass
class _Role:
    """What the files of a folder are to the datasets that name it."""

    ref: DatasetRef
    endings: set[str] = field(default_factory=set)
    names: set[str] = field(default_factory=set)  # of media
    reached: set[Path] = field(default_factory=set)
    overridden: set[Path] = field(default_factory=set)


def idle_beside(
    found: Mapping[DatasetRef, Sequence[MediaFile]], used: Collection[Path], named: Collection[Path]
) -> Iterator[IdleFile]:
    """The files beside the media `found` of each dataset that go with none of them. `used` are files that are used
    whatever they are called, since lists name them; `named` are the folders and lists that datasets name."""
    folders: dict[Path, dict[str, _Role]] = {}
    sources = {ref.entry.source for ref in found}
    heard = {ref.entry.source for ref in found if ref.entry.kind == "audio"}
    for ref, media in found.items():
        stems = Stems(ref.entry.source)
        for what, folder, endings in _folders(ref.entry, sources, heard):
            role = folders.setdefault(folder, {}).setdefault(what, _Role(ref))
            role.endings |= set(endings)
            role.names |= {name_key(one.path.stem) for one in media}
            for one in media:
                at = role.overridden if any(_listed(one, what)) else role.reached
                at.update(stems.reached(folder, one, endings))
    for folder, roles in folders.items():
        taken = set(used).union(*(role.reached for role in roles.values()))
        read = set().union(*(role.endings for role in roles.values()))
        deeper = folder not in sources or any(ref.entry.recursive for ref in found if ref.entry.source == folder)
        for path, _ in below(folder, deeper):
            if path in taken or not taken.isdisjoint(path.parents) or is_dir(path) or not is_laid(path):
                continue
            if path.suffix.lower() not in read:
                if folder not in sources and path.absolute() not in named:
                    what, role = next(iter(roles.items()))
                    heard = what == "sound" and path.suffix.lower() in AUDIO_SUFFIXES
                    yield IdleFile(role.ref, what, folder, path, OTHER_ENDING if heard else OTHER_KIND)
                continue
            for what, role in roles.items():
                of_no_use = path in role.overridden and not any(folder in one.parents for one in taken)  # as is told
                if path.suffix.lower() in role.endings and not of_no_use:
                    yield IdleFile(role.ref, what, folder, path, _why(path, folder, role))


def _folders(
    entry: DatasetSettings, sources: Collection[Path], heard: Collection[Path]
) -> Iterator[tuple[str, Path, Collection[str]]]:
    """(what each file there is, folder, endings); of a folder of media those of its sounds that go with videos, unless
    it is `heard` as recordings."""
    for _, what, folder, endings in folders_beside(entry):
        if folder not in sources and folder.is_dir():
            yield what, folder, endings
    beside = entry.audio_files_directory in (None, entry.source) and entry.source not in heard
    if entry.audio_source == "audio_files" and entry.source_key == "video_directory" and beside:
        yield "sound", entry.source, sound_endings(entry) - MEDIA_SUFFIXES["video"] - MEDIA_SUFFIXES["image"]


def _listed(one: MediaFile, role: str) -> Sequence[Path | None]:
    """What a list names for a medium in place of the file of its name."""
    if role == "sound":
        return (one.sound,)
    if role.startswith("mask"):
        return (one.audio_mask if role == "mask for sound" else one.mask,)
    return one.reference_audios if "sound" in role else one.references


def _why(path: Path, folder: Path, role: _Role) -> str:
    if path in role.overridden:
        return OVERRIDDEN
    if name_key(path.stem) not in role.names:
        return NO_MEDIUM
    beside = {name_key(one.stem) for one in role.reached if one.parent == path.parent}
    return OTHER_CASE if name_key(path.stem) in beside else IN_SUB_FOLDER


def idle_sentences(files: Iterable[IdleFile]) -> Iterator[DataNote]:
    """A sentence for each folder and reason, with the names of the files."""
    groups: dict[tuple[Path, str, str], list[IdleFile]] = {}
    for one in files:
        groups.setdefault((one.folder, one.role, one.reason), []).append(one)
    for (folder, role, reason), these in groups.items():
        names = sorted(one.path.relative_to(folder).as_posix() for one in these)
        many = {"mask for sound": "masks for sound"}.get(role, f"{role}s")
        what = f"files beside the {many}" if reason == OTHER_KIND else many
        yield DataNote("missing", f"{len(names)} {what} in {folder} {reason}", these[0].ref.name, names)
