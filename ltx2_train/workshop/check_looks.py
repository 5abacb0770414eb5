"""What a look at a few frames tells: black bars, as films for another screen have, and windows in which nothing moves.

A LoRA learns either with the rest.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..dataset.augment import crop_centre
from ..dataset.plan import Item
from ..media.buckets import MIDDLE
from ..media.images import glances, read_image
from ..media.video import read_frames

SIDE = 128  # pixels of the longer side that are looked at
GLANCE = 32  # of a picture first: a JPEG is decoded in an eighth of the work there
BLACK, LIT = 24, 40  # of 255: a bar is no brighter, and what is brighter is picture
STRAY = 0.1  # share of a line of a bar that may be brighter, as codecs leave it beside an edge
DIM = 80  # what a line that a bar mostly fills comes to at a glance
LEAST = 0.03  # share of a side; less is an edge that nobody sees
FILLED = 0.5  # share of the line beside a bar that is lit; a thing before a black wall fills less of it

STILL = 4  # of 255: more than what codecs make of a picture that stands still
SHORTEST = 9  # frames of a window that is to move


def glance(item: Item, size: tuple[int, int]) -> list[np.ndarray]:
    """The middle of a picture in `size`, and what is trained on of it, uint8 [H, W, 3]. Raises DataError."""
    centre = crop_centre(item, item.dataset.entry)
    return glances(item.source.path, (size, MIDDLE), (_small(item, GLANCE), centre))


def black_bars(item: Item, used: np.ndarray | None = None) -> str:
    """What is said of the black bars of what is trained on of `item`, in words that follow its name, or ""; `used` is
    what `glance` gives of a picture. Raises DataError where it cannot be read."""
    size = _small(item)
    centre = crop_centre(item, item.dataset.entry)
    if used is not None:
        if not _is_dim_at_edges(used):
            return ""
        frames = read_image(item.source.path, size, centre)[None]
    else:
        frames = read_frames(item.source.media, item.picks[:1], size, centre)
    dark = _is_dark(frames[0])  # as where a film fades in
    if not dark and not any(_bars(frames)):
        return ""
    if item.kind == "video" and item.picks[-1] > item.picks[0]:  # a dark beginning is no bar
        last = read_frames(item.source.media, [item.picks[-1 if dark else len(item.picks) // 2]], size, centre)
        frames = np.concatenate([frames, last])
    lying, standing = _bars(frames)
    told = [f"at the top and the bottom ({lying:.0%} of its height)"] if lying else []
    told += [f"at the sides ({standing:.0%} of its width)"] if standing else []
    return f"has black bars {' and '.join(told)}" if told else ""


def still_window(items: Sequence[Item]) -> str:
    """What is said where nothing moves in the first or the last window among `items`, those of a video; else "". Raises
    DataError where it cannot be read."""
    media, line = items[0].source.media, items[0].source.timeline
    for item in items[:1] if len(items) == 1 else (items[0], items[-1]):
        if item.kind == "video" and item.window.count >= SHORTEST:
            picks = [item.picks[place] for place in (0, item.window.count // 3, 2 * item.window.count // 3, -1)]
            frames = read_frames(media, picks, _small(item)).astype(np.int16)
            if int(np.ptp(frames, axis=0).max()) <= STILL:
                begin, end = (place / line.fps for place in (item.window.start, item.window.start + item.window.count))
                alone = ", which is a window of its own" if len(items) > 1 else ""
                return f"stands still from {begin:.1f} to {end:.1f} s{alone}"
    return ""


def _is_dim_at_edges(picture: np.ndarray) -> bool:
    """Whether half of two opposite edges of a picture, uint8 [H, W, 3], is so dark that they may be bars."""
    level = picture.max(axis=2)
    return any(((lines[0] <= DIM).mean() > 0.5 and (lines[-1] <= DIM).mean() > 0.5) for lines in (level, level.T))


def _is_dark(picture: np.ndarray) -> bool:
    """Whether no line of a picture, uint8 [H, W, 3], is lit so far that a bar beside it would be seen."""
    return bool(((picture.max(axis=2) > LIT).mean(axis=1) < FILLED).all())


def _small(item: Item, side: int = SIDE) -> tuple[int, int]:
    scale = side / max(item.width, item.height)
    return max(8, round(item.width * scale)), max(8, round(item.height * scale))


def _bars(frames: np.ndarray) -> tuple[float, float]:
    """Shares of the height and the width of `frames`, uint8 [F, H, W, 3], that are bars at two opposite edges."""
    level = frames.max(axis=(0, 3))
    return _between(level), _between(level.T)


def _between(level: np.ndarray) -> float:
    """The share of the rows of `level` [rows, columns] that are bars."""
    lit = np.flatnonzero((level > BLACK).mean(axis=1) > STRAY)
    if not len(lit):
        return 0.0
    above, below = int(lit[0]), len(level) - 1 - int(lit[-1])
    if min(above, below) < LEAST * len(level):
        return 0.0
    inside = [level[row] for row in (min(above + 2, lit[-1]), max(lit[-1] - 2, above))]
    return (above + below) / len(level) if all((row > LIT).mean() >= FILLED for row in inside) else 0.0
