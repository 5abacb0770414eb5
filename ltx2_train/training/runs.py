"""The runs of a folder, as their files tell of them: for a page or a program that was not there from the start."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import RunError
from ..files import parse_json
from .lora_files import list_loras
from .metrics import clean_row, newest_step, read_rows, validated
from .requests import is_paused
from .run_folder import is_trained, read_manifest

SAMPLE_ENDINGS = (".mp4", ".png", ".wav", ".flac")
_SAMPLE = re.compile(r"step_(\d+)_p(\d+)_s(\d+)")


@dataclass(frozen=True)
class RunFacts:
    """How far a run got. `status` is running, paused, stopped, failed, finished, interrupted where its process ended
    without a word, or unreadable where its files cannot be read; `loras` are steps and file names, `resumes` the steps
    at which it went on after it had ended."""

    name: str
    status: str
    step: int
    total: int | None
    created: str
    updated: str
    loras: tuple[tuple[int, str], ...]
    resumes: tuple[int, ...] = ()

    def table(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


@dataclass(frozen=True)
class DrawnSample:
    """A file of `samples/`: the step, the number of its prompt from 1 on, and the seed."""

    step: int
    prompt: int
    seed: int
    path: Path

    @property
    def picture(self) -> Path | None:
        """The picture of a sound that is not inside a video, where there is one."""
        path = self.path.with_name(f"{self.path.stem}.sound.png")
        return path if self.path.suffix in (".wav", ".flac") and path.is_file() else None


def list_runs(folder: Path) -> list[RunFacts]:
    """The runs in `folder`, the newest first; what is no run is left out."""
    found = []
    if folder.is_dir():
        for path in sorted(folder.iterdir()):
            if path.is_dir() and (facts := run_facts(path)) is not None:
                found.append(facts)
    return sorted(found, key=lambda facts: facts.updated, reverse=True)


def run_facts(folder: Path) -> RunFacts | None:
    """What the folder says of its run; None where it holds none."""
    try:
        return _facts(folder)
    except OSError:
        return RunFacts(folder.name, "unreadable", 0, None, "", "", ())


def _facts(folder: Path) -> RunFacts | None:
    """The same. Raises OSError where a folder of the run is closed to this user."""
    try:
        manifest = read_manifest(folder)
    except RunError:  # its states say how far it got, and Run reads them
        return RunFacts(folder.name, "unreadable", 0, None, "", "", _loras(folder))
    if manifest is None:
        return None
    status, step = _status(folder, manifest), int(manifest.get("step", 0))
    if status in ("running", "paused"):  # the manifest is written at saves alone
        step = max(step, newest_step(folder / "metrics.jsonl"))
    return RunFacts(
        folder.name,
        status,
        step,
        manifest.get("total"),
        str(manifest.get("created", "")),
        str(manifest.get("updated", "")),
        _loras(folder),
        tuple(step for step in manifest.get("resumes", ()) if isinstance(step, int)),
    )


def thinned_metrics(folder: Path, points: int = 500) -> list[dict[str, Any]]:
    """About `points` rows of the metrics, evenly spread, with the first and the last, and with each that has
    a validation loss or tells of a step that was skipped."""
    rows = [clean_row(row) for row in read_rows(folder / "metrics.jsonl")]
    stride = max(1, math.ceil(len(rows) / max(1, points)))
    ends = {0, len(rows) - 1}
    return [
        row
        for number, row in enumerate(rows)
        if number % stride == 0 or number in ends or validated(row) or row.get("skipped")
    ]


def list_samples(folder: Path) -> list[DrawnSample]:
    """What the run has drawn, by step and prompt; a sound that lies beside its video is not named again."""
    return sorted(_samples(folder / "samples"), key=lambda one: (one.step, one.prompt, one.seed, one.path.name))


@functools.lru_cache(maxsize=1024)
def prompt_of(path: Path) -> str:
    """The prompt that a sample was drawn from, as its file says; "" where it does not, as of a WAV."""
    try:
        if path.suffix == ".png":
            from PIL import Image

            with Image.open(path) as picture:
                text = picture.info.get("comment", "")
        else:
            import av

            with av.open(str(path)) as container:
                text = container.metadata.get("comment", "")
        told = parse_json(text)
    except (OSError, ValueError):
        return ""
    return str(told.get("prompt", "")) if isinstance(told, dict) else ""


def _loras(folder: Path) -> tuple[tuple[int, str], ...]:
    saved = (one for kind in ("lora", "checkpoints") for one in list_loras(folder / kind, folder.name))
    return tuple((step, path.name) for step, path in saved)


def _samples(folder: Path) -> Iterator[DrawnSample]:
    if not folder.is_dir():
        return
    files = {path.name: path for path in folder.iterdir() if path.suffix in SAMPLE_ENDINGS}
    for name, path in files.items():
        found = _SAMPLE.match(name)
        if found is None or ".sound." in name or (path.suffix in (".wav", ".flac") and f"{path.stem}.mp4" in files):
            continue
        yield DrawnSample(int(found[1]), int(found[2]), int(found[3]), path)


def _status(folder: Path, manifest: Mapping[str, Any]) -> str:
    status = str(manifest.get("status", ""))
    if status != "running":
        return status
    if not is_trained(folder):
        return "interrupted"
    return "paused" if is_paused(folder) else "running"
