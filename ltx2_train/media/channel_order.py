"""Sounds whose channels stand in an order of their own, as film exports have them in MOV, CAF and AIFF.

PyAV frees such an order twice, which ends the whole process wherever a frame is decoded. A process of its own tries it.
"""

from __future__ import annotations

import functools
import mmap
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

from ..errors import DataError
from .asked import boxes

_FORMATS = frozenset(("mov", "caf", "aiff"))  # their headers may give any order; others give the usual one
_TRY = """
import sys
def decode(path):
    import av
    with av.open(path) as container:
        print("begun", flush=True)
        for stream in container.streams.audio:
            str(stream.codec_context.layout.name)
        str(next(container.decode(audio=0)).layout.name)
try:
    decode(sys.argv[1])
except Exception:
    pass
print("done", flush=True)
"""
_LONGEST = 60.0  # seconds
_HEAD = 1 << 20  # bytes, before the samples


def refuse_strange_order(path: Path, container: Any) -> None:
    """Raise DataError where the sound of an open file, `path`, cannot be decoded for the order of its channels."""
    formats = frozenset(container.format.name.split(","))
    contexts = [stream.codec_context for stream in container.streams.audio if stream.codec_context is not None]
    # of codecs that compress, the packets tell; nothing else of a context may be asked for here
    if not formats & _FORMATS or not any(context.name.startswith("pcm_") for context in contexts):
        return
    about = path.stat()
    if _says_an_order(path, "mov" in formats) and not _is_survived(str(path), about.st_mtime_ns, about.st_size):
        raise DataError(
            f"{path}: the channels of its sound are in an order that PyAV cannot read. Save it as stereo, or as WAV or "
            "FLAC.",
            path,
        )


def _says_an_order(path: Path, film: bool) -> bool:
    """Whether a file names the order of more than two channels, or of any in CAF and AIFF."""
    with open(path, "rb") as file:
        if not film:
            return b"chan" in file.read(_HEAD).lower()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for begin, stop in boxes(data, 0, len(data), b"moov"):
                at = data.find(b"chan", begin, stop)
                while at >= 0:
                    tag, _, count = struct.unpack(">III", data[at + 8 : at + 20].ljust(12, b"\0"))
                    if (tag & 0xFFFF if tag >> 16 > 1 else max(count, 3)) > 2:  # else places or a set of them follow
                        return True
                    at = data.find(b"chan", at + 4, stop)
    return False


@functools.lru_cache(maxsize=4096)
def _is_survived(path: str, changed: int, size: int) -> bool:
    where = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", _TRY, path]
    quiet = subprocess.DEVNULL
    try:
        tried = subprocess.run(
            command, stdin=quiet, stdout=subprocess.PIPE, stderr=quiet, env=where, timeout=_LONGEST, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return True  # nobody can tell
    # a process that could not even begin tells nothing; one may also be ended when all is done and let go of
    return b"begun" not in tried.stdout or (b"done" in tried.stdout and tried.returncode == 0)
