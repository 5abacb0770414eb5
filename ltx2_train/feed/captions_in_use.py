"""The captions that are trained on: those beside media, unless text caches are there that do not say what they hold.

Such are those that were imported, and of some other programs. What lies beside the media then has no part in training.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..caching.cache_file import CacheFile
from ..caching.encode_text import Text, said_caption
from ..caching.recipe import CacheRecipe
from ..dataset.as_read import CaptionsAsRead, captions_as_read, captions_of_items
from ..dataset.cache_names import COMPACT_SUFFIX, text_cache_name
from ..dataset.captions import read_captions, rewrite
from ..dataset.dataset_file import DatasetConfig
from ..dataset.entry import DatasetRef, DatasetSettings
from ..dataset.notes import DataNote
from ..dataset.plan import DatasetPlan, Item
from ..errors import CacheError, DataError
from ..events import Events
from .cached_names import CachedName, cached_names, first_names


@dataclass(frozen=True)
class CaptionsInUse:
    """The captions that are known, None where none is, and what is to be said of the others."""

    read: CaptionsAsRead | None
    told: tuple[str, ...] = ()

    def tell(self, events: Events) -> None:
        """Say all of it."""
        if self.read is not None:
            events.message(DataNote("count", self.read.text()))
        for text in self.told:
            events.message(DataNote("caption", text), "warning")


def captions_in_use(config: DatasetConfig, items: Sequence[Item], recipe: CacheRecipe | None = None) -> CaptionsInUse:
    """What is trained on of the media `items` and of the datasets of `config` that are caches alone, where caches are
    held against `recipe`; none: all of the caches of media are made anew."""
    unsaid = {} if recipe is None else unsaid_media(config, items, recipe)
    known = [item for item in items if item.text_key not in unsaid]
    read = captions_of_items(known)
    named = list(read.captions) if read is not None else []
    told = [told_of_unsaid(list(unsaid.values()))] if unsaid else []
    for ref in config.refs:
        if ref.entry.from_caches:
            with contextlib.suppress(CacheError):
                named += [(name, caption) for name, captions in cached_texts(ref.entry) for caption in captions]
            told += told_of_caches(ref)
    return CaptionsInUse(captions_as_read(named), tuple(told))


def unsaid_media(config: DatasetConfig, items: Sequence[Item], recipe: CacheRecipe) -> dict[tuple[Path, str], Item]:
    """Of the media of `items`, by their text_key, those whose text cache is used and does not say its caption."""
    text = Text(DatasetPlan(config, tuple(items)), recipe)
    found: dict[tuple[Path, str], Item] = {}
    for key, item in {item.text_key: item for item in items}.items():
        _, state = text.either(item)
        if state.fresh and state.file is not None and not said_caption(state.file):
            found[key] = item
    return found


def told_of_unsaid(items: Sequence[Item]) -> str:
    """A sentence on media with captions that are not used, as they have text caches which do not say theirs."""
    names = first_names([caption_name(item) for item in items])
    return (
        f"The captions of {len(items)} media are those of text caches that another program made and that do not say "
        f"them. Not used are the captions beside these media: {names}. To train on them, take those text caches away "
        "and build them anew."
    )


def caption_name(item: Item) -> str:
    """The caption file of the medium of `item`; of a list the medium."""
    entry, path = item.dataset.entry, item.source.path
    return path.name if entry.from_a_list else path.with_suffix(entry.caption_extension).name


def told_of_caches(ref: DatasetRef) -> list[str]:
    """Sentences on captions of a dataset that is caches alone: those that these do not say, and files with others."""
    entry, told = ref.entry, []
    try:
        texts = list(cached_texts(entry))
    except CacheError:  # whoever trains on it says so
        return []
    unsaid = [name for name, captions in texts if not captions]
    if unsaid:
        told.append(
            f"{ref.name}: captions are those of its caches, which do not say {len(unsaid)} of {len(texts)}: "
            f"{first_names(unsaid)}."
        )
    if files := _others_beside(entry, texts):
        told.append(
            f"{ref.name}: {len(files)} captions beside media are not used, since its caches alone are read, and hold "
            f"others or do not say them: {first_names(files)}."
        )
    return told


def _others_beside(entry: DatasetSettings, texts: Sequence[tuple[str, list[str]]]) -> list[str]:
    """The caption files in the folders of a dataset that say something else than the text caches of their names."""
    folders = [folder for folder in dict.fromkeys((entry.source, entry.caches)) if folder.is_dir()]
    found = []
    for name, captions in texts:
        for folder in folders:
            path = folder / f"{name.replace('__', '/')}{entry.caption_extension}"
            path = path if path.is_file() else folder / f"{name}{entry.caption_extension}"
            if path.is_file() and not _says(path, captions, entry):
                found.append(path.name)
    return found


def _says(path: Path, captions: Sequence[str], entry: DatasetSettings) -> bool:
    try:
        written, _ = read_captions(path, entry.caption_lines)
    except DataError:
        return False
    rules = (entry.caption_replace, entry.caption_prefix, entry.trigger_word)
    return {rewrite(one, *rules) for one in written} <= {*captions}


def cached_texts(entry: DatasetSettings) -> Iterator[tuple[str, list[str]]]:
    """(name, captions) of each medium that has a text cache in the folder of a dataset, in the order of its samples; no
    captions where the cache does not say them. Raises CacheError where one is damaged."""
    seen: set[str] = set()
    for name in cached_names(entry):
        parsed = CachedName.beside(entry.caches, name)
        if parsed is None or parsed.stem in seen:
            continue
        seen.add(parsed.stem)
        paths = (entry.caches / text_cache_name(parsed.stem, form) for form in ("compact", "full"))
        if path := next((path for path in paths if path.is_file()), None):
            first, form = CacheFile(path), "compact" if path.name.endswith(COMPACT_SUFFIX) else "full"
            others = (
                entry.caches / text_cache_name(parsed.stem, form, number) for number in range(1, caption_count(first))
            )
            files = [first, *(CacheFile(other) for other in others if other.is_file())]
            yield parsed.stem, [caption for file in files if (caption := said_caption(file))]


def caption_count(text: CacheFile) -> int:
    """How many captions a medium has by what the cache of its first says."""
    said = text.metadata.get("captions", "1")
    return int(said) if said.isdecimal() else 1
