"""Names of files: which are the same to a person, which fit a file system, which can be shown."""

from __future__ import annotations

import errno
import hashlib
import os
import sys
import unicodedata
from pathlib import Path

# 255 bytes is what file systems take; `~flip_00000-0121_8192x8192_ltx2_audio_mask.safetensors` and its like need 59.
LONGEST_STEM = 190
GONE = "does not exist"
UTF8_MODE = "set PYTHONUTF8=1 before it starts, or a locale of UTF-8"


def name_key(name: str) -> str:
    """Equal for names that differ in case alone, or in how their accents are put together (NFC, NFD)."""
    if name.isascii():
        return name.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def cache_stem(stem: str) -> str:
    """`stem` as caches have it: one too long for their names is cut, and a digest keeps it apart from others."""
    data = stem.encode("utf-8")
    if len(data) <= LONGEST_STEM:
        return stem
    mark = "~" + hashlib.sha256(data).hexdigest()[:10]
    return data[: LONGEST_STEM - len(mark)].decode("utf-8", "ignore") + mark


def readable(text: str) -> bool:
    """Whether a name or a caption is proper text; names of other encodings are not, nor is half of a character."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return "\0" not in text


def why_unreadable(name: str) -> tuple[str, str]:
    """What is wrong with the name of a file that is not readable, and what to do."""
    try:
        os.fsencode(name).decode("utf-8")
    except UnicodeError:
        return "its name is in another encoding than UTF-8", "rename it"
    return f"its name is UTF-8, and this Python takes names for {sys.getfilesystemencoding()}", UTF8_MODE


def shown_path(path: Path) -> Path:
    """`path` with what cannot be printed replaced."""
    return Path(str(path).encode("utf-8", "surrogateescape").decode("utf-8", "replace"))


def is_file(path: Path) -> bool:
    """As `Path.is_file`, and false too where the name is one that no file can have."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_dir(path: Path) -> bool:
    """As `Path.is_dir`, and false too where the name is one that no folder can have."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def why_no_file(path: Path) -> str:
    """Why there is no file at `path` that can be read, in words that follow its name, or ""."""
    reason = why_not_found(path)
    return "is not there" if reason == GONE else reason


def why_not_found(path: Path) -> str:
    """The same of a path that somebody wrote."""
    try:
        path.stat()
    except (OSError, ValueError) as error:
        if getattr(error, "errno", None) == errno.ELOOP:
            return "is a link that leads to itself"
        if isinstance(error, UnicodeEncodeError) and readable(str(path)):
            return f"has a name that this Python cannot ask for, as it takes names for {error.encoding}; {UTF8_MODE}"
        return "is a link to a file that is gone" if os.path.islink(path) else GONE
    if is_dir(path):
        return "is a folder, not a file"
    return "" if is_file(path) else "is not a file that can be read, but a pipe, a socket or a device"
