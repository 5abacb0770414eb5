"""The folder of a run, which is the truth about it.

    run.toml          the resolved settings            dataset.toml   the dataset as it was read
    metrics.jsonl     one row a step                   loss.png       the chart of it
    samples/          what was drawn on the way        states/        what a resume needs
    lora/             the LoRA files, or checkpoints/  manifest.json  what the run is and how far it got, written last
    report.html       all of it as one page, once the run has ended
    data.json         marks of the media, captions and encoders, by which it is told that they were changed

A run is recognised by its identity (identity.py): named values (base, rank, data ...) that must agree for its state to
make sense.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from ..config import RunSettings
from ..dataset.outputs import no_folder
from ..errors import RunError
from ..events import Events
from ..files import TEMPORARY_SUFFIX, parse_json, remove, sweep, why_closed, write_json, write_text
from ..weights.reader import ENDING
from .metrics import newest_step
from .state import list_states, read_tree

FORMAT = 1


@dataclass
class RunFolder:
    """An opened run folder; holds its lock until `close`. One that does not `write` is only looked at: another process
    holds the lock, and nothing is changed in it."""

    path: Path
    identity: Mapping[str, Any]
    manifest: dict[str, Any] = field(default_factory=dict)
    _lock: IO[bytes] | None = None
    writes: bool = True
    begins: bool = False  # whether it takes the place of a start with other settings that came to nothing

    @property
    def name(self) -> str:
        """What the run is called, and its LoRA files: run.name, with a number where run.if_exists made it a new one."""
        return self.path.name

    @property
    def id(self) -> str | None:
        """What tells the run, and the states that are its own, from any other; None where an older version began it."""
        return self.manifest.get("id")

    @property
    def finished(self) -> list[int]:
        """The steps that the run was finished at: it may have been made longer since."""
        return [step for step in self.manifest.get("finished", []) if isinstance(step, int)]

    @property
    def states(self) -> Path:
        return self.path / "states"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    @property
    def loras(self) -> Path:
        """Where its saves go: LoRAs, or checkpoints where it trains the weights themselves."""
        return self.path / saves_in(self.identity)

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    def require_there(self) -> None:
        """Raise RunError where the folder was deleted, moved or replaced since it was opened."""
        if self._lock is None:
            return
        try:
            there = os.stat(self.path / ".lock")
        except OSError:
            there = None
        held = os.fstat(self._lock.fileno())
        if there is None or (there.st_dev, there.st_ino) != (held.st_dev, held.st_ino):
            raise RunError(
                f"The folder of the run, {self.path}, was deleted or moved while the run was trained. What it held "
                "until now, such as run.toml, the curve and earlier saves, is not in it any more."
            )

    def write_manifest(self, status: str, step: int, **more: Any) -> None:
        """Record how far the run got: status is running, stopped, failed or finished. Raises RunError."""
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
        if self.writes:
            write_json(self.path / "manifest.json", self.manifest)

    def record(self, **more: Any) -> None:
        """Write `more` into the manifest, and leave how far the run got as it is. Raises RunError."""
        self.write_manifest(self.manifest.get("status", "running"), self.manifest.get("step", 0), **more)

    def require_state(self) -> None:
        """Raise RunError where the run has taken steps, and no state is left to go on from."""
        problems = []
        for _, path in reversed(list_states(self.states)):
            try:
                read_tree(path)
                return
            except RunError as error:
                problems.append(str(error))
        # manifests of earlier versions do not say which state there was; a save wrote one unless train.state was off
        reached = self.manifest.get("state", self.manifest.get("step", 0))
        if problems or reached:
            why = "\n".join(problems[:3]) or f"{self.states} holds no state."
            raise RunError(
                f"{self.path} is a run of {self.manifest.get('step', 0)} steps that cannot be gone on with:\n{why}\n"
                "It would start over and replace what it has made. Put its states back, choose another run.name, or "
                "set run.if_exists to 'new'."
            )

    def ended(self, status: str) -> None:
        """Record that the run is over, and how, where nothing else has changed; raises nothing."""
        if self.manifest.get("status") == "running":
            with contextlib.suppress(RunError):
                self.write_manifest(status, self.manifest.get("step", 0))

    def close(self, status: str = "") -> None:
        """Give the lock back; with `status`, `ended` first."""
        try:
            if status:
                self.ended(status)
        finally:
            if self._lock is not None:
                self._lock.close()
                self._lock = None
                with contextlib.suppress(OSError):
                    (self.path / ".lock").unlink()


def saves_in(identity: Mapping[str, Any] | None) -> str:
    """The folder in a run's that holds what it saves, by the record of the run."""
    return "checkpoints" if (identity or {}).get("train.what") == "full" else "lora"


