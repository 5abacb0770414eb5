"""When a node has to run again: always where what it looks at is not known, and once where what it wrote is gone."""

from __future__ import annotations

from pathlib import Path


def always() -> float:
    """What makes ComfyUI run a node at each press: a number that equals nothing.

    A new one each time, since math.nan is one object, and a tuple that holds it equals another that does.
    """
    return float("nan")


class NewestFiles:
    """The newest file of each node of one kind, and how often it was found gone."""

    def __init__(self) -> None:
        self._paths: dict[str, Path] = {}
        self._times: dict[str, int] = {}

    def keep(self, node: str | None, path: Path) -> None:
        self._paths[str(node)] = path

    def generation(self, node: str | None) -> int:
        """A number that changes when the file of `node` is gone; part of what ComfyUI compares."""
        name = str(node)
        if name in self._paths and not self._paths[name].exists():
            del self._paths[name]
            self._times[name] = self._times.get(name, 0) + 1
        return self._times.get(name, 0)
