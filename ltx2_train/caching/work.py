"""Progress by work done, so that the time left is right where images and long clips are mixed."""

from __future__ import annotations

from collections.abc import Sequence

from ..events import Events

PARTS = 1_000_000  # a stage is said in so many parts; a total as large as this is shown in per cent


class Work:
    """A stage of jobs of unlike size; `weights` are their sizes, in any unit. The text of its progress counts jobs."""

    def __init__(self, events: Events, stage: str, weights: Sequence[float]) -> None:
        self._events, self._stage = events, stage
        self._total, self._count = sum(weights), len(weights)
        self._done, self._jobs = 0.0, 0

    def begin(self) -> None:
        """Say that the stage begins. Said again when a model has been loaded: that took time, but is no work."""
        self._events.stage(self._stage, PARTS)

    def finished(self, weight: float, label: str, tell: bool = True) -> None:
        """A job is done with, by whomever; `tell` False: the next one will say so."""
        self._done += weight
        self._jobs += 1
        if tell:
            share = self._done / self._total if self._total else 1.0
            done = PARTS if self._jobs >= self._count else min(PARTS - 1, round(PARTS * share))
            self._events.progress(done, PARTS, f"{self._jobs}/{self._count} {label}")
