"""The frames of a reference that belong to a sample.

An image is repeated. A video of as many frames as the clip itself (a depth map, an outline, an older take) shows what
the clip's window shows: the very same frames. One of about the same length is matched by time. Any other shows
something of its own, and is read from its beginning. Where it ends too soon its last frame is repeated.

It is cropped as its clip where it has the clip's shape, and mirrored with it; its colours are not changed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..media.buckets import MIDDLE
from ..media.frame_folder import at_rate, probe_frame_folder
from ..media.frames import PAD_LIMIT, timeline
from ..media.info import MediaInfo
from ..media.video import probe_media, read_frames
from .augment import crop_centre, mirror, same_shape
from .dataset_file import DatasetSettings
from .items import Item


def probe_companion(path: Path, entry: DatasetSettings) -> MediaInfo:
    """What the image, video or folder of frames `path` holds. Raises DataError."""
    return at_rate(
        probe_frame_folder(path) if path.is_dir() else probe_media(path), entry.source_fps or entry.target_fps
    )


def read_reference(item: Item, entry: DatasetSettings) -> np.ndarray:
    """The reference of `item` as uint8 [frames, H, W, 3]. Raises DataError where it cannot be read."""
    wanted = item.reference
    assert wanted is not None, item.key
    media = probe_companion(wanted.path, entry)
    alike = same_shape(media, item.source.media.width, item.source.media.height)
    centre = crop_centre(item, entry) if alike else MIDDLE
    clip = read_frames(media, frames_beside(item, media, entry, wanted.frames), (wanted.width, wanted.height), centre)
    if item.flipped:
        mirror(clip)
    return clip


def frames_beside(item: Item, media: MediaInfo, entry: DatasetSettings, count: int) -> list[int]:
    """Which `count` frames of `media` go with the window of `item`."""
    if media.kind == "image":
        return [0] * count
    own = item.source.media
    start = item.window.start
    if own.kind == "video" and media.frames == own.frames:
        picks = item.source.timeline.picks
    else:
        assert media.fps is not None
        picks = timeline(media.path.name, media.times, media.fps, entry.target_fps).picks
        if own.kind != "video" or abs(len(picks) - item.source.timeline.frames) > PAD_LIMIT:
            start = 0
    last = len(picks) - 1
    return [picks[min(start + index, last)] for index in range(count)]
