"""Which weights of the transformer are trained: all of them, or those that patterns name."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..errors import ConfigError
from .settings import FullSettings


def chosen_weights(names: Sequence[str], settings: FullSettings) -> list[str]:
    """Those of `names`, the dotted names of the parameters, that are trained, in order.

    Raises ConfigError where a pattern is no regular expression or matches nothing, and where nothing is left.
    """
    wanted = set(names)
    if settings.include_patterns:
        wanted = {name for pattern in settings.include_patterns for name in _matches("include", pattern, names)}
    for pattern in settings.exclude_patterns:
        wanted.difference_update(_matches("exclude", pattern, names))
    if not wanted:
        raise ConfigError("full.exclude_patterns takes every weight away. Remove or narrow a pattern.")
    return [name for name in names if name in wanted]


def _matches(kind: str, pattern: str, names: Sequence[str]) -> list[str]:
    setting = f"full.{kind}_patterns"
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"{setting}: {pattern!r} is not a regular expression: {error}.") from None
    matching = [name for name in names if compiled.fullmatch(name)]
    if not matching:
        shown = [name for name in names if ".0." in name][:3] or list(names[:3])
        raise ConfigError(
            f"{setting}: {pattern!r} matches no weight; a pattern must match the whole name. Weights are called "
            f"{', '.join(shown)} and so on."
        )
    return matching
