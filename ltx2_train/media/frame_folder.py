"""A video that is a folder of pictures, one a frame, in the order of their names: 2 comes before 10.

Such a folder has no frame rate: its frames are taken to be at the target rate, unless source_fps says another.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from ..errors import DataError
from ..threads import heed
from .buckets import MIDDLE
from .images import IMAGE_SUFFIXES, MAYBE_OVER_BLACK, OVER_BLACK, colours, image_header, is_transparent, read_image
from .info import MediaInfo
from .probe import WHOLE_PIXELS

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
    """What a folder of frames holds.

    Raises DataError where it holds none, or one that is in no clip with the others: of another size or another kind of
    name, or of a number that another has.
    """
    files = frame_files(folder)
    if not files:
        raise DataError(f"{folder} is a folder without a single picture. Name a video, or a folder of frames.", folder)
    lacks = (*_check_numbers(folder, files), *_beside(folder))
    heads = [image_header(path) for path in files]
    head = heads[0]
    usual = Counter((one.width, one.height) for one in heads).most_common(1)[0][0]
    for path, one in zip(files, heads, strict=True):
        if (one.width, one.height) != usual:
            raise DataError(
                f"{folder}: its picture {path.name} has {one.width}x{one.height}, and others {usual[0]}x{usual[1]}. "
                "Give all of them one size, or take it out.",
                folder,
            )
    alpha = [path for path, one in zip(files, heads, strict=True) if one.has_alpha]
    many = len(alpha) * head.width * head.height > WHOLE_PIXELS  # they are not all decoded to be looked at
    over = MAYBE_OVER_BLACK if many else OVER_BLACK if any(map(is_transparent, alpha)) else ""
    remarks = [*([over] if over else []), *(remark for one in heads for remark in one.remarks)]
    reading = (NATURAL_ORDER,) if files != sorted(files) else ()
    return MediaInfo(
        folder,
        "video",
        len(files),
        head.width,
        head.height,
        pixel_format=head.mode,
        has_alpha=any(one.has_alpha for one in heads),
        remarks=(*dict.fromkeys(remarks), *lacks),
        reading=reading + colours(head),
        times=tuple(range(len(files))),
    )


def _check_numbers(folder: Path, files: Sequence[Path]) -> tuple[str, ...]:
    """What a user should know of the numbers of frames. Raises DataError where a name leaves its place open."""
    names = [_natural(path.stem.casefold()) for path in files]
    first: dict[tuple[str | int, ...], Path] = {}
    for path, parts in zip(files, names, strict=True):
        if (other := first.setdefault(tuple(parts), path)) is not path:
            raise DataError(
                f"{folder}: its pictures {other.name} and {path.name} are the same frame. Keep one of them.", folder
            )
    patterns = Counter(tuple(parts[::2]) for parts in names)
    usual, count = patterns.most_common(1)[0]
    if count > 1 and len(patterns) > 1:
        alike = next(path for path, parts in zip(files, names, strict=True) if tuple(parts[::2]) == usual)
        stray = next(path for path, parts in zip(files, names, strict=True) if tuple(parts[::2]) != usual)
        raise DataError(
            f"{folder}: its picture {stray.name} is not named as the others are ({alike.name}), and its place among "
            "them is not known. Rename it, or take it out.",
            folder,
        )
    columns = [set(column) for column in zip(*(parts[1::2] for parts in names), strict=False)]
    counting = [number for number, column in enumerate(columns) if len(column) > 1]
    if count == 1 and len(files) > 1:
        return (
            f"has pictures without numbers, shown in the order of the alphabet: {files[0].name}, {files[1].name} ...",
        )
    if len(counting) != 1:
        return ()  # of several that count, as hours and minutes do
    numbers = [int(parts[2 * counting[0] + 1]) for parts in names]
    steps = [after - before for before, after in pairwise(numbers)]
    usual_step = sorted(steps)[len(steps) // 2]
    gaps = [place for place, step in enumerate(steps) if step >= 2 * usual_step]
    if not gaps:
        return ()
    lost = sum(steps[place] // usual_step - 1 for place in gaps)
    what = "a frame" if lost == 1 else f"{lost} frames"
    return (f"lacks {what} by its numbers, first behind {files[gaps[0]].name}; the next is shown there",)


def _beside(folder: Path) -> tuple[str, ...]:
    """What is said of folders with pictures that lie in one of frames."""
    more = []
    for path in sorted(folder.iterdir()):
        with contextlib.suppress(OSError):  # such as lost+found, which is not for everybody to look into
            more += [f"{path.name}/"] if path.is_dir() and _pictures(path) else []
    return (f"holds {' and '.join(more[:3])} with pictures beside its frames, which are not used",) if more else ()


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
        heed()
        if row and picks[row - 1] == pick:
            clip[row] = clip[row - 1]
        else:
            clip[row] = read_image(files[pick], size, centre)
    return clip
