"""Writing a waveform: 16-bit WAV by the standard library, FLAC by PyAV. Both keep every sample."""

from __future__ import annotations

import json
import wave
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..files import atomic

BLOCK = 4096


def write_sound(path: Path, sound: Tensor, rate: int, info: dict[str, Any] | None = None) -> Path:
    """Write `sound` [2, N] in [-1, 1] as 16-bit .wav or .flac, by the ending; only FLAC has room for `info`."""
    samples = to_int16(sound)
    with atomic(path) as temporary:
        if path.suffix == ".flac":
            _write_flac(temporary, samples, rate, info or {})
        else:
            with wave.open(str(temporary), "wb") as file:
                file.setnchannels(samples.shape[0])
                file.setsampwidth(2)
                file.setframerate(rate)
                file.writeframes(np.ascontiguousarray(samples.T).astype("<i2").tobytes())
    return path


def to_int16(sound: Tensor) -> np.ndarray:
    """[C, N] float in [-1, 1] -> int16; what is beyond is clipped."""
    return (sound.clamp(-1, 1).numpy() * 32767).round().astype(np.int16)


def audio_frames(samples: np.ndarray, rate: int, sample_format: str, block: int):
    """`samples` [2, N] as PyAV frames of at most `block` samples, with their times; `sample_format` s16 or fltp."""
    import av

    for start in range(0, samples.shape[1], block):
        piece = np.ascontiguousarray(samples[:, start : start + block])
        if not sample_format.endswith("p"):
            piece = np.ascontiguousarray(piece.T).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(piece, format=sample_format, layout="stereo")
        frame.sample_rate, frame.pts = rate, start
        yield frame


def _write_flac(path: Path, samples: np.ndarray, rate: int, info: dict[str, Any]) -> None:
    import av

    with av.open(str(path), "w", format="flac") as container:
        container.metadata["comment"] = json.dumps(info, ensure_ascii=False)
        stream = container.add_stream("flac", rate=rate)
        stream.codec_context.format = "s16"
        stream.codec_context.layout = "stereo"
        for frame in audio_frames(samples, rate, "s16", BLOCK):
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
