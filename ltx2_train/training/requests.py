"""What a person asks of a run while it goes on: empty files in its folder, so that any process can ask.

asked/save    write a state and a LoRA after the step at hand      asked/stop    save and end
asked/sample  draw the samples after it                            asked/pause   wait after it, while the file is there
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ..errors import ConfigError, RunError, Stopped
from ..events import Events, Passing
from ..files import write_text
from .run_folder import is_trained, read_manifest

REQUESTS = ("save", "sample", "pause", "go", "stop")
PAUSE_SECONDS = 0.5


def ask_run(folder: Path | str, request: str) -> str:
    """Ask the run in `folder` for one of REQUESTS; "go" ends a pause. Returns what will happen.

    Raises ConfigError for another request, RunError where there is no run, or nobody trains it.
    """
    folder = Path(folder)
    if request not in REQUESTS:
        raise ConfigError(f"A run cannot be asked for {request!r}; it can be asked for {', '.join(REQUESTS)}.")
    if read_manifest(folder) is None:
        raise RunError(f"{folder} holds no run. Name the folder that has its manifest.json.")
    if not is_trained(folder):
        raise RunError(f"Nobody trains {folder.name} at the moment. Start it, or go on with it, first.")
    if request == "go":
        _forget(folder, "pause")
        return f"{folder.name} goes on."
    try:
        _place(folder, request).parent.mkdir(exist_ok=True)
        write_text(_place(folder, request), "")
    except OSError as error:
        raise RunError(f"{folder} cannot be written: {error.strerror or error}.") from None
    then = {"save": "saves", "sample": "draws its samples", "pause": "waits", "stop": "saves and ends"}[request]
    return f"{folder.name} {then} after the step at hand."


def is_paused(folder: Path) -> bool:
    """Whether the run was asked to wait."""
    return _place(folder, "pause").exists()


class Asked(Passing):
    """The events of a run, which also stops when its folder says so, and what else is asked in there.

    Of several processes one alone has the `folder`; the others hear of it from that one.
    """

    def __init__(self, host: Events, folder: Path | None) -> None:
        super().__init__(host)
        self._folder = folder
        self._stops = True
        for what in REQUESTS:  # asked of an earlier part of the run
            self.taken(what)

    def should_stop(self) -> bool:
        asked = super().should_stop() or (self._folder is not None and _place(self._folder, "stop").exists())
        return self._stops and asked

    @contextlib.contextmanager
    def unstopped(self) -> Iterator[None]:
        """While entered, nothing is said to have to stop: what has begun in all processes ends in all."""
        self._stops = False
        try:
            yield
        finally:
            self._stops = True

    def taken(self, what: str) -> bool:
        """Whether `what` was asked since the last time."""
        return self._folder is not None and _forget(self._folder, what)

    def paused(self) -> bool:
        """Whether the run is to wait."""
        return self._folder is not None and is_paused(self._folder)

    def wait(
        self,
        told: Callable[[], object] = lambda: None,
        sleep: Callable[[float], None] = time.sleep,
        agreed: Callable[[bool], bool] = bool,
    ) -> None:
        """Come back when the pause is over; `told` is called where there is one. Raises Stopped.

        `agreed(fact)`: whether it is true in any of the processes of the run.
        """
        if not agreed(self.paused()):
            return
        told()
        while agreed(self.paused()):
            if agreed(self.should_stop()):
                raise Stopped
            sleep(PAUSE_SECONDS)


def _place(folder: Path, what: str) -> Path:
    return folder / "asked" / what


def _forget(folder: Path, what: str) -> bool:
    """Take the request back; false where there was none."""
    with contextlib.suppress(OSError):
        _place(folder, what).unlink()
        return True
    return False
