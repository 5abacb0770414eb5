"""Settings of datasets that would change nothing with the media that were found, though they do with others.

idle_entries.py tells what the settings alone tell, and that is refused. This is known once media are read, and said.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import PrivateAttr

from ..idle import idle
from ..media.info import MediaKind
from .entry import DatasetRef, DatasetSettings
from .idle_entries import idle_of
from .items import Item
from .notes import DataNote

_OF_SOUND = "audio_source is not none"  # words for settings that count with sound


class _AsFound(DatasetSettings):
    """The settings of a dataset, where what there may be is what there is."""

    _items: tuple[Item, ...] = PrivateAttr(())

    @classmethod
    def of(cls, entry: DatasetSettings, items: Sequence[Item]) -> _AsFound:
        given: dict[str, Any] = dict(entry)
        found = cls.model_construct(set(entry.model_fields_set), **given)
        found._items = tuple(items)
        return found

    @property
    def kind(self) -> MediaKind:
        kinds: set[MediaKind] = {item.kind for item in self._items}
        return kinds.pop() if len(kinds) == 1 else "video"

    @property
    def may_have_recordings(self) -> bool:
        return any(item.kind == "audio" for item in self._items)

    @property
    def may_have_sound(self) -> bool:
        return any(item.sound is not None for item in self._items)

    @property
    def sound_inside(self) -> bool:
        return any(item.sound is not None and item.sound.path == item.source.path for item in self._items)

    @property
    def may_have_references(self) -> bool:
        return any(item.references for item in self._items)

    @property
    def may_have_more_references(self) -> bool:
        return any(len(item.references) > 1 for item in self._items)

    @property
    def may_have_voices(self) -> bool:
        return any(item.reference_audios for item in self._items)


def idle_found(refs: Sequence[DatasetRef], found: Mapping[DatasetRef, Sequence[Item]]) -> Iterator[DataNote]:
    """A sentence for each setting of no use to what was `found`; of a value that several datasets have, where it is of
    use to none of them. `refs` are all datasets of the file."""
    unused = {}
    for ref, items in found.items():
        told = {one.setting for one in idle_of(ref.entry)}
        if ref.entry.audio_source == "video":
            told.add("audio_track")  # a clip without that track says so itself
        ones = idle(_AsFound.of(ref.entry, items)) if items else []
        unused[ref] = {one.setting: one for one in ones if one.setting not in told}
    for ref, ones in unused.items():
        for name, one in ones.items():
            alike = (other for other in refs if getattr(other.entry, name) == one.value)
            if all(name in unused.get(other, ()) for other in alike):
                counts = "with media that have sound" if _OF_SOUND in one.words else one.words
                yield DataNote("idle", f"{name} has no effect with what was found: it counts only {counts}.", ref.name)
