"""Reading that ends when the user stops, in a thread of its own or not.

A file may take a minute to be read. So its loops call `heed`, which ends them: where `heeding` is entered once the user
stops, in one of `Threads` once nobody waits for it any more.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any, TypeVar

from .errors import Stopped
from .events import Events

T = TypeVar("T")
R = TypeVar("R")
ASK_SECONDS = 0.2
_here = threading.local()


def heed() -> None:
    """Raise Stopped where this thread is to end what it reads; where nobody asked for that nothing happens."""
    if (ask := getattr(_here, "ask", None)) is not None:
        ask()


@contextmanager
def heeding(events: Events) -> Iterator[None]:
    """While entered, what this thread reads ends as soon as the user stops."""
    before, _here.ask = getattr(_here, "ask", None), events.check_stop
    try:
        yield
    finally:
        _here.ask = before


class Threads:
    """`count` threads, called `name`; a context manager, which leaves none behind."""

    def __init__(self, count: int, name: str, events: Events) -> None:
        self._events, self._over = events, threading.Event()
        self._pool = ThreadPoolExecutor(count, name, self._begin)

    def submit(self, work: Callable[..., R], *arguments: Any) -> Future[R]:
        """`work` in one of the threads."""
        return self._pool.submit(work, *arguments)

    def result(self, future: Future[R]) -> R:
        """What came of it, or what it raised. Raises Stopped as soon as the user stops."""
        while not future.done():
            self._events.check_stop()
            wait((future,), ASK_SECONDS)
        return future.result()

    def map(self, work: Callable[[T], R], jobs: Iterable[T]) -> Iterator[R]:
        """`work` of each of `jobs`, in their order. Raises Stopped as soon as the user stops."""
        for future in [self.submit(work, job) for job in jobs]:
            self._events.check_stop()
            yield self.result(future)

    def __enter__(self) -> Threads:
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._pool.shutdown(cancel_futures=True)

    def _begin(self) -> None:
        _here.ask = self._ask

    def _ask(self) -> None:
        if self._over.is_set():
            raise Stopped
