"""Sound files -> the exact samples of a window, as the audio VAE wants them.

    read_sound    decode [start, start + seconds) of a file: float32, every channel, the rate of the file
    prepare       downmix -> stretch -> resample -> level; always exactly round(length * rate) samples of two channels

Samples are placed by the timestamps of their packets, so that sound and picture of a clip stay together whatever delay,
gap or edit list the file has. Where timestamps are coarse (a millisecond in Matroska) they place the first frame only.

Channels. Mono goes to both sides at full level; surround is mixed by swresample with the coefficients of ITU-R BS.775,
where the centre, which holds the dialogue, is 3 dB down on both sides; LFE is left out. What then exceeds full scale is
lowered as a whole.

Stretching keeps the pitch: FFmpeg's `atempo`, an overlap-add of similar pieces (W. Verhelst and M. Roelands, "An
overlap-add technique based on waveform similarity (WSOLA)", ICASSP 1993). Differences below half a row of the mel
spectrogram (5 ms) are not stretched, for nobody could see them there.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError

AUDIO_SUFFIXES = frozenset(
    (".wav", ".flac", ".mp3", ".ogg", ".m4a", ".aac", ".opus", ".wma", ".aif", ".aiff", ".mka", ".oga")
)
# Formats whose index leads to the right place; elsewhere reading starts at the beginning.
SOUGHT_FORMATS = frozenset(("mov", "mp4", "matroska", "webm", "wav"))
SEEK_FROM_SECONDS = 5.0
PREROLL_SECONDS = 1.0
JITTER_SECONDS = 0.02
SAME_LENGTH_SECONDS = 0.005
TAIL_SECONDS = 0.2
SILENCE_DB = -60.0
CLIPPED_LEVEL = 0.999
CLIPPED_SHARE = 1e-3
NORMAL_PEAK_DB = -7.0
USUAL_LAYOUTS = {3: "2.1", 4: "4.0", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1"}
INTEGER_SCALE = {np.dtype(np.uint8): 128.0, np.dtype(np.int16): 32768.0, np.dtype(np.int32): 2147483648.0}
BLOCK = 8192
MISCOUNTED_CHANNELS = 8  # PyAV finds more planes than there are
UNREADABLE = "The file is damaged, cut short or not sound; export it again or remove it."


@dataclass(frozen=True)
class SoundInfo:
    """What the sound of a file is like. `duration` is what its packets hold, in seconds."""

    path: Path
    rate: int
    channels: int
    layout: str
    duration: float


@dataclass(frozen=True)
class Sound:
    """Decoded samples [C, N] in float32. `missing` of them were not in the file, `broken` were NaN or infinite."""

    samples: np.ndarray = field(repr=False)
    rate: int
    layout: str
    missing: int = 0
    broken: int = 0
    damaged: int = 0  # packets that could not be decoded


@dataclass(frozen=True)
class Prepared:
    """What the audio VAE is given: [2, N] in float32; `remarks` says what a user should know, by kind."""

    samples: np.ndarray = field(repr=False)
    remarks: dict[str, str]


def probe_sound(path: Path | str) -> SoundInfo:
    """Read what `path` holds without decoding more than its first frame. Raises DataError."""
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path} does not exist or is not a file.", path)
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty (0 bytes).", path)
    with _opened(path) as (container, stream):
        first, begin, end = None, math.inf, 0.0
        for packet in container.demux(stream):
            if first is None:
                first = next(iter(_decode(stream.codec_context, packet)), None)
            if packet.size and packet.pts is not None and not packet.is_discard:
                begin = min(begin, float(packet.pts * packet.time_base))
                end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        if first is None:
            raise DataError(f"{path}: not one sample of sound can be decoded. {UNREADABLE}", path)
        if end <= max(0.0, begin):  # raw streams without timestamps
            end, begin = float(container.duration or 0) / 1e6, 0.0
        duration = end - max(begin, _origin(container))
        return SoundInfo(path, first.sample_rate, _channels(first), first.layout.name, max(0.0, duration))


def read_sound(path: Path | str, start: float = 0.0, seconds: float | None = None, of_clip: bool = False) -> Sound:
    """Decode `seconds` from `start` on (default: all); what the file does not hold there is silence, and counted.

    `start` counts from the beginning of the file's sound, or with `of_clip` on the clock of the container, which is
    that of its video. Raises DataError where there is no sound in that window.
    """
    path = Path(path)
    if start > SEEK_FROM_SECONDS:
        with _opened(path) as (container, stream):
            origin = 0.0 if of_clip else _origin(container)
            if SOUGHT_FORMATS & set(container.format.name.split(",")):
                container.seek(int((start + origin - PREROLL_SECONDS) * 1e6), backward=True, any_frame=False)
                sound = _collect(path, container, stream, start + origin, seconds, sought=True)
                if sound is not None:
                    return sound
    with _opened(path) as (container, stream):
        origin = 0.0 if of_clip else _origin(container)
        sound = _collect(path, container, stream, start + origin, seconds, sought=False)
        assert sound is not None
        return sound


def prepare(sound: Sound, length: float, rate: int, normalise: bool = False) -> Prepared:
    """Two channels of exactly round(length * rate) samples at `rate`, with the pitch they had."""
    remarks: dict[str, str] = {}
    if sound.broken:
        remarks["broken"] = f"{sound.broken} samples are not numbers; they were silenced"
    if sound.damaged:
        remarks["damaged"] = f"{sound.damaged} damaged parts were silenced"
    if sound.missing > JITTER_SECONDS * sound.rate:
        remarks["padded"] = f"the sound is {sound.missing / sound.rate:.2f} s shorter than the clip; silence was added"
    clipped = clipped_share(sound.samples)
    if clipped > CLIPPED_SHARE:
        remarks["clipped"] = f"clips: {clipped:.1%} of the samples are at full scale; use a cleaner recording"
    samples = to_stereo(sound)
    have = samples.shape[1] / sound.rate
    if abs(length - have) >= SAME_LENGTH_SECONDS:
        samples = stretch(samples, sound.rate, length / have)
    samples = exactly(resample(samples, sound.rate, rate), max(1, round(length * rate)))
    level = rms_db(samples)
    if level < SILENCE_DB:
        remarks["silent"] = "is silence" if math.isinf(level) else f"is silent ({level:.0f} dB)"
    peak = float(np.abs(samples).max())
    if normalise and level >= SILENCE_DB:
        samples = samples * np.float32(10 ** (NORMAL_PEAK_DB / 20) / peak)
    elif peak > 1.0:
        samples = samples / np.float32(peak)
    return Prepared(samples, remarks)


def to_stereo(sound: Sound) -> np.ndarray:
    """[2, N]: mono on both sides, surround mixed down."""
    channels = sound.samples.shape[0]
    if channels == 1:
        return np.repeat(sound.samples, 2, axis=0)
    if channels == 2:
        return sound.samples
    for layout in dict.fromkeys((sound.layout, USUAL_LAYOUTS.get(channels))):
        if layout is not None and _is_layout(layout, channels):
            return _converted(sound.samples, sound.rate, layout, sound.rate)
    return np.repeat(sound.samples.mean(axis=0, keepdims=True, dtype=np.float32), 2, axis=0)


def resample(samples: np.ndarray, rate: int, target: int) -> np.ndarray:
    """Stereo at another rate, by swresample; about N * target / rate samples."""
    return samples if rate == target else _converted(samples, rate, "stereo", target)


def stretch(samples: np.ndarray, rate: int, factor: float) -> np.ndarray:
    """Stereo that lasts `factor` times as long at the same pitch: exactly round(N * factor) samples."""
    import av

    wanted = round(samples.shape[1] * factor)
    graph = av.filter.Graph()
    last = graph.add_abuffer(sample_rate=rate, format="flt", layout="stereo", time_base=Fraction(1, rate))
    source = last
    for tempo in _tempos(1.0 / factor):
        node = graph.add("atempo", f"{tempo:.12f}")
        last.link_to(node)
        last = node
    sink = graph.add("abuffersink")
    last.link_to(sink)
    graph.configure()
    pieces: list[np.ndarray] = []

    def drain() -> None:
        with contextlib.suppress(av.error.BlockingIOError, av.error.EOFError):
            while True:
                pieces.append(_floats(sink.pull()))  # packed, as atempo makes it

    # The filter keeps back its last piece, so there must be something after the end; what it makes of it is cut off.
    extra = min(samples.shape[1] - 1, round(TAIL_SECONDS * rate))
    for frame in _frames(np.pad(samples, ((0, 0), (0, extra)), "reflect"), rate, "stereo"):
        source.push(frame)
        drain()
    source.push(None)
    drain()
    return exactly(np.concatenate(pieces, axis=1) if pieces else samples[:, :0], wanted)


def exactly(samples: np.ndarray, count: int) -> np.ndarray:
    """`count` samples: cut, or with silence behind."""
    short = count - samples.shape[1]
    return np.pad(samples, ((0, 0), (0, short))) if short > 0 else samples[:, :count]


def rms_db(samples: np.ndarray) -> float:
    """Level of the whole sound relative to full scale; -inf for digital silence."""
    power = float(np.square(samples, dtype=np.float64).mean()) if samples.size else 0.0
    return 10 * math.log10(power) if power > 0 else -math.inf


def clipped_share(samples: np.ndarray) -> float:
    """Share of samples that stay at full scale from one to the next, as clipping makes them; 0 to 1."""
    high = np.abs(samples) >= CLIPPED_LEVEL
    return float((high[:, 1:] & high[:, :-1]).mean()) if samples.shape[1] > 1 else 0.0


def _tempos(tempo: float) -> Iterator[float]:
    # One filter takes half to twice the speed with every FFmpeg.
    while not 0.5 <= tempo <= 2.0:
        step = 0.5 if tempo < 0.5 else 2.0
        yield step
        tempo /= step
    yield tempo


def _converted(samples: np.ndarray, rate: int, layout: str, target: int) -> np.ndarray:
    """To stereo at `target` Hz. Floats go in and come out, so nothing is scaled down to make room for the sum."""
    import av

    resampler = av.AudioResampler(format="fltp", layout="stereo", rate=target)
    pieces = [out.to_ndarray() for frame in _frames(samples, rate, layout) for out in resampler.resample(frame)]
    pieces += [out.to_ndarray() for out in resampler.resample(None)]
    return np.concatenate(pieces, axis=1) if pieces else np.zeros((2, 0), np.float32)


def _frames(samples: np.ndarray, rate: int, layout: str) -> Iterator[Any]:
    import av

    for start in range(0, samples.shape[1], BLOCK):
        block = np.asarray(samples[:, start : start + BLOCK], dtype=np.float32)
        # Packed, since PyAV miscounts the planes of eight channels.
        frame = av.AudioFrame.from_ndarray(block.T.reshape(1, -1), format="flt", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
        yield frame


def _is_layout(name: str, channels: int) -> bool:
    import av

    try:
        layout = av.AudioLayout(name)
    except (ValueError, TypeError, av.error.FFmpegError):
        return False
    # "6 channels" is a layout too, but one that says nothing of where they are.
    return layout.nb_channels == channels and "channels" not in name


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    import av

    try:
        with av.open(str(path), metadata_errors="replace") as container:
            stream = container.streams.best("audio")
            if stream is None:
                raise DataError(f"{path} has no sound.", path)
            if stream.codec_context is None:
                raise DataError(f"{path}: its sound is in a codec that this FFmpeg cannot decode. Convert it.", path)
            yield container, stream
    except (av.error.FFmpegError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"The sound of {path} cannot be read: {reason}. {UNREADABLE}", path) from error


def _origin(container: Any) -> float:
    return float(container.start_time or 0) / 1e6


def _channels(frame: Any) -> int:
    return frame.layout.nb_channels


def _decode(decoder: Any, packet: Any) -> list[Any]:
    import av

    try:
        return decoder.decode(packet if packet.size else None)
    except av.error.InvalidDataError:
        return []


def _floats(frame: Any) -> np.ndarray:
    """[C, N] of a decoded frame in float32, full scale at 1."""
    if frame.format.is_planar and _channels(frame) >= MISCOUNTED_CHANNELS:
        frame = _packed(frame)
    samples = frame.to_ndarray()
    if not frame.format.is_planar:
        samples = samples.reshape(-1, _channels(frame)).T
    scale = INTEGER_SCALE.get(samples.dtype)
    if scale is None:
        return samples.astype(np.float32)
    middle = 128 if samples.dtype == np.uint8 else 0
    return ((samples.astype(np.float64) - middle) / scale).astype(np.float32)


def _packed(frame: Any) -> Any:
    import av

    (packed,) = av.AudioResampler(frame.format.packed, frame.layout, frame.sample_rate).resample(frame)
    return packed


def _collect(
    path: Path, container: Any, stream: Any, start: float, seconds: float | None, sought: bool
) -> Sound | None:
    """Place decoded frames on the clock of the container. None where seeking went past `start`."""
    parts: list[tuple[int, np.ndarray]] = []
    rate, channels, layout, damaged = 0, 0, "", 0
    first, stop, position = 0, math.inf, None
    for packet in container.demux(stream):
        frames = _decode(stream.codec_context, packet)
        damaged += not frames and bool(packet.size) and position is not None and not packet.is_discard
        for frame in frames:
            if not rate:
                rate, channels, layout = frame.sample_rate, _channels(frame), frame.layout.name
                first = round(start * rate)
                stop = math.inf if seconds is None else first + max(1, round(seconds * rate))
            if (frame.sample_rate, _channels(frame)) != (rate, channels):
                raise DataError(
                    f"{path}: its sound changes from {channels} channels at {rate} Hz to {_channels(frame)} at "
                    f"{frame.sample_rate} Hz on the way. Export it again.",
                    path,
                )
            at = position if frame.pts is None else round(frame.pts * frame.time_base * rate)
            if position is None:
                at = 0 if at is None else at
                if sought and (frame.pts is None or at > first):
                    return None
            elif abs(at - position) < JITTER_SECONDS * rate:
                at = position
            position = at + frame.samples
            if position > first and at < stop:
                parts.append((at, _floats(frame)))
        if position is not None and position >= stop:
            break
    return _joined(path, parts, first, stop, (rate, channels, layout), start, damaged)


def _joined(
    path: Path,
    parts: Sequence[tuple[int, np.ndarray]],
    first: int,
    stop: float,
    kind: tuple[int, int, str],
    start: float,
    damaged: int,
) -> Sound:
    rate, channels, layout = kind
    if not parts:
        where = "has no samples" if not rate else f"has no sound from {start:.2f} s on"
        raise DataError(f"{path} {where}. {UNREADABLE if not rate else 'Use a shorter clip, or longer sound.'}", path)
    end = int(min(stop, max(at + block.shape[1] for at, block in parts)))
    count = end - first if math.isinf(stop) else int(stop) - first
    samples = np.zeros((channels, count), np.float32)
    there = np.zeros(count, bool)
    for at, block in parts:
        left, right = max(at, first), min(at + block.shape[1], first + count)
        if right > left:
            samples[:, left - first : right - first] = block[:, left - at : right - at]
            there[left - first : right - first] = True
    bad = ~np.isfinite(samples)
    broken = int(bad.sum())
    if broken:
        samples[bad] = 0.0
    return Sound(samples, rate, layout, int(count - there.sum()), broken, damaged)
