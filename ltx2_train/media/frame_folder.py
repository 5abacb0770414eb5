"""A video that is a folder of pictures, one a frame, in the order of their names: 2 comes before 10.

Such a folder has no frame rate: its frames are taken to be at the target rate, unless source_fps says another.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import DataError
from .buckets import MIDDLE
from .images import IMAGE_SUFFIXES, colours, image_header, read_image
from .info import MediaInfo

NATURAL_ORDER = "frames in the order of their numbers"


def frame_files(folder: Path) -> list[Path]:
    """The pictures of a folder, sorted by name; numbers in names count as numbers."""
    return sorted(_pictures(folder), key=lambda path: (_natural(path.name), path.name))


def _pictures(folder: Path) -> list[Path]:
    return [
        path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    ]


def _natural(name: str) -> list[str | int]:
    """Texts and numbers in turns, so that equal places hold equal types."""
    return [int(part) if place % 2 else part for place, part in enumerate(re.split(r"([0-9]+)", name))]


def probe_frame_folder(folder: Path) -> MediaInfo:
    """What a folder of frames holds; its size is that of the first. Raises DataError where it holds none."""
    files = frame_files(folder)
    if not files:
        raise DataError(f"{folder} is a folder without a single picture. Name a video, or a folder of frames.", folder)
    head = image_header(files[0])
    reading = (NATURAL_ORDER,) if files != sorted(files) else ()
    return MediaInfo(
        folder,
        "video",
        len(files),
        head.width,
        head.height,
        pixel_format=head.mode,
        has_alpha=head.has_alpha,
        remarks=head.remarks,
        reading=reading + colours(head),
        times=tuple(range(len(files))),
    )


def at_rate(media: MediaInfo, rate: float) -> MediaInfo:
    """`media` with a frame rate and times, which a folder of frames takes from its dataset; others as they are."""
    if media.fps is not None:
        return media
    times = tuple(index / rate for index in range(media.frames))
    return dataclasses.replace(media, fps=rate, duration=media.frames / rate, times=times)


def read_frame_folder(
    media: MediaInfo,
    picks: Sequence[int],
    size: tuple[int, int] | None = None,
    centre: tuple[float, float] = MIDDLE,
) -> np.ndarray:
    """The frames `picks` as uint8 [F, H, W, 3]; as `media.read_frames`, which calls it for folders."""
    files = frame_files(media.path)
    size = size or (media.width, media.height)
    clip = np.empty((len(picks), size[1], size[0], 3), np.uint8)
    for row, pick in enumerate(picks):
        if row and picks[row - 1] == pick:
            clip[row] = clip[row - 1]
        else:
            clip[row] = read_image(files[pick], size, centre)
    return clip
