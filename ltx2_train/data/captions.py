"""Reading captions, whatever editor wrote them, and changing them without touching their files."""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence
from pathlib import Path

from ..errors import DataError

REPLACEMENT = "=>"


def read_caption(path: Path) -> tuple[str, str | None]:
    """The stripped text of `path` and a warning for the user, or None.

    UTF-8 with or without a byte order mark and UTF-16 with one are certain; anything else is taken as Latin-1, which
    never fails but may be wrong, hence the warning. Line breaks become spaces: one file is one caption.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"The caption {path} cannot be read: {error.strerror or error}.", path) from error
    text, warning = decode(data)
    if warning:
        warning = f"{path.name}: {warning}"
    return " ".join(text.split()), warning


def decode(data: bytes) -> tuple[str, str | None]:
    """Text of `data` and a warning where its encoding had to be guessed."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        try:
            return data.decode("utf-16"), None
        except UnicodeDecodeError:
            pass
    try:
        return data.decode("utf-8-sig"), None
    except UnicodeDecodeError:
        return data.decode("latin-1"), "the caption is not UTF-8 and was read as Latin-1. Save it as UTF-8 to be sure."


def parse_replacement(text: str) -> tuple[str, str]:
    """What "find => replace" finds and puts in its place, which may be nothing. Raises ValueError."""
    find, arrow, put = text.partition(REPLACEMENT)
    if not arrow or not find.strip():
        raise ValueError(f"{text!r} is not of the form 'find {REPLACEMENT} replace'")
    return find.strip(), put.strip()


def rewrite(caption: str, replacements: Sequence[str] = (), prefix: str = "", trigger: str = "") -> str:
    """The caption as it is trained on: words replaced (whole ones only), then the prefix, then the trigger word."""
    for text in replacements:
        find, put = parse_replacement(text)
        before = r"(?<!\w)" if find[0].isalnum() else ""
        after = r"(?!\w)" if find[-1].isalnum() else ""
        caption = re.sub(before + re.escape(find) + after, lambda _, put=put: put, caption)
    caption = " ".join(caption.split())
    prefix = prefix.strip()
    if prefix and not caption.startswith(prefix):
        caption = f"{prefix} {caption}".strip()
    return with_trigger(caption, trigger)


def with_trigger(caption: str, trigger: str) -> str:
    """`caption` with the trigger word in front, unless it already occurs in it as a whole word."""
    trigger = trigger.strip()
    if not trigger:
        return caption
    folded, wanted = f" {_words(caption)} ", f" {_words(trigger)} "
    if wanted in folded:
        return caption
    return f"{trigger}, {caption}" if caption else trigger


def _words(text: str) -> str:
    kept = "".join(ch if ch.isalnum() or ch in "_-" else " " for ch in text.casefold())
    return " ".join(kept.split())
