"""Sound files -> the exact samples of a window.

Decoded as they are: float32, every channel, the rate of the file. Samples are placed by the timestamps of packets, so
that sound and picture of a clip stay together whatever delay, gap or edit list the file has. Where timestamps are
coarse (a millisecond in Matroska) they place the first frame only. The file is long because what tells a damaged sound
from a whole one stands beside what reads it.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from ..threads import heed
from .asked import MP4, refuse_pauses
from .channel_order import refuse_strange_order
from .decoding import is_cover, require_av
from .names import why_not_found
from .samples import as_floats, channel_count
from .structure import missing_end, sound_fault

AUDIO_SUFFIXES = frozenset(
    (
        ".wav", ".flac", ".mp3", ".ogg", ".m4a", ".aac", ".opus", ".wma", ".aif", ".aiff", ".mka", ".oga", ".aifc",
        ".wave", ".bwf", ".rf64", ".w64", ".caf", ".au", ".snd", ".wv", ".tta", ".ac3", ".eac3", ".ec3", ".dts", ".thd",
        ".mlp", ".mp2", ".mpa", ".m4b", ".m4r", ".3ga", ".weba", ".spx", ".voc",
    )
)  # fmt: skip
# Endings of sounds that are named where they lie among others, and not read.
UNREAD_SOUNDS = {
    **dict.fromkeys((".mid", ".midi"), "MIDI, notes without a sound"),
    **dict.fromkeys((".pcm", ".raw"), "raw samples, without a rate"),
    **dict.fromkeys((".dsf", ".dff"), "DSD"), **dict.fromkeys((".aa", ".aax", ".m4p"), "a protected recording"),
    ".ape": "Monkey's Audio", ".mpc": "Musepack", ".tak": "TAK", ".shn": "Shorten", ".ra": "RealAudio", ".amr": "AMR",
    ".awb": "AMR", ".oma": "ATRAC", ".gsm": "GSM", ".latm": "raw AAC", ".loas": "raw AAC",
}  # fmt: skip
# Formats whose index leads to the right place; elsewhere reading starts at the beginning.
SOUGHT_FORMATS = frozenset(("mov", "mp4", "matroska", "webm", "wav"))
SEEK_FROM_SECONDS = 5.0
PREROLL_SECONDS = 1.0
UNREADABLE = "The file is damaged, cut short or not sound; export it again or remove it."
NOT_NUMBERS = "holds samples that are not numbers"
FLOAT_CODECS = ("pcm_f", "wavpack")
LARGEST_SAMPLE = 2.0**24  # of recordings with 24 bits
WILD_LEVEL, WILD_TIMES, WILD_NEAR = (
    8.0,
    32.0,
    4,
)  # full scale is 1; some write floats as large as integers, but all of them
JITTER_SECONDS = 0.02
RATES = (1000, 1_536_000)  # Hz; a header that says less or more is damaged, and would fill the memory
# A codec's own check sums are looked at, and what fails them is an error. Others would complain of what does no harm.
CHECKED_CODECS = {"flac": {"err_detect": "crccheck+explode"}}
TIMED_FORMATS = frozenset(("mov", "mp4", "matroska", "webm", "asf", "flac", "mp3"))  # whose header states the duration
MISSING_END_SECONDS = 0.5  # of what a header promises, or a twentieth, if that is more


@dataclass(frozen=True)
class SoundInfo:
    """What the sound of a file is like. `duration` is what its packets hold, in seconds.

    `cut_short` says how the file shows that its end is missing; "" where it does not. `tracks` describes each sound
    track; `pair`: there are two of one channel each, the left and the right of one recording.
    """

    path: Path
    rate: int
    channels: int
    layout: str
    duration: float
    cut_short: str = ""
    tracks: tuple[str, ...] = ()
    pair: bool = False


@dataclass(frozen=True)
class Sound:
    """Decoded samples [C, N] in float32, all of them finite. `missing` of them were not in the file."""

    samples: np.ndarray = field(repr=False)
    rate: int
    layout: str
    missing: int = 0
    damaged: int = 0  # packets that could not be decoded


def probe_sound(path: Path | str) -> SoundInfo:
    """Read what `path` holds without decoding more than its first frame. Raises DataError."""
    path = Path(path)
    if reason := why_not_found(path):
        raise DataError(f"{path} {reason}.", path)
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty (0 bytes).", path)
    with _opened(path) as (container, stream):
        first, begin, end, held = None, math.inf, 0.0, 0.0
        for packet in container.demux(stream):
            heed()
            if first is None:
                first = next(iter(_decode(stream.codec_context, packet)), None)
            if packet.size and packet.pts is not None and not packet.is_discard:
                begin = min(begin, float(packet.pts * packet.time_base))
                end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
                held += float((packet.duration or 0) * packet.time_base)
        if first is None:
            raise DataError(f"{path}: not one sample of sound can be decoded. {UNREADABLE}", path)
        _refuse_rate(path, first.sample_rate)
        if end <= max(0.0, begin):  # raw streams without timestamps
            end, begin = float(container.duration or 0) / 1e6, 0.0
        duration = max(0.0, end - max(begin, _origin(container)))
        missing = _cut_short(path, container, end)
        if not missing and "ogg" in container.format.name and 0 < held < end - begin - MISSING_END_SECONDS:
            missing = f"it holds {held:.1f} of {end - begin:.1f} seconds"  # as its pages count them
        layout, channels = first.layout.name, channel_count(first)
        return SoundInfo(path, first.sample_rate, channels, layout, duration, missing, *sound_tracks(path, container))


def channels_of(path: Path) -> int:
    """How many channels the sound of `path` has, as its header says. Raises DataError."""
    with _opened(path) as (_, stream):
        return stream.codec_context.channels


def sound_tracks(path: Path, container: Any) -> tuple[tuple[str, ...], bool]:
    """What each sound track of a file is, and whether they are the left and the right of one recording. Raises
    DataError where they cannot be read."""
    refuse_strange_order(path, container)
    tracks, kinds = [], []
    for number, stream in enumerate(container.streams.audio, 1):
        context, tags = stream.codec_context, {key.lower(): value for key, value in stream.metadata.items()}
        names = [tags.get("title", ""), tags.get("language", "").replace("und", "")]
        if context is not None:
            kinds.append((context.layout.nb_channels, context.sample_rate))
            names += [context.name, context.layout.name, f"{context.sample_rate} Hz"]
        tracks.append(f"{number}: {', '.join(name for name in names if name)}")
    found = (container.streams.best("audio", related=video) for video in container.streams.video)
    beside = {sound.index for sound in found if sound is not None}
    of_two = len(beside) > 1  # programmes of a broadcast, each with a picture of its own
    return tuple(tracks), len(tracks) == 2 and len(kinds) == 2 and kinds[0] == kinds[1] and kinds[0][
        0
    ] == 1 and not of_two


def sound_of(container: Any) -> Any:
    """The sound track that a file prefers, or None; of several programmes of a broadcast that of the picture."""
    return container.streams.best("audio", related=container.streams.best("video"))


def read_sound(
    path: Path | str,
    start: float = 0.0,
    seconds: float | None = None,
    of_clip: bool = False,
    tracks: Sequence[int] = (),
) -> Sound:
    """Decode `seconds` from `start` on (default: all); what the file does not hold there is silence, and counted.

    `start` counts from the beginning of the file's sound, or with `of_clip` on the clock of the container, which is
    that of its video. `tracks` names the sound track, counted from 1, or the two that are left and right; default: the
    one that the file prefers. Raises DataError where there is no sound in that window.
    """
    path = Path(path)
    sides = [_read_track(path, start, seconds, of_clip, track) for track in tracks or (None,)]
    if len(sides) == 1:
        return sides[0]
    count = max(side.samples.shape[1] for side in sides)
    short = [count - side.samples.shape[1] for side in sides]
    samples = [np.pad(side.samples[:1], ((0, 0), (0, less))) for side, less in zip(sides, short, strict=True)]
    return Sound(
        np.concatenate(samples),
        sides[0].rate,
        "stereo",
        max(side.missing + less for side, less in zip(sides, short, strict=True)),
        sum(side.damaged for side in sides),
    )


def _read_track(path: Path, start: float, seconds: float | None, of_clip: bool, track: int | None) -> Sound:
    if start > SEEK_FROM_SECONDS:
        with _opened(path, track) as (container, stream):
            origin = 0.0 if of_clip else _origin(container)
            if SOUGHT_FORMATS & set(container.format.name.split(",")):
                container.seek(int((start + origin - PREROLL_SECONDS) * 1e6), backward=True, any_frame=False)
                sound = _collect(path, container, stream, start + origin, seconds, sought=True)
                if sound is not None:
                    return sound
    with _opened(path, track) as (container, stream):
        origin = 0.0 if of_clip else _origin(container)
        sound = _collect(path, container, stream, start + origin, seconds, sought=False)
        assert sound is not None
        return sound


def sound_blocks(path: Path) -> Iterator[Sound]:
    """All of a file's sound in order, about a second at a time, so that it is never in memory together.

    Where a file has none for a while there is silence, counted as missing. Raises DataError where it has none at all.
    """
    with _opened(path) as (container, stream):
        position, damage_told = None, 0
        waiting: list[np.ndarray] = []
        missing = 0
        kind = (0, "")
        for at, frame, damaged in _placed(path, container, stream, _origin(container)):
            kind = frame.sample_rate, frame.layout.name
            position = round(_origin(container) * kind[0]) if position is None else position
            block = _floats(path, frame)[:, max(0, position - at) :]
            if not block.shape[1]:
                continue
            gap = max(0, at - position)
            waiting += [np.zeros((len(block), gap), np.float32), block] if gap else [block]
            missing, position = missing + gap, position + gap + block.shape[1]
            if sum(part.shape[1] for part in waiting) >= kind[0]:
                yield _block(waiting, *kind, missing, damaged - damage_told)
                waiting, missing, damage_told = [], 0, damaged
        if position is None:
            raise DataError(f"{path} has no samples. {UNREADABLE}", path)
        if waiting:
            yield _block(waiting, *kind, missing, 0)


def _block(parts: Sequence[np.ndarray], rate: int, layout: str, missing: int, damaged: int) -> Sound:
    return Sound(np.concatenate(parts, axis=1), rate, layout, missing, damaged)


def _floats(path: Path, frame: Any) -> np.ndarray:
    """As `as_floats`. Raises DataError where a sample is NaN, infinite or wild, as files of floats may hold them."""
    samples = as_floats(frame)
    if not np.isfinite(samples).all():
        mend = "Export it again with 16 or 24 bits a sample, or remove it."
        raise DataError(f"The sound of {path} {NOT_NUMBERS} (NaN or infinite). {mend}", path)
    if wild := _wild(samples):
        raise DataError(
            f"The sound of {path} {NOT_NUMBERS} of a sound: {wild[0]:.3g} stands beside {wild[1]:.3g}, as where a bit "
            "is wrong. Export it again, or remove it.",
            path,
        )
    return samples


def _wild(samples: np.ndarray) -> tuple[float, float] | None:
    """A sample of [C, N] far above full scale and above all that are near it, and the loudest of these; None for none.

    The whole recording would be made as quiet as that one needs it to be.
    """
    if samples.shape[1] < 3 or max(samples.max(), -samples.min()) <= WILD_LEVEL:
        return None
    levels = np.abs(samples)
    padded = np.pad(levels, ((0, 0), (WILD_NEAR, WILD_NEAR)))
    shifts = [shift for shift in range(2 * WILD_NEAR + 1) if shift != WILD_NEAR]
    near = np.max([padded[:, shift : shift + levels.shape[1]] for shift in shifts], axis=0)
    wild = (levels > WILD_LEVEL) & (levels / WILD_TIMES > near)
    wild[:, [0, -1]] = False  # of which the other side is not known: a sound may begin there
    rest = float(levels[~wild].max(initial=0))  # at the end of a fade single samples stand in silence
    wild &= levels > (WILD_TIMES * rest if rest else LARGEST_SAMPLE)
    places = np.argwhere(wild)
    return (float(levels[tuple(places[0])]), float(near[tuple(places[0])])) if len(places) else None


def check_numbers(path: Path, tracks: Sequence[int] = ()) -> None:
    """Look at all samples of a sound that is stored as floats. Raises DataError where one is no number."""
    for track in tracks or (None,):
        with _opened(path, track) as (container, stream):
            if stream.codec_context.name.startswith(FLOAT_CODECS):
                for _, frame, _ in _placed(path, container, stream, -math.inf):
                    _floats(path, frame)


def sound_levels(path: Path, steps_per_second: int, tracks: Sequence[int] = ()) -> np.ndarray:
    """Level in dB of each step of a whole file, at least -100; the samples are never in memory together.

    Of two `tracks` that are left and right, the louder one counts in each step.
    """
    sides = [_track_levels(path, steps_per_second, track) for track in tracks or (None,)]
    count = max(len(side) for side in sides)
    return np.max([np.pad(side, (0, count - len(side)), constant_values=-100.0) for side in sides], axis=0)


def _track_levels(path: Path, steps_per_second: int, track: int | None) -> np.ndarray:
    power = np.zeros(0)
    counts = np.zeros(0)
    with _opened(path, track) as (container, stream):
        for at, frame, _ in _placed(path, container, stream, -math.inf):
            block = _floats(path, frame)
            places = at - round(_origin(container) * frame.sample_rate) + np.arange(block.shape[1])
            steps = places * steps_per_second // frame.sample_rate
            inside = steps >= 0
            if not inside.any():
                continue
            need = int(steps[-1]) + 1
            if need > len(power):
                more = max(need, 2 * len(power)) - len(power)
                power, counts = np.pad(power, (0, more)), np.pad(counts, (0, more))
            base = int(steps[inside][0])
            loud = np.square(block, dtype=np.float64).mean(axis=0)[inside]
            sums = np.bincount(steps[inside] - base, loud)
            power[base : base + len(sums)] += sums
            counts[base : base + len(sums)] += np.bincount(steps[inside] - base)
    last = int(np.flatnonzero(counts)[-1]) + 1 if counts.any() else 0
    return 10 * np.log10(np.maximum(power[:last] / np.maximum(counts[:last], 1), 1e-10))


@contextlib.contextmanager
def _opened(path: Path, track: int | None = None) -> Iterator[tuple[Any, Any]]:
    import av.error

    require_av()
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            _refuse_broken(path, container)
            refuse_strange_order(path, container)
            stream = sound_of(container)
            if stream is None:
                raise DataError(f"{path} has no sound.", path)
            if track is not None:
                if track > len(container.streams.audio):
                    raise DataError(
                        f"{path} has {len(container.streams.audio)} sound tracks; there is no track {track}.", path
                    )
                stream = container.streams.audio[track - 1]
            if stream.codec_context is None:
                raise DataError(f"{path}: its sound is in a codec that this FFmpeg cannot decode. Convert it.", path)
            stream.codec_context.options = CHECKED_CODECS.get(stream.codec_context.name, {})
            yield container, stream
    except av.error.FFmpegError as error:
        reason = error.strerror or str(error)
        raise DataError(f"The sound of {path} cannot be read: {reason}. {UNREADABLE}", path) from error


def _refuse_broken(path: Path, container: Any) -> None:
    """Raise DataError where the structure of a file breaks; that of a clip is looked at with its picture."""
    formats = frozenset(container.format.name.split(","))
    pictures = _has_pictures(container)
    if fault := sound_fault(path, formats, pictures):
        raise DataError(f"{path} is damaged: {fault}. Copy or export it again, or remove it.", path)
    if formats & MP4 and not pictures:
        refuse_pauses(path)


def _has_pictures(container: Any) -> bool:
    """Whether there is a video track beside the cover of an album."""
    return any(not is_cover(stream) for stream in container.streams.video)


def is_sound_alone(path: Path) -> bool:
    """Whether the file `path` holds sound and no video, whatever its ending says."""
    import av.error

    try:
        with av.open(str(path), metadata_errors="replace") as container:
            return bool(container.streams.audio) and not _has_pictures(container)
    except (av.error.FFmpegError, OSError, ValueError):
        return False


def _cut_short(path: Path, container: Any, end: float) -> str:
    formats = frozenset(container.format.name.split(","))
    promised = float(container.duration or 0) / 1e6
    if formats & TIMED_FORMATS and end < promised - max(MISSING_END_SECONDS, 0.05 * promised):
        return f"it holds {end:.1f} of {promised:.1f} seconds"
    return missing_end(path, formats)


def _refuse_rate(path: Path, rate: int) -> None:
    if not RATES[0] <= rate <= RATES[1]:
        raise DataError(f"{path} says that its sound has {rate:,} samples a second. {UNREADABLE}", path)


def _origin(container: Any) -> float:
    return float(container.start_time or 0) / 1e6


def _decode(decoder: Any, packet: Any) -> list[Any]:
    import av.error

    try:
        return decoder.decode(packet if packet.size else None)
    except av.error.InvalidDataError:
        return []


def _placed(path: Path, container: Any, stream: Any, start: float) -> Iterator[tuple[int, Any, int]]:
    """First sample on the container's clock, frame, damaged packets so far; what ends before `start` may lack."""
    kind: tuple[int, int] | None = None
    position, damaged = None, 0
    for packet in container.demux(stream):
        heed()
        # Frames lean on the few before them, hence a second is decoded that nobody hears.
        if position is None and packet.size and packet.pts is not None and packet.duration:
            if float((packet.pts + packet.duration) * packet.time_base) < start - PREROLL_SECONDS:
                continue
        frames = _decode(stream.codec_context, packet)
        damaged += not frames and bool(packet.size) and position is not None and not packet.is_discard
        for frame in frames:
            rate = frame.sample_rate
            if kind is None:
                _refuse_rate(path, rate)
                kind = rate, channel_count(frame)
            if (rate, channel_count(frame)) != kind:
                raise DataError(
                    f"{path}: its sound changes from {kind[1]} channels at {kind[0]} Hz to {channel_count(frame)} at "
                    f"{rate} Hz on the way. Export it again.",
                    path,
                )
            at = (position or 0) if frame.pts is None else round(frame.pts * frame.time_base * rate)
            if position is not None and abs(at - position) < JITTER_SECONDS * rate:
                at = position
            position = at + frame.samples
            yield at, frame, damaged


