"""Colours that a file names by the numbers of ITU-T H.273 or by its primaries, and that nobody converts here."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

HDR_TRANSFERS = (16, 18)  # PQ and HLG
LINEAR = 8
# Others that do not look right on a screen, and how they look. Those of 2.2 and 2.8 (4, 5) are as good as BT.709.
OTHER_TRANSFERS = {
    LINEAR: ("linear light", "dark"),
    9: ("a logarithmic scale", "pale"),
    10: ("a logarithmic scale", "pale"),
    17: ("digital cinema (SMPTE 428)", "dark"),
}
WIDE_PRIMARIES = {9: "BT.2020", 11: "DCI-P3", 12: "Display P3"}
HEAD = 1 << 16  # bytes in which a picture says it
UNSPECIFIED_MATRIX = 2
LARGE = 1280, 720  # columns or rows from which on players take BT.709 where no matrix is said
OF_601 = frozenset(("mjpeg", "vp8", "dvvideo"))  # codecs whose matrix is BT.601 without a word
GRAPH_TAGS = ("prompt", "workflow")  # of ComfyUI, which writes BT.601
COPYING = "LoadVideo"  # a node of ComfyUI whose film may be written as it was
_PNG = b"\x89PNG\r\n\x1a\n"
_NCLX = b"colrnclx"  # of AVIF: the box and the kind of its contents
# red, green and blue of sRGB in x and y, and how far others may be from them
_SRGB = (0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
_NEAR = 0.02


def colour_remark(primaries: int, transfer: int) -> str:
    """What is to be said of colours by their numbers; "" of those that look right as they are."""
    if transfer in HDR_TRANSFERS:
        return "is HDR, and its colours will look flat; convert it to SDR (BT.709) first"
    if other := OTHER_TRANSFERS.get(transfer):
        return f"has the levels of {other[0]}, and will look {other[1]}; convert it to BT.709 first"
    if wide := WIDE_PRIMARIES.get(primaries):
        return f"has the colours of {wide}, which will look pale; convert it to BT.709 first"
    return ""


def lacks_matrix(frame: Any, codec: str, tags: Mapping[str, str]) -> bool:
    """Whether the colours of a film, of which `frame` is the first and `tags` are of the container, may be BT.601 as
    FFmpeg takes them, or BT.709 as players do at its size, and nothing in it says which."""
    if int(frame.colorspace) != UNSPECIFIED_MATRIX or codec in OF_601:
        return False
    if frame.format.is_rgb or len(frame.format.components) < 3:
        return False
    graph = " ".join(text for key, text in tags.items() if key.lower() in GRAPH_TAGS)
    if graph and COPYING not in graph:
        return False
    return frame.width >= LARGE[0] or frame.height >= LARGE[1]


def picture_remark(path: Path) -> str:
    """The same of a PNG (cICP, cHRM) or an AVIF (nclx), whose pixels are taken for sRGB. Raises OSError."""
    with open(path, "rb") as file:
        head = file.read(HEAD)
    if not head.startswith(_PNG):
        at = head.find(_NCLX)
        numbers = head[at + len(_NCLX) :][:4] if at >= 0 else b""
        return colour_remark(*struct.unpack(">HH", numbers)) if len(numbers) == 4 else ""
    chunks = dict(_chunks(head))
    if len(coded := chunks.get(b"cICP", b"")) == 4:
        return colour_remark(coded[0], coded[1])
    if len(measured := chunks.get(b"cHRM", b"")) == 32 and b"sRGB" not in chunks:
        ends = [value / 100_000 for value in struct.unpack(">8I", measured)[2:]]  # behind the white point
        if any(abs(end - usual) > _NEAR for end, usual in zip(ends, _SRGB, strict=True)):
            return "has primaries of its own (cHRM), which are not applied; save it as sRGB"
    return ""


def _chunks(head: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The chunks of a PNG before its pixels."""
    at = len(_PNG)
    while at + 8 <= len(head):
        size, kind = struct.unpack(">I4s", head[at : at + 8])
        if kind == b"IDAT":
            return
        yield kind, head[at + 8 : at + 8 + size]
        at += 12 + size
