"""The sound of a piece of a video, encoded beside its pictures."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np

from ..errors import DataError
from ..media.info import MediaInfo
from ..media.sound import resample, to_stereo
from ..media.sound_media import Sound, read_sound

BIT_RATE = 192_000
BLOCK = 1024
PART_SECONDS = 30.0  # what is in memory at once
RATES = frozenset((8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000))  # of AAC
USUAL_RATE = 48000
LAYOUTS = frozenset(("mono", "stereo", "5.1"))  # kept as they are


class SoundTrack:
    """The sound of a window, decoded a part at a time and encoded as AAC as far as the pictures have come."""

    def __init__(self, info: MediaInfo, begin: float, seconds: float, first: Sound, target: Any) -> None:
        self.info, self.begin, self.seconds, self.target = info, begin, seconds, target
        # Others are mixed down to stereo, which can also be resampled.
        self.keep = first.layout in LAYOUTS and first.rate in RATES
        self.rate = first.rate if first.rate in RATES else USUAL_RATE
        self.layout = first.layout if self.keep else "stereo"
        self.stream = target.add_stream("aac", rate=self.rate, layout=self.layout)
        self.stream.bit_rate = BIT_RATE
        self.read = min(PART_SECONDS, seconds)
        self.samples = self._as_wanted(first)
        self.sent = 0

    @classmethod
    def of(cls, info: MediaInfo, begin: float, seconds: float, target: Any) -> SoundTrack | None:
        """None where the video has no sound in that window."""
        if not info.has_audio:
            return None
        try:
            first = _read(info, begin, min(PART_SECONDS, seconds))
        except DataError:  # it ends before, or begins behind
            return None
        return cls(info, begin, seconds, first, target)

    def until(self, second: float) -> None:
        """Encode what is heard up to `second` of the piece."""
        while self.sent + BLOCK <= second * self.rate and self._send():
            pass

    def finish(self) -> None:
        while self._send():
            pass
        self.target.mux(self.stream.encode(None))

    def _send(self) -> bool:
        import av

        if self.samples.shape[1] < BLOCK and self.read < self.seconds:
            self._more()
        block = self.samples[:, :BLOCK]
        if not block.shape[1]:
            return False
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(block), format="fltp", layout=self.layout)
        frame.sample_rate, frame.pts, frame.time_base = self.rate, self.sent, Fraction(1, self.rate)
        self.target.mux(self.stream.encode(frame))
        self.sent += block.shape[1]
        self.samples = self.samples[:, BLOCK:]
        return True

    def _more(self) -> None:
        length = min(PART_SECONDS, self.seconds - self.read)
        try:
            sound = _read(self.info, self.begin + self.read, length)
        except DataError:  # the sound ends before the pictures do
            self.read = self.seconds
            return
        self.read += length
        self.samples = np.concatenate([self.samples, self._as_wanted(sound)], axis=1)

    def _as_wanted(self, sound: Sound) -> np.ndarray:
        samples = sound.samples if self.keep else resample(to_stereo(sound), sound.rate, self.rate)
        return np.clip(samples, -1.0, 1.0).astype(np.float32)


def _read(info: MediaInfo, start: float, seconds: float) -> Sound:
    return read_sound(info.path, start, seconds, of_clip=True, tracks=(1, 2) if info.pair else ())
