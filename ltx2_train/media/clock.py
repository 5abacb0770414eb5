"""Packets of a video -> which frames it shows, and when.

Timestamps are the truth. Where a container keeps none for showing (AVI), those of decoding tell the times: frames are
shown in another order than they are decoded in, but at the same times. Where there are none at all, frames are counted
and the rate of the header is all that is known. Else a rate from a header is believed only where timestamps and count
agree with it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np

LONGEST_SECONDS = 7 * 24 * 3600.0
HIGHEST_RATE = 1000.0
USUAL_RATE = 25.0
AGREEING_SHARE = 0.01
REORDERED = 16  # frames, the most that are stored before one that is shown earlier
HOLE = 1.5  # usual steps


@dataclass
class Packets:
    """What the packets of a video say, in the order of the file.

    Some programs write the times of decoding in place of those of showing (`of_decoding`).
    `hidden` ones are trimmed away by an edit list: decoded for the sake of others, but never shown. `places` are bytes
    from the beginning of the file, -1 where nobody knows. `lost` are the numbers of those before which one is missing
    that they lean on, `gradual` those of key frames that lean on others all the same, and are whole some frames later.
    """

    shown: list[int | None] = field(default_factory=list)  # timestamps
    decoded: list[int | None] = field(default_factory=list)
    keys: list[bool] = field(default_factory=list)
    hidden: list[bool] = field(default_factory=list)
    broken: list[bool] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    lost: list[int] = field(default_factory=list)
    gradual: Sequence[int] = ()
    of_decoding: bool = False

    def take_order(self) -> None:
        """Take the timestamps of pictures that are stored in another order than they are shown in for times of decoding
        where they only rise."""
        told = [stamp for stamp in self.shown if stamp is not None]
        if len(told) == len(self) and all(before < after for before, after in pairwise(told)):
            self.of_decoding, self.decoded = True, list(self.shown)

    def add(self, packet: Any, broken: bool) -> None:
        self.shown.append(packet.pts)
        self.decoded.append(packet.dts)
        self.keys.append(packet.is_keyframe)
        self.hidden.append(packet.is_discard)
        self.broken.append(broken)
        self.places.append(-1 if packet.pos is None else packet.pos)

    def __len__(self) -> int:
        return len(self.shown)

    def note_break(self, place: int) -> None:
        """Something is lost at a byte of the file: what is before it may lack its end, what is behind leans on it."""
        behind = next((number for number, at in enumerate(self.places) if at >= place), len(self))
        if behind:
            self.broken[behind - 1] = True
        if behind < len(self) and not self.keys[behind]:
            self.broken[behind] = True

    @property
    def first_key(self) -> int:
        """The number of the first key frame; a clip that was cut without encoding begins before one."""
        return self.keys.index(True) if True in self.keys else 0

    def stamps(self) -> list[int] | None:
        """The timestamps of the frames that are shown, in order; None where they do not tell frames apart."""
        all_stamps = [stamp for stamp in self.shown if stamp is not None]
        visible = [stamp for stamp, hidden in zip(self.shown, self.hidden, strict=True) if not hidden]
        if self.of_decoding or len(all_stamps) < len(self) or len(set(visible)) < len(visible):
            return None
        first = all_stamps[self.first_key] if all_stamps else 0
        return self._before_cut(sorted(stamp for stamp in visible if stamp is not None and stamp >= first))

    @property
    def begin(self) -> int | None:
        """The timestamp of the frame that is shown first, which is a key frame; None where none is known."""
        key = self.shown[self.first_key] if self.shown else None
        return key if key is not None else min((one for one in self.shown if one is not None), default=None)

    @property
    def unbegun(self) -> int:
        """How many frames before the first key frame nobody can see, though no edit list hides them."""
        return sum(not hidden for hidden in self.hidden[: self.first_key])

    def _before_cut(self, stamps: list[int]) -> list[int]:
        """`stamps` without those behind a hole that is there because the file was cut off without encoding.

        What is shown late is stored early. So where packets end, frames are missing between the last ones, while not
        one is missing in the order of decoding, as one would be that was lost.
        """
        steps = np.diff(stamps)
        if len(steps) < REORDERED:
            return stamps
        hole = HOLE * float(np.median(steps))
        decoded = [stamp for stamp in self.decoded[-2 * REORDERED :] if stamp is not None]
        if len(decoded) < REORDERED or np.diff(decoded).max() > hole:
            return stamps
        behind = np.flatnonzero(steps[-REORDERED:] > hole)
        if not len(behind) or steps[-REORDERED:].max() > REORDERED * float(np.median(steps)):
            return stamps
        return stamps[: len(steps) - REORDERED + int(behind[0]) + 1]

    def count(self) -> int:
        """How many frames are shown, where they are found by counting."""
        return sum(not hidden for hidden in self.hidden[self.first_key :])


@dataclass(frozen=True)
class Clock:
    """When frames are shown, in seconds. `stamps` are their timestamps; None: frames are found by counting."""

    times: tuple[float, ...]
    rate: float
    stamps: tuple[int, ...] | None = None

    @property
    def duration(self) -> float:
        steps = np.diff(self.times)
        return self.times[-1] - self.times[0] + (float(np.median(steps)) if len(steps) else 1.0 / self.rate)


def stamped_clock(stamps: Sequence[int], base: Fraction, rates: Collection[Fraction | None]) -> Clock:
    """The clock of frames with timestamps in units of `base` seconds; `rates` are those that the header has."""
    times = tuple(float(stamp * base) for stamp in stamps)
    return Clock(times, _rate(times, rates), tuple(stamps))


def counted_clock(
    packets: Packets, count: int, base: Fraction, rates: Collection[Fraction | None], begin: int | None = None
) -> Clock:
    """The clock of `count` frames that are found by counting; `begin` is the timestamp of the first, if it is known."""
    decoded = sorted(stamp for stamp in packets.decoded[packets.first_key :] if stamp is not None)[:count]
    if len(set(decoded)) == count:
        late = 0 if begin is None else begin - decoded[0]  # a frame is decoded before it is shown
        times = tuple(float((stamp + late) * base) for stamp in decoded)
        return Clock(times, _rate(times, rates))
    rate, first = _rate((), rates), float((begin or 0) * base)
    return Clock(tuple(first + index / rate for index in range(count)), rate)


def _rate(times: Sequence[float], rates: Collection[Fraction | None]) -> float:
    """Frames a second: the header's, where it agrees with the times; else as measured."""
    span = times[-1] - times[0] if len(times) > 1 else 0.0
    for rate in rates:
        if rate and 0 < rate <= HIGHEST_RATE and math.isfinite(rate):
            off = abs((len(times) - 1) / float(rate) - span)
            if len(times) < 3 or off <= max(0.5 / float(rate), AGREEING_SHARE * span):
                return float(rate)
    return (len(times) - 1) / span if span > 0 else USUAL_RATE


def why_clock_unusable(clock: Clock) -> str:
    """What is wrong with a clock that no clip can have, or ""."""
    if clock.duration > LONGEST_SECONDS:
        return f"says that its {len(clock.times)} frames last {clock.duration / 86400:,.0f} days"
    if clock.rate > HIGHEST_RATE and len(clock.times) > 2:
        return f"says that it shows {clock.rate:,.0f} frames a second"
    return ""
