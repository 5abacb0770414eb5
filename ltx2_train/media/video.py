"""Media files -> exact frames.

`probe_media` reads the packets of a file without decoding them (but for one frame), so that the number of frames and
the time of each are facts and not what a header claims. `read_frames` decodes chosen frames, seeking to the key frame
before the first and stopping after the last, and scales each one straight to its size in one call of swscale: what is
in memory is the clip that was asked for and nothing else. Decoders hand frames out in the order of presentation.

Frames are turned by the rotation in the metadata, stretched by the pixel aspect ratio and made 8-bit RGB;
transparency is laid over black.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from .buckets import MIDDLE, cover
from .frame_folder import read_frame_folder
from .images import IMAGE_SUFFIXES, OVER_BLACK, colours, image_header, read_image
from .info import MediaInfo

VIDEO_SUFFIXES = frozenset((".mp4", ".webm", ".avi", ".mkv", ".mov", ".flv", ".wmv", ".m4v", ".mpg", ".mpeg"))
# Containers whose timestamps do not follow the order of presentation; their frames are counted instead.
COUNTED_FORMATS = frozenset(("avi",))
# Containers with a header that states the duration, and an index; elsewhere both are guessed from the bit rate.
TIMED_FORMATS = frozenset(("mov", "mp4", "matroska", "webm", "avi", "flv", "asf"))
ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
# RGB has no matrix, but older PyAV looks at the file's one (BT.709, ...) only if another is named for the result, and
# then takes the range for the narrow one unless told.
RGB_MATRIX = "itu601"
FULL_RANGE = 2
ACCURATE_ROUNDING = 1 << 18  # FFmpeg's SWS_ACCURATE_RND, which older PyAV has no name for
HDR_TRANSFERS = (16, 18)  # PQ and HLG, by their numbers in H.273
REORDERED = 17
MISSING_SHARE = 0.1
MISSING_END_SECONDS = 0.5


def probe_media(path: Path | str) -> MediaInfo:
    """Read what `path` holds. Raises DataError that names the file and the reason where it is of no use."""
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path} does not exist or is not a file.", path)
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty (0 bytes).", path)
    if path.suffix.lower() in IMAGE_SUFFIXES:
        head = image_header(path)
        return MediaInfo(
            path,
            "image",
            1,
            head.width,
            head.height,
            pixel_format=head.mode,
            has_alpha=head.has_alpha,
            remarks=head.remarks,
            reading=colours(head),
        )
    with _opened(path, threads=False) as (container, stream):
        return _probe_video(path, container, stream)


def read_frames(
    media: MediaInfo | Path | str,
    picks: Sequence[int] | None = None,
    size: tuple[int, int] | None = None,
    centre: tuple[float, float] = MIDDLE,
) -> np.ndarray:
    """Decode the source frames `picks` (ascending, repeats allowed; default all) as uint8 [F, H, W, 3].

    `size` is (width, height): frames are scaled until they cover it and cropped around `centre` (shares of width and
    height; see `buckets.cover`); default: as shown.
    Raises DataError where the file cannot be decoded up to the last pick.
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
    exact = 0
    if info.seekable and info.times[picks[0]] - info.times[0] > 1.0:
        with _opened(info.path) as (container, stream):
            # Files are searched by the time of decoding, which runs ahead of the time shown by as much as reordering.
            before = info.stamps[max(0, picks[0] - REORDERED)] if info.stamps else 0
            container.seek(before, stream=stream, backward=True, any_frame=False)
            exact = _fill(clip, info, picks, container, stream, centre)
    if exact < len(picks):  # not sought, or what was found there is not all of it: from the start
        with _opened(info.path) as (container, stream):
            exact = _fill(clip, info, picks, container, stream, centre)
    if len(picks) - exact > max(1, MISSING_SHARE * len(picks)):
        raise DataError(
            f"{info.path}: only {exact} of {len(picks)} frames from {info.times[picks[0]]:.2f} s on can be decoded. "
            "The file is damaged or cut short; export it again or remove it.",
            info.path,
        )
    return clip


def _fill(
    clip: np.ndarray,
    info: MediaInfo,
    picks: Sequence[int],
    container: Any,
    stream: Any,
    centre: tuple[float, float],
) -> int:
    """Fill `clip` and return how many of its frames are the ones that were picked.

    A frame that the decoder left out is replaced by the next one, or the last where there is none.
    """
    size = (clip.shape[2], clip.shape[1])
    convert = _Converter((info.width, info.height), size, info.rotation, info.has_alpha, centre)
    wanted = list(picks) if info.stamps is None else [info.stamps[pick] for pick in picks]
    done = exact = 0
    for index, frame in enumerate(_decoded(container, stream, info.has_alpha)):
        at = index if info.stamps is None else frame.pts
        if at is None or at < wanted[done]:
            continue
        convert(frame, clip[done])
        first = done
        while done < len(wanted) and wanted[done] <= at:
            exact += wanted[done] == at
            if done > first:
                clip[done] = clip[first]
            done += 1
        if done == len(wanted):
            break
    if done:
        clip[done:] = clip[done - 1]
    return exact


