"""H.264: which pictures lean on one that is not in the file, by the numbers in their slices.

A picture has the number of the reference before it, and one more. Where a number is left out a reference was lost:
decoders put something in its place and say nothing. A picture that leans on nothing begins anew, so what is missing
before it does no harm, and between it and the next reference it is what was cut off in front of a film.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

START = b"\0\0\1"  # before each unit, where no lengths are
ANEW = "new_extradata"  # FFmpeg's word for what comes with a packet in place of that of the file
HEAD = 4096  # bytes of a packet in which its first slice begins, as a rule
SHORT, LONG = 48, 1024  # bytes of a slice for its number, and for all of its header
RICH_PROFILES = frozenset((100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135))
SLICE, WHOLE_SLICE, SEQUENCE_SET, PICTURE_SET = 1, 5, 7, 8  # kinds of units; behind a whole slice none leans on others
B_KIND, ALONE_KINDS = 1, (2, 4)  # kinds of slices
LAST_OPERATION, RESTART = 0, 5  # what a slice says of the references that are kept
# Where more than one picture, and so many of all, follow what is not there, a program does not number as it should.
SLOPPY_SHARE = 0.125


class Unreadable(Exception):
    """Raised where bytes are not what is expected, or too few."""


BAD = (Unreadable, IndexError, KeyError)  # what reading bytes that are none of H.264 may come to


class Bits:
    """Numbers in a unit, from its highest bit on."""

    def __init__(self, data: bytes) -> None:
        data = data.replace(b"\0\0\3", b"\0\0")
        self._value, self._left = int.from_bytes(data, "big"), 8 * len(data)

    def fixed(self, count: int = 1) -> int:
        """A number of `count` bits. Raises Unreadable behind the last."""
        self._left -= count
        if self._left < 0:
            raise Unreadable
        return self._value >> self._left & (1 << count) - 1

    def plain(self) -> int:
        """A number as long as the zeros before it say (Exp-Golomb). Those with a sign take as many bits."""
        zeros = 0
        while not self.fixed():
            zeros += 1
            if zeros > 32:
                raise Unreadable
        return (1 << zeros) - 1 + self.fixed(zeros)

    def skip(self, count: int) -> None:
        """Pass `count` of those over."""
        for _ in range(count):
            self.plain()


class SequenceSet:
    """What a sequence parameter set says of how slices are written."""

    def __init__(self, data: bytes) -> None:
        bits = Bits(data[1:])
        profile = bits.fixed(8)
        bits.fixed(16)
        self.id = bits.plain()
        chroma, self.planes = 1, False
        if profile in RICH_PROFILES:
            chroma = bits.plain()
            self.planes = chroma == 3 and bool(bits.fixed())
            bits.skip(2)
            bits.fixed()
            if bits.fixed():
                _pass_scaling(bits, 8 if chroma != 3 else 12)
        self.coloured = chroma != 0 and not self.planes
        self.number_bits = bits.plain() + 4
        self.order, self.order_bits, self.order_fixed = bits.plain(), 0, False
        if self.order == 0:
            self.order_bits = bits.plain() + 4
        elif self.order == 1:
            self.order_fixed = bool(bits.fixed())
            bits.skip(2)
            bits.skip(bits.plain())
        bits.plain()
        self.gaps = bool(bits.fixed())  # numbers may be left out
        bits.skip(2)
        self.fields = not bits.fixed()


def _pass_scaling(bits: Bits, lists: int) -> None:
    for number in range(lists):
        last = scale = 8
        for _ in range((16 if number < 6 else 64) if bits.fixed() else 0):
            if scale:
                step = bits.plain()
                scale = (last + ((step + 1) // 2 if step % 2 else -(step // 2))) % 256
            last = scale or last


class PictureSet:
    """What a picture parameter set says of how slices are written."""

    def __init__(self, data: bytes) -> None:
        bits = Bits(data[1:])
        self.id, self.sequence = bits.plain(), bits.plain()
        bits.fixed()
        self.ordered_fields = bool(bits.fixed())
        self.grouped = bits.plain() > 0
        self.references, self.weighted, self.weighted_both, self.redundant = (1, 1), False, 0, False
        if self.grouped:
            return
        self.references = bits.plain() + 1, bits.plain() + 1
        self.weighted, self.weighted_both = bool(bits.fixed()), bits.fixed(2)
        bits.skip(3)
        bits.fixed(2)
        self.redundant = bool(bits.fixed())


class Slice:
    """The beginning of the first slice of a picture, in `data`. Raises Unreadable, or KeyError where it is not known
    how it is written."""

    def __init__(self, data: bytes, sequences: dict[int, SequenceSet], pictures: dict[int, PictureSet]) -> None:
        self.data, bits = data, Bits(data[1:SHORT])
        bits.plain()
        self.kind = bits.plain() % 5
        self.picture = pictures[bits.plain()]
        self.sequence = sequences[self.picture.sequence]
        bits.fixed(2 * self.sequence.planes)
        self.number = bits.fixed(self.sequence.number_bits)

    @property
    def is_whole(self) -> bool:
        return self.data[0] & 31 == WHOLE_SLICE

    @property
    def is_reference(self) -> bool:
        return bool(self.data[0] & 0x60)

    @property
    def is_alone(self) -> bool:
        """Whether it leans on no other picture."""
        return self.kind in ALONE_KINDS

    def restarts(self) -> bool:
        """Whether numbers begin anew behind it. Raises Unreadable where that cannot be told."""
        if self.is_whole or not self.is_reference:
            return False
        bits = Bits(self.data[1:])
        bits.skip(3)
        bits.fixed(2 * self.sequence.planes + self.sequence.number_bits)
        if self.picture.grouped or (self.sequence.fields and bits.fixed()):
            raise Unreadable
        bits.fixed(self.sequence.order_bits)
        if self.sequence.order == 0:
            bits.skip(self.picture.ordered_fields)
        elif self.sequence.order == 1 and not self.sequence.order_fixed:
            bits.skip(1 + self.picture.ordered_fields)
        bits.skip(self.picture.redundant)
        self._pass_references(bits)
        if not bits.fixed():
            return False
        while (operation := bits.plain()) != LAST_OPERATION:
            if operation == RESTART:
                return True
            bits.skip(2 if operation == 3 else 1)
        return False

    def _pass_references(self, bits: Bits) -> None:
        if self.is_alone:
            return
        both = self.kind == B_KIND
        bits.fixed(both)
        counts = self.picture.references
        if bits.fixed():
            counts = bits.plain() + 1, (bits.plain() + 1 if both else 0)
        counts = counts[: 1 + both]
        for _ in counts:
            if bits.fixed():
                while bits.plain() != 3:
                    bits.plain()
        if not (self.picture.weighted_both == 1 if both else self.picture.weighted):
            return
        bits.skip(1 + self.sequence.coloured)
        for _ in range(sum(counts)):
            bits.skip(2 * bits.fixed())
            if self.sequence.coloured:
                bits.skip(4 * bits.fixed())


class LostReferences:
    """Is shown the packets of a stream of H.264 in their order, and knows which of them lean on what is not there.

    `gradual` are the packets of key pictures that lean on others all the same, and are whole some pictures later.
    """

    def __init__(self, extradata: bytes | None) -> None:
        self.gradual: list[int] = []
        self._sequences: dict[int, SequenceSet] = {}
        self._pictures: dict[int, PictureSet] = {}
        self._lengths = 0  # bytes of the length before each unit; 0: start codes are between them
        self._last: Slice | None = None  # the reference before
        self._number = 0  # and its number
        self._cut = False  # whether frames behind it may have been cut off, for it is alone and does not say so
        self._seen, self._found, self._understood = 0, [], True
        self._set_up(bytes(extradata or b""))

    @property
    def lost(self) -> list[int]:
        """The packets before which a reference is missing, by their numbers."""
        sloppy = len(self._found) > max(1.0, SLOPPY_SHARE * self._seen)
        return self._found if self._understood and not sloppy else []

    def show(self, number: int, packet: Any) -> None:
        """Look at packet `number`."""
        if packet.has_sidedata(ANEW):
            self._set_up(bytes(packet.get_sidedata(ANEW)))
        try:
            now = self._first_slice(bytes(memoryview(packet)[:HEAD]))
            if now is None and packet.size > HEAD:
                now = self._first_slice(bytes(packet))
        except BAD:
            self._last = None
            return
        if now is None:
            return
        self._seen += 1
        if packet.is_keyframe and not now.is_alone:
            self.gradual.append(number)
        if self._follows_nothing(now):
            self._found.append(number)

    def _follows_nothing(self, now: Slice) -> bool:
        top, last, lost = 1 << now.sequence.number_bits, self._last, False
        if now.is_whole:
            self._understood &= now.number == 0
        elif last is not None and now.number not in (self._number, (self._number + 1) % top):
            lost = not (now.is_alone or self._cut or now.sequence.gaps or (now.number < 2 and _may_restart(last)))
        if now.is_reference:
            again = last is not None and now.number == self._number  # the second field of a frame
            self._cut = (now.is_alone and not now.is_whole) or (again and self._cut)
            self._last, self._number = now, now.number
        elif lost:
            self._number = (now.number - 1) % top
        return lost

    def _set_up(self, data: bytes) -> None:
        try:
            if data[:1] == b"\1":
                self._configure(data)
            else:
                self._first_slice(data)
        except BAD:
            return

    def _configure(self, data: bytes) -> None:
        self._lengths = (data[4] & 3) + 1
        at = 5
        for mask in (31, 255):
            count, at = data[at] & mask, at + 1
            for _ in range(count):
                begin = at + 2
                at = begin + int.from_bytes(data[at:begin], "big")
                self._set(data[begin:at])

    def _set(self, unit: bytes) -> None:
        if unit[0] & 31 == SEQUENCE_SET:
            sequence = SequenceSet(unit)
            self._sequences[sequence.id] = sequence
        elif unit[0] & 31 == PICTURE_SET:
            picture = PictureSet(unit)
            self._pictures[picture.id] = picture

    def _first_slice(self, data: bytes) -> Slice | None:
        """The first slice in `data`, once what is set before it is known; None where there is none."""
        for unit in self._units(data):
            if unit[0] & 31 in (SLICE, WHOLE_SLICE):
                return Slice(unit[:LONG], self._sequences, self._pictures)
            self._set(unit)
        return None

    def _units(self, data: bytes) -> Iterator[bytes]:
        at = 0 if self._lengths else data.find(START) + len(START)
        while self._lengths and at + self._lengths < len(data):
            begin = at + self._lengths
            at = begin + int.from_bytes(data[at:begin], "big")
            yield data[begin:at]
        while not self._lengths and at >= len(START):
            behind = data.find(START, at)
            yield data[at : behind if behind >= 0 else len(data)]
            at = behind + len(START)


def _may_restart(last: Slice) -> bool:
    try:
        return last.restarts()
    except Unreadable:
        return True
