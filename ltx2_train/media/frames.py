"""Which frames of a clip are trained on.

Frame rate. A source is resampled when |ceil(source rate) - target rate| > 1, so that 23.976 or 29.97 next to a target
of 24 or 30 loses nothing to rounding; a clip of varying frame rate is always resampled. Output frame k shows the source
frame whose time is nearest to k / target rate, so that fast sources drop frames, slow ones repeat them, and motion
keeps its speed in both. Times come from the file's timestamps, or from `source_fps` where the user overrides them.

Windows. A clip is cut into windows of `target_frames`, counted in output frames and rounded down to 8n+1, since the
VAE turns 8n+1 frames into n+1 latents and silently drops the rest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..shapes import TEMPORAL_FACTOR, floor_frames

VARYING_SHARE = 0.05
VARYING_STEP = 0.3
PAD_LIMIT = TEMPORAL_FACTOR


@dataclass(frozen=True)
class Timeline:
    """Output frame k of a clip shows source frame `picks[k]`; `fps` is the rate the frames are meant to run at."""

    picks: tuple[int, ...]
    source_fps: float
    fps: float
    resampled: bool
    notes: tuple[str, ...] = ()

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
        times = [index / source for index in range(len(times))]
    varying = source_fps is None and varies(times)
    if varying:
        notes.append(f"{name} has a varying frame rate; its timestamps choose the frames")
    if not varying and abs(math.ceil(round(source, 3)) - target_fps) <= 1:
        return Timeline(tuple(range(len(times))), source, target_fps, False, tuple(notes))
    notes.append(f"Resampling {name}: {source:.2f} FPS -> {target_fps:.2f} FPS")
    if source < target_fps and not varying:
        notes.append(f"{name} is slower than the target; frames are repeated to keep its speed")
    return Timeline(_nearest(times, source, target_fps), source, target_fps, True, tuple(notes))


def _nearest(times: Sequence[float], source_fps: float, target_fps: float) -> tuple[int, ...]:
    shown = np.asarray(times, dtype=np.float64) - times[0]
    # The last frame is shown for one usual step, so a clip of F frames lasts F steps.
    step = float(np.median(np.diff(shown))) if len(shown) > 1 else 1.0 / source_fps
    count = max(1, int((shown[-1] + step) * target_fps + 1e-6))
    wanted = np.arange(count) / target_fps
    after = np.clip(np.searchsorted(shown, wanted), 1, max(1, len(shown) - 1))
    if len(shown) == 1:
        return (0,) * count
    before = after - 1
    # A tie goes to the earlier frame; the tolerance keeps rounding of timestamps from deciding it.
    earlier = wanted - shown[before] <= shown[after] - wanted + 1e-6
    return tuple(int(index) for index in np.where(earlier, before, after))


def floor_targets(targets: Sequence[int]) -> tuple[tuple[int, ...], list[str]]:
    """The target lengths rounded down to 8n+1, without duplicates, and a sentence for each one that changed."""
    kept: list[int] = []
    notes = []
    for target in targets:
        frames = floor_frames(target)
        if frames != target:
            notes.append(f"target_frames {target} is not 8n+1; {frames} is used instead.")
        if frames not in kept:
            kept.append(frames)
    return tuple(kept), notes


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
    found: dict[Window, None] = {}
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
        found.update(dict.fromkeys(Window(start, target) for start in starts))
    if not found and pad and frames > 0:
        smallest = min(targets)
        if smallest - frames <= PAD_LIMIT:
            return [Window(0, smallest)]
    return list(found)
