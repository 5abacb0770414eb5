"""What a node shows of the work it is doing: stage, step, time left, the curve of the loss, the newest sample.

One `LiveView` follows one node. Its `payload` holds the whole view, so a page that was reloaded, or a second one, is
complete with the next message; its `picture` is the same for clients without our page.
"""

from __future__ import annotations

import functools
import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from .. import ltx2_train as core

CURVE_POINTS = 120
KEPT_ROWS = 4096
MEDIAN_OF = 50
TRAIN = "train"  # the stage of the steps, which others interrupt
MARKS = ("save", "sample", "resume")
PAUSED = "Paused"  # how the sentence begins by which the page knows that a run waits
MOST_MARKS = 200  # of a kind, the newest
# how the page shows what a folder says of its run, where that is not the same word
TOLD_STATES = {
    "paused": ("running", f"{PAUSED}."),
    "interrupted": ("stopped", "Its process ended without a word. Run again to go on from the last saved state."),
    "unreadable": ("failed", "Its manifest.json is damaged. Run again: its states say how far it got."),
    "stopped": ("stopped", "Stopped. Run again to go on."),
    "failed": ("failed", "It ended in an error, which stands in ComfyUI's log. Run again to go on."),
}


class LiveView:
    """The view of one node; `clock` gives seconds and is replaced in tests."""

    def __init__(self, node: str, title: str = "", clock: Any = time.monotonic) -> None:
        self.node = node
        self.title = title
        self.stage = ""
        self.text = ""
        self.state = "running"
        self.done = 0
        self.total: int | None = None
        self.message = ""
        self.warned = False
        self.waits = ""  # the sentence that says so while the run is paused
        self.metrics: dict[str, Any] = {}
        self.memory: dict[str, Any] = {}
        self.sample: dict[str, Any] | None = None
        self.sample_file: Path | None = None
        self._clock = clock
        self._began = clock()
        self._seconds: deque[float] = deque(maxlen=MEDIAN_OF)
        self._rows: list[dict[str, Any]] = []
        self._every = 1
        self._validation: list[list[float]] = []  # step and loss on clips that are not trained on
        self._marks: dict[str, list[int]] = {kind: [] for kind in MARKS}
        self._loaded = False  # the next step is the first after an earlier part

    def load(self, folder: Path) -> None:
        """Take up the curve and the marks of an earlier part of the run, so that it goes on where it ended."""
        metrics = folder / "metrics.jsonl"
        try:
            lines = metrics.read_bytes().count(b"\n") if metrics.exists() else 0
        except OSError:  # the run says what is wrong with it
            return
        self._rows, self._every, self._validation = [], 1, []
        while lines > KEPT_ROWS * self._every:  # what would be thinned out later is not read
            self._every *= 2
        rows = core.read_rows(metrics, self._every)
        for row in rows:
            self._keep(row)
        facts = core.run_facts(folder)
        self._marks = {
            "save": sorted({step for step, _ in facts.loras} if facts else ()),
            "sample": sorted({sample.step for sample in core.list_samples(folder)}),
            "resume": list(facts.resumes) if facts else [],
        }
        self._loaded = True

    def mark(self, kind: str, step: Any) -> None:
        """Note that at `step` something was saved or drawn, or that the run went on."""
        if isinstance(step, int) and step not in self._marks[kind][-MOST_MARKS:]:
            self._marks[kind].append(step)

    @classmethod
    def of_run(cls, folder: Path, address_of: Callable[[Path], Any]) -> LiveView | None:
        """What the folder of a run tells, whoever trained it; None where it holds no run.

        `address_of` makes the address of a sample for the page.
        """
        facts = core.run_facts(folder)
        if facts is None:
            return None
        view = cls("", facts.name)
        view.load(folder)
        view.state, view.message = TOLD_STATES.get(facts.status, (facts.status, ""))
        view.stage, view.done, view.total = TRAIN, facts.step, facts.total
        view.metrics = {"step": facts.step, **(view._rows[-1] if view._rows else {})}
        if drawn := core.list_samples(folder):
            newest = drawn[-1]
            view.sample = {"step": newest.step, "seed": newest.seed, "file": address_of(newest.path)}
        return view

    def begin(self, stage: str, total: int | None) -> None:
        total = 100 if total is not None and total >= 10**6 else total
        step = self.metrics.get("step")
        done = step if stage == TRAIN and isinstance(step, int) else 0  # it goes on after samples and saves
        self.stage, self.total, self.done, self.text = stage, total, done, ""
        if not self.warned:  # a warning stays in view to the end
            self.message = ""

    def say(self, text: str, warning: bool = False) -> None:
        """Show a sentence: a warning in place of anything, anything else unless there is a warning; that the run waits
        is shown until the next step."""
        if text.startswith(PAUSED):
            self.waits = text
        elif warning or not self.warned:
            self.message, self.warned = text, warning

    def progress(self, done: int, total: int, text: str = "") -> None:
        if total >= 10**6:  # parts of the work, which nobody counts
            done, total = 100 * done // total, 100
        self.done, self.total, self.text = done, total, text

    def step(self, metrics: Mapping[str, Any]) -> None:
        """Take in the row of one training step."""
        self.metrics, self.waits = dict(metrics), ""
        step = metrics.get("step")
        if isinstance(step, int):
            self.done, self.total = step, metrics.get("total", self.total)
        if self._rows and isinstance(step, int) and step <= self._rows[-1]["step"]:  # a resume dropped what came after
            self._rows = [row for row in self._rows if row["step"] < step]
            self._validation = [point for point in self._validation if point[0] < step]
            self._marks = {kind: [at for at in steps if at < step] for kind, steps in self._marks.items()}
        if self._loaded and isinstance(step, int) and step > 1:
            self.mark("resume", step - 1)
        self._loaded = False
        self._keep(metrics)
        seconds = metrics.get("seconds")
        if isinstance(seconds, (int, float)) and math.isfinite(seconds):
            self._seconds.append(float(seconds))

    def seconds_a_step(self) -> float | None:
        return statistics.median(self._seconds) if self._seconds else None

    def seconds_left(self) -> float | None:
        """Steps left at the median pace of the newest ones, in every stage; samples and saves are not in it."""
        pace, step, total = self.seconds_a_step(), self.metrics.get("step"), self.metrics.get("total")
        if pace is None or not isinstance(total, int) or not isinstance(step, int):
            return None
        return max(0, total - step) * pace

    def curve(self, key: str = "loss") -> list[list[float | None]]:
        """Up to CURVE_POINTS entries [step, loss, smoothed loss], evenly thinned."""
        losses = [row.get(key) for row in self._rows]
        smoothed = core.smooth(losses)
        stride = max(1, math.ceil(len(losses) / CURVE_POINTS))
        picked = list(range(len(losses) - 1, -1, -stride))[::-1]
        return [[self._rows[i]["step"], losses[i], smoothed[i]] for i in picked]

    def curves(self) -> dict[str, Any]:
        """The curve of the loss; of a loss of several terms, one of each.

        `curve` is the first, of the name `curve_name`. `curve_audio` is that of sound beside a picture, and
        `curve_more` holds by name what is neither.
        """
        names = core.terms_of(self._rows)
        if len(names) < 2:
            return {"curve_name": core.LOSS, "curve": self.curve(), "curve_audio": [], "curve_more": {}}
        first, *rest = names
        curves = {name: self.curve(core.loss_column(name)) for name in rest}
        return {
            "curve_name": first,
            "curve": self.curve(core.loss_column(first)),
            "curve_audio": curves.pop("audio", []),
            "curve_more": curves,
        }

    def status_line(self) -> str:
        """One line of text: what is done, how far it is, how long it takes."""
        count = f" {self.done}/{self.total}" if self.total else ""
        parts = [f"{self.stage}{count}".strip()]
        if self.text:
            parts.append(self.text)
        loss = self.metrics.get("loss")
        if isinstance(loss, (int, float)):
            parts.append(f"loss {loss:.4f}{core.terms_text(core.clean_row(self.metrics))}")
        if (pace := self.seconds_a_step()) is not None and self.metrics:
            parts.append(f"{pace:.2f} s/step")
        if (left := self.seconds_left()) is not None and left > 0:
            parts.append(f"{rough_duration(left)} left")
        return " | ".join(part for part in parts if part)

    def payload(self) -> dict[str, Any]:
        """The view as plain values."""
        pace, left = self.seconds_a_step(), self.seconds_left()
        return {
            "node": self.node,
            "title": self.title,
            "state": self.state,
            "stage": self.stage,
            "text": self.text,
            "done": self.done,
            "total": self.total,
            "step": self.metrics.get("step"),
            "loss": self.metrics.get("loss"),
            "lr": self.metrics.get("lr"),
            "seconds_a_step": pace,
            "seconds_left": left,
            "elapsed": self._clock() - self._began,
            "memory": self.memory,
            "message": self.waits or self.message,
            "sample": self.sample,
            "loss_video": self.metrics.get("loss_video"),
            "loss_audio": self.metrics.get("loss_audio"),
            **self.curves(),
            "validation": self._validation[-CURVE_POINTS:],
            "marks": {kind: steps[-MOST_MARKS:] for kind, steps in self._marks.items()},
        }

    def picture(self, size: tuple[int, int] = (480, 240)) -> Any:
        """The chart of the loss with the newest sample beside it, as a PIL image."""
        from PIL import Image, ImageOps

        frame = None if self.sample_file is None else first_frame(self.sample_file)
        if frame is None and not self._rows:
            return None
        chart = core.chart_image(self._rows, self.status_line(), size) if self._rows else None
        if frame is None:
            return chart
        frame = ImageOps.contain(frame, (size[0], size[1]))
        if chart is None:
            return frame
        joined = Image.new("RGB", (chart.width + frame.width, size[1]), "#ffffff")
        joined.paste(chart, (0, 0))
        joined.paste(frame, (chart.width, (size[1] - frame.height) // 2))
        return joined

    def _keep(self, row: Mapping[str, Any]) -> None:
        step = row.get("step")
        names = _names()
        measured = _finite(row.get(names.validation))
        if isinstance(step, int) and measured is not None:
            self._validation.append([step, measured])
            del self._validation[:-KEPT_ROWS]
        if not isinstance(step, int) or step % self._every:
            return
        losses = dict.fromkeys((*names.losses, *map(names.column, names.terms([row]))))
        self._rows.append({"step": step, **{column: _finite(row.get(column)) for column in losses}})
        if len(self._rows) > KEPT_ROWS:  # a long run keeps its whole curve, at half the detail
            self._every *= 2
            self._rows = [kept for kept in self._rows if kept["step"] % self._every == 0]


class _Names(NamedTuple):
    """What the columns of the metrics are called: asked of the core once, since a run has ten thousands of rows."""

    validation: str
    losses: tuple[str, ...]
    column: Callable[[str], str]
    terms: Callable[[Iterable[Mapping[str, Any]]], list[str]]


@functools.cache
def _names() -> _Names:
    column = core.loss_column
    losses = (core.LOSS, *map(column, core.STREAMS))
    return _Names(f"{core.VALIDATION}{core.LOSS}", losses, column, core.terms_of)


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def json_safe(value: Any) -> Any:
    """`value` as JSON can carry it: numbers that are not finite become None, everything unknown its text.

    ComfyUI's server ends where a message cannot be encoded, so all that is sent goes through here.
    """
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): json_safe(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [json_safe(inner) for inner in value]
    item = getattr(value, "item", None)  # numpy and torch scalars
    if callable(item) and getattr(value, "ndim", 0) == 0:
        return json_safe(item())
    return str(value)


def first_frame(path: Path) -> Any:
    """The first picture of a video or image file, or that of a sound, as a PIL image; None where it cannot be read."""
    try:
        if path.suffix.lower() in (".wav", ".flac"):
            path = path.with_name(f"{path.stem}.sound.png")
        if path.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp"):
            from PIL import Image

            with Image.open(path) as image:
                return image.convert("RGB")
        import av

        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                return frame.to_image()
    except Exception:  # a preview is a courtesy: whatever is wrong with the file must not end a run
        return None
    return None


def rough_duration(seconds: float) -> str:
    """`seconds` as people say them of what is yet to come: 45 s, 12 min, 2 h 05 min."""
    if seconds < 90:
        return f"{round(seconds)} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
