"""What can go wrong, as types a host can tell apart.

    TrainerError                 anything a user can mend; the text says how
    |- ConfigError               a setting is unknown, out of range or in conflict with another
    |- DataError                 media, captions or the dataset file; `path` names the file where there is one
    |  `- CacheError             a cache is missing, stale or damaged
    |- CheckpointError           a weight file is not what the job needs
    |- RunError                  the run folder cannot be used, or the disk refused a write
    |- OutOfMemory               the device is full
    |  |- OutOfRam               the RAM is full
    `- Stopped                   the user asked to stop; what was to be saved has been saved

Every message answers: what is wrong, what was given, what was expected, what to change.
"""

from __future__ import annotations

import errno
from pathlib import Path


def refused_words(error: OSError) -> str:
    """What the system refused of a file that it names, for people: the file, why, and what to change."""
    text = f"{error.filename}: {error.strerror or error}."
    if isinstance(error, PermissionError):
        return f"{text} See that this user may open it and the folders that it lies in, or name another."
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{text} Free some space, or choose a folder on another disk."
    return f"{text} See that it is there and can be used, or name another."


class TrainerError(Exception):
    """Root of all errors that are meant for the user; shown without a traceback."""


class ConfigError(TrainerError):
    """A setting is unknown, has a wrong value, or contradicts another setting."""


class DataError(TrainerError):
    """A dataset, a media file or a caption cannot be used. `path` is the file, where one is to blame."""

    def __init__(self, message: str, path: Path | str | None = None) -> None:
        super().__init__(message)
        self.path = None if path is None else Path(path)


class CacheError(DataError):
    """A cache file is missing, damaged, or was made from something else than the run uses."""


class CheckpointError(TrainerError):
    """A weight file is damaged, of another family or version, or lacks the part that is needed.

    `reason` says what is wrong with the file alone, without advice, for those who know what kind of file it is.
    """

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


class RunError(TrainerError):
    """A run folder belongs to another run, cannot be written, or its state cannot be read."""


class OutOfMemory(TrainerError):
    """The device ran out of memory; the text names what to make smaller."""


class OutOfRam(OutOfMemory):
    """The RAM ran out, whatever the device; the text names what to keep elsewhere."""


class Stopped(TrainerError):
    """Raised after a requested stop, once everything worth keeping is on disk."""
