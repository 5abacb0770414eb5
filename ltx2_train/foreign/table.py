"""The rows of the tables, read once, and what a row makes of a value."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..toml import read_toml

PROGRAMS = {
    "community": "the community trainer",
    "official": "the official trainer",
    "simpletuner": "SimpleTuner",
    "simpletuner_data": "SimpleTuner",
    "dataset_keys": "other programs",
}
_FOLDER = Path(__file__).parent
_DEFAULTS = "defaults"


@dataclass(frozen=True)
class NameRow:
    """What becomes of one name; community.toml says what each column means."""

    name: str
    takes: tuple[str, ...] = ()
    dataset: str = ""
    run: str = ""
    command: str = ""
    no_effect: str = ""
    instead: str = ""
    later: str = ""
    by: str = ""
    otherwise: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)
    off: tuple[Any, ...] = ()

    def unused(self, value: Any) -> bool:
        """Whether `value` says that the thing is not used, so that nothing need be said about it."""
        if key_of(value) in self.values:
            return False
        empty = value is None or value is False or value == "" or value == [] or value == {}
        return empty or key_of(value) in {key_of(one) for one in self.off}

    def outcome(self) -> str:
        """One cell of a table for people: what becomes of it."""
        if self.takes:
            cell = " and ".join(f"`{setting}`" for setting in self.takes)
            return f"{cell}; else not yet: {topics()[self.otherwise]['words']}" if self.otherwise else cell
        if self.dataset:
            return f"`{self.dataset}` of the dataset file"
        if self.run:
            return f"`{self.run}` of the run file"
        if self.command:
            return f"`{self.command}`"
        if self.instead:
            return f"replaced: {self.instead}"
        if self.no_effect:
            cell = f"no effect: {self.no_effect}"
            return f"{cell}. Other values, not yet: {topics()[self.otherwise]['words']}" if self.otherwise else cell
        if self.later:
            return f"not yet: {topics()[self.later]['words']}"
        return "read in its parts"


def key_of(value: Any) -> str:
    """How `value` is spelt as a key of the column `values`."""
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else str(value)


@functools.cache
def program_rows(program: str) -> dict[str, NameRow]:
    """Name -> row of every flag and key of `program` that its file lists."""
    table = dict(read_toml(_FOLDER / f"{program}.toml"))
    table.pop(_DEFAULTS, None)
    return {name: _row(name, columns) for name, columns in table.items()}


@functools.cache
def defaults_of(program: str) -> dict[str, Any]:
    """Dotted setting -> what `program` takes where its file says nothing, where this program takes something else."""
    return dict(read_toml(_FOLDER / f"{program}.toml").get(_DEFAULTS, {}))


@functools.cache
def topics() -> dict[str, dict[str, Any]]:
    """What rows that are "not yet" wait for: `words`, and `settings` that will show that it is there."""
    return read_toml(_FOLDER / "topics.toml")


def row_of(program: str, name: str) -> NameRow | None:
    """The row of `name`, or None where the table has none."""
    return program_rows(program).get(name)


def later_words(topic: str) -> str:
    """What is not there yet, in words."""
    return topics()[topic]["words"]


def _row(name: str, columns: Mapping[str, Any]) -> NameRow:
    columns = dict(columns)
    takes = columns.pop("takes", ())
    return NameRow(
        name,
        takes=(takes,) if isinstance(takes, str) else tuple(takes),
        off=tuple(columns.pop("off", ())),
        **columns,
    )
