"""Writing a piece of a video as an mp4 of its own, with its sound.

Where the piece begins with a key frame that nothing before or behind reaches across, and ends before another, its
packets are copied: nothing is encoded again. Elsewhere exactly its frames are decoded and encoded anew. Timestamps,
and so a varying frame rate, stay as they are, and so do the matrix and the range of the colours; a turned picture is
stored upright when it is encoded, and RGB becomes BT.709.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from ..events import Events, shielded
from ..files import atomic
from ..media.convert import FULL_RANGE, NARROW_RANGE, convertible, has_full_range
from ..media.decoding import opened
from ..media.info import MediaInfo
from ..media.sound_media import sound_of
from ..media.video import source_frames
from .cut_sound import SoundTrack

COPIED_VIDEO = frozenset(("h264", "hevc", "av1", "vp9", "mpeg4"))  # what mp4 holds and players know
COPIED_SOUND = frozenset(("aac", "mp3", "ac3", "eac3", "opus", "flac", "alac"))
KEPT_FORMATS = frozenset(("yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "yuv422p10le", "yuv444p10le"))
ENCODER = {"crf": "14", "preset": "fast"}
RGB_TO = "itu709", 1  # the matrix that RGB is encoded with, and its number in files
BEFORE = 17  # frames that decoding runs ahead of showing, at most
TURNS = {90: (("transpose", "cclock"),), 180: (("hflip", None), ("vflip", None)), 270: (("transpose", "clock"),)}


@dataclass(frozen=True)
class PacketIndex:
    """What the packets of a video say: its codec, and the times at which it can be cut without encoding."""

    codec: str
    clean_keys: frozenset[int]


def read_index(info: MediaInfo) -> PacketIndex:
    """Find the key frames that divide what is before from what is behind in both orders, of decoding and of showing."""
    with opened(info.path) as (container, stream):
        clean: set[int] = set()
        latest, key = -math.inf, None
        for packet in container.demux(stream):
            if packet.pts is None:
                continue
            if packet.is_keyframe:
                key = packet.pts
                if latest < packet.pts:
                    clean.add(key)
            elif key is not None and packet.pts < key:
                clean.discard(key)
            latest = max(latest, packet.pts)
        return PacketIndex(stream.codec_context.name, frozenset(clean))


def can_copy(info: MediaInfo, index: PacketIndex, first: int, stop: int) -> bool:
    """Whether frames `first` to `stop` (not included) can be had without encoding."""
    stamps = info.stamps
    if stamps is None or index.codec not in COPIED_VIDEO or info.has_alpha:
        return False
    if any(begin < stop and first < end for begin, end in info.damage):
        return False  # encoding says what is wrong
    return stamps[first] in index.clean_keys and (stop >= len(stamps) or stamps[stop] in index.clean_keys)


def piece_seconds(info: MediaInfo, first: int, stop: int) -> tuple[float, float]:
    """Seconds on the clock of the container at which a piece begins and ends."""
    times, count = info.times, len(info.times)
    step = float(np.median(np.diff(times))) if count > 1 else 1.0 / (info.fps or 25.0)
    return times[first], times[stop] if stop < count else times[-1] + step


def write_piece(
    info: MediaInfo, index: PacketIndex, first: int, stop: int, path: Path, events: Events | None = None
) -> bool:
    """Write frames `first` to `stop` (not included) to `path`; True where they were copied.

    Raises DataError; Stopped on request, and then nothing is left of the piece.
    """
    import av.error

    events = shielded(events)

    copy = can_copy(info, index, first, stop)
    try:
        with atomic(path) as temporary:
            try:
                copy = copy and _copy(info, first, stop, temporary, events)
            except (av.error.FFmpegError, DataError):  # packets that no MP4 takes; encoding says what is wrong
                copy = False
            if not copy:
                _encode(info, first, stop, temporary, events)
    except av.error.FFmpegError as error:
        reason = error.strerror or str(error)
        raise DataError(f"{info.path}: {path.name} cannot be cut from it: {reason}.", info.path) from error
    return copy


def _copy(info: MediaInfo, first: int, stop: int, out: Path, events: Events) -> bool:
    """Copy the packets; whether those of all frames were there to be copied."""
    import av

    begin, end = piece_seconds(info, first, stop)
    assert info.stamps is not None
    with (
        opened(info.path) as (source, video),
        av.open(str(out), "w", format="mp4", options={"movflags": "faststart"}) as target,
    ):
        best = sound = sound_of(source)
        copied = sound is not None and sound.codec_context is not None and sound.codec_context.name in COPIED_SOUND
        if not copied or info.pair:
            sound = None
        pairs = {part: target.add_stream_from_template(part) for part in (video, sound) if part is not None}
        heard = None
        if sound is None and best is not None:
            heard = SoundTrack.of(info, begin, end - begin, target)
        if first:
            source.seek(info.stamps[max(0, first - BEFORE)], stream=video, backward=True, any_frame=False)
        low = info.stamps[first]
        high = info.stamps[stop] if stop < len(info.stamps) else math.inf
        over = {part: False for part in pairs}
        missing = set(info.stamps[first:stop])
        for packet in _with_dts(source.demux(*pairs), video):
            if packet.dts is None or packet.pts is None or over[packet.stream]:
                if all(over.values()):
                    break
                continue
            part = packet.stream
            events.check_stop()
            if part is video:
                inside, after = low <= packet.pts < high, packet.is_keyframe and packet.pts >= high
                shift = low
            else:
                at, lasts = float(packet.pts * packet.time_base), float((packet.duration or 0) * packet.time_base)
                # one packet more at the front, which the first one leans on; the player leaves it out
                inside, after = begin - lasts <= at < end, at >= end
                shift = round(begin / part.time_base)
            over[part] |= after
            if inside:
                if part is video:
                    missing.discard(packet.pts)
                packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
                packet.stream = pairs[part]
                target.mux(packet)
        if heard is not None:
            heard.finish()
    return not missing


def _with_dts(packets: Iterable[Any], video: Any) -> Iterator[Any]:
    """`packets` with the times of decoding that Matroska leaves out of the first ones of a video with B-frames."""
    waiting: list[Any] = []
    for packet in packets:
        if packet.stream is video and packet.pts is not None and packet.dts is None:
            waiting.append(packet)
            continue
        if waiting and packet.stream is video and packet.dts is not None:
            for back, one in enumerate(reversed(waiting), 1):
                one.dts = packet.dts - back * (one.duration or 1)
            yield from waiting
            waiting.clear()
        yield packet


def _encode(info: MediaInfo, first: int, stop: int, out: Path, events: Events) -> None:
    import av
    from av.video.frame import PictureType

    begin, end = piece_seconds(info, first, stop)
    chain = stream = heard = None
    with av.open(str(out), "w", format="mp4", options={"movflags": "faststart"}) as target:
        for number, frame in source_frames(info, first, stop):
            events.check_stop()
            base = Fraction(1, 90_000) if info.stamps is None else _fraction(frame.time_base)
            shift = 0 if info.stamps is None else info.stamps[first]
            stamp = round((info.times[number] - begin) / base) if info.stamps is None else info.stamps[number] - shift
            plain, colours = _storable(frame, info.path)
            chain = chain or _Chain(info, plain)
            picture = chain(plain)
            if stream is None:
                stream = _video_stream(info, colours, picture, base, target)
                heard = SoundTrack.of(info, begin, end - begin, target)
            picture.pts, picture.time_base, picture.pict_type = stamp, base, PictureType.NONE
            target.mux(stream.encode(picture))
            if heard is not None:
                heard.until(float(stamp * base))
        if stream is None:
            raise DataError(f"{info.path}: no frame from {begin:.2f} s on can be decoded.", info.path)
        target.mux(stream.encode(None))
        if heard is not None:
            heard.finish()


def _storable(frame: Any, path: Path) -> tuple[Any, dict[str, int]]:
    """`frame` in a format that H.264 has, and how its colours are to be read, as the stream says it.

    FFmpeg's filters take BT.601 of the narrow range for what they convert, so that nothing is left to them. Raises
    DataError where the colours are unknown.
    """
    name, full = frame.format.name, has_full_range(frame)
    tags = {key: getattr(frame, key, None) for key in ("color_primaries", "color_trc")}
    tags |= {"color_range": FULL_RANGE if full else frame.color_range, "colorspace": frame.colorspace}
    if name not in KEPT_FORMATS:
        kept = name.replace("yuvj", "yuv")
        is_rgb = frame.format.is_rgb or name == "pal8"
        # grey is taken for the full range, and keeps its levels so where it has the narrow one
        wide = full or (name.startswith("gray") and frame.color_range == NARROW_RANGE)
        range_ = "JPEG" if wide else "MPEG"
        given = {"src_colorspace": "itu601", "dst_colorspace": "itu601", "src_color_range": range_}  # nothing changes
        if is_rgb:
            given, range_ = {"dst_colorspace": RGB_TO[0], "src_color_range": "JPEG"}, "MPEG"
            tags |= {"colorspace": RGB_TO[1], "color_range": NARROW_RANGE}
        stamp, base = frame.pts, frame.time_base
        with convertible(path):
            frame = frame.reformat(format=kept if kept in KEPT_FORMATS else "yuv420p", **given, dst_color_range=range_)
        frame.pts, frame.time_base = stamp, base
    return frame, {key: value for key, value in tags.items() if value is not None}


def _video_stream(info: MediaInfo, colours: dict[str, int], picture: Any, base: Fraction, target: Any) -> Any:
    """An H.264 stream for pictures like `picture`, which says that they have the `colours`."""
    stream = target.add_stream("libx264", rate=Fraction(info.fps or 25.0).limit_denominator(1001), options=ENCODER)
    stream.width, stream.height, stream.pix_fmt = picture.width, picture.height, picture.format.name
    context = stream.codec_context
    context.time_base = base
    ratio = _fraction(_pixel_aspect(info))
    if ratio != 1:
        context.sample_aspect_ratio = 1 / ratio if info.rotation % 180 else ratio
    for key, value in colours.items():
        setattr(context, key, value)
    return stream


def _pixel_aspect(info: MediaInfo) -> Fraction:
    with opened(info.path) as (_, stream):
        return stream.sample_aspect_ratio or Fraction(1)


def _fraction(value: Any) -> Fraction:
    return Fraction(value.numerator, value.denominator)  # newer PyAV has rationals of its own


class _Chain:
    """FFmpeg's filters that turn a picture upright and make its sides even."""

    def __init__(self, info: MediaInfo, frame: Any) -> None:
        from av.filter import Graph

        mirror = [("hflip", None)] if info.mirrored else []
        steps = [
            *TURNS.get(info.rotation, ()),
            *mirror,
            ("crop", "trunc(iw/2)*2:trunc(ih/2)*2:0:0"),
            ("format", frame.format.name),
        ]
        self.graph = Graph()
        base = _fraction(frame.time_base) if frame.time_base else Fraction(1, 1000)
        nodes = [self.graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=base)]
        nodes += [self.graph.add(name, given) if given else self.graph.add(name) for name, given in steps]
        self.graph.link_nodes(*nodes, self.graph.add("buffersink")).configure()

    def __call__(self, frame: Any) -> Any:
        self.graph.push(frame)
        return self.graph.pull()
