"""Reading captions, whatever editor wrote them, and changing them without touching their files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ..errors import DataError
from ..files import parse_json
from ..media.names import readable
from ..text_files import decode_marked

REPLACEMENT = "=>"
JSON_KEYS = ("caption", "text", "prompt", "description")  # of a caption file in JSON, in the order they are looked for
LARGEST = 1_000_000  # bytes
TALK = "it looks like the talk with a captioner; leave its caption alone"
OF_A_TABLE = "it looks like a line of a list of files; write the caption alone"
_TABBED = re.compile(r"^[^\s\t]+\.\w{3,4}\t")
_ROLE = re.compile(r"^(system|user|assistant|model)\s*$", re.MULTILINE)  # alone in its line, as chat templates write it
TWICE = "a caption that stands in it more than once counts once"
_WITHOUT_BLANKS = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]")  # signs of scripts that have no blanks between words
UNREAD_KEY = "not read of it: "  # and its name
EMPTY_IN_LIST = "an empty one in its list of captions is left out"
# Control characters, but for white space and the line ends of old and new machines; also what UTF-16 without its mark
# looks like.
NOT_TEXT = re.compile(r"[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f]")
_LFS_POINTER = "version https://git-lfs."


def read_caption(path: Path) -> tuple[str, str | None]:
    """The first caption in `path` and a warning, as `read_captions`."""
    captions, warning = read_captions(path)
    return captions[0], warning


def read_captions(path: Path, by_line: bool = False, unused: set[str] | None = None) -> tuple[list[str], str | None]:
    """The stripped captions in `path`, one at least, and a warning for the user, or None. Raises DataError where it is
    no text.

    UTF-8 with or without a byte order mark, and UTF-16 and UTF-32 with one are certain. Anything else is taken as
    Windows-1252, the Latin-1 of Windows, which may be wrong, hence the warning. Line breaks become spaces, since one
    file is one caption, or part captions where `by_line`. A file that ends in .json is an object with the caption or a
    list of captions, or these alone, and `by_line` parts each; what is not used of it is added to `unused`.
    """
    try:
        size = path.stat().st_size
        if size > LARGEST:
            raise DataError(f"The caption {path} has {size / 1e6:.1f} MB; a caption is a paragraph of text.", path)
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"The caption {path} cannot be read: {error.strerror or error}.", path) from error
    text, warning = decode_text(data)
    _require_text(path, text)
    if text.startswith(_LFS_POINTER):
        raise DataError(
            f"The caption {path.name} is a Git LFS pointer, not the text. Fetch the files themselves (git lfs pull).",
            path,
        )
    if path.suffix.lower() == ".json":
        found = _in_json(path, text, set() if unused is None else unused)
    else:
        found = [text]
    if by_line:
        found = [line for one in found for line in text_lines(one)]
    if warning:
        warning = f"{path.name}: {warning}"
    if unused is not None:
        unused |= {TWICE} if is_repeated(found) else set()
        unused |= {OF_A_TABLE} if any(_TABBED.search(one) for one in found) else set()
        unused |= {TALK} if any(_ROLE.search(one) for one in found) else set()
    return distinct_captions(found) or [""], warning


def distinct_captions(captions: Sequence[str]) -> list[str]:
    """Captions on one line each, those that are there, each once."""
    return [one for one in dict.fromkeys(" ".join(caption.split()) for caption in captions) if one]


def is_repeated(captions: Sequence[str]) -> bool:
    """Whether one of `captions` stands among them twice."""
    return len([one for one in captions if one.strip()]) > len(distinct_captions(captions))


def text_lines(text: str) -> list[str]:
    """The lines of a file; other separators that Unicode has are part of them, as JSON wants it."""
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def _in_json(path: Path, text: str, unused: set[str]) -> list[str]:
    """The captions in the text of a JSON file."""
    try:
        value = parse_json(text)
    except ValueError as error:
        raise DataError(f"The caption {path.name} is not JSON: {error}. Correct it.", path) from error
    if isinstance(value, dict):
        there = [other for key in JSON_KEYS for other in (key, *value) if other.strip().casefold() == key]
        key = next((other for other in there if value.get(other)), None)
        if key is None and not {*there}.isdisjoint(value):
            return []  # it stands there, and nothing in it
        if key is None:
            raise DataError(
                f"The caption {path.name} has none of the keys {', '.join(JSON_KEYS)}, but "
                f"{', '.join(value) or 'nothing'}. Rename the one with the caption.",
                path,
            )
        unused |= {f"{UNREAD_KEY}{other}" for other in value if value[other] and other != key}
        value = value[key]
    values = [one for one in value if one] if isinstance(value, list) else [value]
    if isinstance(value, list) and len(values) < len(value):
        unused.add(EMPTY_IN_LIST)
    for one in values:
        if not isinstance(one, str):
            raise DataError(f"The caption {path.name} holds {one!r} where the caption should be. Write text.", path)
        if not readable(one):
            raise DataError(f"The caption {path.name} is not text. Write it anew, and save it as UTF-8.", path)
        _require_text(path, one)
    return values


def _require_text(path: Path, text: str) -> None:
    """Raise DataError where `text` of the caption `path` holds what no text does."""
    if not (found := NOT_TEXT.search(text)):
        return
    seen = f"U+{ord(found[0]):04X}"
    if "\0" in text:
        reason = "is not text. Write it anew, and save it as UTF-8."
    elif found[0] > "\x7f" and text[: found.start()][-1:] >= "\xc2":
        reason = f"is UTF-8 that was taken for another encoding and saved ({seen} in it is no letter). Write it anew."
    else:
        reason = f"holds a control character ({seen}) and is not text. Take it out, or write the caption anew."
    raise DataError(f"The caption {path.name} {reason}", path)


def decode_text(data: bytes) -> tuple[str, str | None]:
    """Text of `data` and a warning where its encoding had to be guessed. What is no text comes out as some, too."""
    try:
        return decode_marked(data), None
    except UnicodeDecodeError:
        warning = "the caption is not UTF-8 and was read as Latin-1. Save it as UTF-8 to be sure."
    try:
        return data.decode("cp1252"), warning
    except UnicodeDecodeError:
        return data.decode("latin-1"), warning


def parse_replacement(text: str) -> tuple[str, str]:
    """What "find => replace" finds and puts in its place, which may be nothing. Raises ValueError."""
    find, arrow, put = text.partition(REPLACEMENT)
    if not arrow or not find.strip() or REPLACEMENT in put:
        raise ValueError(f"{text!r} is not of the form 'find {REPLACEMENT} replace'")
    return find.strip(), put.strip()


def says_something(caption: str) -> bool:
    """Whether `caption` has a letter that can be seen; marks of no width, which web pages leave behind, are none."""
    return any(letter.isprintable() and not letter.isspace() for letter in caption)


def rewrite(
    caption: str,
    replacements: Sequence[str] = (),
    prefix: str = "",
    trigger: str = "",
    used: set[str] | None = None,
) -> str:
    """The caption as it is trained on: words replaced (whole ones only), then the prefix, then the trigger word.

    The replacements whose words are in it are added to `used`.
    """
    for replacement in replacements:
        put = parse_replacement(replacement)[1]
        caption, times = re.subn(_form_of(replacement), lambda _, put=put: put, caption)
        if times and used is not None:
            used.add(replacement)
    caption = " ".join(caption.split())
    prefix = prefix.strip()
    if prefix and not caption.casefold().startswith(prefix.casefold()):
        caption = f"{prefix} {caption}".strip()
    return with_trigger(caption, trigger)


def in_other_letters(caption: str, replacement: str) -> str:
    """What of `caption` is the words that `replacement` finds but for capitals, and stays; or ""."""
    form, put = _form_of(replacement), parse_replacement(replacement)[1]
    rest = re.sub(form, "", caption.replace(put, "") if put else caption)
    found = re.search(form, rest, re.IGNORECASE)
    return "" if found is None or found[0] == put else found[0]


def _form_of(replacement: str) -> str:
    find = parse_replacement(replacement)[0]
    before = r"(?<!\w)" if find[0].isalnum() else ""
    return before + re.escape(find) + (r"(?!\w)" if find[-1].isalnum() else "")


def with_trigger(caption: str, trigger: str) -> str:
    """`caption` with the trigger word in front, unless it already occurs in it as a whole word."""
    trigger = trigger.strip().rstrip(", ")  # the comma comes of itself
    if not trigger:
        return caption
    folded, wanted = f" {_words(caption)} ", f" {_words(trigger)} "
    if wanted in folded:
        return caption
    return f"{trigger}, {caption}" if caption else trigger


def _words(text: str) -> str:
    kept = "".join(ch if ch.isalnum() or ch in "_-" else " " for ch in _WITHOUT_BLANKS.sub(r" \g<0> ", text.casefold()))
    return " ".join(kept.split())
