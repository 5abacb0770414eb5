"""Whether the file of a picture holds together, as far as it shows that. Pillow reads over such places.

PNG has check sums, which Pillow looks at. JPEG has markers and codes that must come out even; WebP has sizes; what is
coded arithmetically (WebP with losses, AVIF) never has a long run of zeros inside, but a part that was never written
has. Other bytes in the place of the right ones are not always seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from . import jpeg
from .decoding import LONG_HOLE, strictly_decoded

RIFF_HEAD = 12
LONGEST_ZEROS = bytes(256)  # in what is coded arithmetically; a plain picture has been seen to have 137
AVIF_BRANDS = (b"avif", b"avis")


def why_damaged(path: Path) -> str:
    """What is wrong with the picture `path`, or "". Raises OSError."""
    data = path.read_bytes()
    if data.startswith(b"\xff\xd8"):
        return _of_jpeg(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _of_webp(data)
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