def source_frames(info: MediaInfo, first: int, stop: int) -> Iterator[tuple[int, Any]]:
    """Decode the frames `first` to `stop` (not included) as PyAV frames, each with its number.

    They are as the file holds them, neither turned nor scaled; transparency is laid over black. What cannot be decoded
    is left out. Raises DataError where the file cannot be read.
    """
    numbers = None if info.stamps is None else {stamp: number for number, stamp in enumerate(info.stamps)}
    seek = info.seekable and info.stamps is not None and info.times[first] - info.times[0] > 1.0
    for sought in (True, False) if seek else (False,):
        with _opened(info.path) as (container, stream):
            if sought:
                before = info.stamps[max(0, first - REORDERED)] if info.stamps else 0
                container.seek(before, stream=stream, backward=True, any_frame=False)
            begun = False
            for index, frame in enumerate(_decoded(container, stream, info.has_alpha)):
                number = index if numbers is None else numbers.get(frame.pts)
                if number is None or number < first:
                    continue
                if number >= stop:
                    break
                if sought and not begun and number > first:  # the index led past it
                    break
                begun = True
                shown = _over_black(frame) if info.has_alpha else frame
                shown.pts, shown.time_base = frame.pts, stream.time_base  # the last frames come without a base
                yield number, shown
            if begun:
                return


class _Converter:
    """Turns decoded frames into upright RGB of one size, with one swscale context for the whole clip."""

    def __init__(
        self,
        shown: tuple[int, int],
        size: tuple[int, int],
        rotation: int,
        alpha: bool,
        centre: tuple[float, float] = MIDDLE,
    ) -> None:
        from av.video.reformatter import Interpolation, VideoReformatter

        scaled_w, scaled_h, self.left, self.top = cover(*shown, size, centre)
        self.size = size
        self.turns = rotation // 90 % 4
        self.width, self.height = (scaled_h, scaled_w) if self.turns % 2 else (scaled_w, scaled_h)
        self.alpha = alpha
        self.reformatter = VideoReformatter()
        # A frame that keeps its size takes a short cut that darkens it by a level; this flag forbids that. Frames that
        # are scaled need it not, and would only be slower.
        self.shrink, self.grow = int(Interpolation.AREA), int(Interpolation.LANCZOS)
        self.keep = int(Interpolation.BICUBIC) | ACCURATE_ROUNDING

    def __call__(self, frame: Any, out: np.ndarray) -> None:
        if self.alpha:
            frame = _over_black(frame)
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
            out[..., channel] = picture[self.top : self.top + height, self.left : self.left + width]

    def _method(self, width: int, height: int) -> int:
        if (width, height) == (self.width, self.height):
            return self.keep
        return self.shrink if self.width <= width else self.grow


def _colours(frame: Any) -> dict[str, Any]:
    full = frame.color_range == FULL_RANGE or frame.format.name.startswith("yuvj")
    return {"dst_colorspace": RGB_MATRIX, "src_color_range": "JPEG" if full else "MPEG"}


