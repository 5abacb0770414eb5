"""Standard output and error that never end a command: what cannot be shown is shown otherwise, or not at all.

Letters that the console has not become escapes. A reader that has gone away (`| head`, a closed terminal) is written to
no more, and a stream that was closed before the start is left alone. What a command made is on disk, and a run is worth
more than the line that speaks of it.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import sys
from collections.abc import Iterator
from typing import Any, Protocol, TextIO


class Lasting:
    """Stands for `stream` and passes everything on to it, but raises nothing from writing."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self.lost: OSError | None = None  # why nothing is written any more, where that is worth telling

    def write(self, text: str) -> int:
        if self._stream is not None:
            try:
                self._stream.write(text)
            except UnicodeError:
                self._write_escaped(text)
            except (OSError, ValueError, RuntimeError) as error:
                # gone, closed, or interrupted in the middle of writing by a signal that has something to say
                self._give_up(error)
        return len(text)

    def flush(self) -> None:
        if self._stream is not None:
            try:
                self._stream.flush()
            except (OSError, ValueError, RuntimeError) as error:
                self._give_up(error)

    def isatty(self) -> bool:
        try:
            return self._stream is not None and self._stream.isatty()
        except ValueError:  # closed
            return False

    def fileno(self) -> int:
        if self._stream is None:
            raise io.UnsupportedOperation("fileno")
        return self._stream.fileno()

    @property
    def encoding(self) -> str:
        return getattr(self._stream, "encoding", None) or "utf-8"

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _write_escaped(self, text: str) -> None:
        assert self._stream is not None
        try:
            self._stream.write(text.encode(self.encoding, "backslashreplace").decode(self.encoding))
        except (OSError, ValueError, RuntimeError) as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        if isinstance(error, RuntimeError):  # this text alone is lost
            return
        stream, self._stream = self._stream, None
        if isinstance(error, OSError) and error.errno not in (errno.EPIPE, errno.EIO, errno.EINVAL, errno.EBADF):
            self.lost = error
        # what waits in the buffers of the stream must find a place, or Python fails when it ends
        with contextlib.suppress(Exception):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())  # type: ignore[union-attr]
            os.close(nowhere)


@contextlib.contextmanager
def lasting_output() -> Iterator[Lasting]:
    """`sys.stdout` and `sys.stderr` as Lasting inside; yields that of stdout."""
    _fill_standard_descriptors()
    before = sys.stdout, sys.stderr
    out = Lasting(sys.stdout)
    sys.stdout, sys.stderr = out, Lasting(sys.stderr)  # type: ignore[assignment]
    try:
        yield out
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


class Report(Protocol):
    """What a command found out, for people and for programs."""

    def text(self) -> str: ...

    def to_json(self) -> Any: ...


def show_report(report: Report, as_json: bool) -> None:
    """Print `report` as text or as JSON."""
    if as_json:
        print_json(report.to_json())
    else:
        print(report.text())


def print_json(value: Any) -> None:
    """Print `value` as JSON that can be read back, whatever letters the output has."""
    plain = not sys.stdout.encoding.lower().replace("-", "").startswith("utf")
    print(json.dumps(value, indent=1, ensure_ascii=plain))


def _fill_standard_descriptors() -> None:
    """Open the null device for each of the descriptors 0, 1 and 2 that was closed before the start.

    A file that is opened later would else get its number, and what a library writes to standard error would end up
    in it.
    """
    try:
        while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
            os.set_inheritable(number, True)
        os.close(number)
    except OSError:
        pass
