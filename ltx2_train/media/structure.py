"""Whether a container holds together: where the chain of its parts breaks, and where it ends too soon.

Demuxers find their way around such places and say nothing, and what was lost there is missing from what they hand out.
The file is long because each container is walked in its own way.
"""

from __future__ import annotations

import functools
import mmap
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from ..errors import DataError

CHUNK_NAME = re.compile(rb"[ -~]{4}")
ASF_HEAD = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
EBML = b"\x1a\x45\xdf\xa3"
# Matroska: ids of what a segment, and a cluster in it, consist of. Sizes of all ones are not known.
SEGMENT, CLUSTER = b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75"
IN_SEGMENT = frozenset(
    bytes.fromhex(text)
    for text in "114d9b74 1549a966 1654ae6b 1f43b675 1c53bb6b 1941a469 1043a770 1254c367 ec bf".split()
)
IN_CLUSTER = frozenset(bytes.fromhex(text) for text in "e7 a3 a0 a7 ab 5854 af ec bf".split())
BLOCKS, CRC = (b"\xa3", b"\xa0"), b"\xbf"
AVI_CHUNK = re.compile(rb"\d\d(?:d[bcd]|wb|tx|pc|iv)|ix\d\d|JUNK|idx1|LIST|RIFF|rec |AVIX")
AVI_FRAME = re.compile(rb"\d\d(?:d[bc]|wb)")
FLV_TAGS = frozenset((8, 9, 18))
GIF_HEAD, GIF_EXTENSION, GIF_PICTURE, GIF_END = 13, 0x21, 0x2C, 0x3B
# A segment's own tables decide how all of it is read; a wrong check sum of the others (tags, index) does no harm to it.
HEADERS = {b"\x15\x49\xa9\x66": "Info", b"\x16\x54\xae\x6b": "Tracks"}
OGG_PAGE, OGG_HEAD = b"OggS", 27
SOUND_HEADS = (b"fLaC", OGG_PAGE, b"FORM", b"caff", b"TTA1", b"riff", b".snd", b"Crea")
READ_ON = (b"RIFF", b"GIF8", b".snd")  # where readers go on behind the end
TTA_BEGIN = re.compile(rb"TTA1[\x01\x02]\0[\x01-\x10]\0[\x08\x10\x18\x20]\0")
FLAC_BEGIN = re.compile(rb"fLaC[\x00\x80]\x00\x00\x22")  # its first block is always of 34 bytes
OGG_BEGINS, OGG_ENDS = 2, 4  # flags of the first and the last page of a stream
STREAMED = frozenset((0, 0x7FFFFFFF, 0xFFFFFFFF))  # sizes written by programs that could not go back
BEHIND_BYTES = 512  # beyond what programs append
PLAIN_WAVES = (1, 3, 0xFFFE)  # kinds of WAV whose samples have one size
SLACK = 4  # bytes that a file may lack for rounding
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def breaks(path: Path, formats: frozenset[str]) -> list[int]:
    """The bytes of `path` at which its structure breaks; `formats` are FFmpeg's names for it."""
    walk: Callable[[mmap.mmap], Iterator[int]] | None = None
    if formats & {"matroska", "webm"}:
        walk = _matroska
    elif "avi" in formats:
        walk = _avi
    elif "flv" in formats:
        walk = _flv
    elif "gif" in formats:
        walk = _gif
    elif "ogg" in formats:
        walk = _ogg
    if walk is None:
        return []
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return list(walk(data))


def header_fault(path: Path, formats: frozenset[str]) -> str:
    """What is wrong with the header of a file by its own check sums, or ""."""
    if not formats & {"matroska", "webm"}:
        return ""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for name, body, stop in tables(data):
            if name in HEADERS and _has_wrong_sum(data, body, stop):
                return f"the check sum of its header ({HEADERS[name]}) is wrong"
    return ""


def tables(data: mmap.mmap) -> Iterator[tuple[bytes, int, int]]:
    """What stands in the segment of a Matroska before its first cluster, as `element` tells it."""
    at = data.find(SEGMENT)
    at, end = element(data, at)[1:] if at >= 0 else (0, 0)
    while at < end:
        name, body, stop = element(data, at)
        if name == CLUSTER or name not in IN_SEGMENT:
            return
        yield name, body, stop
        at = stop


def sound_fault(path: Path, formats: frozenset[str], clip: bool) -> str:
    """What is wrong with the structure of a file with sound, or ""; of a `clip`, with its header alone."""
    stat = path.stat()
    return _sound_fault(path, stat.st_size, stat.st_mtime_ns, formats, clip)


