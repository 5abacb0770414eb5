"""Whether the file of a picture holds together, as far as it shows that. Pillow reads over such places.

PNG has check sums, which Pillow looks at, and rows, of which it takes as many as there are. JPEG has markers and codes
that must come out even; WebP has sizes; what is coded arithmetically (WebP with losses, AVIF) never has a long run of
zeros inside, but a part that was never written has. Other bytes in the place of the right ones are not always seen.
"""

from __future__ import annotations

import functools
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from . import jpeg
from .decoding import LONG_HOLE, strictly_decoded

RIFF_HEAD = 12
LONGEST_ZEROS = bytes(256)  # in what is coded arithmetically; a plain picture has been seen to have 137
AVIF_BRANDS = (b"avif", b"avis")
PNG = b"\x89PNG\r\n\x1a\n"
PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by type of colour
# Where the passes of an interlaced PNG begin, and their steps: x, y, step of x, step of y.
PNG_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
PIECE = 1 << 20


def why_damaged(path: Path) -> str:
    """What is wrong with the picture `path`, or "". Raises OSError."""
    stat = path.stat()
    return _why_damaged(path, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=4096)
def _why_damaged(path: Path, size: int, mtime_ns: int) -> str:
    # A picture is read when it is looked at, when it is encoded and when it is shown; its bytes are gone through once.
    data = path.read_bytes()
    if data.startswith(b"\xff\xd8"):
        return _of_jpeg(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _of_webp(data)
    if data.startswith(PNG):
        return _of_png(data)
    return _of_avif(path) if data[4:8] == b"ftyp" and data[8:12] in AVIF_BRANDS else ""


def _of_jpeg(data: bytes) -> str:
    if jpeg.is_broken(data, alone=True):
        return "its coding breaks off inside"
    # A strict decoder complains of what no picture is coded as, and where there is less than the whole picture. It may
    # also be one that does not know this kind of JPEG; then nothing is known.
    plain = jpeg.without_extras(data)
    if strictly_decoded("mjpeg", plain) or not strictly_decoded("mjpeg", plain, strict=False):
        return ""
    return "its coding does not come out as a whole picture"


def _of_png(data: bytes) -> str:
    wanted, coded, at = 0, zlib.decompressobj(), len(PNG)
    found = 0
    while at + 8 <= len(data):
        size, kind = struct.unpack(">I4s", data[at : at + 8])
        body, at = data[at + 8 : at + 8 + size], at + 12 + size
        if kind == b"IHDR" and size == 13:
            wanted = _png_bytes(*struct.unpack(">IIBBxxB", body))
        if kind != b"IDAT":
            continue
        try:
            while body:
                found += len(coded.decompress(body, PIECE))
                body = coded.unconsumed_tail
        except zlib.error:
            return ""  # which Pillow says in its own words
    try:
        found += len(coded.flush())
    except zlib.error:
        return ""
    return f"it holds {found:,} of the {wanted:,} bytes of its picture" if found < wanted else ""


def _png_bytes(width: int, height: int, depth: int, colour: int, interlaced: int) -> int:
    """Bytes of the rows of a PNG, each with a byte in front; 0 where its header says nothing that is known."""
    bits = depth * PNG_CHANNELS.get(colour, 0)
    total = 0
    for x, y, step_x, step_y in PNG_PASSES if interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-(width - x) // step_x), -(-(height - y) // step_y)
        total += rows * (1 + -(-columns * bits // 8)) if columns > 0 and rows > 0 else 0
    return total if bits else 0


def _of_webp(data: bytes) -> str:
    said = int.from_bytes(data[4:8], "little") + 8
    if said > len(data):
        return f"it has {len(data):,} of {said:,} bytes"
    for name, body in _chunks(data):
        if name == b"VP8 " and LONGEST_ZEROS in body:
            return "it has a hole of zeros"
    return ""


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = RIFF_HEAD
    while at + 8 <= len(data):
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        yield data[at : at + 4], data[at + 8 : at + 8 + size]
        at += 8 + size + size % 2


def _of_avif(path: Path) -> str:
    import av.error

    try:
        with av.open(str(path)) as container:
            holes = any(LONG_HOLE.search(packet) for packet in container.demux(video=0) if packet.size)
    except (av.error.FFmpegError, IndexError):  # one that FFmpeg does not know; Pillow may
        return ""
    return "it has a hole of zeros" if holes else ""
