"""Decoded sound -> what the audio VAE wants: downmix, stretch, resample, level (`prepare`).

Channels. Mono goes to both sides at full level; surround is mixed by swresample with the coefficients of ITU-R BS.775,
where the centre, which holds the dialogue, is 3 dB down on both sides; LFE is left out. The mix is divided by what the
weights of a side add up to (2.414 of 5.1), as in the official trainer, behind whose mix the audio VAE was trained. What
exceeds full scale all the same is lowered as a whole.

Stretching keeps the pitch: FFmpeg's `atempo`, an overlap-add of similar pieces (W. Verhelst and M. Roelands, "An
overlap-add technique based on waveform similarity (WSOLA)", ICASSP 1993). Differences below half a row of the mel
spectrogram (5 ms) are not stretched, for nobody could see them there.

All samples are float32 [C, N], full scale at 1.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from .samples import as_floats
from .sound_media import (
    AUDIO_SUFFIXES,
    Sound,
    SoundInfo,
    probe_sound,
    read_sound,
    sound_blocks,
    sound_levels,
)

__all__ = [
    "AUDIO_SUFFIXES",
    "Prepared",
    "Sound",
    "SoundInfo",
    "prepare",
    "prepare_file",
    "probe_sound",
    "read_sound",
    "sound_levels",
]

SAME_LENGTH_SECONDS = 0.005
TAIL_SECONDS = 0.2
PADDED_SECONDS = 0.05  # less is missing at the end of many a clip, for sound comes in frames of its own
SILENCE_DB = -60.0
CLIPPED_LEVEL = 0.999
CLIPPED_SHARE = 1e-3
NORMAL_PEAK_DB = -7.0
USUAL_LAYOUTS = {3: "2.1", 4: "4.0", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1"}
UNSAID = "does not say which of its"  # how what is told of channels without an order begins
BLOCK = 8192


@dataclass(frozen=True)
class Prepared:
    """What the audio VAE is given: [2, N] in float32; `remarks` says what a user should know, by kind."""

    samples: np.ndarray = field(repr=False)
    remarks: dict[str, str]


def prepare(sound: Sound, length: float, rate: int, normalise: bool = False) -> Prepared:
    """Two channels of exactly round(length * rate) samples at `rate`, with the pitch they had."""
    clipped = clipped_share(sound.samples)
    samples = to_stereo(sound)
    have = samples.shape[1] / sound.rate
    if abs(length - have) >= SAME_LENGTH_SECONDS:
        samples = stretch(samples, sound.rate, length / have)
    samples = exactly(resample(samples, sound.rate, rate), max(1, round(length * rate)))
    return _finished(samples, sound, clipped, normalise)


def prepare_file(path: Path, limit: float | None, rate: int, normalise: bool = False) -> Prepared:
    """As `prepare`, of a whole file as long as it is, or of its first `limit` seconds.

    No more of it is in memory than the result: an hour takes half a GB at 16 kHz. Raises DataError.
    """
    parts: list[np.ndarray] = []
    change: _Resampler | None = None
    had = missing = damaged = clipped = 0
    most, source_rate = math.inf, 0
    for block in sound_blocks(path):
        if change is None:
            source_rate = block.rate
            change = _Resampler(source_rate, rate)
            most = math.inf if limit is None else max(1, round(limit * source_rate))
        samples = block.samples[:, : int(min(block.samples.shape[1], most - had))]
        had += samples.shape[1]
        missing, damaged = missing + block.missing, damaged + block.damaged
        clipped += clipped_share(samples) * samples.shape[1]
        parts.append(change.push(to_stereo(dataclasses.replace(block, samples=samples))))
        if had >= most:
            break
    assert change is not None, "a file without samples is an error of reading"
    parts.append(change.finish())
    whole = np.zeros((2, max(1, round(had / source_rate * rate))), np.float32)
    at = 0
    while parts and at < whole.shape[1]:
        part = parts.pop(0)[:, : whole.shape[1] - at]
        whole[:, at : at + part.shape[1]] = part
        at += part.shape[1]
    told = Sound(whole[:, :0], source_rate, "stereo", missing, damaged)
    return _finished(whole, told, clipped / had, normalise)


def _finished(samples: np.ndarray, sound: Sound, clipped: float, normalise: bool) -> Prepared:
    """`samples` at their level, in place where they are the caller's own, and what is to be said of `sound`."""
    remarks: dict[str, str] = {}
    if sound.damaged:
        remarks["damaged"] = f"{sound.damaged} damaged parts were silenced"
    if sound.missing > PADDED_SECONDS * sound.rate:
        remarks["padded"] = f"the sound lacks {sound.missing / sound.rate:.2f} s of the clip; silence was added"
    if clipped > CLIPPED_SHARE:
        remarks["clipped"] = f"clips: {clipped:.1%} of the samples are at full scale; use a cleaner recording"
    level = rms_db(samples)
    if level < SILENCE_DB:
        remarks["silent"] = "is silence" if math.isinf(level) else f"is silent ({level:.0f} dB)"
    peak = float(max(samples.max(), -samples.min()))
    if normalise and level >= SILENCE_DB:
        samples = samples * np.float32(10 ** (NORMAL_PEAK_DB / 20) / peak)
    elif peak > 1.0:
        samples = samples / np.float32(peak)
    return Prepared(samples, remarks)