@functools.lru_cache(maxsize=512)
def _sound_fault(path: Path, size: int, mtime_ns: int, formats: frozenset[str], clip: bool) -> str:
    # A sound is opened once for each of its windows; its bytes are gone through once.
    fault = header_fault(path, formats)
    if fault or clip:
        return fault
    places = [place for place in breaks(path, formats) if place < size]  # a file that is cut short is told as such
    if not places:
        return ""
    more = f" ({len(places)} such places)" if len(places) > 1 else ""
    return f"what begins at byte {places[0]:,} does not fit its check sum or its place{more}"


def missing_end(path: Path, formats: frozenset[str]) -> str:
    """How a file of these formats shows that its end is missing, or ""."""
    with open(path, "rb") as file:
        head = file.read(12)
        size = file.seek(0, 2)
        if formats & {"wav", "avi"} and head[:4] in (b"RIFF", b"RIFX"):
            said = int.from_bytes(head[4:8], "little" if head[:4] == b"RIFF" else "big")
            if said not in STREAMED and said + 8 > size + SLACK:
                return f"it has {size:,} of {said + 8:,} bytes"
        if "aiff" in formats and head[:4] == b"FORM":
            said = int.from_bytes(head[4:8], "big")
            if said not in STREAMED and said + 8 > size + SLACK:
                return f"it has {size:,} of {said + 8:,} bytes"
        if "ogg" in formats:
            file.seek(max(0, size - 2 * 65307))  # a page is no longer than that
            return _ogg_end(file.read())
    return ""


def behind_end(path: Path) -> str:
    """What a file holds behind the end that its own header states, where most readers stop, or "".

    Raises DataError where they go on, and the times begin anew.
    """
    with open(path, "rb") as file:
        if file.seek(0, 2) == 0:
            return ""
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if data[:4] in (b"RIFF", b"RF64") and data[8:12] == b"WAVE":
                return _behind_wav(data)
            what, second = (
                ("recording", _second_sound(data)) if data[:4] in SOUND_HEADS else ("film", _second_film(data))
            )
            head = data[:4]
    if not second:
        return ""
    behind = f"holds a second {what} from byte {second:,} on"
    if head in (EBML, OGG_PAGE):
        raise DataError(f"{path} {behind}, whose times begin anew. Export it again, or cut it there.", path)
    if head in READ_ON:
        return f"{behind}; both are read, one after the other"
    return f"{behind}; only the first is read"


def _behind_wav(data: mmap.mmap) -> str:
    size, said = len(data), int.from_bytes(data[4:8], "little") + 8
    if data[:4] == b"RF64":
        said = int.from_bytes(data[20:28], "little") + 8
        return _longer_than(said, size)
    if said - 8 in STREAMED:
        return ""
    at, end, sample, odd = 12, 0, 0, ""
    while at + 8 <= size and CHUNK_NAME.fullmatch(data[at : at + 4]):
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        if data[at : at + 4] == b"fmt " and int.from_bytes(data[at + 8 : at + 10], "little") in PLAIN_WAVES:
            sample = int.from_bytes(data[at + 20 : at + 22], "little")
        if data[at : at + 4] == b"data":
            if end:
                return f"has a second chunk of sound at byte {at:,}, and one alone is read; export it again"
            if length in STREAMED:
                return ""  # samples up to the end of the file
            if sample and (rest := min(length, size - at - 8) % sample):
                odd = f"ends {rest} bytes into a sample of {sample}; if one is missing inside, what follows is noise"
            end = at + 8 + length
        at += 8 + length
        if length % 2 and not CHUNK_NAME.fullmatch(data[at : at + 4]):
            at += 1  # which some programs leave out
    if longer := _longer_than(said, size):
        return longer
    if end and size - at >= BEHIND_BYTES and data[at:].strip(b"\0"):
        return f"says that its sound ends at byte {end:,} of {size:,}; what is behind it is not read"
    return odd


def _longer_than(said: int, size: int) -> str:
    if size - said < BEHIND_BYTES:
        return ""
    return f"says that it has {said:,} bytes and has {size:,}; what is behind them is not read"


def _second_sound(data: mmap.mmap) -> int:
    """Where a FLAC, Ogg, AIFF, CAF, TTA, Wave64, AU or VOC begins behind the first one; else 0."""
    if data[:4] == b".snd":
        at = sum(int.from_bytes(data[k : k + 4], "big") for k in (4, 8))
        return at if data[at : at + 4] == b".snd" else 0
    if data[:4] == b"Crea":
        at = int.from_bytes(data[20:22], "little")
        while at + 4 <= len(data) and data[at]:  # blocks, of which one of kind 0 ends them
            at += 4 + int.from_bytes(data[at + 1 : at + 4], "little")
        return at + 1 if data[at + 1 : at + 5] == b"Crea" else 0
    if data[:4] in (b"fLaC", b"TTA1"):
        found = (FLAC_BEGIN if data[:4] == b"fLaC" else TTA_BEGIN).search(data, 4)
        return found.start() if found else 0
    if data[:4] == b"riff":
        at = int.from_bytes(data[16:24], "little")
        at += -at % 8
        return at if 0 < at < len(data) and data[at : at + 16] == data[:16] else 0
    if data[:4] == b"caff":
        return _second_caf(data)
    if data[:4] == b"FORM":
        at = int.from_bytes(data[4:8], "big") + 8
        at += at % 2
        return at if data[at : at + 4] == b"FORM" else 0
    at, ended = 0, False
    while data[at : at + 4] == OGG_PAGE:
        flags = data[at + 5] if at + 5 < len(data) else 0
        if ended and flags & OGG_BEGINS:
            return at
        ended = ended or bool(flags & OGG_ENDS)
        at = _ogg_page(data, at)[0]
    return 0


