"""Which frames of a video there are, and which of them are damaged, found by decoding it once.

What packets promise is not always there: some hold no frame, some are damaged. Damage reaches every frame from the key
frame before it to the key frame behind it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import DataError
from .clock import Packets
from .convert import is_clear
from .decoding import STRICT, decode_packet, decoder_of, opened, packets_of

NEAR = 2  # packets
# Whose usual decoder hands out what it could not decode; what is harmless to it is so in every frame of a file.
FORGIVING = frozenset(("mjpeg",))
USUAL_SHARE = 0.5
SILENT = "hevc"  # whose usual decoder leaves out what leans on a frame that is missing


@dataclass
class Look:
    """What came out of decoding a file once. Places are timestamps or, where frames are counted, numbers.

    `wrong` are the places of what could not be decoded, or was and is damaged; `doubtful` those of what a strict
    decoder complains of and a usual one does not; `leaning` those of what was left out, for it leans on what is not
    there. `sizes` has where each size of the picture begins. `transparent`: a part of a frame is, if it was looked for.
    """

    shown: list[int] = field(default_factory=list)
    wrong: list[int] = field(default_factory=list)
    doubtful: list[int] = field(default_factory=list)
    leaning: set[int] = field(default_factory=set)
    sizes: dict[tuple[int, int], int] = field(default_factory=dict)
    transparent: bool = False
    codec: str = ""


def look_through(path: Path, alpha: bool, stamped: bool, before_key: int = 0) -> Look:
    """Decode all of a video but its first `before_key` packets. Raises DataError where not one frame comes out."""
    strict = _decoded(path, alpha, stamped, STRICT, before_key)
    look = strict
    if strict.wrong:  # some decoders are strict about what does no harm
        look = _decoded(path, alpha, stamped, None, before_key)
        if strict.codec == SILENT and stamped:
            look.leaning = set(strict.wrong) - {*look.wrong, *look.shown}
        look.doubtful = [] if look.wrong or look.leaning else strict.wrong
        if strict.codec in FORGIVING and len(strict.wrong) < USUAL_SHARE * len(look.shown):
            look.wrong, look.doubtful = sorted({*look.wrong, *strict.wrong}), []
    if not look.shown:
        raise DataError(f"{path}: not one frame can be decoded. Export it again or remove it.", path)
    return look


def _decoded(path: Path, alpha: bool, stamped: bool, options: dict[str, str] | None, before_key: int) -> Look:
    look = Look()
    with opened(path, threads=False) as (container, stream):
        look.codec = stream.codec_context.name
        decoder = decoder_of(stream, alpha, options)
        watch = _Places(look, stamped)
        for packet in packets_of(container, stream, before_key):
            watch.packets += packet.size > 0
            for frame in decode_packet(decoder, packet, watch):
                watch.frame(frame)
                look.transparent = look.transparent or (alpha and is_clear(frame, path))
    return look


class _Places:
    """Takes down every place that is wrong; `decoding.Watch` only asks whether there is one."""

    def __init__(self, look: Look, stamped: bool) -> None:
        self.look, self.stamped, self.packets = look, stamped, 0

    def failed(self, packet: Any) -> None:
        place = packet.pts if self.stamped else self.packets - 1
        if place is not None:
            self.look.wrong.append(place)

    def frame(self, frame: Any) -> None:
        place = frame.pts if self.stamped else len(self.look.shown)
        if place is None:
            return
        self.look.shown.append(place)
        self.look.sizes.setdefault((frame.width, frame.height), place)
        if frame.is_corrupt:
            self.look.wrong.append(place)


def damaged_spans(
    packets: Packets, wrong: Iterable[int], stamps: Sequence[int] | None, count: int
) -> tuple[tuple[int, int], ...]:
    """Frames [first, last) that damage at the places `wrong` reaches, of those at `stamps`, or of `count` counted.

    Behind a lost packet, which is not there, those before it are whole.
    """
    keys = [number for number, key in enumerate(packets.keys) if key] or [0]
    starts = {group: keys[group] for group in _groups(packets, keys, wrong, stamps is not None)}
    for number in packets.lost:
        if (group := bisect_right(keys, number) - 1) >= 0:
            starts.setdefault(group, keys[group] if stamps is None else number)
    for group in sorted(starts):
        if group + 1 < len(keys) and keys[group + 1] in packets.gradual:
            starts[group + 1] = keys[group + 1]
    spans: list[tuple[int, int]] = []
    for group, first in sorted(starts.items()):
        last = keys[group + 1] if group + 1 < len(keys) else len(packets)
        if stamps is None:
            span = first - keys[0], min(count, last - keys[0])
        else:
            # Frames that are stored behind a key frame may be shown before it.
            begin = min(stamp for stamp in packets.shown[first:last] if stamp is not None)
            behind = packets.shown[last] if last < len(packets) else None
            span = bisect_left(stamps, begin), count if behind is None else bisect_left(stamps, behind)
        if spans and span[0] <= spans[-1][1]:
            span = spans.pop()[0], span[1]
        if span[0] < span[1]:
            spans.append(span)
    return tuple(spans)


def _groups(packets: Packets, keys: Sequence[int], wrong: Iterable[int], stamped: bool) -> set[int]:
    """Which key frames the places belong to, by their numbers among `keys`. What is before the first is never shown."""
    if not stamped:
        return {bisect_right(keys, place) - 1 for place in wrong if place >= keys[0]}
    numbers = {stamp: number for number, stamp in enumerate(packets.shown)}
    stamps = [packets.shown[key] or 0 for key in keys]
    broken = set()
    for place in wrong:
        number = numbers.get(place)
        if place < stamps[0] or (number is not None and number < keys[0]):
            continue
        group = bisect_right(stamps, place) - 1 if number is None else bisect_right(keys, number) - 1
        broken.add(group)
        if number is not None and number + NEAR >= (keys[group + 1] if group + 1 < len(keys) else len(packets) + NEAR):
            broken.add(group + 1)  # what was lost between two packets may be the beginning of the next
    return broken
