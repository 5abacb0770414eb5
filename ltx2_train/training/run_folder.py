"""The folder of a run, which is the truth about it.

    run.toml          the resolved settings            dataset.toml   the dataset as it was read
    metrics.jsonl     one row a step                   loss.png       the chart of it
    samples/          what was drawn on the way        states/        what a resume needs
    lora/             the LoRA files                   manifest.json  what the run is and how far it got, written last

A run is recognised by its identity (identity.py): named values (base, rank, data ...) that must agree for its state to
make sense.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from ..config import RunSettings
from ..errors import RunError
from ..files import TEMPORARY_SUFFIX, parse_json, write_json, write_text
from .state import list_states

FORMAT = 1


@dataclass
class RunFolder:
    """An opened run folder; holds its lock until `close`."""

    path: Path
    identity: Mapping[str, Any]
    manifest: dict[str, Any] = field(default_factory=dict)
    _lock: IO[bytes] | None = None

    @property
    def states(self) -> Path:
        return self.path / "states"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    @property
    def loras(self) -> Path:
        return self.path / "lora"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    def write_manifest(self, status: str, step: int, **more: Any) -> None:
        """Record how far the run got: status is running, stopped, failed or finished."""
        self.manifest = {
            **self.manifest,
            "format": FORMAT,
            "name": self.path.name,
            "identity": dict(self.identity),
            "status": status,
            "step": step,
            "updated": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            **more,
        }
        write_json(self.path / "manifest.json", self.manifest)

    def close(self) -> None:
        """Give the lock back."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None
            with contextlib.suppress(OSError):
                (self.path / ".lock").unlink()


def recorded_run(settings: RunSettings) -> tuple[Path, dict[str, Any] | None]:
    """The folder that the run is to have, and the record (identity.py) of the run that it goes on with, or None.

    Raises RunError where its manifest is damaged. Nothing is opened or made.
    """
    path = _path_of(settings)
    if settings.if_exists == "new":
        return _free_name(path), None
    manifest = read_manifest(path) if settings.if_exists == "continue" else None
    return path, None if manifest is None else manifest.get("identity")


def require_usable(settings: RunSettings) -> tuple[Path, dict[str, Any] | None]:
    """The folder that the run is to have, and its manifest, or None. Nothing is opened or made.

    Raises RunError where it holds something else, or a run where `settings` want none.
    """
    path = _path_of(settings)
    if settings.if_exists == "new":
        path = _free_name(path)
    manifest = read_manifest(path)
    if settings.if_exists == "error" and manifest is not None:
        raise RunError(
            f"A run named {settings.name!r} exists in {path.parent} and run.if_exists is 'error'. Choose another "
            "run.name, or set run.if_exists to 'continue' or 'new'."
        )
    if manifest is None and path.exists() and any(_foreign(path)):
        names = ", ".join(sorted(entry.name for entry in _foreign(path))[:3])
        raise RunError(
            f"{path} is not a run folder: it has no manifest.json but holds {names}. Choose another run.name."
        )
    return path, manifest


def open_run(settings: RunSettings, identity: Mapping[str, Any]) -> RunFolder:
    """Create or reopen the folder of the run, whose record is `identity` from now on.

    Raises RunError where it cannot be written, is in use, or holds something else; nothing in it has been changed
    then.
    """
    path, manifest = require_usable(settings)
    try:
        for folder in (path, path / "states", path / "samples", path / "lora"):
            folder.mkdir(parents=True, exist_ok=True)
        lock = _take_lock(path)
    except OSError as error:
        raise RunError(
            f"The run folder {path} cannot be written: {error.strerror or error}. "
            "Set run.folder to a folder that you can write."
        ) from None
    for leftover in path.rglob(f"*{TEMPORARY_SUFFIX}"):  # of a process that was killed while it wrote
        with contextlib.suppress(OSError):
            leftover.unlink()
    folder = RunFolder(path, identity, dict(manifest or {}), lock)
    try:
        if manifest is None:
            folder.write_manifest("running", 0, created=time.strftime("%Y-%m-%dT%H:%M:%S%z"))
    except BaseException:
        folder.close()
        raise
    return folder


def read_manifest(path: Path) -> dict[str, Any] | None:
    """The manifest of the run folder `path`, or None where there is none. Raises RunError where it is damaged."""
    try:
        text = (path / "manifest.json").read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise RunError(f"Cannot read {path / 'manifest.json'}: {error.strerror or error}.") from None
    try:
        manifest = parse_json(text)
        assert isinstance(manifest, dict)
        return manifest
    except (ValueError, AssertionError):
        raise RunError(f"{path / 'manifest.json'} is damaged. Delete it, or choose another run.name.") from None


def rotate(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` states."""
    for _, path in list_states(folder)[:-keep]:
        path.unlink(missing_ok=True)


def save_text(folder: RunFolder, name: str, text: str) -> None:
    """Write a text file into the run folder unless it already says so."""
    path = folder.path / name
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)


def _foreign(path: Path) -> list[Path]:
    """What stands in a folder without a manifest and is not the skeleton of a run killed while it was made."""
    own = {"states", "samples", "lora", ".lock"}
    if not path.is_dir():
        return [path]
    return [
        entry
        for entry in path.iterdir()
        if not (entry.name in own and (entry.is_file() or not any(entry.iterdir())))
        and not entry.name.endswith(TEMPORARY_SUFFIX)
    ]


def _path_of(settings: RunSettings) -> Path:
    return (settings.folder or Path("runs").absolute()) / settings.name


def _free_name(path: Path) -> Path:
    candidate, number = path, 2
    while candidate.exists():
        candidate, number = path.with_name(f"{path.name}_{number}"), number + 1
    return candidate


def _take_lock(path: Path) -> IO[bytes]:
    """Lock the folder for this process; the system frees it however the process ends."""
    handle = open(path / ".lock", "ab")
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(handle.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        handle.close()
        raise RunError(f"The run in {path} is being trained by another process. Wait for it, or stop it.") from None
    return handle
