"""What a file asks players to do with its picture and its sound that is not done here, so that it is told."""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import DataError
from .structure import element, tables

MATROSKA, MP4 = frozenset(("matroska", "webm")), frozenset(("mov", "mp4"))
# Matroska: ids of what holds a video track, and of its crop at the left, right, top and bottom.
TRACKS, TRACK_ENTRY, VIDEO = b"\x16\x54\xae\x6b", b"\xae", b"\xe0"
PIXEL_CROP = (b"\x54\xcc", b"\x54\xdd", b"\x54\xbb", b"\x54\xaa")
CLEAN_APERTURE = re.compile(rb"\0\0\0\x28clap(.{32})", re.DOTALL)
# Of MP4 and of Matroska: two bytes of version, then seven bits of the profile, and behind two bytes four of what others
# may take the picture for.
DOLBY_VISION = re.compile(rb"dv[cvw]C(?:\x41\xed.)?[\1-\3]\0(.).(.)", re.DOTALL)
OWN_COLOURS = (5, 10)  # profiles whose picture is in no YUV where others may take it for nothing
ENABLED = 1  # flag of a track
# How two eyes share a picture, by FFmpeg's numbers. Of those that take turns (3) one alone may come out of the decoder.
EYES = {
    1: "side by side", 2: "one above the other", 4: "as a chessboard",
    5: "side by side", 6: "in every other row", 7: "in every other column",
}  # fmt: skip
CROP_IT = "which is not done here; crop it where it is exported"
OF_SOUND = "its sound track"  # how what is told of sound begins


def asked(path: Path, formats: frozenset[str], frame: Any) -> list[str]:
    """What is said of a video of these formats whose first frame, as decoded, is `frame`.

    Raises DataError where its colours are such that nothing here can show them.
    """
    told = [_eyes(frame)]
    if formats & MP4:
        refuse_pauses(path)
    if formats & (MATROSKA | MP4):
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            told += [*_of_matroska(path, data)] if formats & MATROSKA else [*_of_mp4(path, data, frame)]
    return [words for words in told if words]


def _eyes(frame: Any) -> str:
    from av.sidedata.sidedata import Type

    data = frame.side_data.get(Type.STEREO3D)
    way = EYES.get(int.from_bytes(bytes(data)[:4], "little")) if data is not None else None
    return f"shows the pictures of two eyes {way} (3D); cut out one of them" if way else ""


def _of_matroska(path: Path, data: mmap.mmap) -> Iterator[str]:
    for name, body, stop in tables(data):
        if name == TRACKS:
            _refuse_colours(path, data, body, stop)
            sides = [_in_video(data, body, stop, wanted) for wanted in PIXEL_CROP]
            named = zip(("left", "right", "top", "bottom"), sides, strict=True)
            edges = " and ".join(f"{pixels} pixels at the {side}" for side, pixels in named if pixels)
            yield f"asks players to cut off {edges} (PixelCrop), {CROP_IT}" if edges else ""


def _in_video(data: mmap.mmap, at: int, end: int, wanted: bytes) -> int:
    """The first number above 0 that stands under the id `wanted` in the elements from `at` to `end`."""
    while at < end:
        name, body, stop = element(data, at)
        if not name or stop > end:
            return 0
        if name == wanted and (value := int.from_bytes(data[body:stop], "big")):
            return value
        if name in (TRACK_ENTRY, VIDEO) and (value := _in_video(data, body, stop, wanted)):
            return value
        at = stop
    return 0


def _of_mp4(path: Path, data: mmap.mmap, frame: Any) -> Iterator[str]:
    for begin, stop in boxes(data, 0, len(data), b"moov"):
        _refuse_colours(path, data, begin, stop)
        found = CLEAN_APERTURE.search(data, begin, stop)
        wide, by_wide, high, by_high = _numbers(found[1], 4) if found else (0, 0, 0, 0)
        shown = (round(wide / by_wide), round(high / by_high)) if by_wide and by_high else None
        if shown is not None and shown != (frame.width, frame.height):
            yield f"asks players to show {shown[0]}x{shown[1]} of its picture (clap), {CROP_IT}"
        yield _silenced(data, begin, stop)
        yield _paced(data, begin, stop)


