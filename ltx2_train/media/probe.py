"""What a video holds: size, orientation, the times of its frames, which of them are damaged."""

from __future__ import annotations

from bisect import bisect_left
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..threads import heed
from .asked import OF_SOUND, asked
from .clock import Clock, Packets, counted_clock, stamped_clock, why_clock_unusable
from .coded_colours import LINEAR, colour_remark, lacks_matrix
from .convert import orientation, slant
from .decoding import alpha_decoder, decode_packet, is_cover, is_packet_damaged, opened
from .h264 import LostReferences
from .images import MAYBE_OVER_BLACK, OVER_BLACK
from .info import MediaInfo
from .intact import Look, damaged_spans, look_through
from .mpeg2 import LostPictures
from .mpeg4 import LostVops
from .sound import unsaid_channels
from .sound_media import MISSING_END_SECONDS, sound_of, sound_tracks
from .structure import behind_end, breaks, header_fault, missing_end

# Containers whose timestamps do not follow the order of presentation; their frames are counted instead.
COUNTED_FORMATS = frozenset(("avi",))
# Containers with a header that states the duration, and an index; elsewhere both are guessed from the bit rate.
TIMED_FORMATS = frozenset(("mov", "mp4", "matroska", "webm", "avi", "flv", "asf"))
ABSOLUTE_FORMATS = frozenset(("matroska", "webm", "flv", "asf"))  # whose duration counts from zero, not from the start
# What is decoded whole when it is first looked at; longer clips are where they are used.
WHOLE_PIXELS = 300_000_000
BACK_SECONDS = 0.5
NOTICED_DEGREES = 1  # less is rounding of the matrix
# Streams without a container: nothing in them says when a frame is shown.
RAW_FORMATS = frozenset(("h264", "hevc", "vvc", "obu", "mjpeg", "m4v", "cavsvideo", "dirac", "vc1"))
FLOATS = ("gbrpf", "gbrapf", "grayf", "rgbf", "rgbaf")  # formats of pictures that hold light, such as EXR
MEND = "Copy or export it again, or remove it."


def probe_video(path: Path) -> MediaInfo:
    """What the video `path` holds. Raises DataError where it is of no use."""
    with opened(path, threads=False) as (container, stream):
        _refuse_picture(path, container)
        packets, first, end = _read_packets(path, container, stream)
        _refuse_truncated(path, container, end)
        formats = frozenset(container.format.name.split(","))
        _check_structure(path, formats, packets)
        _refuse_going_back(path, packets, stream.time_base)
        base, rates = stream.time_base, [stream.average_rate, stream.base_rate, stream.guessed_rate]
        ratio = stream.sample_aspect_ratio or Fraction(1)
        has_alpha = alpha_decoder(stream) is not None or any(part.is_alpha for part in first.format.components)
        tracks, pair = sound_tracks(path, container)
        no_matrix = lacks_matrix(first, stream.codec_context.name, container.metadata)
        of_tracks = (*_of_tracks(container, stream.index), *_of_sound(container))
        told = [*_of_beginning(packets), *filter(None, [behind_end(path)]), *asked(path, formats, first)]
    rotation, mirrored = orientation(first)
    width, height = max(1, round(first.width * (ratio if 0.1 < ratio < 10 else 1))), first.height
    width, height = (height, width) if rotation % 180 else (width, height)
    stamps = None if formats & COUNTED_FORMATS else packets.stamps()
    count = packets.count() if stamps is None else len(stamps)
    look, before_key = None, 0 if stamps is not None else packets.first_key
    if count * first.width * first.height <= WHOLE_PIXELS:
        look = _looked_through(path, packets, has_alpha, base if stamps is not None else None, before_key)
        stamps, count = _there(packets, look, stamps, count)
    begin = packets.begin if stamps is None and not formats & COUNTED_FORMATS else None
    clock = counted_clock(packets, count, base, rates, begin) if stamps is None else stamped_clock(stamps, base, rates)
    if wrong := why_clock_unusable(clock):
        raise DataError(f"{path} {wrong}; its timestamps are damaged. Export it again.", path)
    damage = _damage(path, packets, look, clock)
    return MediaInfo(
        path=path,
        kind="video",
        frames=count,
        width=width,
        height=height,
        fps=clock.rate,
        duration=clock.duration,
        rotation=rotation,
        mirrored=mirrored,
        pixel_format=first.format.name,
        has_alpha=has_alpha,
        no_matrix=no_matrix,
        has_audio=bool(tracks),
        tracks=tracks,
        pair=pair,
        remarks=(
            *(*_of_alpha(has_alpha, look), *_remarks(first), *of_tracks),
            *(*_of_stamps(packets, formats), *_of_rate(formats, clock)),
            *_doubts(look, clock, damage),
            *told,
        ),
        reading=_reading(mirrored, before_key, begin),
        times=clock.times,
        stamps=clock.stamps,
        before_key=before_key,
        seekable=stamps is not None and bool(formats & TIMED_FORMATS),
        damage=damage,
        whole=look is not None,
    )


