"""A decoded frame -> upright 8-bit RGB of one size."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from .buckets import MIDDLE, cover
from .info import MediaInfo

# RGB has no matrix, but older PyAV looks at the file's one (BT.709, ...) only if another is named for the result, and
# then takes the range for the narrow one unless told.
RGB_MATRIX = "itu601"
NARROW_RANGE, FULL_RANGE = 1, 2
# swscale takes grey alone for the full range, whatever the frame says: 8 bits of the narrow range -> of the full
WIDENED = ((np.arange(256) - 16.0) * (255 / 219)).round().clip(0, 255).astype(np.uint8)
ACCURATE_ROUNDING = 1 << 18  # FFmpeg's SWS_ACCURATE_RND, which older PyAV has no name for


class Converter:
    """Turns the frames of a file upright and scales them, with one swscale context for the whole clip.

    Raises ValueError where a frame is of another size than those before, DataError where its colours are unknown.
    """

    def __init__(self, info: MediaInfo, size: tuple[int, int], centre: tuple[float, float] = MIDDLE) -> None:
        from av.video.reformatter import Interpolation, VideoReformatter

        scaled_w, scaled_h, self.left, self.top = cover(info.width, info.height, size, centre)
        self.size = size
        self.turns, self.mirrored = info.rotation // 90 % 4, info.mirrored
        self.width, self.height = (scaled_h, scaled_w) if self.turns % 2 else (scaled_w, scaled_h)
        self.alpha, self.path = info.has_alpha, info.path
        self.stored: tuple[int, int] | None = None
        self.reformatter = VideoReformatter()
        # A frame that keeps its size takes a short cut that darkens it by a level; this flag forbids that. Frames that
        # are scaled need it not, and would only be slower.
        self.shrink, self.grow = int(Interpolation.AREA), int(Interpolation.LANCZOS)
        self.keep = int(Interpolation.BICUBIC) | ACCURATE_ROUNDING

    def __call__(self, frame: Any, out: np.ndarray) -> None:
        self.stored = self.stored or (frame.width, frame.height)
        if self.stored != (frame.width, frame.height):
            raise ValueError(f"changes from {self.stored[0]}x{self.stored[1]} to {frame.width}x{frame.height}")
        narrow = frame.color_range == NARROW_RANGE and frame.format.name.startswith("gray")
        if self.alpha:
            frame = over_black(frame, self.path)
        with convertible(self.path):
            frame = self.reformatter.reformat(
                frame,
                width=self.width,
                height=self.height,
                # Planes of green, blue and red: faster than packed RGB, and exact, where that is a level or two darker.
                format="gbrp",
                interpolation=self._method(frame.width, frame.height),
                **_colours(frame),
            )
        width, height = self.size
        for plane, channel in zip(frame.planes, (1, 2, 0), strict=True):
            picture = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: self.height, : self.width]
            if self.turns:
                picture = np.rot90(picture, self.turns)
            if self.mirrored:
                picture = picture[:, ::-1]
            picture = picture[self.top : self.top + height, self.left : self.left + width]
            out[..., channel] = WIDENED[picture] if narrow else picture

    def _method(self, width: int, height: int) -> int:
        if (width, height) == (self.width, self.height):
            return self.keep
        return self.shrink if self.width <= width else self.grow


def has_full_range(frame: Any) -> bool:
    """Whether the levels of a frame run from 0 to 255 and not from 16 to 235."""
    return frame.color_range == FULL_RANGE or frame.format.name.startswith("yuvj")


def _colours(frame: Any) -> dict[str, Any]:
    return {"dst_colorspace": RGB_MATRIX, "src_color_range": "JPEG" if has_full_range(frame) else "MPEG"}


@contextlib.contextmanager
def convertible(path: Path) -> Iterator[None]:
    """Raises DataError where swscale cannot convert a frame of `path`, inside: it knows few colour matrices."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{path}: its colours cannot be converted ({error.strerror or error}); they may have a matrix that FFmpeg "
            "does not know, such as YCgCo. Convert it to BT.709.",
            path,
        ) from error


def over_black(frame: Any, path: Path) -> Any:
    """A frame of `path` without its transparency, laid over black. Raises DataError where its colours are unknown."""
    import av

    with convertible(path):
        rgba = frame.reformat(format="rgba", **_colours(frame)).to_ndarray()
    colour = rgba[..., :3].astype(np.uint16) * rgba[..., 3:].astype(np.uint16)
    return av.VideoFrame.from_ndarray(np.ascontiguousarray((colour + 127) // 255, dtype=np.uint8), format="rgb24")


def is_clear(frame: Any, path: Path) -> bool:
    """Whether a part of a frame of `path` is transparent. Raises DataError where its colours are unknown."""
    with convertible(path):
        rgba = frame.reformat(format="rgba", **_colours(frame))
        stored = np.frombuffer(rgba.planes[0], np.uint8).reshape(-1, rgba.planes[0].line_size)
    return bool(stored[:, 3 : 4 * frame.width : 4].min() < 255)


def orientation(frame: Any) -> tuple[int, bool]:
    """How players show a frame: quarter turns against the clock in degrees, and whether it is mirrored behind them.

    The display matrix maps (x, y) to (a x + c y, b x + d y), stored as a b u c d v ... in fixed point.
    """
    angle, mirrored = _turn(frame)
    return round(angle / 90) * 90 % 360, mirrored


def slant(frame: Any) -> float:
    """By how many degrees players turn a frame beyond the quarter turns of `orientation`, at most 45."""
    angle, _ = _turn(frame)
    return abs(angle - round(angle / 90) * 90)


def _turn(frame: Any) -> tuple[float, bool]:
    """The turn against the clock in degrees, and whether the frame is mirrored behind it."""
    matrix = _display_matrix(frame)
    if matrix is None:
        return float(getattr(frame, "rotation", 0)), False
    a, b, c, d = (float(matrix[place]) for place in (0, 1, 3, 4))
    mirrored = a * d - b * c < 0
    if mirrored:
        a, c = -a, -c
    return -float(np.degrees(np.arctan2(b / max(np.hypot(b, d), 1e-9), a / max(np.hypot(a, c), 1e-9)))), mirrored


def _display_matrix(frame: Any) -> np.ndarray | None:
    from av.sidedata.sidedata import Type

    data = frame.side_data.get(Type.DISPLAYMATRIX)
    raw = b"" if data is None else bytes(data)
    return np.frombuffer(raw, np.int32) if len(raw) == 36 else None
