"""Files of prompts: which hold one a line, and which are libraries of them."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from ..config.read import tomllib
from ..dataset.captions import text_lines
from ..errors import ConfigError
from ..files import parse_json
from ..text_files import read_text

TABLES = frozenset((".csv", ".tsv", ".jsonl", ".yaml", ".yml"))


def require_lines(name: str, text: str) -> None:
    """Raise ConfigError where the prompt file `name`, which is read line by line, holds JSON."""
    with contextlib.suppress(ValueError):
        if isinstance(parse_json(text), (list, dict)):
            raise ConfigError(f"{name} holds JSON, and would be read as a prompt a line. Let its name end in .json.")


def remarks_of(source: Any) -> list[str]:
    """The lines of the prompt file `source` that begin with # and are no prompts; none where it is no such file."""
    if not isinstance(source, Path) or source.suffix.lower() in (".json", ".toml"):
        return []
    with contextlib.suppress(OSError, UnicodeError):
        lines = text_lines(read_text(source))
        return [line.strip() for line in lines if line.lstrip().startswith("#")]
    return []


def read_library(name: str, text: str, suffix: str) -> list[str | dict[str, Any]]:
    """The entries of a prompt library: lines, or tables of options. Raises ConfigError.

    JSON: {"name": "prompt", ...}, or a list of prompts or tables. TOML: the table [prompt], whose values hold for each
    table of its list `subset`; that is the community trainer's form.
    """
    try:
        library = parse_json(text) if suffix == ".json" else tomllib.loads(text)
    except ValueError as error:
        raise ConfigError(f"{name} is not valid {suffix[1:].upper()}: {error}.") from None
    entries: list[str | dict[str, Any]]
    if suffix == ".toml":
        shared = library.get("prompt", library)
        if not isinstance(shared, dict):
            raise ConfigError(f"{name}: expected a table [prompt].")
        if shared is not library and (others := [key for key in library if key != "prompt"]):
            raise ConfigError(
                f"{name}: {', '.join(others)} at the top has no use beside [prompt]. Write it into that table or a "
                "[[prompt.subset]], or take it out."
            )
        common = {key: value for key, value in shared.items() if key != "subset"}
        entries = [{**common, **entry} for entry in shared.get("subset", [{}])]
    elif isinstance(library, dict):
        entries = list(library.values())
    else:
        entries = library
    if not isinstance(entries, list) or not all(isinstance(entry, (str, dict)) for entry in entries):
        raise ConfigError(f"{name}: expected prompts, or tables with a prompt and its options.")
    return entries
