"""Reading text that people write, whatever editor they use."""

from __future__ import annotations

import codecs
import contextlib
from pathlib import Path

# that of UTF-32 first, since it begins with that of UTF-16
_MARKS = (
    ((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE), "utf-32"),
    ((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE), "utf-16"),
)


def read_text(path: Path) -> str:
    """The text of a file that a person wrote: UTF-8, or UTF-16 or UTF-32 where a byte order mark says so, as that of
    PowerShell and Excel does. Line ends become \\n.

    Raises OSError, and UnicodeError with words that follow the name of the file and tell what to change.
    """
    data = path.read_bytes()
    if b"\0" in data[:2] and data[:2].isascii() and not data.startswith(codecs.BOM_UTF32_BE):
        raise UnicodeError("begins as UTF-16 without a byte order mark does. Save it as UTF-8.")
    try:
        text = decode_marked(data)
    except UnicodeDecodeError as error:
        raise UnicodeError(f"is not UTF-8: {error}. Save it as UTF-8.") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def decode_marked(data: bytes) -> str:
    """`data` by its byte order mark, else as UTF-8, without the mark; two programs in a row may leave two.

    Raises UnicodeDecodeError, of UTF-8 where what begins like a mark is none.
    """
    for marks, encoding in _MARKS:
        if data.startswith(marks):
            with contextlib.suppress(UnicodeDecodeError):
                return data.decode(encoding).lstrip("\ufeff")
    return data.decode("utf-8-sig").lstrip("\ufeff")