def recorded_run(settings: RunSettings) -> tuple[Path, dict[str, Any] | None]:
    """The folder that the run is to have, and the record (identity.py) of the run that it goes on with, or None.

    Raises RunError where nothing in it tells what run it is. Nothing is opened or made. A run that another process has
    begun is one to go on with, whatever it has left.
    """
    path = _path_of(settings)
    if settings.if_exists == "new":
        return _free_name(path), None
    manifest = _manifest_or_states(path)[0] if settings.if_exists == "continue" else None
    if manifest is None or (_is_bare(path, manifest) and not is_trained(path)):
        return path, None
    return path, manifest.get("identity")


def require_usable(settings: RunSettings) -> tuple[Path, dict[str, Any] | None]:
    """The folder that the run is to have, and its manifest, or None. Nothing is opened or made.

    Where the manifest is damaged, what the states tell stands in for it. Raises RunError where the folder holds
    something else, or a run where `settings` want none, or a file lies in place of run.folder or run.export_folder.
    """
    path = _path_of(settings)
    if why := no_folder(path.parent):
        raise RunError(f"run.folder: {path.parent} {why}. Name a folder that can be written.")
    if settings.export_folder is not None and (why := no_folder(settings.export_folder)):
        raise RunError(f"run.export_folder: {settings.export_folder} {why}. Name a folder that can be written.")
    if settings.export_folder is not None and (why := why_closed(settings.export_folder)):
        raise RunError(f"run.export_folder: {settings.export_folder} {why}. Name a folder that can be written.")
    if settings.if_exists == "new":
        path = _free_name(path)
    manifest, _ = _manifest_or_states(path)
    if settings.if_exists == "error" and manifest is not None and not _is_bare(path, manifest):
        raise RunError(
            f"A run named {settings.name!r} exists in {path.parent} and run.if_exists is 'error'. Choose another "
            "run.name, or set run.if_exists to 'continue' or 'new'."
        )
    if why := no_folder(path):
        raise RunError(f"The run folder {path} {why}. Move it away, or choose another run.name.")
    if manifest is None and path.exists() and any(_foreign(path)):
        names = ", ".join(sorted(entry.name for entry in _foreign(path))[:3])
        raise RunError(
            f"{path} is not a run folder: it has no manifest.json but holds {names}. Choose another run.name."
        )
    return path, manifest


def open_run(
    settings: RunSettings, identity: Mapping[str, Any], events: Events | None = None, writes: bool = True
) -> RunFolder:
    """Create or reopen the folder of the run, whose record is `identity` from now on.

    One that does not write looks at what another process has opened for it.
    Where its manifest is damaged, the states tell how far it got, and `events` hears of it; and of a start with another
    record that came to nothing, which this one takes the place of. Raises RunError where the folder cannot be written,
    is in use, or holds something else; nothing in it has been changed then.
    """
    path, manifest = require_usable(settings)
    if not writes:
        return RunFolder(path, identity, manifest or {}, writes=False)
    _, told = _manifest_or_states(path)
    folders = (path, path / "states", path / "samples", path / saves_in(identity))
    for folder in folders:
        if why := no_folder(folder):
            raise RunError(f"{folder} {why}, and the run writes into it. Move it away, or choose another run.name.")
    try:
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        lock = _take_lock(path)
    except OSError as error:
        raise RunError(
            f"The run folder {path} cannot be written: {error.strerror or error}. "
            "Set run.folder to a folder that you can write."
        ) from None
    for folder in folders:
        sweep(folder, older=0)  # whoever wrote here is gone, since the lock was free
    begins = bool(manifest) and _is_bare(path, manifest or {}) and manifest.get("identity") != identity
    if begins:
        manifest, told = None, _begun_anew(path)
    folder = RunFolder(path, identity, manifest or {}, lock, begins=begins)
    try:
        if manifest is None or told:
            reached = folder.manifest.get("step", 0)
            begun = {"created": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "id": folder.id or secrets.token_hex(8)}
            folder.write_manifest("running", reached, state=reached, **begun)
    except BaseException:
        folder.close()
        raise
    if told and events is not None:
        events.message(told, "warning")
    return folder