def _second_caf(data: mmap.mmap) -> int:
    at = 8
    while at + 12 <= len(data):
        if data[at : at + 4] == b"caff":
            return at
        size = int.from_bytes(data[at + 4 : at + 12], "big", signed=True)
        if size < 0:
            return 0  # sound up to the end of the file
        at += 12 + size
    return 0


def _second_film(data: mmap.mmap) -> int:
    """Where a whole file begins behind the first one, as two that were joined byte by byte have it; else 0."""
    at = 0
    if data[4:8] == b"ftyp":
        names: list[tuple[bytes, int]] = []
        while at + 8 <= len(data):
            names.append((data[at + 4 : at + 8], at))
            size = int.from_bytes(data[at : at + 4], "big")
            size = int.from_bytes(data[at + 8 : at + 16], "big") if size == 1 else size
            if size < 8:
                break
            at += size
        # the parts of one film may each repeat its header
        if any(name == b"moof" for name, _ in names) or sum(name == b"moov" for name, _ in names) < 2:
            return 0
        return [place for name, place in names if name == b"ftyp"][-1]
    if data[:4] == EBML and (segment := data.find(SEGMENT)) >= 0:
        at = element(data, segment)[2]
        return at if data[at : at + 4] == EBML else 0
    if data[:16] == ASF_HEAD:
        while at + 24 <= len(data) and (at == 0 or data[at : at + 16] != ASF_HEAD):
            at += max(24, int.from_bytes(data[at + 16 : at + 24], "little"))
        return at if data[at : at + 16] == ASF_HEAD else 0
    if data[:4] == b"GIF8":
        at, broken = _gif_end(data)
        return at if not broken and data[at : at + 4] == b"GIF8" else 0
    if data[:4] == b"RIFF" and data[8:12] == b"AVI ":
        at = int.from_bytes(data[4:8], "little") + 8
        return at if data[at : at + 4] == b"RIFF" and data[at + 8 : at + 12] == b"AVI " else 0
    return 0


def _matroska(data: mmap.mmap) -> Iterator[int]:
    at = data.find(SEGMENT)
    if at < 0:
        return
    at, end = element(data, at)[1:]
    while at < end:
        name, body, stop = element(data, at)
        if name not in IN_SEGMENT:
            yield at
            at = data.find(CLUSTER, at + 1)
            if at < 0:
                return
            continue
        if name != CLUSTER:
            at = stop
            continue
        yield from _blocks_of_a_wrong_sum(data, body, stop)
        at = body
        while at < stop:
            name, _, behind = element(data, at)
            if name in IN_SEGMENT and name not in IN_CLUSTER:
                break  # of a cluster whose size is not known, or too large
            if name not in IN_CLUSTER or behind > stop:
                if behind > len(data) and name in IN_CLUSTER:
                    return  # cut short
                yield at
                at = data.find(CLUSTER, at + 1)
                if at < 0:
                    return
                break
            at = behind


def _blocks_of_a_wrong_sum(data: mmap.mmap, body: int, stop: int) -> Iterator[int]:
    """The ends of all blocks of a cluster that has a check sum which is not that of the rest of it."""
    if not _has_wrong_sum(data, body, stop):
        return
    at = element(data, body)[2]
    while at < stop:
        name, _, behind = element(data, at)
        if name not in IN_CLUSTER:
            return
        at = behind
        if name in BLOCKS:
            yield min(at, stop)


def _has_wrong_sum(data: mmap.mmap, body: int, stop: int) -> bool:
    """Whether an element whose content is from `body` to `stop` has a check sum, and it is not that of the rest."""
    name, begin, behind = element(data, body)
    if name != CRC or behind - begin != 4 or stop > len(data):
        return False
    return zlib.crc32(data[behind:stop]) != int.from_bytes(data[begin:behind], "little")


