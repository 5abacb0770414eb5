"""Decoded frames of sound -> arrays of samples."""

from __future__ import annotations

from typing import Any

import numpy as np

INTEGER_SCALE = {np.dtype(np.uint8): 128.0, np.dtype(np.int16): 32768.0, np.dtype(np.int32): 2147483648.0}
READABLE = frozenset(("u8", "s16", "s32", "flt", "dbl"))  # what PyAV makes arrays of
MISCOUNTED_CHANNELS = 8  # PyAV finds more planes than there are


def channel_count(frame: Any) -> int:
    """How many channels `frame` has."""
    return frame.layout.nb_channels


def as_floats(frame: Any) -> np.ndarray:
    """[C, N] of a decoded frame in float32, full scale at 1."""
    packed = frame.format.packed.name
    if packed not in READABLE:
        frame = _packed(frame, "dbl")
    elif frame.format.is_planar and channel_count(frame) >= MISCOUNTED_CHANNELS:
        frame = _packed(frame, packed)
    samples = frame.to_ndarray()
    if not frame.format.is_planar:
        samples = samples.reshape(-1, channel_count(frame)).T
    scale = INTEGER_SCALE.get(samples.dtype)
    if scale is None:
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused as such
            return samples.astype(np.float32)
    middle = 128 if samples.dtype == np.uint8 else 0
    return ((samples.astype(np.float64) - middle) / scale).astype(np.float32)


def _packed(frame: Any, kind: str) -> Any:
    import av

    (packed,) = av.AudioResampler(kind, frame.layout, frame.sample_rate).resample(frame)
    return packed