def _is_bare(path: Path, manifest: Mapping[str, Any]) -> bool:
    """Whether the run at `path` has taken no step and left no state, LoRA or checkpoint: whatever it was to be, there
    is nothing to go on with and nothing to lose."""
    steps = (manifest.get("step"), manifest.get("state"), newest_step(path / "metrics.jsonl"))
    return not any(steps) and not list_states(path / "states") and not _has_saves(path)


def _has_saves(path: Path) -> bool:
    return any(any((path / name).rglob(f"*{ENDING}")) for name in ("lora", "checkpoints"))


def _begun_anew(path: Path) -> str:
    samples = any((path / "samples").glob("*"))
    more = " Samples in it that are not drawn again are of the earlier start." if samples else ""
    return f"{path} is of a start with other settings that took no step and left no LoRA. The run begins anew.{more}"


def _manifest_or_states(path: Path) -> tuple[dict[str, Any] | None, str]:
    """The manifest of the run at `path`, or one made up from its states, and a sentence where that was needed.

    Raises RunError where neither tells what the run is, and it has left LoRAs or checkpoints.
    """
    damage = ""
    try:
        manifest = read_manifest(path)
        if manifest is not None:
            return manifest, ""
    except RunError as error:
        damage = str(error)
    for step, state in reversed(list_states(path / "states")):
        with contextlib.suppress(RunError):
            tree = read_tree(state)
            missing = damage or f"{path / 'manifest.json'} is missing."
            return (
                {name: tree.get(name) for name in ("identity", "id")}
                | {"status": "running", "step": step, "state": step},
                f"{missing} What the run is, and how far it got, is taken from {state.name}.",
            )
    if damage and _has_saves(path):
        raise RunError(
            f"{damage} No state can be read either, so the run would start over beside what it has made. "
            "Choose another run.name, or set run.if_exists to 'new'."
        )
    return ({}, f"{damage} The run has left nothing, and is begun anew.") if damage else (None, "")


def read_manifest(path: Path) -> dict[str, Any] | None:
    """The manifest of the run folder `path`, or None where there is none. Raises RunError where it is damaged."""
    file = path / "manifest.json"
    try:
        manifest = parse_json(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise RunError(f"Cannot read {file}: {error.strerror or error}.") from None
    except ValueError:
        manifest = None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("step", 0), int):
        raise RunError(f"{file} is damaged.")
    return manifest


def is_undrawn(state: Mapping[str, Any], manifest: Mapping[str, Any]) -> bool:
    """Whether the samples that were due at the step of `state` are still to be drawn, as the manifest has it."""
    return bool(state.get("undrawn")) and manifest.get("drawn") != state.get("step")


def delete_old_states(folder: Path, keep: int, step: int) -> str:
    """Delete all but the newest `keep` states of the first `step` steps; says what could not be deleted.

    Later states are damaged ones that the run went on without, and count for nothing.
    """
    return remove([path for number, path in list_states(folder) if number <= step][:-keep])


def save_text(folder: RunFolder, name: str, text: str) -> None:
    """Write a text file into the run folder unless it already says so."""
    if not folder.writes:
        return
    path = folder.path / name
    with contextlib.suppress(OSError):
        if path.read_bytes() == text.encode("utf-8"):
            return
    write_text(path, text)


def _foreign(path: Path) -> list[Path]:
    """What stands in a folder without a manifest and is not the skeleton of a run killed while it was made."""
    own = {"states", "samples", "lora", "checkpoints", ".lock"}
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


def is_trained(path: Path) -> bool:
    """Whether a process trains the run at `path` at this moment."""
    if not (path / ".lock").exists():
        return False
    try:
        _lock_once(path, looks=True).close()
    except RunError:
        return True
    except OSError:
        return False
    return False


def _take_lock(path: Path) -> IO[bytes]:
    """Lock the folder for this process; the system frees it however the process ends."""
    for _ in range(5):
        with contextlib.suppress(RunError):
            return _lock_once(path)
        time.sleep(0.02)  # somebody may only be looking whether it is trained
    return _lock_once(path)


def _lock_once(path: Path, looks: bool = False) -> IO[bytes]:
    """`looks`: whether it is only looked at, which one who may not write can do as well."""
    writes = not looks or os.access(path / ".lock", os.W_OK)
    handle = open(path / ".lock", "ab" if writes else "rb")
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