def _collect(
    path: Path, container: Any, stream: Any, start: float, seconds: float | None, sought: bool
) -> Sound | None:
    """The samples of a window. None where seeking went past its start."""
    parts: list[tuple[int, np.ndarray]] = []
    kind: tuple[int, int, str] | None = None
    first, stop, lost = 0, math.inf, 0
    begins = 0.0  # on the clock of the container
    for at, frame, damaged in _placed(path, container, stream, start):
        if kind is None:
            kind = frame.sample_rate, channel_count(frame), frame.layout.name
            first = round(start * kind[0])
            stop = math.inf if seconds is None else first + max(1, round(seconds * kind[0]))
            if sought and (frame.pts is None or at > first):
                return None
        lost = damaged
        if at + frame.samples > first and at < stop:
            parts.append((at, _floats(path, frame)))
        if at + frame.samples >= stop:
            begins = at / frame.sample_rate
            break
    if not parts and kind is not None and begins > start and not sought:
        raise DataError(
            f"{path}: its sound begins at {begins:.2f} s, and the part from {start:.2f} to {stop / kind[0]:.2f} s is "
            "to be heard. Use a part of the clip that has sound, or export it with its sound from the start.",
            path,
        )
    return None if sought and not parts else _joined(path, parts, first, stop, kind, start, lost)


def _joined(
    path: Path,
    parts: Sequence[tuple[int, np.ndarray]],
    first: int,
    stop: float,
    kind: tuple[int, int, str] | None,
    start: float,
    damaged: int,
) -> Sound:
    if kind is None and start <= 0:
        raise DataError(f"{path} has no samples. {UNREADABLE}", path)
    if kind is None or not parts:
        raise DataError(f"{path} has no sound from {start:.2f} s on. Use a shorter clip, or longer sound.", path)
    rate, channels, layout = kind
    end = int(min(stop, max(at + block.shape[1] for at, block in parts)))
    count = end - first if math.isinf(stop) else int(stop) - first
    samples = np.zeros((channels, count), np.float32)
    there = np.zeros(count, bool)
    for at, block in parts:
        left, right = max(at, first), min(at + block.shape[1], first + count)
        if right > left:
            samples[:, left - first : right - first] = block[:, left - at : right - at]
            there[left - first : right - first] = True
    return Sound(samples, rate, layout, int(count - there.sum()), damaged)
