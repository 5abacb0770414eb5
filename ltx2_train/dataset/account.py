"""Every file of every folder and every row of every list that datasets name, counted once by what becomes of it.

What nobody uses and nobody has named yet is named here, so that the counts leave nothing out.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..files import is_hidden
from ..media.names import name_key, shown_path
from ..paths import is_run_folder
from .companions import folders_beside
from .entry import DatasetRef
from .items import Item
from .layouts import is_of_the_system, is_ours
from .lists import MediaFile, Skipped, list_files
from .not_taken import is_of_a_folder, named_places
from .scan import MEDIA_SUFFIXES

TRAINED = {"video": "videos", "image": "pictures", "audio": "recordings"}
HELD = {kind: f"{noun} of the validation" for kind, noun in TRAINED.items()}
LISTED = "captions in whose place a list has its own"
CAPTIONS, MASKS, SOUND_MASKS, REFERENCES = "captions", "masks", "masks for sound", "references"
REFERENCE_SOUNDS, SOUNDS, LISTS = "reference sounds", "sounds", "lists"
LEFT_OUT, BESIDE, TOLD = "left out", "beside what is unused", "unused, as told"
OWN, ABOUT, HIDDEN, APART = "caches and records", "about the folder", "hidden or of the system", "of other folders"
HIDDEN_MEDIA, OTHERS = _UNTOLD = ("hidden media", "unused besides")
_ORDER = (
    *TRAINED.values(), *HELD.values(), CAPTIONS, MASKS, SOUND_MASKS, REFERENCES, REFERENCE_SOUNDS, SOUNDS, LISTS,
    LISTED, LEFT_OUT, BESIDE, TOLD, OWN, ABOUT, APART, HIDDEN, *_UNTOLD,
)  # fmt: skip
_SHOWN = 20  # names and sub-folders
_ENDINGS = frozenset().union(*MEDIA_SUFFIXES.values())


@dataclass(frozen=True)
class Account:
    """What becomes of the files of a folder, or of the rows of a list: fate -> the names of those that have it."""

    place: Path
    unit: str  # "files" or "rows"
    fates: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return sum(len(names) for names in self.fates.values())

    @property
    def untold(self) -> list[str]:
        """What is not used, and named nowhere else."""
        return [name for fate in _UNTOLD for name in self.fates.get(fate, ())]

    def text(self, named: bool = True) -> str:
        """A line; with `named`, what is named nowhere else stands in it by name."""
        parts = []
        for fate, names in self.fates.items():
            told = f" ({in_groups(names)})" if named and fate in _UNTOLD else ""
            parts.append(f"{len(names)} {_one_of(fate) if len(names) == 1 else fate}{told}")
        unit = _one_of(self.unit) if self.total == 1 else self.unit
        return f"Of {self.total} {unit} in {self.place.name or self.place}: {', '.join(parts) or 'none'}."

    def to_json(self) -> dict[str, Any]:
        fates = {fate: len(names) for fate, names in self.fates.items()}
        return {"place": str(self.place), "unit": self.unit, "total": self.total, "fates": fates, "untold": self.untold}


def _one_of(nouns: str) -> str:
    """`nouns` as they are called where there is one."""
    return re.sub(
        r"^((?:reference )?(?:video|picture|recording|caption|mask|reference|sound|list|file|row))s\b", r"\1", nouns
    )


def in_groups(names: Sequence[str]) -> str:
    """Names of files below a folder; those of one sub-folder are counted together."""
    groups = Counter(f"{top}/" if slash else top for top, slash, _ in (name.partition("/") for name in names))
    shown = [f"{name} ({count})" if name.endswith("/") else name for name, count in groups.most_common(_SHOWN)]
    more = sum(groups.values()) - sum(count for _, count in groups.most_common(_SHOWN))
    return ", ".join(shown) + (f" and {more} more" if more else "")


def accounts(
    found: Mapping[DatasetRef, Sequence[MediaFile]],
    items: Sequence[Item],
    left_out: Mapping[DatasetRef, Sequence[Skipped]],
    told: Collection[Path],
) -> Iterator[Account]:
    """What becomes of all files of the folders, and all rows of the lists, of the datasets `found`; `told` are files
    and folders of which a message says that they are not used."""
    roles = _roles(found, items, left_out)
    roles |= dict.fromkeys((path for path in told if path not in roles), TOLD)
    # what lies beside media in use and is not used is told where they are read, as a mask of sound that is not there
    stems = {name_key(item.source.path.stem): TOLD for item in items}
    stems |= {name_key(skip.path.stem): BESIDE for skips in left_out.values() for skip in skips}
    named = named_places([ref.entry for ref in found])
    caches = {path.absolute() for ref in found for _, path in ref.entry.cache_folders()}
    folders: dict[Path, bool] = {}  # whether its files go with media by their names
    for ref in found:
        if ref.entry.source_key.endswith("_directory") or ref.entry.source_key == "data_root":
            folders[ref.entry.source] = False
        if ref.entry.from_a_list:
            yield _of_list(ref, found[ref], items, left_out.get(ref, ()))
    for ref in found:
        for _, _, folder, _ in folders_beside(ref.entry):
            folders.setdefault(folder, True)
    texts = {_key(one.path): LISTED for ref, media in found.items() if ref.entry.from_a_list for one in media}
    texts |= {_key(path): BESIDE for path, role in roles.items() if role in (LEFT_OUT, TOLD)}
    for folder, beside in folders.items():
        if folder.is_dir():
            own = {folder.absolute()}
            walk = _Walk(folder, roles, texts, named - own, caches - own, stems if beside else {})
            yield Account(folder, "files", walk.fates())


def _of_list(ref: DatasetRef, found: Sequence[MediaFile], items: Sequence[Item], skipped: Sequence[Skipped]) -> Account:
    """The rows of a list: those of media in use, and those of a reason."""
    kinds = {
        item.source.path: (HELD if ref.validation else TRAINED)[item.kind] for item in items if item.dataset == ref
    }
    fates: dict[str, list[str]] = {}
    for one in found:
        fates.setdefault(kinds.get(one.path, LEFT_OUT), []).append(one.path.name)
    known = {one.path for one in found if one.path not in kinds}
    for skip in skipped:
        if skip.path in known:
            known.discard(skip.path)
        else:  # a row that is no medium, or one of a medium that another row has
            fates.setdefault(LEFT_OUT, []).append(skip.path.name)
    return Account(ref.entry.source, "rows", fates)


def _roles(
    found: Mapping[DatasetRef, Sequence[MediaFile]],
    items: Sequence[Item],
    left_out: Mapping[DatasetRef, Sequence[Skipped]],
) -> dict[Path, str]:
    """What each file is that datasets use, or leave out by name."""
    roles: dict[Path, str] = {}
    for item in items:
        sound = None if item.sound is None or item.sound.path == item.source.path else item.sound.path
        roles.setdefault(item.source.path, (HELD if item.validation else TRAINED)[item.kind])
        beside = [(item.mask, MASKS), (item.audio_mask, SOUND_MASKS), (sound, SOUNDS)]
        beside += [(one.path, REFERENCES) for one in item.references]
        beside += [(path, REFERENCE_SOUNDS) for path in item.reference_audios]
        for path, role in beside:
            if path is not None:
                roles.setdefault(path, role)
    for skips in left_out.values():
        for skip in skips:
            roles.setdefault(skip.path, LEFT_OUT)
    for ref, media in found.items():
        if ref.entry.from_a_list:
            roles |= dict.fromkeys(list_files(ref.entry), LISTS)
        for one in media:
            if one.caption_path is not None:
                trained = roles.get(one.path, LEFT_OUT) != LEFT_OUT
                roles.setdefault(one.caption_path, CAPTIONS if trained else BESIDE)
    return roles


class _Walk:
    """Goes through all of a folder, what is hidden and what links lead to included; a link to a folder is one file."""

    def __init__(
        self,
        folder: Path,
        roles: Mapping[Path, str],
        texts: Mapping[str, str],
        named: Collection[Path],
        caches: Collection[Path],
        stems: Mapping[str, str],
    ) -> None:
        self.folder, self.roles, self.texts = folder, roles, texts
        self.named, self.caches, self.stems = named, caches, stems

    def fates(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for path, fate in self._below(self.folder, ""):
            found.setdefault(fate, []).append(shown_path(path.relative_to(self.folder)).as_posix())
        return {fate: found[fate] for fate in _ORDER if fate in found}

    def _below(self, at: Path, fate: str) -> Iterator[tuple[Path, str]]:
        """(file, what becomes of it) of all below `at`, which share `fate` where it is one of a whole folder."""
        try:
            entries = sorted(os.scandir(at), key=lambda entry: entry.name)
        except OSError:  # said by whoever looks for media there
            return
        for entry in entries:
            path = Path(entry.path)
            if entry.is_dir(follow_symlinks=False):
                yield from self._below(path, fate or self._of_folder(path))
            else:
                yield path, self._of_file(path, fate)

    def _of_folder(self, path: Path) -> str:
        if (role := self.roles.get(path)) is not None:
            return role
        if path.absolute() in self.caches or is_run_folder(path):
            return OWN
        return APART if path.absolute() in self.named else ""

    def _of_file(self, path: Path, fate: str) -> str:
        if fate in (APART, OWN):
            return fate
        if (role := self.roles.get(path)) is not None:
            return role
        if is_hidden(path, self.folder):
            medium = path.suffix.lower() in _ENDINGS and not path.name.startswith("._")
            return HIDDEN_MEDIA if medium and not fate and path.parent == self.folder else HIDDEN
        if fate:
            return fate
        if is_of_the_system(path):
            return HIDDEN
        if is_ours(path):
            return OWN
        if (role := self.texts.get(_key(path))) is not None:
            return role
        if (role := self.stems.get(name_key(path.stem))) is not None:
            return role
        return ABOUT if is_of_a_folder(path) else OTHERS


def _key(path: Path) -> str:
    return name_key(str(path.with_suffix("")))
