"""MPEG-4 part 2 (Xvid, DivX): which pictures follow one that is not in the file, by their times in the stream itself.

Each picture says when it is shown, in seconds since the last that others lean on and parts of one. These times, in
steps of the usual one, are numbers as those of MPEG-2 are. A hole in them that the container has as well may be a
picture that is held. There only what cannot be otherwise is told: one that is to lie between two and is behind both.
"""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise
from typing import Any

from .mpeg2 import ALONE, BOTH, FORWARD, LostPictures

LAYER = re.compile(rb"\x00\x00\x01[\x20-\x2f]")  # start code of what says how pictures are written
GROUP, PICTURE = b"\0\0\1\xb3", b"\0\0\1\xb6"
KINDS = (ALONE, FORWARD, BOTH, FORWARD)
HELD = 1.5  # usual steps of the container
NEAR = 3  # packets by which a container may tell a hole late, as it stores what is shown late early


class LostVops(LostPictures):
    """Is shown the packets of a stream in their order, and knows which of them follow what is not there."""

    def __init__(self, extradata: bytes | None) -> None:
        super().__init__()
        self._second = _second(bytes(extradata or b""))  # parts of one that times are told in; 0: not known yet
        self._base, self._before = 0, 0  # whole seconds of the last picture that others lean on, and of that before it
        self._ends = -1, -1  # when these two are shown
        self._shown: list[tuple[int, int, int]] = []  # packet, kind and time of each picture
        self._decoded: list[int | None] = []
        self._step = 0

    @property
    def reordered(self) -> bool:
        """Whether pictures are shown in another order than they are stored in."""
        return any(kind == BOTH for _, kind, _ in self._shown)

    @property
    def lost(self) -> list[int]:
        """The packets before which a picture is missing, by their numbers."""
        times = sorted({time for _, _, time in self._shown})
        steps = Counter(after - before for before, after in pairwise(times))
        if not steps:
            return []
        usual = steps.most_common(1)[0][0]
        stored = Counter(self._steps(0, len(self._decoded)))
        self._step = stored.most_common(1)[0][0] if stored else 0
        numbers = {times[0]: 0}
        for before, after in pairwise(times):  # from one to the next, as rounding adds up where a step is no whole one
            numbers[after] = numbers[before] + max(1, round((after - before) / usual))
        for number, kind, time in self._shown:
            self.take(number, kind, numbers[time])
        return super().lost

    def show(self, number: int, packet: Any) -> None:
        """Look at packet `number`."""
        data = bytes(packet)
        self._second = self._second or _second(data)
        self._decoded.append(packet.dts)
        at = data.find(PICTURE) if self._second else -1
        group = data.find(GROUP, 0, max(at, 0))
        if group >= 0:
            clock = int.from_bytes(data[group + 4 : group + 7], "big") >> 6  # hours, minutes, a one, seconds
            self._base = (clock >> 13) * 3600 + (clock >> 7 & 63) * 60 + (clock & 63)
        while at >= 0:
            bits = f"{int.from_bytes(data[at + 4 : at + 12], 'big'):0{8 * len(data[at + 4 : at + 12])}b}"
            kind, seconds = KINDS[int(bits[:2] or "0", 2)], bits.find("0", 2) - 2
            part = bits[seconds + 4 : seconds + 4 + max(1, (self._second - 1).bit_length())]
            if seconds >= 0 and part:
                self._shown.append((number, kind, self._time(kind, seconds, int(part, 2))))
            at = data.find(PICTURE, at + len(PICTURE))

    def _time(self, kind: int, seconds: int, part: int) -> int:
        """When a picture is shown that says so many whole `seconds` and a `part` of one."""
        if kind == BOTH:
            time = (self._before + seconds) * self._second + part
            return time if time > self._ends[0] else time + self._second  # that which began the second is lost
        self._before, self._base = self._base, self._base + seconds
        self._ends = self._ends[1], self._base * self._second + part
        return self._ends[1]

    def is_held(self, number: int) -> bool:
        steps = self._steps(max(0, number - 1), number + NEAR)
        return any(step > HELD * self._step for step in steps)

    def _steps(self, first: int, last: int) -> list[int]:
        """From packet to packet in the container's times of decoding, where it has them."""
        told = [stamp for stamp in self._decoded[first:last] if stamp is not None]
        return [after - before for before, after in pairwise(told)]


def _second(data: bytes) -> int:
    """Into how many parts a second is divided, by the header in `data`; 0 where there is none, or it cannot be read."""
    found = LAYER.search(data)
    if found is None:
        return 0
    head = data[found.end() : found.end() + 24]
    bits = f"{int.from_bytes(head, 'big'):0{8 * len(head)}b}"
    at = 9
    at += 8 if bits[at : at + 1] == "1" else 1
    at += 20 if bits[at : at + 4] == "1111" else 4  # the shape of its points
    if bits[at : at + 1] == "1":
        at += 84 if bits[at + 4 : at + 5] == "1" else 5
    else:
        at += 1
    shape, second = bits[at : at + 2], bits[at + 3 : at + 19]
    return int(second, 2) if shape == "00" and len(second) == 16 else 0
