"""Media files -> exact frames.

`probe_media` reads the packets of a file and, where that takes no more than seconds, decodes it once: the number of
frames, the time of each and whether it is damaged are facts and not what a header claims. `read_frames` decodes chosen
frames, seeking to the key frame before the first and stopping after the last, and scales each one straight to its size
in one call of swscale: what is in memory is the clip that was asked for and nothing else. Decoders hand frames out in
the order of presentation.

Frames are turned and mirrored as the metadata says, stretched by the pixel aspect ratio and made 8-bit RGB;
transparency is laid over black. A damaged frame is an error, and no other is shown in its place.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from .buckets import MIDDLE
from .convert import Converter, over_black
from .decoding import Watch, decoded, decoder_of, opened
from .frame_folder import read_frame_folder
from .images import IMAGE_SUFFIXES, OVER_BLACK, colours, image_header, is_transparent, read_image
from .info import MediaInfo
from .names import why_not_found
from .probe import probe_video

VIDEO_SUFFIXES = frozenset(
    (
        ".mp4", ".webm", ".avi", ".mkv", ".mov", ".flv", ".wmv", ".m4v", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts",
        ".3gp", ".3g2", ".ogv", ".mxf", ".vob", ".asf", ".f4v", ".gif", ".qt", ".mk3d", ".m2t", ".tp", ".trp", ".mod",
        ".tod", ".mpe", ".m2p", ".evo", ".divx", ".ogm", ".wtv", ".dvr-ms", ".dv", ".insv", ".lrv", ".mp4v", ".mj2",
        ".y4m", ".ivf", ".nut",
    )
)  # fmt: skip
# Endings of videos that are named where they lie among others, and not read: what has no time stamps has no frame rate.
UNREAD_VIDEOS = {
    **dict.fromkeys((".h264", ".264", ".avc"), "raw H.264"),
    **dict.fromkeys((".h265", ".265", ".hevc"), "raw H.265"),
    **dict.fromkeys((".m1v", ".m2v", ".mpv", ".obu", ".mjpeg", ".mjpg", ".yuv"), "raw"),
    **dict.fromkeys((".r3d", ".braw", ".crm"), "raw camera"),
    ".rm": "RealMedia", ".rmvb": "RealMedia", ".swf": "Flash", ".amv": "AMV", ".gxf": "GXF",
}  # fmt: skip
REORDERED = 17
SEEK_FROM_SECONDS = 1.0


def probe_media(path: Path | str) -> MediaInfo:
    """Read what `path` holds. Raises DataError that names the file and the reason where it is of no use."""
    path = Path(path)
    if reason := why_not_found(path):
        raise DataError(f"{path} {reason}.", path)
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty (0 bytes).", path)
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        return probe_video(path)
    head = image_header(path)
    over = (OVER_BLACK,) if head.has_alpha and is_transparent(path) else ()
    return MediaInfo(
        path,
        "image",
        1,
        head.width,
        head.height,
        pixel_format=head.mode,
        has_alpha=head.has_alpha,
        remarks=over + head.remarks,
        reading=colours(head),
    )


def read_frames(
    media: MediaInfo | Path | str,
    picks: Sequence[int] | None = None,
    size: tuple[int, int] | None = None,
    centre: tuple[float, float] = MIDDLE,
) -> np.ndarray:
    """Decode the source frames `picks` (ascending, repeats allowed; default all) as uint8 [F, H, W, 3].

    `size` is (width, height): frames are scaled until they cover it and cropped around `centre` (shares of width and
    height; see `buckets.cover`); default: as shown.
    Raises DataError where one of them, or one that it leans on, is damaged.
    """
    info = media if isinstance(media, MediaInfo) else probe_media(media)
    picks = range(info.frames) if picks is None else picks
    size = (info.width, info.height) if size is None else size
    assert len(picks), "nothing to read"
    assert 0 <= picks[0] <= picks[-1] < info.frames, (info.path, info.frames)
    if info.kind == "image":
        return np.repeat(read_image(info.path, size, centre)[None], len(picks), axis=0)
    if info.path.is_dir():
        return read_frame_folder(info, picks, size, centre)
    clip = np.empty((len(picks), size[1], size[0], 3), np.uint8)
    convert, row = Converter(info, size, centre), 0
    for pick, frame in _frames_at(info, picks):
        try:
            convert(frame, clip[row])
        except ValueError as error:
            raise DataError(
                f"{info.path}: its picture {error} {_after(info, pick)}. Export it again at one size, or cut it there.",
                info.path,
            ) from error
        first = row
        row += 1
        while row < len(picks) and picks[row] == pick:
            clip[row] = clip[first]
            row += 1
    return clip


def source_frames(info: MediaInfo, first: int, stop: int, lenient: bool = False) -> Iterator[tuple[int, Any]]:
    """Decode the frames `first` to `stop` (not included) as PyAV frames, each with its number.

    They are as the file holds them, neither turned nor scaled; transparency is laid over black. Raises DataError where
    they are damaged; `lenient`: only where nothing can be read, and what cannot be decoded is left out.
    """
    for number, frame in _frames_at(info, range(first, stop), lenient):
        if info.has_alpha:
            shown = over_black(frame, info.path)
            shown.pts, shown.time_base = frame.pts, frame.time_base
            frame = shown
        yield number, frame


def check_frames(info: MediaInfo, picks: Sequence[int]) -> None:
    """Decode `picks` (ascending) and let go of them. Raises DataError where one is damaged."""
    if info.kind == "image":
        read_image(info.path)
        return
    if info.path.is_dir():
        for pick in sorted(set(picks)):
            read_frame_folder(info, [pick])
        return
    for _ in _frames_at(info, picks):
        pass


def _frames_at(info: MediaInfo, picks: Sequence[int], lenient: bool = False) -> Iterator[tuple[int, Any]]:
    """Each frame of `picks` once, in order, with its number."""
    wanted = sorted(set(picks))
    for first, last in () if lenient else info.damage:
        if any(first <= pick < last for pick in wanted):
            raise _damaged(info, first)
    seek = info.seekable and info.times[wanted[0]] - info.times[0] > SEEK_FROM_SECONDS
    done = 0
    for sought in (True, False) if seek else (False,):
        for threads in (True, False):
            ends = wanted[done], wanted[-1]
            watch = Watch(
                *(ends if info.stamps is None else (info.stamps[end] for end in ends)), info.stamps is not None
            )
            for number, frame in _read(info, wanted[done:], watch, sought, threads, lenient):
                if watch.at is not None and not lenient:
                    break
                done = bisect_right(wanted, number)
                yield number, frame
            if done == len(wanted) or (lenient and done):
                return
            # What goes wrong in one thread while another decodes may be told too late, so it is looked at again.
            if watch.at is None:
                break
        if watch.at is not None:
            raise _damaged(info, _number_at(info, watch.at))
    raise DataError(
        f"{info.path}: only {done} of {len(wanted)} frames {_after(info, wanted[0])} can be decoded. "
        "The file is damaged or cut short; export it again or remove it.",
        info.path,
    )


def _read(
    info: MediaInfo, wanted: Sequence[int], watch: Watch, sought: bool, threads: bool, lenient: bool
) -> Iterator[tuple[int, Any]]:
    """The frames `wanted` (ascending) as far as they come out of the decoder, with their numbers."""
    stamps, at, last = info.stamps, 0, None
    with opened(info.path, threads) as (container, stream):
        if sought and stamps is not None:
            # Files are searched by the time of decoding, which runs ahead of the time shown by as much as reordering.
            before = stamps[max(0, wanted[0] - REORDERED)]
            container.seek(before, stream=stream, backward=True, any_frame=False)
        frames = decoded(container, stream, decoder_of(stream, info.has_alpha), watch, info.before_key)
        for index, frame in enumerate(frames):
            place = index if stamps is None else frame.pts
            number = None if place is None else _number_at(info, place)
            if number is None or number >= info.frames or (stamps is not None and stamps[number] != place):
                continue  # shown by nobody
            frame.time_base = stream.time_base  # the last frames come without a base
            while wanted[at] < number:
                # Of files that were not decoded whole, some packets hold no frame: the one before is shown on.
                only_one = last is not None and last[0] == wanted[at] - 1 == number - 2
                if not lenient and (info.whole or not only_one):
                    return
                if last is not None and not lenient:
                    yield wanted[at], last[1]
                at += 1
                if at == len(wanted):
                    return
            if wanted[at] == number:
                yield number, frame
                at += 1
                if at == len(wanted):
                    return
            last = number, frame


def _number_at(info: MediaInfo, place: int) -> int:
    return place if info.stamps is None else bisect_left(info.stamps, place)


def _after(info: MediaInfo, number: int) -> str:
    return f"from {info.times[min(number, info.frames - 1)]:.2f} s on"


def _damaged(info: MediaInfo, number: int) -> DataError:
    return DataError(
        f"{info.path} is damaged {_after(info, number)}. Copy or export it again, or cut out what is whole.", info.path
    )