def _reading(mirrored: bool, before_key: int, begin: int | None) -> tuple[str, ...]:
    """In what way frames are read that another version of this program may have read otherwise."""
    ways = {
        "mirrored": mirrored,
        "from its first key frame on": before_key,
        "counted from its first time stamp": begin,
    }
    return tuple(way for way, so in ways.items() if so)


def _read_packets(path: Path, container: Any, stream: Any) -> tuple[Packets, Any, float]:
    """The packets of the video, its first frame, and the second at which the last packet of all ends."""
    packets, first, end = Packets(), None, 0.0
    codec = stream.codec_context.name
    numbers = None
    if codec == "h264":
        numbers = LostReferences(stream.codec_context.extradata)
    elif codec in ("mpeg1video", "mpeg2video"):
        numbers = LostPictures()
    elif codec == "mpeg4":
        numbers = LostVops(stream.codec_context.extradata)
    for packet in container.demux():
        heed()
        if packet.stream is stream and first is None:
            first = next(iter(decode_packet(stream.codec_context, packet)), None)
        if not packet.size:
            continue
        if packet.pts is not None:
            end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        if packet.stream is stream:
            if numbers is not None:
                numbers.show(len(packets), packet)
            packets.add(packet, packet.is_corrupt or is_packet_damaged(packet, codec))
    if first is None:
        raise DataError(f"{path}: not one frame can be decoded. Export it again or remove it.", path)
    if isinstance(numbers, LostVops) and numbers.reordered:
        packets.take_order()
    if numbers is not None:
        packets.lost, packets.gradual = numbers.lost, numbers.gradual
    return packets, first, end


def _check_structure(path: Path, formats: frozenset[str], packets: Packets) -> None:
    """Take down in `packets` where the structure of a file breaks. Raises DataError where its header or end is bad."""
    if fault := header_fault(path, formats):
        raise DataError(f"{path} is damaged: {fault}. {MEND}", path)
    for place in breaks(path, formats):
        packets.note_break(place)
    if missing := missing_end(path, formats):
        raise DataError(f"{path} is cut short: {missing}. {MEND}", path)


def _looked_through(path: Path, packets: Packets, has_alpha: bool, base: Any, before_key: int) -> Look:
    """What comes out of decoding all of it; what it lacks is taken down in `packets`. Raises DataError."""
    look = look_through(path, has_alpha, base is not None, before_key)
    packets.lost += [number for number, stamp in enumerate(packets.shown) if stamp in look.leaning]
    _refuse_disorder(path, packets, look, base)
    return look


