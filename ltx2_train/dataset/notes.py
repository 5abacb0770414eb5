"""Sentences on datasets that know what they are about, so that nobody has to read them to find out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

SHOWN_AT_MOST = 5

# "idle": a setting without effect; "caption": one that was hardly meant to be any; "settings": anything else of a
# dataset. Of files, of which a check of the data has findings of its own: "copy", "missing" (a file beside media),
# "sound", "link", "file" (what reading one has told); but for "pair", how references, masks and sounds fit. Of what a
# dataset comes to: "left out", "unused" (what is no medium), "count" (how many files, what captions).
NoteKind = Literal[
    "settings", "idle", "caption", "pair", "copy", "missing", "sound", "link", "file", "left out", "unused", "count"
]
OF_FILES: frozenset[NoteKind] = frozenset(("copy", "missing", "sound", "link", "file"))


class DataNote(str):
    """A sentence for people: `dataset` it is about ("": the whole file), `words`, and `names` of all files that are
    meant, of which the sentence has the first."""

    kind: NoteKind
    words: str
    dataset: str
    names: tuple[str, ...]

    def __new__(cls, kind: NoteKind, words: str, dataset: str = "", names: Sequence[str] = ()) -> DataNote:
        about = f"{dataset}: " if dataset else ""
        more = " ..." if len(names) > SHOWN_AT_MOST else ""
        listed = f": {', '.join(names[:SHOWN_AT_MOST])}{more}" if names else ""
        self = super().__new__(cls, f"{about}{words}{listed}")
        self.kind, self.words, self.dataset, self.names = kind, words, dataset, tuple(names)
        return self

    def of(self, dataset: str) -> DataNote:
        """The same, said of `dataset`."""
        return DataNote(self.kind, self.words, dataset, self.names)
