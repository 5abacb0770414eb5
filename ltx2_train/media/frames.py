"""Which frames of a clip are trained on.

Times come from the file's timestamps. A clip whose frames are evenly spaced has a frame rate; it is resampled when
|ceil(source rate) - target rate| > 1, so that 23.976 or 29.97 next to a target of 24 or 30 loses nothing to rounding.
Of a faster clip output frame k then shows the source frame whose time is nearest to k / target rate. Of a slower clip,
and of every clip whose frames are not evenly spaced (frames were lost, held or recorded as they came), it shows the
last frame at or before k / target rate, as every player does. So motion keeps its speed, and sound, which follows the
same clock, stays with it.

`source_fps` overrides the rate: an even clip has that rate, in any other the usual step between frames becomes
1 / source_fps.

Windows. A clip is cut into windows of `target_frames`, counted in output frames and rounded down to 8n+1, since the
VAE turns 8n+1 frames into n+1 latents and silently drops the rest.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..shapes import TEMPORAL_FACTOR, floor_frames

EVEN_SHARE = 0.4  # of a step; no frame of an even clip is farther from its place
VARYING_SHARE = 0.05
VARYING_STEP = 0.3
# A frame may come this much late, or a quarter of its step: timestamps are rounded, and clocks are not exact.
LATE_SECONDS = 0.005
LATE_SHARE = 0.25
PAD_LIMIT = TEMPORAL_FACTOR
BY_TIME = "its timestamps choose the frames"


@dataclass(frozen=True)
class Timeline:
    """Output frame k of a clip shows source frame `picks[k]`; `fps` is the rate the frames are meant to run at.

    `held`: each frame is shown until the time of the next, and a second of the clip is `tempo` seconds of the file.
    """

    picks: tuple[int, ...]
    source_fps: float
    fps: float
    resampled: bool
    notes: tuple[str, ...] = ()
    held: bool = False
    tempo: float = 1.0

    @property
    def frames(self) -> int:
        return len(self.picks)


@dataclass(frozen=True)
class Window:
    """`count` output frames from `start`; where the clip ends before, its last frame is repeated."""

    start: int
    count: int

    @property
    def token(self) -> str:
        return f"{self.start:05d}-{self.count:03d}"


def is_even(times: Sequence[float]) -> bool:
    """Whether frames are evenly spaced, up to the rounding of timestamps: no frame is lost or held."""
    if len(times) < 3:
        return True
    shown = np.asarray(times, dtype=np.float64)
    steps = np.diff(shown)
    usual = float(np.median(steps))
    line = shown[0] + (shown[-1] - shown[0]) / (len(shown) - 1) * np.arange(len(shown))
    return bool(steps.min() > 0 and np.abs(shown - line).max() <= EVEN_SHARE * usual) and not varies(times)


def varies(times: Sequence[float]) -> bool:
    """True for a varying frame rate: one step in twenty is off the usual one by 30 % or more."""
    if len(times) < 3:
        return False
    steps = np.diff(np.asarray(times, dtype=np.float64))
    usual = float(np.median(steps))
    off = np.abs(steps - usual) >= VARYING_STEP * usual
    return int(off.sum()) >= max(2, math.ceil(VARYING_SHARE * len(steps)))


def timeline(
    name: str, times: Sequence[float], detected_fps: float, target_fps: float, source_fps: float | None = None
) -> Timeline:
    """Match a clip to the target rate.

    `times` are the seconds at which its frames are shown, in order; `name` is the file's name for the log lines.
    """
    source = detected_fps if source_fps is None else source_fps
    if source_fps is None:
        notes = [f"Auto-detected source FPS: {source:.2f} for {name}"]
    else:
        notes = [f"Source FPS set to {source:.2f} for {name}"]
    even = is_even(times)
    tempo = 1.0 if source_fps is None else _usual_step(times, detected_fps, even) * source_fps
    if not even:
        notes.append(f"{name} {unevenness(times)}; {BY_TIME}")
        if source_fps is not None:
            times = [(time - times[0]) / tempo for time in times]
    elif source_fps is not None:
        times = [index / source for index in range(len(times))]
    if even and abs(math.ceil(round(source, 3)) - target_fps) <= 1:
        return Timeline(tuple(range(len(times))), source, target_fps, False, tuple(notes))
    notes.append(f"Resampling {name}: {source:.2f} FPS -> {target_fps:.2f} FPS")
    if even and source < target_fps:
        notes.append(f"{name} is slower than the target; frames are repeated to keep its speed")
    held = not even or source < target_fps
    picks = _sampled(times, source, target_fps, held)
    return Timeline(picks, source, target_fps, True, tuple(notes), held, tempo)


def unevenness(times: Sequence[float]) -> str:
    """What is wrong with the times, in seconds, of a clip that is not even."""
    if varies(times):
        return "has a varying frame rate"
    steps = np.diff(np.asarray(times, dtype=np.float64))
    gaps = np.flatnonzero(steps > (1 + EVEN_SHARE) * np.median(steps))
    if not len(gaps):
        return "has a varying frame rate"
    where = f"after {times[int(gaps[0])] - times[0]:.2f} s"
    return f"lacks frames {where}" + (f" and in {len(gaps) - 1} more places" if len(gaps) > 1 else "")


def _usual_step(times: Sequence[float], fps: float, even: bool = False) -> float:
    """Seconds from frame to frame; of an even clip the mean, which rounding does not touch."""
    if len(times) < 2:
        return 1.0 / fps
    if even:
        return (times[-1] - times[0]) / (len(times) - 1)
    return float(np.median(np.diff(np.asarray(times, dtype=np.float64))))


def _sampled(times: Sequence[float], source_fps: float, target_fps: float, held: bool) -> tuple[int, ...]:
    """The source frame of each output frame: the last one at or before its time (`held`), or the nearest."""
    shown = np.asarray(times, dtype=np.float64) - times[0]
    # The last frame is shown for one usual step, so an even clip of F frames lasts F steps.
    step = _usual_step(times, source_fps)
    count = max(1, int((shown[-1] + step) * target_fps + 1e-6))
    wanted = np.arange(count) / target_fps
    if len(shown) == 1:
        return (0,) * count
    if held:
        late = min(LATE_SECONDS, LATE_SHARE * step, LATE_SHARE / target_fps)
        return tuple((np.searchsorted(shown, wanted + late, side="right") - 1).tolist())
    after = np.clip(np.searchsorted(shown, wanted), 1, max(1, len(shown) - 1))
    before = after - 1
    # A tie goes to the earlier frame; the tolerance keeps rounding of timestamps from deciding it.
    earlier = wanted - shown[before] <= shown[after] - wanted + 1e-6
    return tuple(np.where(earlier, before, after).tolist())


def floor_targets(targets: Sequence[int]) -> tuple[tuple[int, ...], list[str]]:
    """The target lengths rounded down to 8n+1, without duplicates, and a sentence for each one that changed."""
    lengths: list[int] = []
    notes = []
    for target in targets:
        frames = floor_frames(target)
        if frames != target:
            notes.append(f"target_frames {target} is not 8n+1; {frames} is used instead.")
        if frames not in lengths:
            lengths.append(frames)
    return tuple(lengths), notes


def windows(
    frames: int,
    targets: Sequence[int],
    extraction: str,
    stride: int = 1,
    samples: int = 1,
    max_frames: int = 129,
    pad: bool = False,
    interval: int = 1,
) -> list[Window]:
    """The windows that are cut from a clip of `frames` output frames, in order and without duplicates.

    `targets` are 8n+1 already. With `pad`, a clip that is at most 8 frames short of the smallest target yields one
    window of that length. `interval` rounds the one window of `full` down. An empty list means the clip is too short.
    """
    if extraction == "full":
        longest = min(frames, max_frames)
        count = floor_frames((longest - 1) // interval * interval + 1)
        return [Window(0, count)] if count else []
    cut: dict[Window, None] = {}
    for target in targets:
        if target > frames:
            continue
        last = frames - target
        if extraction == "head":
            starts = [0]
        elif extraction == "chunk":
            starts = list(range(0, last + 1, target))
        elif extraction == "slide":
            starts = list(range(0, last + 1, stride))
        else:
            starts = [int(start) for start in np.linspace(0, last, samples)]
        cut.update(dict.fromkeys(Window(start, target) for start in starts))
    if not cut and pad and frames > 0:
        smallest = min(targets)
        if smallest - frames <= PAD_LIMIT:
            return [Window(0, smallest)]
    return list(cut)


def is_window_damaged(line: Timeline, window: Window, damage: Sequence[tuple[int, int]]) -> bool:
    """Whether a window shows source frames of the spans [first, last) that are damaged."""
    first, last = line.picks[window.start], line.picks[min(window.start + window.count, line.frames) - 1]
    return any(begin <= last and first < end for begin, end in damage)


def whole_until(line: Timeline, damage: Sequence[tuple[int, int]]) -> int:
    """How many output frames there are before the first that is damaged."""
    return bisect_left(line.picks, damage[0][0]) if damage else line.frames