def _there(packets: Packets, look: Look, stamps: list[int] | None, count: int) -> tuple[list[int] | None, int]:
    """The timestamps, and the number, of the frames that come out of the decoder: some packets hold none.

    Those that are missing for damage stay, for they were recorded.
    """
    if look.wrong or packets.lost or any(packets.broken):
        return stamps, count
    if stamps is None:
        return None, min(count, len(look.shown))
    there = set(look.shown)
    found = [stamp for stamp in stamps if stamp in there]
    return (found, len(found)) if found else (stamps, count)


def _damage(path: Path, packets: Packets, look: Look | None, clock: Clock) -> tuple[tuple[int, int], ...]:
    """The spans of damaged frames. Raises DataError where no frame is whole, or the picture changes its size."""
    count = len(clock.times)
    wrong = [
        number if clock.stamps is None else stamp
        for number, (stamp, broken) in enumerate(zip(packets.shown, packets.broken, strict=True))
        if broken and (clock.stamps is None or stamp is not None)
    ]
    if look is not None:
        first = packets.first_key if clock.stamps is None else 0
        wrong += [place + first for place in look.wrong]
        if len(look.sizes) > 1 and not look.wrong:  # joined files have broken packets where they meet
            (old, _), (new, place) = list(look.sizes.items())[:2]
            raise DataError(
                f"{path}: its picture changes from {old[0]}x{old[1]} to {new[0]}x{new[1]} after "
                f"{_second(clock, place):.2f} s. Export it again at one size, or cut it there.",
                path,
            )
    spans = damaged_spans(packets, (place for place in wrong if place is not None), clock.stamps, count)
    if spans and clock.stamps is None:
        spans = ((spans[0][0], count),)  # what is counted is off behind it
    if spans and sum(last - first for first, last in spans) >= count:
        raise DataError(f"{path} is damaged {_where(clock, spans[0][0])}. {MEND}", path)
    return spans


def _doubts(look: Look | None, clock: Clock, damage: tuple[tuple[int, int], ...]) -> list[str]:
    """What a user should know of damage."""
    if damage:
        lost = sum(last - first for first, last in damage)
        return [
            f"is damaged {_where(clock, damage[0][0])}; {lost} of its {len(clock.times)} frames are not used. {MEND}"
        ]
    if look is not None and look.doubtful:
        return [f"may be damaged at {_second(clock, look.doubtful[0]):.2f} s: look whether its picture is whole there"]
    return []


def _second(clock: Clock, place: int) -> float:
    number = place if clock.stamps is None else bisect_left(clock.stamps, place)
    return clock.times[min(number, len(clock.times) - 1)] - clock.times[0]


def _where(clock: Clock, number: int) -> str:
    return f"from {clock.times[number] - clock.times[0]:.2f} s on"


def _of_alpha(has_alpha: bool, look: Look | None) -> tuple[str, ...]:
    if not has_alpha:
        return ()
    return (MAYBE_OVER_BLACK,) if look is None else (OVER_BLACK,) if look.transparent else ()


def _remarks(frame: Any) -> tuple[str, ...]:
    found: list[str] = []
    primaries, transfer = (int(getattr(frame, name, None) or 0) for name in ("color_primaries", "color_trc"))
    if frame.format.name.startswith(FLOATS):
        transfer = LINEAR
    if remark := colour_remark(primaries, transfer):
        found.append(remark)
    if (degrees := slant(frame)) > NOTICED_DEGREES:
        found.append(
            f"is shown turned by {degrees:.0f} degrees more than it is used here, where quarter turns alone are made; "
            "encode it as it is to look"
        )
    if frame.interlaced_frame:
        found.append("is interlaced, and motion will show combs; deinterlace it first")
    return tuple(found)


def _refuse_picture(path: Path, container: Any) -> None:
    kind = container.format.name.removesuffix("_pipe")  # FFmpeg's word for a picture that is a file of its own
    if kind != container.format.name:
        raise DataError(f"{path} is a picture ({kind}) with the ending of a video. Give it its own ending.", path)


