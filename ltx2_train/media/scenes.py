"""Where the scenes of a video begin, found by PySceneDetect.

The frames are decoded here and handed to its detector one by one, so that a scene begins at the number of a frame and
not at a time that has to be rounded, whatever the frame rate does; and so that a stop is heard.
"""

from __future__ import annotations

from typing import Any

from ..errors import ConfigError
from ..events import Events
from ..optional import why_missing
from .convert import convertible
from .info import MediaInfo
from .video import source_frames

SHORTEST_SCENE = 0.4  # seconds; what is shorter is a flash
THRESHOLD = 27.0  # mean change of hue, saturation and brightness at once, from 0 to 255
LOOKED_AT = 256  # pixels of the longer side: cuts are seen as well, and found several times as fast
PIP_LINE = "pip install scenedetect"


def scene_starts(info: MediaInfo, events: Events | None = None) -> list[int]:
    """The numbers of the frames with which scenes begin, the first being 0.

    Raises ConfigError where PySceneDetect is not installed, DataError where the video cannot be read, Stopped.
    """
    events = events or Events()
    shortest = max(1, round(SHORTEST_SCENE * (info.fps or 25.0)))
    look = _detector(shortest)
    starts = {0}
    share = min(1.0, LOOKED_AT / max(info.width, info.height))
    for number, frame in source_frames(info, 0, info.frames, lenient=True):
        with convertible(info.path):
            small = frame.reformat(
                width=max(8, round(frame.width * share)), height=max(8, round(frame.height * share)), format="bgr24"
            )
        starts.update(look(number, small.to_ndarray()))
        events.check_stop()
        events.progress(number + 1, info.frames, info.path.name)
    return sorted(start for start in starts if start < info.frames)


def _detector(shortest: int) -> Any:
    """A function of a frame's number and picture [H, W, 3] (BGR) that returns the numbers of the cuts found by then."""
    if why := why_missing("scenedetect"):
        raise ConfigError(
            f"Cutting at scenes needs PySceneDetect, which {why}. Install it with `{PIP_LINE}`, or cut with --seconds."
        )
    import scenedetect
    from scenedetect import ContentDetector, FrameTimecode

    detector: Any = ContentDetector(threshold=THRESHOLD, min_scene_len=shortest)
    counts = scenedetect.__version__.startswith("0.6")  # that one is told numbers; later ones are told times

    def look(number: int, picture: Any) -> list[int]:
        found = detector.process_frame(number if counts else FrameTimecode(number, 25.0), picture)
        return [cut if counts else cut.frame_num for cut in found]

    return look