def to_stereo(sound: Sound) -> np.ndarray:
    """[2, N]: mono on both sides, surround mixed down so that it cannot exceed full scale."""
    channels = sound.samples.shape[0]
    if channels == 1:
        return np.repeat(sound.samples, 2, axis=0)
    if channels == 2:
        return sound.samples
    for layout in dict.fromkeys((sound.layout, USUAL_LAYOUTS.get(channels))):
        if layout is not None and _is_layout(layout, channels):
            return _converted(sound.samples, sound.rate, layout, sound.rate) / np.float32(_most(layout, channels))
    return np.repeat(sound.samples.mean(axis=0, keepdims=True, dtype=np.float32), 2, axis=0)


def unsaid_channels(layout: str, channels: int) -> str:
    """What is said of a sound whose `layout` does not tell its `channels` apart, as `to_stereo` mixes it; or ""."""
    import av

    if channels <= 2 or _is_layout(layout, channels):
        return ""
    usual = USUAL_LAYOUTS.get(channels)
    names = [] if usual is None else [channel.name for channel in av.AudioLayout(usual).channels]
    way = f"mixed as {usual} ({', '.join(names)})" if usual else "mixed alike"
    without = ", without LFE" if "LFE" in names else ""
    return (
        f"{UNSAID} {channels} channels is which; they are {way}{without}. Mix it to stereo yourself where that is wrong"
    )


@functools.cache
def _most(layout: str, channels: int) -> float:
    """What the weights of a side add up to when `layout` is mixed to stereo: 2.414 of 5.1, 3.121 of 7.1."""
    return float(_converted(np.ones((channels, 16), np.float32), 48000, layout, 48000).max())


def resample(samples: np.ndarray, rate: int, target: int) -> np.ndarray:
    """Stereo at another rate, by swresample; about N * target / rate samples."""
    return samples if rate == target else _converted(samples, rate, "stereo", target)


def stretch(samples: np.ndarray, rate: int, factor: float) -> np.ndarray:
    """Stereo that lasts `factor` times as long at the same pitch: exactly round(N * factor) samples."""
    import av.error
    import av.filter

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
                pieces.append(as_floats(sink.pull()))  # packed, as atempo makes it

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
    total = sum(float(np.square(part, dtype=np.float64).sum()) for part in np.array_split(samples, _parts(samples), 1))
    power = total / samples.size if samples.size else 0.0
    return 10 * math.log10(power) if power > 0 else -math.inf


def _parts(samples: np.ndarray) -> int:
    """In how many parts a sound is looked at, so that no copy of it in float64 is made."""
    return 1 + samples.shape[1] // 2**20


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
    change = _Resampler(rate, target, layout)
    return np.concatenate([change.push(samples), change.finish()], axis=1)


class _Resampler:
    """To stereo at `target` Hz, a part after the other; what comes out of each part is what is ready."""

    def __init__(self, rate: int, target: int, layout: str = "stereo") -> None:
        import av

        self._rate, self._layout, self._done = rate, layout, 0
        self._resampler = av.AudioResampler(format="fltp", layout="stereo", rate=target)

    def push(self, samples: np.ndarray) -> np.ndarray:
        frames = _frames(samples, self._rate, self._layout, self._done)
        self._done += samples.shape[1]
        return _together([out.to_ndarray() for frame in frames for out in self._resampler.resample(frame)])

    def finish(self) -> np.ndarray:
        return _together([out.to_ndarray() for out in self._resampler.resample(None)] if self._done else [])


def _together(pieces: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(pieces, axis=1) if pieces else np.zeros((2, 0), np.float32)


def _frames(samples: np.ndarray, rate: int, layout: str, first: int = 0) -> Iterator[Any]:
    import av

    for start in range(0, samples.shape[1], BLOCK):
        block = np.asarray(samples[:, start : start + BLOCK], dtype=np.float32)
        # Packed, since PyAV miscounts the planes of eight channels.
        frame = av.AudioFrame.from_ndarray(block.T.reshape(1, -1), format="flt", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, first + start, Fraction(1, rate)
        yield frame


def _is_layout(name: str, channels: int) -> bool:
    import av.error

    try:
        layout = av.AudioLayout(name)
    except (ValueError, TypeError, av.error.FFmpegError):
        return False
    # "6 channels" is a layout too, but one that says nothing of where they are.
    return layout.nb_channels == channels and "channels" not in name
