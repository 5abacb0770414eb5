"""The files of a dataset that is its caches alone, by their names: latents, lone sounds, and what is neither."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..dataset.cache_names import (
    AUDIO_SUFFIX,
    COMPACT_SUFFIX,
    FLIPPED,
    LATENT_SUFFIX,
    TEXT_SUFFIX,
    medium_of,
    text_cache_name,
)
from ..dataset.dataset_file import DatasetConfig
from ..dataset.entry import DatasetRef, DatasetSettings, numbered_caches
from ..dataset.entry_types import LISTS
from ..dataset.manifest import MANIFEST_NAME
from ..dataset.notes import SHOWN_AT_MOST
from ..files import below, parse_json

_NAME = re.compile(
    r"(?P<stem>.+?)(?:_(?P<start>\d{5,})-(?P<count>\d{3,}))?_(?P<width>\d{4,})x(?P<height>\d{4,})_ltx2\.safetensors"
)
_LIKE_ONE = re.compile(r"_\d{4,}x\d{4,}_ltx2")  # with whatever behind


@dataclass(frozen=True)
class CachedName:
    """What the name of a file of latents says. `count` is 0 where there is no window: an image or a recording."""

    name: str
    stem: str
    mirrored: bool
    count: int
    width: int
    height: int

    @classmethod
    def parse(cls, name: str) -> CachedName | None:
        """None where a name is not that of latents, or leads into another folder."""
        found = None if "/" in name or "\\" in name else _NAME.fullmatch(name)
        if found is None:
            return None
        stem = found["stem"].removesuffix(FLIPPED)
        count = int(found["count"] or 0)
        return cls(name, stem, stem != found["stem"], count, int(found["width"]), int(found["height"]))

    @classmethod
    def beside(cls, texts: Path, name: str) -> CachedName | None:
        """As `parse`, with the caches of captions in `texts` to tell a window from a picture that was named after its
        time, such as fox_20260131-174502."""
        found = cls.parse(name)
        if found is None or not found.count or _has_text(texts, found.stem):
            return found
        named = name.rpartition("_ltx2")[0].rpartition("_")[0]
        return replace(found, stem=named, count=0) if _has_text(texts, named) else found

    @property
    def plain(self) -> str:
        """The name of the latents that a mirrored copy was made beside."""
        return self.name.replace(f"{self.stem}{FLIPPED}", self.stem, 1) if self.mirrored else self.name


def _has_text(folder: Path, stem: str) -> bool:
    return any((folder / text_cache_name(stem, form)).is_file() for form in ("compact", "full"))


def cached_names(entry: DatasetSettings) -> list[str]:
    """The files of latents that a dataset consists of, also where only their sound was cached."""
    if entry.cache_files is not None:
        return list(entry.cache_files)
    folder = entry.caches
    if not folder.is_dir():
        return []
    names = {path.name for path in folder.glob(f"*{LATENT_SUFFIX}")}
    sounds = folder.glob(f"*{AUDIO_SUFFIX}")
    names |= {path.name.removesuffix(AUDIO_SUFFIX) + LATENT_SUFFIX for path in sounds}
    return sorted(name for name in names if not name.startswith("."))  # such as what a Mac leaves on foreign disks


def lone_texts(entry: DatasetSettings) -> list[str]:
    """The media whose captions lie in the cache folder of a dataset, and no latents and no sound."""
    used = {one.stem for name in cached_names(entry) if (one := CachedName.beside(entry.caches, name)) is not None}
    texts = {medium_of(path.name) for end in (TEXT_SUFFIX, COMPACT_SUFFIX) for path in entry.caches.glob(f"*{end}")}
    return sorted(stem for stem in texts - used if stem and not stem.startswith("."))


def listed_in_manifest(folder: Path) -> set[str] | None:
    """The latents of `folder` that the manifest of its last build names; None where there is none that says it."""
    try:
        table = parse_json((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
        rows = [row for key in LISTS for row in table.get(key) or []]
        own = [row for row in rows if (folder / row["cache_directory"]).resolve() == folder.resolve()]
        return {name for row in own for name in row["cache_files"]} if own else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def first_names(names: Sequence[str]) -> str:
    """The first of some names, and how many more there are."""
    more = f" and {len(names) - SHOWN_AT_MOST} more" if len(names) > SHOWN_AT_MOST else ""
    return ", ".join(names[:SHOWN_AT_MOST]) + more


def passed_over(ref: DatasetRef, config: DatasetConfig) -> list[Path]:
    """What looks like latents below the folder of a dataset, and is none of it nor of another dataset of `config`: in a
    sub-folder, or with another ending, as copies have."""
    own = ref.entry.caches
    if ref.entry.cache_files is not None:
        return []
    known = {one.caches for one in (other.entry for other in config.refs)}
    for one in (other.entry for other in config.refs):
        known |= {*numbered_caches(one.reference_caches()), *numbered_caches(one.reference_audio_caches())}
    return [
        path
        for path, _ in below(own, True)
        if (path.name.lower().endswith(LATENT_SUFFIX) or (_LIKE_ONE.search(path.name) and not medium_of(path.name)))
        and (not path.name.endswith(LATENT_SUFFIX) or path.parent not in known)
        and (path.parent == own or not any(folder in path.parents for folder in known - {own}))
    ]
