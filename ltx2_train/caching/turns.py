"""Jobs in turn: claimed, read ahead, made, let go.

While one job is being made, the next is read in a thread, and no more: at no time are more than two read jobs in
memory. A job is claimed before it is read, so several processes share the work without doing any of it twice. What
somebody else is making is passed over and looked at again; nothing is held while waiting for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

from ..errors import DataError
from ..events import Events
from ..threads import Threads
from .due import Due
from .kind import Job
from .locks import Claims
from .work import Work

R = TypeVar("R")


class Turns(Generic[R]):
    """The jobs of `due`, in order; a context manager.

    `read` runs in a thread of its own; a DataError that it raises is handed to whoever makes the job. The progress of
    `stage` goes by the weight of the jobs. `others` counts what another process made in the meantime.
    """

    def __init__(self, due: Due, read: Callable[[Job], R], stage: str, events: Events) -> None:
        self._due, self._read, self._events = due, read, events
        self._waiting = deque(due.jobs)
        self._work = Work(events, stage, [job.kind.weight(job) for job in due.jobs])
        self._claims = Claims(events)
        self._threads = Threads(1, "decode", events)
        self._current: tuple[Job, Future[R | DataError] | None] | None = None
        self._reading = False
        self.others = 0

    def __enter__(self) -> Turns[R]:
        return self

    def __exit__(self, *error: object) -> None:
        self._current = None
        self._threads.__exit__()
        self._claims.__exit__()

    def begin(self, reading: bool = True) -> bool:
        """Claim the first job; False where nothing is left to make. `reading`: it is read while a model is loaded."""
        self._reading = reading
        if self._waiting:
            self._work.begin()
            self._current = self._next() or self._wait()
        return self._current is not None

    def each(self, make: Callable[[Job, R | DataError], None]) -> None:
        """`make` each job from what was read of it. Raises Stopped on request, in the middle of reading one too."""
        self._work.begin()
        self._reading = True
        current, self._current = self._current, None
        while current is not None:
            self._events.check_stop()
            job, future = current
            was_read = self._threads.result(future or self._threads.submit(self._try_read, job))
            # Nothing but `was_read` may hold the job that is at hand when the next but one is read.
            del future
            current = self._next()
            make(job, was_read)
            del was_read
            self._finished(job)
            current = current or self._wait()

    def _next(self) -> tuple[Job, Future[R | DataError] | None] | None:
        """The next job that nobody else is making, claimed, and begun to be read."""
        passed: list[Job] = []
        claimed = None
        while self._waiting and claimed is None:
            job = self._waiting.popleft()
            if not self._claims.take(job.path):
                passed.append(job)
            elif self._due.made_since(job):
                self.others += 1
                self._finished(job)
            else:
                claimed = job, self._threads.submit(self._try_read, job) if self._reading else None
        self._waiting.extendleft(reversed(passed))
        return claimed

    def _finished(self, job: Job) -> None:
        self._claims.free(job.path)
        self._work.finished(job.kind.weight(job), job.path.name)

    def _try_read(self, job: Job) -> R | DataError:
        try:
            return self._read(job)
        except DataError as error:
            return error.with_traceback(None)
        except OSError as error:  # of the disk, or of a library: one file costs itself alone
            return DataError(f"{job.source} cannot be read: {error.strerror or error}.", job.source)

    def _wait(self) -> tuple[Job, Future[R | DataError] | None] | None:
        """As `_next`, but waits for what others are making; None when all is made."""
        while self._waiting:
            claimed = self._next()
            if claimed is not None:
                return claimed
            if self._waiting:
                self._claims.wait(self._waiting[0].path)
        return None
