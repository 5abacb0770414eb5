"""What the processes of a run do together, in words where one of them does not come."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import timedelta

from ..device import is_full
from ..errors import RunError

PATIENCE = timedelta(hours=2)  # the longest that the others wait for the one that saves, draws or encodes


@contextlib.contextmanager
def meeting() -> Iterator[None]:
    """Raise RunError where a process that is waited for has ended, or does not answer."""
    try:
        yield
    except RuntimeError as error:
        if is_full(error):
            raise
        hours = PATIENCE.total_seconds() / 3600
        raise RunError(
            f"Another process of this run has ended, or has not answered for {hours:g} hours; where it could, its own "
            f"message says why ({reason_of(error)})."
        ) from error


def reason_of(error: BaseException) -> str:
    """The first line of what `error` says, or its kind, without the full stop."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
