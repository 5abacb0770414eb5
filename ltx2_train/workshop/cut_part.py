"""A part of a video, by its times, as an mp4 of its own."""

from __future__ import annotations

import math
from bisect import bisect_left
from pathlib import Path

from ..errors import DataError
from ..events import Events
from ..media.video import probe_media
from .cut_video import read_index, write_piece

TICK_SECONDS = 0.0005  # times are rounded to the clock of a file


def cut_part(source: Path, begin: float, seconds: float, path: Path, events: Events | None = None) -> Path:
    """Write the frames of `source` from `begin` on, in seconds on the clock of the file, for `seconds` (0: to its
    end), with their times and their sound. Raises DataError; Stopped on request."""
    info = probe_media(source)
    end = begin + seconds if seconds else math.inf
    first, stop = (bisect_left(info.times, time - TICK_SECONDS) for time in (begin, end))
    if first >= stop:
        raise DataError(
            f"{source} has no frame from {begin:g} s to {end:g} s; its frames are from {info.times[0]:.2f} s to "
            f"{info.times[-1]:.2f} s.",
            source,
        )
    write_piece(info, read_index(info), first, stop, path, events)
    return path
