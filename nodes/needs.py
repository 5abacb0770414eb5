"""What the pack needs besides ComfyUI, as requirements.txt says: told at the start, and by the first node that runs."""

from __future__ import annotations

import functools
import logging
import sys
from importlib import metadata
from pathlib import Path

from ..ltx2_train.errors import ConfigError

FILE = Path(__file__).resolve().parent.parent / "requirements.txt"

logger = logging.getLogger("ltx2_trainer")


@functools.cache
def unmet(file: Path = FILE) -> str:
    """A sentence that names the packages that are missing or too old, and the line that installs them; "" where none
    is."""
    from packaging.requirements import Requirement  # transformers brings it

    lines = (line.split("#")[0].strip() for line in file.read_text(encoding="utf-8").splitlines())
    wrong = []
    for need in (Requirement(line) for line in lines if line):
        if need.marker is not None and not need.marker.evaluate():
            continue
        try:
            version = metadata.version(need.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{need.name} is missing")
        else:
            if not need.specifier.contains(version, prereleases=True):
                wrong.append(f"{need.name} is {version}, and {need.specifier} is needed")
    if not wrong:
        return ""
    return (
        f"LTX-2 Trainer lacks what {file.name} names: {'; '.join(wrong)}. Run this line, then start ComfyUI again:\n"
        f'"{sys.executable}" -m pip install -r "{file}"'
    )


def tell_needs() -> None:
    """Say in the log what is missing."""
    if text := unmet():
        logger.error("%s", text)


def require_needs() -> None:
    """Raise ConfigError where something is missing."""
    if text := unmet():
        raise ConfigError(text)