def element(data: mmap.mmap, at: int) -> tuple[bytes, int, int]:
    """Id of the element at a byte, where its content begins and where it ends."""
    first = data[at] if at < len(data) else 0
    length = 9 - first.bit_length()
    if length > 4:
        return b"", at, at
    name = data[at : at + length]
    begin = at + length
    first = data[begin] if begin < len(data) else 0
    width = 9 - first.bit_length()
    if width > 8:
        return b"", at, at
    size = int.from_bytes(data[begin : begin + width], "big") - (1 << 7 * width)
    body = begin + width
    return name, body, len(data) if size == (1 << 7 * width) - 1 else body + size


def _avi(data: mmap.mmap) -> Iterator[int]:
    at = data.find(b"movi")
    if at < 0:
        return
    end = min(len(data), at + int.from_bytes(data[at - 4 : at], "little"))
    at += 4
    while at + 8 <= end:
        name = data[at : at + 4]
        if not AVI_CHUNK.fullmatch(name):
            if AVI_CHUNK.fullmatch(data[at - 1 : at + 3]):  # written without the byte that makes its length even
                at -= 1
                continue
            yield at
            found = AVI_FRAME.search(data, at, end)
            if found is None:
                return
            at = found.start()
            continue
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        at += 12 if name in (b"LIST", b"RIFF") else 8 + size + size % 2


def _flv(data: mmap.mmap) -> Iterator[int]:
    at = int.from_bytes(data[5:9], "big") + 4
    while at + 11 < len(data):
        size = int.from_bytes(data[at + 1 : at + 4], "big")
        behind = at + 11 + size
        if data[at] & 0x1F not in FLV_TAGS or (
            behind + 4 <= len(data) and int.from_bytes(data[behind : behind + 4], "big") not in (size + 11, size, 0)
        ):
            yield at
            return
        at = behind + 4


def _gif(data: mmap.mmap) -> Iterator[int]:
    at, broken = _gif_end(data)
    if broken:
        yield at


def _gif_end(data: mmap.mmap) -> tuple[int, bool]:
    """The byte at which a GIF breaks, and that it does; else the one behind its end."""
    at = GIF_HEAD + _gif_colours(data[10])
    while at < len(data) and data[at] != GIF_END:
        if data[at] == GIF_EXTENSION:
            at += 2
        elif data[at] == GIF_PICTURE and at + 10 < len(data):
            at += 11 + _gif_colours(data[at + 9])
        else:
            return at, True
        while at < len(data) and data[at]:  # blocks, each with its length in front; one of no length ends them
            at += 1 + data[at]
        if at >= len(data):
            return len(data) - 1, True  # cut short
        at += 1
    return at + 1, False


def _gif_colours(flags: int) -> int:
    """Bytes of the table of colours that `flags` announce."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _ogg(data: mmap.mmap) -> Iterator[int]:
    """Each page that is not where it should be, whose check sum is wrong, or before which others are missing."""
    at, numbers = 0, {}
    while at < len(data):
        if data[at : at + 4] != OGG_PAGE:
            found = data.find(OGG_PAGE, at)
            if found < 0:
                return  # what stands behind the last page is no part of it
            yield at
            at = found
        stop, page = _ogg_page(data, at)
        if stop > len(data):
            return  # cut short
        if _ogg_sum(page[:22] + bytes(4) + page[26:]) != page[22:26]:
            yield at
            at += len(OGG_PAGE)
            at = found if (found := data.find(OGG_PAGE, at)) >= 0 else len(data)
            continue
        stream, number = page[14:18], int.from_bytes(page[18:22], "little")
        if not page[5] & OGG_BEGINS and numbers.get(stream, number) != number:
            yield at
        numbers[stream] = number + 1 & 0xFFFFFFFF
        at = stop


def _ogg_page(data: mmap.mmap | bytes, at: int) -> tuple[int, bytes]:
    """Where the page at a byte ends, and its bytes; beyond the end of `data` where it is cut short."""
    count = data[at + 26] if at + 26 < len(data) else 255
    lacing = data[at + OGG_HEAD : at + OGG_HEAD + count]
    stop = at + OGG_HEAD + count + sum(lacing)
    return stop, data[at:stop]


def _ogg_end(tail: bytes) -> str:
    at = tail.rfind(OGG_PAGE)
    if at < 0:
        return "its last page is not whole"
    stop, page = _ogg_page(tail, at)
    if stop > len(tail):
        return "its last page is not whole"
    if _ogg_sum(page[:22] + bytes(4) + page[26:]) != page[22:26]:
        return "its last page is damaged"
    return "" if page[5] & OGG_ENDS else "its last page does not say that it is the last"


def _ogg_sum(page: bytes) -> bytes:
    """The check sum of a page: CRC-32 from the highest bit on, where zlib's goes from the lowest."""
    total = zlib.crc32(page.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{total:032b}"[::-1], 2).to_bytes(4, "little")
