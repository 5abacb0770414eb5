"""Whether steps take about as long as the trial did. On Windows a driver that runs out of memory says nothing: it moves
some of it to RAM, and steps take many times as long."""

from __future__ import annotations

from collections import deque
from statistics import median

import torch

from ...events import Events
from .memory_plan import seconds

SLOWER = 2.0  # times the trial
STEPS = 5  # in a row, of which the middle one counts


class Pace:
    """Holds steps of a run against `expected` seconds (None: nothing is known), and says once that they are slower."""

    def __init__(self, device: torch.device, expected: float | None, events: Events) -> None:
        self._device, self._expected, self._events = device, expected, events
        self._last: deque[float] = deque(maxlen=STEPS)

    def step(self, taken: float) -> None:
        """A step took so many seconds."""
        self._last.append(taken)
        if self._expected is None or len(self._last) < STEPS or median(self._last) < SLOWER * self._expected:
            return
        sentence = f"Steps take {seconds(median(self._last))}, and the trial took {seconds(self._expected)}. "
        if self._device.type == "cuda":
            free, total = torch.cuda.mem_get_info(self._device)
            mine = torch.cuda.memory_reserved(self._device)
            sentence += (
                f"This run holds {mine / 1e9:.1f} of the {total / 1e9:.1f} GB of the card, other programs "
                f"{max(0, total - free - mine) / 1e9:.1f}. Where that is nearly all, the driver keeps some in RAM: "
                "close what else uses the card, or set memory.fit to a smaller size."
            )
        else:
            sentence += "Something else uses the processor, or RAM is short."
        self._events.message(sentence, "warning")
        self._expected = None