def _refuse_going_back(path: Path, packets: Packets, base: Any) -> None:
    """Raise DataError where the time begins anew on the way, as in recordings that were put one behind the other."""
    keys = [stamp for stamp, key in zip(packets.shown, packets.keys, strict=True) if key and stamp is not None]
    for before, after in pairwise(keys):
        if float((before - after) * base) > BACK_SECONDS:
            raise DataError(
                f"{path}: its time stamps go back after {float((before - keys[0]) * base):.2f} s, as where recordings "
                "were put one behind the other. Export it again, or cut it there.",
                path,
            )


def _refuse_disorder(path: Path, packets: Packets, look: Look, base: Any) -> None:
    """Raise DataError where time stamps, in units of `base` seconds, are in another order than the frames they are of.

    A decoder hands frames out as they are to be shown. `base` is None where frames are counted.
    """
    if base is None or look.wrong or packets.lost or any(packets.broken):
        return
    for before, after in pairwise(look.shown):
        if after < before:
            raise DataError(
                f"{path}: its time stamps go back after {float((before - min(look.shown)) * base):.2f} s, against the "
                "order of its frames. Export it again.",
                path,
            )


def _of_tracks(container: Any, used: int) -> tuple[str, ...]:
    """What a user should know of several video tracks; `used` is the number of the stream that is."""
    tracks = [one.index for one in container.streams.video if not is_cover(one)]
    if len(tracks) < 2 or used not in tracks:
        return ()
    return (
        f"has {len(tracks)} video tracks, of which number {tracks.index(used) + 1} is used, as the file prefers it",
    )


def _of_sound(container: Any) -> tuple[str, ...]:
    """What a user should know of the channels of the sound track that a file prefers."""
    context = getattr(sound_of(container), "codec_context", None)
    told = unsaid_channels(context.layout.name, context.layout.nb_channels) if context is not None else ""
    return (f"{OF_SOUND} {told}",) if told else ()


def _of_beginning(packets: Packets) -> tuple[str, ...]:
    """What a user should know of a file that was recorded, or cut without encoding, from between two key frames on."""
    if not packets.unbegun:
        return ()
    whole = f"{packets.unbegun} frames before its first key frame"
    return (f"begins with {whole}, which lean on what is not there and are not used",)


def _of_stamps(packets: Packets, formats: frozenset[str]) -> tuple[str, ...]:
    """What a user should know of the time stamps of frames."""
    if packets.of_decoding and not formats & COUNTED_FORMATS:
        return ("has the times of decoding in place of those of its frames; their times are taken from their order",)
    visible = [stamp for stamp, hidden in zip(packets.shown, packets.hidden, strict=True) if not hidden]
    told = [stamp for stamp in visible if stamp is not None]
    twice = len(told) - len(set(told))
    if not twice or formats & COUNTED_FORMATS:
        return ()
    return (f"has {twice} frames with the time stamp of another; the times of its frames are taken from their order",)


def _of_rate(formats: frozenset[str], clock: Clock) -> tuple[str, ...]:
    """What a user should know of the frame rate."""
    if not formats & RAW_FORMATS:
        return ()
    return (
        f"is a raw stream without time stamps, so {clock.rate:g} frames a second are assumed unless source_fps says "
        "otherwise",
    )


def _refuse_truncated(path: Path, container: Any, end: float) -> None:
    # The number of frames in the header is no measure: a clip trimmed on a phone still counts what was cut away.
    formats = frozenset(container.format.name.split(","))
    if not formats & TIMED_FORMATS:
        return
    start = 0 if formats & ABSOLUTE_FORMATS else max(0, container.start_time or 0)
    promised = ((container.duration or 0) + start) / 1_000_000
    if end < promised - max(MISSING_END_SECONDS, 0.05 * promised):
        raise DataError(f"{path} is cut short: it holds {end:.1f} of {promised:.1f} seconds. {MEND}", path)
