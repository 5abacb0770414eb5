"""Name -> thing tables whose misses name the nearest hits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import Generic, TypeVar

from .errors import ConfigError

T = TypeVar("T")


def nearest(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """Up to `count` of `known` that look like `name`, best first."""
    return get_close_matches(name, list(known), n=count, cutoff=0.5)


class Registry(Generic[T]):
    """A table of one kind of component, for example "optimizer"."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._table: dict[str, T] = {}

    def add(self, name: str, item: T) -> T:
        assert name not in self._table, f"{self.kind} {name!r} is registered twice"
        self._table[name] = item
        return item

    def names(self) -> list[str]:
        return list(self._table)

    def get(self, name: str) -> T:
        """The item called `name`. Raises ConfigError with the known names, nearest first."""
        try:
            return self._table[name]
        except KeyError:
            hint = nearest(name, self._table)
            did = f" Did you mean {' or '.join(hint)}?" if hint else ""
            raise ConfigError(f"Unknown {self.kind} {name!r}.{did} Known: {', '.join(self._table)}.") from None

    def values(self) -> list[T]:
        return list(self._table.values())

    def __contains__(self, name: object) -> bool:
        return name in self._table

    def __iter__(self) -> Iterator[str]:
        return iter(self._table)
