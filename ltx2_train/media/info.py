"""What a medium holds, as the files of this folder tell each other and the plan."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

MediaKind = Literal["image", "video", "audio"]


@dataclass(frozen=True)
class MediaInfo:
    """What a file holds. `width` x `height` is the picture as shown: turned, with square pixels."""

    path: Path
    kind: MediaKind
    frames: int
    width: int
    height: int
    fps: float | None = None
    duration: float = 0.0
    rotation: int = 0  # quarter turns against the clock that set it upright, in degrees
    mirrored: bool = False  # left and right change places once it is upright
    pixel_format: str = ""
    has_alpha: bool = False
    no_matrix: bool = False  # large, and nothing in it says whether its colours are BT.601, as they are read, or BT.709
    has_audio: bool = False
    tracks: tuple[str, ...] = ()  # what each sound track is
    pair: bool = False  # its two sound tracks are the left and the right of one recording
    remarks: tuple[str, ...] = ()  # what a user should know: "is interlaced; ..."
    reading: tuple[str, ...] = ()  # what reading does beyond the plain: "colours of Display P3"; caches know it
    times: tuple[float, ...] = field(default=(0.0,), repr=False)
    stamps: tuple[int, ...] | None = field(default=None, repr=False)  # None: frames are found by counting
    before_key: int = 0  # where frames are counted: packets before the first key frame, which are never decoded
    seekable: bool = False
    damage: tuple[tuple[int, int], ...] = ()  # frames [first, last) that are not what was recorded
    whole: bool = False  # its frames were counted by decoding all of them
