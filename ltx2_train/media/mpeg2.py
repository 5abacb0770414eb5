"""MPEG-1 and MPEG-2: which pictures follow one that is not in the file, by their numbers in the order of showing.

Within a group of pictures each has its number. A picture that others lean on has a higher one than that before it, and
those between come behind it and lean on both. What was cut off in front of a group does no harm, and neither does one
that lies between and is missing while others are there.
"""

from __future__ import annotations

from typing import Any

from .h264 import HEAD, SLOPPY_SHARE

PICTURE, GROUP = b"\0\0\1\0", b"\0\0\1\xb8"  # start codes
ALONE, FORWARD, BOTH = 1, 2, 3  # kinds of pictures, by what they lean on
NUMBERS = 1024  # and again from 0


class LostPictures:
    """Is shown the packets of a stream in their order, and knows which of them follow what is not there."""

    gradual: tuple[int, ...] = ()  # as of H.264; here there are none

    def __init__(self) -> None:
        self._last: int | None = None  # the number of the last picture that others lean on
        self._place = -1  # its packet
        self._between = 0  # how many should lie between it and the one before, where none of them came yet
        self._seen, self._found, self._both = 0, [], False

    @property
    def lost(self) -> list[int]:
        """The packets before which a picture is missing, by their numbers."""
        if not self._both:  # else those between may be what was cut off behind the end
            self._settle()
        found = sorted(set(self._found))
        return found if len(found) <= max(1.0, SLOPPY_SHARE * self._seen) else []

    def show(self, number: int, packet: Any) -> None:
        """Look at packet `number`."""
        data = bytes(memoryview(packet)[:HEAD])
        at = data.find(PICTURE)
        if at < 0:
            data = bytes(packet)
            at = data.find(PICTURE)
        if at < 0 or at + 6 > len(data):
            return
        shown, kind = data[at + 4] << 2 | data[at + 5] >> 6, data[at + 5] >> 3 & 7
        self.take(number, kind, shown, data.find(GROUP, 0, at) >= 0)

    def take(self, number: int, kind: int, shown: int, anew: bool = False) -> None:
        """Packet `number` has a picture of this kind, which is number `shown` in the order of showing, modulo NUMBERS;
        `anew`: a group begins with it."""
        self._seen += 1
        ahead = None if self._last is None else (shown - self._last + NUMBERS // 2) % NUMBERS - NUMBERS // 2
        if kind == ALONE or anew:
            self._settle()
            self._last, self._place = shown, number
        elif kind == FORWARD and ahead != 0:  # else it is the second field of a frame
            self._settle()
            if ahead is not None and ahead < 0:
                self._found.append(number)
            self._between = ahead - 1 if ahead is not None and ahead > 0 else 0
            self._last, self._place = shown, number
        elif kind == BOTH and ahead is not None:
            self._both = True
            if ahead > 0:
                self._found.append(number)
            self._between = 0

    def _settle(self) -> None:
        """What comes now lies behind the last that others lean on; was anything missing before that?"""
        if self._between > 0 and not self.is_held(self._place):
            self._found.append(self._place)
        self._between = 0

    def is_held(self, number: int) -> bool:
        """Whether numbers may be left out before packet `number`, since the picture before is shown longer."""
        return False
