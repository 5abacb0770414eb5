"""The font of every picture with words in it: sheets, charts, spectrograms."""

from __future__ import annotations

import functools
import unicodedata
from typing import Any

FONTS = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "arial.ttf",
    "Arial.ttf",
    "Helvetica.ttc",
    "LiberationSans-Regular.ttf",
)
OWN = ("", "Aileron")  # names of the fonts inside Pillow, which have ASCII only


@functools.lru_cache(maxsize=8)
def load_font(size: int) -> Any:
    """A font of the system with letters of many languages, else the one inside Pillow."""
    from PIL import ImageFont

    for name in FONTS:
        try:
            return ImageFont.truetype(name, size)
        except (OSError, ImportError):  # not there, or a Pillow without FreeType
            continue
    try:
        return ImageFont.load_default(size)
    except (TypeError, OSError, ImportError):  # without FreeType it has one bitmap font
        return ImageFont.load_default()


def drawable(text: str) -> str:
    """`text` in letters that the font has: umlauts lose their dots where there is no other way."""
    text = "".join(sign if sign.isprintable() else " " for sign in text)  # names of files may hold line breaks
    name = getattr(load_font(12), "getname", lambda: ("", ""))()[0] or ""
    if not any(name.startswith(own) if own else not name for own in OWN):
        return text
    plain = unicodedata.normalize("NFKD", text)
    return "".join(sign if sign.isascii() else "?" for sign in plain if not unicodedata.combining(sign))
