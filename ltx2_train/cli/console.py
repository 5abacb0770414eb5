"""Progress in a terminal: one line that is rewritten, or a line now and then where the output is a file."""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from .. import terms_text
from ..events import Events
from .output import Lasting


class ConsoleEvents(Events):
    """Prints stages, progress with time left, losses and messages to `stream`; Ctrl-C asks for a stop."""

    def __init__(
        self, stream: TextIO | None = None, every: float = 5.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.stream = Lasting(sys.stderr) if stream is None else stream
        self.live = self.stream.isatty()
        self.every = 0.1 if self.live else every
        self.stop = threading.Event()
        self._clock = clock
        self._stage, self._begun, self._shown, self._open = "", clock(), -math.inf, False

    def stage(self, name: str, total: int | None = None) -> None:
        if name != self._stage:
            self._line(f"-- {name}" + (f" ({total})" if total and total < 10**6 else ""))
        self._stage, self._begun, self._shown = name, self._clock(), -math.inf

    def progress(self, done: int, total: int, text: str = "") -> None:
        now = self._clock()
        if now - self._shown < self.every and done < total:
            return
        self._shown = now
        spent = now - self._begun
        left = f", {duration(spent / done * (total - done))} left" if 0 < done < total and spent > 1 else ""
        count = f"{done}/{total}" if total < 10**6 else f"{done / max(total, 1):.0%}"
        self._rewrite(f"   {' '.join(part for part in (count, text) if part)}{left}")

    def step(self, metrics: dict[str, Any]) -> None:
        now = self._clock()
        last = metrics["step"] == metrics["total"]
        if now - self._shown < self.every and not last:
            return
        self._shown = now
        loss = "not finite" if metrics["loss"] is None else f"{metrics['loss']:.4f}"
        if metrics["loss"] is not None:
            loss += terms_text(metrics)
        self._rewrite(
            f"   step {metrics['step']}/{metrics['total']}  loss {loss}  lr {metrics['lr']:.2e}  "
            f"{metrics['seconds']:.2f} s/step  {duration(metrics['eta'])} left"
        )

    def sample(self, path: Path, info: dict[str, Any]) -> None:
        self._line(f"   sample: {path}")

    def saved(self, kind: str, path: Path) -> None:
        if kind in ("lora", "export"):
            self._line(f"   {kind}: {path}")

    def message(self, text: str, level: str = "info") -> None:
        self._line("warning: " + text if level == "warning" else "   " + text.replace("\n", "\n   "))

    def should_stop(self) -> bool:
        return self.stop.is_set()

    def catch_interrupt(self) -> None:
        """Make the first Ctrl-C a request to stop, and the second one leave at once.

        A terminal that is closed asks for a stop too, as often as it says so: the shell and the system both do. Where
        `nohup` has had it ignored, it stays so.
        """

        def handler(number: int, frame: Any) -> None:
            if self.stop.is_set():
                if number in closed:
                    return
                raise KeyboardInterrupt
            self.stop.set()
            self._line("stopping after this step; press Ctrl-C again to leave at once")

        closed = {getattr(signal, name) for name in ("SIGHUP", "SIGBREAK") if hasattr(signal, name)}
        for number in (signal.SIGINT, signal.SIGTERM, *closed):
            if number not in closed or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, handler)

    def finish(self) -> None:
        """End an open progress line."""
        if self._open:
            self.stream.write("\n")
            self._open = False
            self.stream.flush()

    def _line(self, text: str) -> None:
        self.finish()
        self.stream.write(text + "\n")
        self.stream.flush()

    def _rewrite(self, text: str) -> None:
        if self.live:
            self.stream.write("\r\x1b[2K" + text[:150])
            self._open = True
            self.stream.flush()
        else:
            self._line(text)


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
