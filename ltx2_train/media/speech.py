"""Cutting a long recording into spoken segments, at its pauses.

Works on levels in steps of 20 ms (`sound.sound_levels`). A step is quiet below a threshold set between the noise floor
(10th percentile) and the loud parts (95th) of the recording, so neither a quiet nor a noisy one needs a setting. Quiet
of at least `pause` seconds separates phrases. Phrases are joined while the whole stays within `longest`; a phrase that
is longer is cut at its quietest step. What is shorter than `shortest` is left out. The file itself is never changed.
"""

from __future__ import annotations

import math

import numpy as np

STEPS_PER_SECOND = 50
STEP_SECONDS = 1 / STEPS_PER_SECOND
MARGIN_SECONDS = 0.1
QUIETEST_DB = -60.0
FLOOR_SHARE = 0.35  # of the way from the noise floor to the loud parts


def spoken_segments(loud: np.ndarray, shortest: float, longest: float, pause: float) -> list[tuple[float, float]]:
    """(start, seconds) of each segment, in order; none overlap, none is outside `shortest`..`longest`.

    `loud` is the level of each step in dB.
    """
    if not len(loud):
        return []
    floor, top = np.percentile(loud, 10), np.percentile(loud, 95)
    threshold = max(QUIETEST_DB, floor + FLOOR_SHARE * (top - floor))
    if top <= QUIETEST_DB:
        return []
    phrases = _phrases(loud >= threshold, max(1, round(pause / STEP_SECONDS)))
    limit = max(1, int(longest / STEP_SECONDS + 1e-6))
    pieces = [piece for phrase in phrases for piece in _cut(*phrase, loud, limit)]
    joined: list[list[int]] = []
    for first, last in pieces:
        if joined and last - joined[-1][0] <= limit:
            joined[-1][1] = last
        else:
            joined.append([first, last])
    return _with_margins(joined, len(loud), limit, shortest)


def _phrases(spoken: np.ndarray, pause: int) -> list[tuple[int, int]]:
    """Runs [first, last) of steps without `pause` quiet ones in a row."""
    at = np.flatnonzero(spoken)
    if not len(at):
        return []
    breaks = np.flatnonzero(np.diff(at) > pause)
    firsts = at[np.concatenate([[0], breaks + 1])]
    lasts = at[np.concatenate([breaks, [len(at) - 1]])] + 1
    return [(int(first), int(last)) for first, last in zip(firsts, lasts, strict=True)]


def _cut(first: int, last: int, loud: np.ndarray, limit: int) -> list[tuple[int, int]]:
    """A phrase in pieces of at most `limit` steps, cut at the quietest step of each one's second half."""
    pieces = []
    while last - first > limit:
        middle = first + max(1, limit // 2)
        at = middle + int(np.argmin(loud[middle : first + limit])) if first + limit > middle else first + limit
        pieces.append((first, at))
        first = at
    return [*pieces, (first, last)]


def _with_margins(joined: list[list[int]], total: int, limit: int, shortest: float) -> list[tuple[float, float]]:
    """Seconds, with a little quiet kept around each segment where there is room for it."""
    margin = round(MARGIN_SECONDS / STEP_SECONDS)
    segments = []
    for index, (first, last) in enumerate(joined):
        room = max(0, limit - (last - first))
        before = joined[index - 1][1] if index else 0
        after = joined[index + 1][0] if index + 1 < len(joined) else total
        lead = min(margin, (first - before) // 2, room // 2)
        tail = min(margin, math.ceil((after - last) / 2), room - lead)
        # A half of an odd gap rounds up behind and down before, so that neighbours never share a step.
        seconds = (last + tail - first + lead) * STEP_SECONDS
        if seconds >= shortest - 1e-6:
            segments.append(((first - lead) * STEP_SECONDS, seconds))
    return segments
