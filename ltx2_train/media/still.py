"""Whether the file of a picture holds together, as far as it shows that. Pillow reads over such places.

PNG has check sums, not all of which Pillow looks at, and rows, of which it takes as many as there are. JPEG has markers
and codes that must come out even; WebP has sizes; what is coded arithmetically (WebP with losses, AVIF) never has a
long run of zeros inside, but a part that was never written has. Other bytes in the place of the right ones are not
always seen.
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
PNG_PICTURE = frozenset((b"IHDR", b"PLTE", b"tRNS", b"IDAT"))  # what its picture follows from
BMP_INFO = b"\x28"  # bytes of the header that tells depth and coding
PIECE = 1 << 20


def why_damaged(path: Path) -> str:
    """What is wrong with the picture `path`, or "". Raises OSError."""
    stat = path.stat()
    return _looked_at(path, stat.st_size, stat.st_mtime_ns)[0]


def what_is_odd(path: Path) -> str:
    """What a user should know of the bytes of the picture `path`, which is not damaged; or "". Raises OSError."""
    stat = path.stat()
    return _looked_at(path, stat.st_size, stat.st_mtime_ns)[1]


@functools.lru_cache(maxsize=4096)
def _looked_at(path: Path, size: int, mtime_ns: int) -> tuple[str, str]:
    # A picture is read when it is looked at, when it is encoded and when it is shown; its bytes are gone through once.
    data = path.read_bytes()
    if data.startswith(b"\xff\xd8"):
        return _of_jpeg(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _of_webp(data), ""
    if data.startswith(PNG):
        return _of_png(data)
    if data.startswith(b"BM"):
        return "", _of_bmp(data)
    return _of_avif(path) if data[4:8] == b"ftyp" and data[8:12] in AVIF_BRANDS else "", ""


def _of_jpeg(data: bytes) -> tuple[str, str]:
    if jpeg.is_broken(data, alone=True):
        return "its coding breaks off inside", ""
    # A strict decoder complains of what no picture is coded as, and where there is less than the whole picture. It may
    # also be one that does not know this kind of JPEG; then nothing is known.
    plain = jpeg.without_extras(data)
    if strictly_decoded("mjpeg", plain) or not strictly_decoded("mjpeg", plain, strict=False):
        return "", jpeg.odd_markers(data)
    return "its coding does not come out as a whole picture", ""


def _of_png(data: bytes) -> tuple[str, str]:
    wanted, coded, at = 0, zlib.decompressobj(), len(PNG)
    found, ended = 0, False
    while at + 8 <= len(data) and not ended:
        size, kind = struct.unpack(">I4s", data[at : at + 8])
        body, at = data[at + 8 : at + 8 + size], at + 12 + size
        total = struct.pack(">I", zlib.crc32(kind + body))
        if kind in PNG_PICTURE and at <= len(data) and data[at - 4 : at] != total:
            return f"the check sum of its {kind.decode()} is wrong", ""
        if kind == b"IHDR" and size == 13:
            wanted = _png_bytes(*struct.unpack(">IIBBxxB", body))
        ended = kind == b"IEND"
        if kind != b"IDAT":
            continue
        try:
            while body:
                found += len(coded.decompress(body, PIECE))
                body = coded.unconsumed_tail
        except zlib.error:
            return "", ""  # which Pillow says in its own words
    try:
        found += len(coded.flush())
    except zlib.error:
        return "", ""
    if found < wanted:
        return f"it holds {found:,} of the {wanted:,} bytes of its picture", ""
    if found > wanted > 0:
        return "", f"holds {found:,} bytes of a picture that has {wanted:,} by its header; the rest is not used"
    return "", "" if ended else "lacks its end (IEND); what is there is used"


def _of_bmp(data: bytes) -> str:
    """What is said of the fourth bytes of pixels, which are nothing by the format and transparency to some programs."""
    if data[14:18] < BMP_INFO or data[28:30] != b"\x20\0" or data[30:34] != bytes(4):
        return ""
    first = int.from_bytes(data[10:14], "little")
    fourth = data[first + 3 :: 4]
    same = fourth.count(fourth[:1]) == len(fourth)
    return "" if same else "has a fourth channel, which is not used; save it as PNG if it is transparent"


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
