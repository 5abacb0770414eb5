"""Decoded sound -> what the audio VAE wants: downmix, stretch, resample, level (`prepare`).

Channels. Mono goes to both sides at full level; surround is mixed by swresample with the coefficients of ITU-R BS.775,
where the centre, which holds the dialogue, is 3 dB down on both sides; LFE is left out. What then exceeds full scale is
lowered as a whole.

Stretching keeps the pitch: FFmpeg's `atempo`, an overlap-add of similar pieces (W. Verhelst and M. Roelands, "An
overlap-add technique based on waveform similarity (WSOLA)", ICASSP 1993). Differences below half a row of the mel
spectrogram (5 ms) are not stretched, for nobody could see them there.

All samples are float32 [C, N], full scale at 1.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np

from .sound_media import (
    AUDIO_SUFFIXES,
    Sound,
    SoundInfo,
    as_floats,
    probe_sound,
    read_sound,
    sound_levels,
)

__all__ = ["AUDIO_SUFFIXES", "Prepared", "Sound", "SoundInfo", "prepare", "probe_sound", "read_sound", "sound_levels"]

SAME_LENGTH_SECONDS = 0.005
TAIL_SECONDS = 0.2
PADDED_SECONDS = 0.05  # less is missing at the end of many a clip, for sound comes in frames of its own
SILENCE_DB = -60.0
CLIPPED_LEVEL = 0.999
CLIPPED_SHARE = 1e-3
NORMAL_PEAK_DB = -7.0
USUAL_LAYOUTS = {3: "2.1", 4: "4.0", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1"}
BLOCK = 8192


@dataclass(frozen=True)
class Prepared:
    """What the audio VAE is given: [2, N] in float32; `remarks` says what a user should know, by kind."""

    samples: np.ndarray = field(repr=False)
    remarks: dict[str, str]


def prepare(sound: Sound, length: float, rate: int, normalise: bool = False) -> Prepared:
    """Two channels of exactly round(length * rate) samples at `rate`, with the pitch they had."""
    remarks: dict[str, str] = {}
    if sound.broken:
        remarks["broken"] = f"{sound.broken} samples are not numbers; they were silenced"
    if sound.damaged:
        remarks["damaged"] = f"{sound.damaged} damaged parts were silenced"
    if sound.missing > PADDED_SECONDS * sound.rate:
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
