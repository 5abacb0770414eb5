"""Small changes of a clip before it is encoded: mirrored, its colours shifted a little, cropped where it moves.

All are settled by the settings and the file's name, so that what is cached can be told from them.

Colour. Brightness b, contrast c and saturation s are drawn evenly from 1 - j to 1 + j, the same for a whole clip, by
the hash of the name of the file: y = b x, then around the clip's mean m by c, then around the pixel's own grey by s.

Motion. The place that moves is the centre of mass of the differences between frames, seen small; what moves less than
the usual pixel is noise and does not count.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from ..media.buckets import MIDDLE
from ..media.info import MediaInfo
from ..media.video import read_frames
from .dataset_file import DatasetSettings
from .items import Item

GREY = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
SMALL_SIDE = 96
SAME_SHAPE = 0.01
LEAST_MOTION = 0.5  # levels of 255, on average


def read_clip(item: Item, entry: DatasetSettings) -> np.ndarray:
    """The window of `item` at its size, changed as its dataset says: uint8 [F, H, W, 3]. Raises DataError."""
    clip = read_frames(item.source.media, item.picks, (item.width, item.height), crop_centre(item, entry))
    if entry.color_jitter:
        jitter(clip, entry.color_jitter, item.source.path.name)
    if item.flipped:
        mirror(clip)
    return clip


def mirror(clip: np.ndarray) -> None:
    """Turn [F, H, W, 3] left to right in place, so that a long clip is never in memory twice."""
    for picture in clip:
        picture[:] = picture[:, ::-1].copy()


def crop_centre(item: Item, entry: DatasetSettings) -> tuple[float, float]:
    """The place in the picture, as shares of width and height, that the crop of `item` has in its middle."""
    media = item.source.media
    if entry.crop != "motion" or media.kind != "video" or same_shape(media, item.width, item.height):
        return MIDDLE
    return motion_centre(_small(media, item.picks))


def same_shape(media: MediaInfo, width: int, height: int) -> bool:
    """Whether a picture has the aspect ratio of `width` x `height`, up to a hundredth."""
    return abs(media.width * height / (media.height * width) - 1) < SAME_SHAPE


def _small(media: MediaInfo, picks: Sequence[int]) -> np.ndarray:
    scale = SMALL_SIDE / max(media.width, media.height)
    size = (max(2, round(media.width * scale)), max(2, round(media.height * scale)))
    return read_frames(media, picks, size)


def motion_centre(clip: np.ndarray) -> tuple[float, float]:
    """Where in uint8 [F, H, W, 3] it moves, as shares of width and height; the middle where it does not."""
    grey = clip.astype(np.float32) @ GREY
    if len(grey) < 2:
        return MIDDLE
    moved = np.abs(np.diff(grey, axis=0)).mean(axis=0)
    moved = np.clip(moved - np.median(moved), 0, None)
    total = float(moved.sum())
    if total < LEAST_MOTION * moved.size / 100:
        return MIDDLE
    height, width = moved.shape
    across = float((moved.sum(axis=0) * (np.arange(width) + 0.5)).sum() / total / width)
    down = float((moved.sum(axis=1) * (np.arange(height) + 0.5)).sum() / total / height)
    return across, down


def jitter(clip: np.ndarray, amount: float, name: str) -> None:
    """Shift the colours of uint8 [F, H, W, 3] in place by up to `amount`; which way, `name` decides."""
    drawn = hashlib.sha256(name.encode("utf-8")).digest()
    shares = (int.from_bytes(drawn[at : at + 4], "little") / (2**32 - 1) for at in (0, 4, 8))
    brightness, contrast, saturation = (1 + amount * (2 * share - 1) for share in shares)
    mean = brightness * float(np.mean([picture.mean() for picture in clip]))
    for picture in clip:
        colour = picture.astype(np.float32) * brightness
        colour = mean + (colour - mean) * contrast
        grey = (colour @ GREY)[..., None]
        np.copyto(picture, np.clip(grey + (colour - grey) * saturation + 0.5, 0, 255).astype(np.uint8))
