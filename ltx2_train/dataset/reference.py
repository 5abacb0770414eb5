"""The frames of a reference that belong to a sample.

An image is repeated. A video of as many frames as the clip itself (a depth map, an outline, an older take) shows what
the clip's window shows: the very same frames. One of about the same length is matched by time. Any other shows
something of its own, and is read from its beginning. Where it ends too soon its last frame is repeated.

With `reference_temporal_scale` S it shows the frames 0, 1, 1 + S, 1 + 2 S ... of what belongs to the clip, so that its
latents, of one frame and then of eight, stand for S times as many frames each.

It is cropped as its clip where it has the clip's shape, and mirrored with it; its colours are not changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..media.buckets import MIDDLE
from ..media.frame_folder import at_rate, probe_frame_folder
from ..media.frames import PAD_LIMIT, timeline
from ..media.info import MediaInfo
from ..media.video import probe_media, read_frames
from ..shapes import floor_frames
from .augment import crop_centre, mirror, same_shape
from .dataset_file import DatasetSettings
from .items import Item


def probe_companion(path: Path, entry: DatasetSettings) -> MediaInfo:
    """What the image, video or folder of frames `path` holds. Raises DataError."""
    return probe_picture(path, entry.source_fps or entry.target_fps)


def probe_picture(path: Path, rate: float) -> MediaInfo:
    """The same; a folder of frames is taken to be at `rate` frames a second. Raises DataError."""
    return at_rate(probe_frame_folder(path) if path.is_dir() else probe_media(path), rate)


def reference_frames(count: int, scale: int) -> list[int]:
    """Which frames of a clip the `count` frames of a reference show that has `scale` times fewer a second."""
    return [max(0, 1 + (index - 1) * scale) for index in range(count)]


def frames_within(clip: int, scale: int) -> int:
    """How many frames (8n+1) such a reference has beside a clip of `clip` frames."""
    return floor_frames(1 + (clip - 1) // scale)


def read_reference(item: Item, entry: DatasetSettings, number: int = 0) -> np.ndarray:
    """The reference `number` of `item` as uint8 [frames, H, W, 3]. Raises DataError where it cannot be read."""
    wanted = item.references[number]
    media = wanted.media or probe_companion(wanted.path, entry)
    alike = same_shape(media, item.source.media.width, item.source.media.height)
    centre = crop_centre(item, entry) if alike else MIDDLE
    picks = frames_beside(item, media, entry, wanted.frames, wanted.temporal_scale)
    clip = read_frames(media, picks, (wanted.width, wanted.height), centre)
    if item.flipped:
        mirror(clip)
    return clip


def frames_beside(
    item: Item, media: MediaInfo, entry: DatasetSettings, count: int, scale: int = 1, by_clock: bool = False
) -> list[int]:
    """Which `count` frames of `media`, `scale` times fewer a second, go with the window of `item`.

    `by_clock`: it shows the clip's own time, however long it is.
    """
    if media.kind == "image":
        return [0] * count
    picks, start = line_beside(item, media, entry, by_clock)
    last = len(picks) - 1
    return [picks[min(start + index, last)] for index in reference_frames(count, scale)]


def line_beside(
    item: Item, media: MediaInfo, entry: DatasetSettings, by_clock: bool = False
) -> tuple[Sequence[int], int]:
    """The frames of the video `media` at the rate of training, and which of them goes with the first of `item`."""
    own = item.source.media
    if own.kind == "video" and media.frames == own.frames:
        return item.source.timeline.picks, item.window.start
    assert media.fps is not None
    picks = timeline(media.path.name, media.times, media.fps, entry.target_fps).picks
    alike = own.kind == "video" and (by_clock or abs(len(picks) - item.source.timeline.frames) <= PAD_LIMIT)
    return picks, item.window.start if alike else 0
