"""Libraries that may be there or not, and those that are there and do not work."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
from collections.abc import Iterator


def why_missing(module: str) -> str:
    """Why the library's `module` cannot be used, as the end of a sentence; empty where it can.

    It is really imported: one that was built for another CUDA, torch or Python lies there as any other does, and raises
    whatever it likes.
    """
    try:
        if importlib.util.find_spec(module.partition(".")[0]) is None:
            return "is not installed"
    except ValueError:
        pass  # loaded already, by hand
    try:
        with _quiet(module):
            __import__(module)
    except Exception as error:
        return f"cannot be loaded ({type(error).__name__}: {(str(error).splitlines() or [''])[0]})"
    return ""


@contextlib.contextmanager
def _quiet(module: str) -> Iterator[None]:
    """Without the warnings of a library about parts of it that nobody has asked for."""
    logger = logging.getLogger(module.partition(".")[0])
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
