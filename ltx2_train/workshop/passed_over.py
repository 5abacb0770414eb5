"""What of a folder a tool does not take, said by name."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

from ..dataset.layouts import is_beside_media
from ..dataset.notes import SHOWN_AT_MOST
from ..dataset.scan import MEDIA_SUFFIXES, unread_kind
from ..events import Events
from ..files import is_hidden


def tell_passed_over(
    folder: Path, taken: Collection[Path] | None, kinds: Collection[str], events: Events, out: Path | None = None
) -> None:
    """Warn of the media of `folder` that are not `taken` (None: all that can be read are), of the `kinds` "image",
    "video" and "audio" and of no known kind, and of its sub-folders with such `kinds` but for `out`."""
    if not folder.is_dir():
        return
    listed = [path for path in sorted(folder.iterdir()) if not is_hidden(path, folder)]
    used = None if taken is None else set(taken)
    others = [path for path in listed if path.is_file() and _is_of(path, kinds)]
    left = [path.name for path in others if (unread_kind(path) if used is None else path not in used)]
    left = sorted([*left, *(path.name for path in listed if path.is_file() and _is_strange(path))])
    if left:
        events.message(f"{folder} holds what is not used here: {_some(left)}.", "warning")
    folders = [path for path in listed if path.is_dir() and (out is None or path.resolve() != out.resolve())]
    inside = [path.name for path in folders if any(_is_of(one, kinds) for one in _listed(path))]
    if inside:
        events.message(f"Sub-folders of {folder} are not looked into: {_some(inside)}. Name each of them.", "warning")


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []  # such as lost+found, which is not for everybody to look into


def _is_of(path: Path, kinds: Collection[str]) -> bool:
    unread = unread_kind(path)
    return any(path.suffix.lower() in MEDIA_SUFFIXES[kind] for kind in kinds) or bool(unread and unread[0] in kinds)


def _is_strange(path: Path) -> bool:
    """Whether a file is neither a medium nor what lies beside media: captions, caches, lists."""
    return not is_beside_media(path) and not _is_of(path, tuple(MEDIA_SUFFIXES))


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:SHOWN_AT_MOST]) + (" ..." if len(names) > SHOWN_AT_MOST else "")
