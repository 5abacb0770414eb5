"""Whether a JPEG holds together: its markers, and what its entropy coding cannot have made.

Decoders read over such places and go on, so a part of the picture is moved or grey and nothing is said.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator

SOF2, DHT, SOI, SOS, EOI = 0xC2, 0xC4, 0xD8, 0xDA, 0xD9
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # markers of the segment with the size of a picture
COEFFICIENTS = 64  # of a block
BARE = frozenset((0x01, *range(0xD0, 0xDA)))  # markers without a segment behind them
MARKER = re.compile(rb"\xff([^\x00\xff])")  # inside a scan a byte of 255 has a zero behind it
EXTRAS = frozenset((*range(0xE0, 0xF0), 0xFE))  # segments that no decoder needs: Exif, profiles, comments
SECOND = "holds a second picture of its size behind the first; only the first is used"
RESTARTS = range(0xD0, 0xD8)
ZEROS = re.compile(rb"\0{64,}")
END_OF_BLOCK = 0


def is_broken(data: bytes, alone: bool = False) -> bool:
    """Whether something is wrong with the JPEGs that `data` consists of, as far as their bytes show it.

    `alone`: what is behind the first one is no part of the picture (a preview, the film of a phone), and not looked at.
    """
    at, end = 0, len(data)
    tables: dict[int, bool] = {}  # of AC coefficients: whether a plain block is zeros
    progressive = False  # then most of what refines a picture may be zeros
    while at + 1 < end:
        if data[at] != 0xFF:
            if alone and (marker_there := MARKER.search(data, at)) is not None:
                at = marker_there.start()  # between segments decoders read over whatever there is
                continue
            # cameras put what they like behind the picture
            return at == 0 or data[at - 2 : at] != bytes((0xFF, EOI))
        marker = data[at + 1]
        if marker == 0xFF:  # padding
            at += 1
        elif marker in BARE:
            at += 2
            if alone and marker == EOI:
                return False
        else:
            size = int.from_bytes(data[at + 2 : at + 4], "big")
            body, at = data[at + 4 : at + 2 + size], at + 2 + size
            if size < 2 or at > end:
                return True
            progressive |= marker == SOF2
            if marker == DHT:
                tables |= _plain_is_zeros(body)
            if marker == SOS:
                marker_there = MARKER.search(data, at)
                begin, restart = at, 0
                while marker_there is not None and marker_there[1][0] in RESTARTS:
                    if marker_there[1][0] != 0xD0 + restart % 8:
                        return True
                    restart += 1
                    marker_there = MARKER.search(data, marker_there.end())
                behind = end if marker_there is None else marker_there.start()
                if marker_there is not None and marker_there[1][0] in BARE - {EOI}:
                    return True
                plain = progressive or bool(tables) and all(tables.values())
                if not plain and ZEROS.search(data, begin, behind):
                    return True
                at = behind
    return False


def odd_markers(data: bytes) -> str:
    """What a user should know of a JPEG that is whole by its markers: scans that are missing, a second picture."""
    size, segments = b"", [*_segments(data)]
    levels: dict[tuple[int, int], int | None] = {}  # of each coefficient the bits that are not there yet; None: all
    for marker, body, _ in segments:
        if marker in FRAMES:
            size, names = body[1:5], body[6::3] if marker == SOF2 else b""
            levels = {(name, place): None for name in names for place in range(COEFFICIENTS)}
        elif marker == SOS and levels and len(body) > 3:
            first, last, precision = body[-3:]
            for name in body[1 : 1 + 2 * body[0] : 2]:
                levels.update({(name, place): precision & 15 for place in range(first, last + 1)})
    if any(levels.values()) or None in levels.values():
        return "lacks scans that would make its picture sharp; save it again from its source"
    behind = segments[-1][2] if segments else len(data)
    if data[behind : behind + 3] == bytes((0xFF, SOI, 0xFF)):
        sizes = (body[1:5] for marker, body, _ in _segments(data[behind:]) if marker in FRAMES)
        if next(sizes, b"") == size:
            return SECOND
    return ""


def _segments(data: bytes) -> Iterator[tuple[int, bytes, int]]:
    """Each marker of the first JPEG in `data` with its segment, and the byte behind it, or behind its scan."""
    at = 2
    while at + 1 < len(data):
        found = MARKER.search(data, at)
        if found is None:
            return
        marker, at = found[1][0], found.end()
        if marker in BARE:
            yield marker, b"", at
            if marker == EOI:
                return
            continue
        behind = at + int.from_bytes(data[at : at + 2], "big")
        yield marker, data[at + 2 : behind], behind
        at = behind


def without_extras(data: bytes) -> bytes:
    """A JPEG without what describes it and is no part of its picture; whatever is odd there harms nobody."""
    parts, at = [data[:2]], 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] not in (*BARE, SOS):
        if data[at + 1] == 0xFF:  # padding
            at += 1
            continue
        behind = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at + 1] not in EXTRAS:
            parts.append(data[at:behind])
        at = behind
    return b"".join([*parts, data[at:]])


@functools.lru_cache(maxsize=64)
def _plain_is_zeros(tables: bytes) -> dict[int, bool]:
    """Of each table of AC coefficients whether its shortest code, all zeros, ends a block: then a plain picture is a
    run of zeros."""
    plain_zeros = {}
    at = 0
    while at + 17 <= len(tables):
        number, counts = tables[at], tables[at + 1 : at + 17]
        values = tables[at + 17 : at + 17 + sum(counts)]
        if number >> 4:
            plain_zeros[number] = values[:1] == bytes((END_OF_BLOCK,))
        at += 17 + sum(counts)
    return plain_zeros