def _numbers(data: bytes, count: int) -> list[int]:
    return [int.from_bytes(data[4 * k : 4 * k + 4], "big") for k in range(count)]


def _silenced(data: mmap.mmap, begin: int, stop: int) -> str:
    """What is said where the only sound track in `data` from `begin` to `stop` is switched off, or of no volume."""
    heads: dict[bytes, list[bytes]] = {}
    for track in boxes(data, begin, stop, b"trak"):
        for media in boxes(data, *track, b"mdia"):
            kinds = [data[at + 8 : at + 12] for at, _ in boxes(data, *media, b"hdlr")]
            heads.setdefault(b"".join(kinds), []).extend(data[at:end] for at, end in boxes(data, *track, b"tkhd"))
    sounds = heads.get(b"soun", [])
    if len(sounds) != 1 or len(sounds[0]) < 4:
        return ""
    volume = 48 if sounds[0][0] else 36  # where it stands, by the version of the header
    if not sounds[0][3] & ENABLED and any(len(head) > 3 and head[3] & ENABLED for head in heads.get(b"vide", [])):
        return f"{OF_SOUND} is switched off for players; it is used"
    if sounds[0][volume : volume + 2] == b"\0\0":
        return f"{OF_SOUND} has volume 0 for players; it is used as it was recorded"
    return ""


def _paced(data: mmap.mmap, begin: int, stop: int) -> str:
    """What is said where an edit list in `data` from `begin` to `stop` asks for another speed."""
    for edits in _edit_lists(data, begin, stop):
        for _, empty, rate in edits:
            if rate != 1 and not empty:
                return f"asks players to show a part at {rate:g} times its speed, which is not done"
    return ""


def refuse_pauses(path: Path) -> None:
    """Raise DataError where an edit list of an MP4 shows nothing for a while behind what it shows: FFmpeg shows the
    beginning there once more."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for film in boxes(data, 0, len(data), b"moov"):
            for edits in _edit_lists(data, *film):
                begun = False
                for length, empty, _ in edits:
                    if empty and begun and length:
                        raise DataError(
                            f"{path}: its edit list has a pause behind its beginning, in which the beginning would be "
                            "read once more. Export it again, with the pause in the picture and the sound themselves.",
                            path,
                        )
                    begun = begun or not empty


def _edit_lists(data: mmap.mmap, begin: int, stop: int) -> Iterator[list[tuple[int, bool, float]]]:
    """(length, whether it shows nothing, speed) of each part of the edit list of each track from `begin` to `stop`."""
    for track in boxes(data, begin, stop, b"trak"):
        for edits in boxes(data, *track, b"edts"):
            for at, end in boxes(data, *edits, b"elst"):
                if at + 8 > end:
                    continue
                half = 8 if data[at] else 4  # bytes of a time, by the version of the list
                found = []
                for place in range(at + 8, end - 2 * half - 3, 2 * half + 4):
                    length, start = (int.from_bytes(data[k : k + half], "big") for k in (place, place + half))
                    speed = data[place + 2 * half : place + 2 * half + 4]
                    found.append((length, start == 256**half - 1, int.from_bytes(speed, "big", signed=True) / 65536))
                yield found


def boxes(data: mmap.mmap, at: int, end: int, wanted: bytes) -> Iterator[tuple[int, int]]:
    """Where the content of each box `wanted` begins and ends, of those that follow each other from `at` to `end`."""
    while at + 8 <= end:
        size, name, body = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8], at + 8
        if size == 1:
            size, body = int.from_bytes(data[at + 8 : at + 16], "big"), at + 16
        stop = end if size == 0 else min(end, at + size)
        if stop <= body and size != body - at:
            return
        if name == wanted:
            yield body, stop
        at = stop


def _refuse_colours(path: Path, data: mmap.mmap, begin: int, stop: int) -> None:
    found = DOLBY_VISION.search(data, begin, stop)
    if found is not None and (profile := found[1][0] >> 1) in OWN_COLOURS and not found[2][0] >> 4:
        raise DataError(
            f"{path} is Dolby Vision of profile {profile}, whose colours would come out green and purple. Convert "
            "it to SDR (BT.709) with a program that knows them.",
            path,
        )
