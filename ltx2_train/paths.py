"""Paths as people write them in settings and lists, and the names that files may have on every system."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

# names that Windows keeps for devices, with any ending
_DEVICES = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9\u00b9\u00b2\u00b3])(\..*)?", re.IGNORECASE)
_FORBIDDEN = '/\\:*?"<>|'
_ESCAPED = {"\n": "\\n", "\t": "\\t", "\r": "\\r", "\b": "\\b", "\f": "\\f", "\x07": "\\a", "\v": "\\v"}
_WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\[^\\]")
_VARIABLE = re.compile(r"(\$[A-Z_][A-Z0-9_]*|\$\{[A-Za-z_]\w*\}|%[A-Za-z_]\w*%)(?=[\\/]|$)")
MAX_NAME_BYTES = 200  # what is put round a name takes up to 50 more, and file systems end at 255


def path_fault(text: str) -> str:
    """Why no file can have the path `text`, with what to write instead; empty where one can."""
    if not text.strip():
        return "is empty; leave the line out where there is no path"
    if any(ord(letter) < 32 for letter in text):
        meant = "".join(_ESCAPED.get(letter, letter) for letter in text)
        return (
            'holds a tab or a line break: in "double quotes" a backslash begins an escape. Put the path into '
            f"'single quotes': '{meant}'"
        )
    if found := _VARIABLE.match(text):
        return f"begins with {found[0]}, and variables of a shell are not filled in. Write the folder itself; ~ is home"
    if os.name != "nt" and _WINDOWS.match(text):
        return "is a path of Windows, which this system does not have. Write where the file lies here"
    return ""


def from_folder(folder: Path, text: Path | str) -> Path:
    """The path `text` as seen from `folder`.

    A name may begin with ~ and be no home. A path that comes from Windows has backslashes; on other systems they
    separate folders where nothing of that very name is there.
    """
    whole = folder / text
    if str(text).startswith("~") and not _there(whole):
        with contextlib.suppress(RuntimeError):
            whole = folder / Path(text).expanduser()
    if os.name != "nt" and "\\" in str(text) and not _there(whole):
        return folder / str(text).replace("\\", "/")
    return whole


def is_record(path: Path) -> bool:
    """Whether `path` is the file that a run has written of itself into its folder."""
    return path.name in ("run.toml", "dataset.toml") and all(
        _there(path.parent / name) for name in ("manifest.json", "states")
    )


def is_run_folder(folder: Path) -> bool:
    """Whether `folder` is that of a run, with what the run drew and recorded."""
    return all(_there(folder / name) for name in ("run.toml", "manifest.json"))


def _there(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that no file can have
        return False


def name_fault(name: str) -> str:
    """Why `name` cannot be the name of files and folders on every system; empty where it can."""
    if not name.strip():
        return "must not be empty"
    bad = [letter for letter in _FORBIDDEN if letter in name]
    if bad:
        return f"must not hold {' '.join(bad)}; it becomes the name of a folder and of files"
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in name):
        return "must not hold line breaks or other control characters"
    if name.strip(" .") != name:
        return "must not begin or end with a space or a dot"
    if _DEVICES.fullmatch(name):
        return "is a name that Windows keeps for a device. Choose another"
    size = len(name.encode("utf-8", "surrogatepass"))
    if size > MAX_NAME_BYTES:
        return f"is too long: it takes {size} bytes in a file name, and at most {MAX_NAME_BYTES} fit. Shorten it"
    return ""