def _over_black(frame: Any) -> Any:
    import av

    rgba = frame.reformat(format="rgba", **_colours(frame)).to_ndarray()
    colour = rgba[..., :3].astype(np.uint16) * rgba[..., 3:].astype(np.uint16)
    return av.VideoFrame.from_ndarray(np.ascontiguousarray((colour + 127) // 255, dtype=np.uint8), format="rgb24")


@contextlib.contextmanager
def _opened(path: Path, threads: bool = True) -> Iterator[tuple[Any, Any]]:
    """The container of `path` and its main video stream; FFmpeg's errors become DataError."""
    import av

    try:
        with av.open(str(path), metadata_errors="replace") as container:
            stream = container.streams.best("video")
            if stream is None:
                raise DataError(f"{path} has no video stream.", path)
            if stream.codec_context is None:
                raise DataError(f"{path} is in a codec that this FFmpeg cannot decode. Convert it to H.264.", path)
            stream.thread_type = "AUTO" if threads else "NONE"
            yield container, stream
    except av.error.FFmpegError as error:
        reason = error.strerror or str(error)
        raise DataError(
            f"{path} cannot be read: {reason}. The file is damaged, cut short or not a video; "
            "export it again or remove it.",
            path,
        ) from error


def _decoded(container: Any, stream: Any, alpha: bool) -> Iterator[Any]:
    """Frames in the order of presentation. Packets that make no sense are passed over; whoever asks counts frames."""
    decoder = (_alpha_decoder(stream) if alpha else None) or stream.codec_context
    for packet in container.demux(stream):
        yield from _decode(decoder, packet)


def _decode(decoder: Any, packet: Any) -> list[Any]:
    import av

    try:
        return decoder.decode(packet if packet.size else None)
    except av.error.InvalidDataError:
        return []


def _alpha_decoder(stream: Any) -> Any:
    """FFmpeg's own VP8 and VP9 decoders drop the alpha channel of WebM; libvpx keeps it. None where not needed."""
    import av

    name = ALPHA_DECODERS.get(stream.codec_context.name)
    tags = {key.lower(): value for key, value in stream.metadata.items()}
    if name is None or tags.get("alpha_mode") != "1" or name not in av.codecs_available:
        return None
    decoder = av.CodecContext.create(name, "r")
    decoder.extradata = stream.codec_context.extradata
    return decoder


def _probe_video(path: Path, container: Any, stream: Any) -> MediaInfo:
    _refuse_picture(path, container)
    alpha_decoder = _alpha_decoder(stream)
    stamps: list[int] = []
    missing_stamp = False
    packets = 0
    ends = [0.0]
    first = first_key = None
    waiting = 0
    for packet in container.demux():
        if packet.stream is stream and first is None:
            first = next(iter(_decode(stream.codec_context, packet)), None)
        if not packet.size:
            continue
        if packet.pts is not None:
            ends.append(float((packet.pts + (packet.duration or 0)) * packet.time_base))
        if packet.stream is not stream:
            continue
        if first_key is None and packet.is_keyframe:
            first_key, waiting = packet.pts, packets
        if packet.is_discard:  # trimmed away by an edit list; decoded for the sake of others, but never shown
            continue
        packets += 1
        if packet.pts is None:
            missing_stamp = True
        else:
            stamps.append(packet.pts)
    if first is None:
        raise DataError(f"{path}: not one frame can be decoded. Export it again or remove it.", path)
    _refuse_truncated(path, container, max(ends))

    # A clip that was cut without re-encoding begins with frames that need a key frame before them; none comes out.
    stamps = sorted(stamp for stamp in stamps if first_key is None or stamp >= first_key)
    packets = packets - waiting if missing_stamp else len(stamps)
    counted = missing_stamp or len(set(stamps)) < packets or _is_one_of(container, COUNTED_FORMATS)
    rate = _rate(stream, stamps)
    times = [i / rate for i in range(packets)] if counted else [float(s * stream.time_base) for s in stamps]
    step = float(np.median(np.diff(times))) if packets > 1 else 1.0 / rate
    rotation = round(getattr(first, "rotation", 0) / 90) * 90 % 360
    ratio = stream.sample_aspect_ratio or Fraction(1)
    width, height = max(1, round(first.width * (ratio if 0.1 < ratio < 10 else 1))), first.height
    if rotation % 180:
        width, height = height, width
    has_alpha = alpha_decoder is not None or any(part.is_alpha for part in first.format.components)
    return MediaInfo(
        path=path,
        kind="video",
        frames=packets,
        width=width,
        height=height,
        fps=rate,
        duration=times[-1] - times[0] + step,
        rotation=rotation,
        pixel_format=first.format.name,
        has_alpha=has_alpha,
        has_audio=bool(container.streams.audio),
        remarks=_remarks(first, has_alpha),
        times=tuple(times),
        stamps=None if counted else tuple(stamps),
        seekable=not counted and _is_one_of(container, TIMED_FORMATS),
    )


def _remarks(frame: Any, has_alpha: bool) -> tuple[str, ...]:
    found = [OVER_BLACK] if has_alpha else []
    if int(getattr(frame, "color_trc", None) or 0) in HDR_TRANSFERS:
        found.append("is HDR, and its colours will look flat; convert it to SDR (BT.709) first")
    if frame.interlaced_frame:
        found.append("is interlaced, and motion will show combs; deinterlace it first")
    return tuple(found)


def _refuse_picture(path: Path, container: Any) -> None:
    kind = container.format.name.removesuffix("_pipe")  # FFmpeg's word for a picture that is a file of its own
    if kind != container.format.name:
        raise DataError(f"{path} is a picture ({kind}) with the ending of a video. Give it its own ending.", path)


def _refuse_truncated(path: Path, container: Any, end: float) -> None:
    # The number of frames in the header is no measure: a clip trimmed on a phone still counts what was cut away.
    if not _is_one_of(container, TIMED_FORMATS):
        return
    promised = (container.duration or 0) / 1_000_000 + max(0, container.start_time or 0) / 1_000_000
    if end < promised - max(MISSING_END_SECONDS, 0.05 * promised):
        raise DataError(
            f"{path} is cut short: it holds {end:.1f} of {promised:.1f} seconds. "
            "Copy or export it again, or remove it.",
            path,
        )


def _is_one_of(container: Any, formats: frozenset[str]) -> bool:
    return bool(formats & set(container.format.name.split(",")))


def _rate(stream: Any, stamps: Sequence[int]) -> float:
    for rate in (stream.average_rate, stream.base_rate):
        if rate and 0 < rate <= 1000 and math.isfinite(rate):
            return float(rate)
    if len(stamps) > 1:
        span = float((stamps[-1] - stamps[0]) * stream.time_base)
        if span > 0:
            return (len(stamps) - 1) / span
    return 25.0
