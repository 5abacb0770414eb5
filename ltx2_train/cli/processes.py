"""`ltx2-train train RUN.toml --processes N`: the same command in N processes that find each other, one a card.

They are told who they are as `accelerate launch` and `torchrun` tell theirs, so a run does not know who started it.
Signals are passed on, each once: the first one saves and ends the run as it does for one process.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

GRACE = 300.0  # seconds that the others have to save and end after one of them has failed
LAST_GRACE = 30.0  # then they are told, and after this they are ended
POLL = 0.1
STOPPED = 130


def run_in_processes(arguments: Sequence[str], count: int) -> int:
    """Run this program with `arguments` in `count` processes; returns an exit code that is not 0, where one has it.

    When one fails, the others end by themselves, since they notice; what does not is ended.
    """
    command = [sys.executable, "-m", __name__.partition(".")[0], *arguments]
    processes: list[subprocess.Popen] = []
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "OMP_NUM_THREADS": _threads(count)}
    with _passing_on(processes):
        try:
            for rank in range(count):
                who = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
                environment = {**address, **os.environ, "MASTER_PORT": address["MASTER_PORT"]}
                environment |= {name: str(value) for name, value in who.items()}
                processes.append(subprocess.Popen(command, env=environment, **_APART))
            _wait(processes)
        finally:
            for process in processes:
                process.kill()
    codes = [process.wait() for process in processes]
    return next((1 if code < 0 else code for code in codes if code), 0)


def process_number() -> int:
    """The number of this process among those that were started together, from 0 on."""
    return int(os.environ.get("RANK") or 0) if "LOCAL_RANK" in os.environ else 0


# out of reach of the terminal's Ctrl-C, which would come twice
_APART: dict[str, Any] = (
    {"creationflags": getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)}
    if os.name == "nt"
    else {"start_new_session": True}
)


def _wait(processes: Sequence[subprocess.Popen]) -> None:
    """Until all have ended, which they have to do soon after one has failed or the first is done."""
    since: float | None = None
    terminated = False
    while any(process.poll() is None for process in processes):
        codes = [process.poll() for process in processes]
        if since is None and (codes[0] is not None or any(code not in (None, 0, STOPPED) for code in codes)):
            since = time.monotonic()
        waited = 0.0 if since is None else time.monotonic() - since
        if waited > GRACE and not terminated:
            terminated = True
            for process in processes:
                process.terminate()
        if waited > GRACE + LAST_GRACE:
            return
        time.sleep(POLL)


@contextlib.contextmanager
def _passing_on(processes: Sequence[subprocess.Popen]) -> Iterator[None]:
    """While entered, signals that would end this process go to `processes` instead."""

    def pass_on(number: int, frame: Any) -> None:
        for process in processes:
            with contextlib.suppress(OSError):
                process.send_signal(getattr(signal, "CTRL_BREAK_EVENT", number) if os.name == "nt" else number)

    names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    with contextlib.suppress(ValueError):  # not in the main thread, where a test may be
        for number in numbers:
            if before[number] != signal.SIG_IGN:
                signal.signal(number, pass_on)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            for number, handler in before.items():
                signal.signal(number, handler)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def _threads(count: int) -> str:
    """Threads of a process, so that all together have one a core."""
    return str(max(1, (os.cpu_count() or 1) // count))
