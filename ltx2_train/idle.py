"""Settings that were set and would change nothing, found by what their fields say.

A setting that has an effect only beside another one says so in its field, and nowhere else:

    json_schema_extra={"counts_with": ".type = huber"}
    json_schema_extra={"counts_with": ["model.mode = av | audio", "not .epochs"]}

All conditions of a list must hold; one holds where any of its parts, joined by " or ", does. A part is a name, `not`
and a name, or a name with `=` or `!=` and values between bars. A name that begins with a point is a setting, or a
property, of the same group; any other one is seen from the top of the tree. A name alone holds where its value is set,
on or not empty. Behind " -- " a condition may have words for people instead of its own.

`"harmless": True` beside it: a setting that says how a thing is done, and says it for runs that have no such thing too.
It is told, and not refused.

Only a value that differs from the default and asks for something is looked at: a switch that is off, "off", an empty
text and the value under "off" beside the condition ask for nothing. A 0 is a number like any other, unless it stands
there. A switch that is on by itself and was switched off is told, and not refused; so is one that was switched on where
it is on by itself, if its name is in `asked`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cache, reduce
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

_PART = re.compile(r"(?P<negated>not )?(?P<name>\.?[A-Za-z_][\w.]*)(?:\s*(?P<sign>!?=)\s*(?P<values>.+))?")


@dataclass(frozen=True)
class Idle:
    """A setting that has no effect as the others are. `default` is what it has where nobody sets it."""

    setting: str
    value: Any
    default: Any
    words: str
    now: str = ""
    harmless: bool = False

    @property
    def reason(self) -> str:
        """Why it has none: "it counts only with loss.type = huber, and loss.type is mse"."""
        return f"it counts only {self.words}{self.now}"

    def __str__(self) -> str:
        other = shown_value(self.default) if self.value != self.default else ""
        default = f", or at its default ({other})" if other else ""
        value = f" = {shown_value(self.value)}" if len(shown_value(self.value)) <= 60 else ""
        return f"{self.setting}{value} has no effect: {self.reason}. Leave it out{default}."


@dataclass(frozen=True)
class _Part:
    name: str
    negated: bool
    sign: str
    values: tuple[str, ...]

    def holds(self, value: Any) -> bool:
        if not self.sign:
            return bool(value) != self.negated
        return (shown_value(value) in self.values) == (self.sign == "=")

    def words(self, name: str) -> str:
        if not self.sign:
            return f"{'without' if self.negated else 'with'} {name}"
        several = self.values[0] if len(self.values) == 1 else f"{', '.join(self.values[:-1])} or {self.values[-1]}"
        return f"with {name} = {several}" if self.sign == "=" else f"where {name} is not {several}"


def idle(tree: BaseModel, defaults: BaseModel | None = None, asked: Collection[str] = ()) -> list[Idle]:
    """The settings of `tree` without effect, in the order of their fields, under their dotted names.

    `defaults` is a tree where nothing is set; without one the fields tell. `asked` names settings that somebody wrote
    himself, so that a switch among them counts as asked for where it is on by itself.
    """
    return list(_idle(tree, defaults, tree, "", asked))


def counts_with(field: FieldInfo, prefix: str = "") -> str:
    """Words for what a setting has an effect with: "with loss.type = huber"; "" where it always has one.

    `prefix` is the name of its group with a point behind.
    """
    return ", and ".join(dict.fromkeys(_words(condition, prefix) for condition in _conditions(field)))


def shown_value(value: Any) -> str:
    """A value as it is written in a file, without quotes; "" for one that is not set."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(shown_value(one) for one in value)}]"
    return str(value)


def _idle(
    group: BaseModel, defaults: BaseModel | None, tree: BaseModel, prefix: str, asked: Collection[str]
) -> Iterator[Idle]:
    for name, field in type(group).model_fields.items():
        value = getattr(group, name)
        plain = field.get_default(call_default_factory=True) if defaults is None else getattr(defaults, name)
        if isinstance(value, BaseModel):
            inner = plain if isinstance(plain, BaseModel) else None
            yield from _idle(value, inner, tree, f"{prefix}{name}.", asked)
        elif _asks(value, plain, prefix + name in asked) and value != extra_of(field).get("off"):
            for condition in _conditions(field):
                if not _holds(condition, group, tree):
                    words, now = _words(condition, prefix), _now(condition, group, tree, prefix)
                    harmless = plain is True or bool(extra_of(field).get("harmless"))
                    yield Idle(prefix + name, value, plain, words, now, harmless)
                    break


def _asks(value: Any, plain: Any, asked: bool) -> bool:
    """Whether a value asks for something: neither off, nor nothing, nor what is there by itself. A switch that is on by
    itself (`plain`) asks for something where it is off, and where somebody has `asked` for it."""
    if plain is True:
        return value is False or asked
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value != plain and (number or isinstance(value, Path) or bool(value and value != "off"))


def extra_of(field: FieldInfo) -> dict[str, Any]:
    """What a field says of itself besides its type and bounds; see settings.py."""
    return field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}


def _conditions(field: FieldInfo) -> tuple[str, ...]:
    given = extra_of(field).get("counts_with")
    if isinstance(given, list):
        return tuple(str(one) for one in given)
    return (given,) if isinstance(given, str) else ()


@cache
def _parts(condition: str) -> tuple[_Part, ...]:
    parts = []
    for text in condition.partition(" -- ")[0].split(" or "):
        found = _PART.fullmatch(text.strip())
        assert found is not None, condition
        values = tuple(value.strip() for value in (found["values"] or "").split("|"))
        parts.append(_Part(found["name"], bool(found["negated"]), found["sign"] or "", values))
    return tuple(parts)


def _look(name: str, group: BaseModel, tree: BaseModel) -> Any:
    start = group if name.startswith(".") else tree
    return reduce(getattr, name.lstrip(".").split("."), start)


def _holds(condition: str, group: BaseModel, tree: BaseModel) -> bool:
    return any(part.holds(_look(part.name, group, tree)) for part in _parts(condition))


def _words(condition: str, prefix: str) -> str:
    own = condition.partition(" -- ")[2]
    return own or " or ".join(part.words(_full(part.name, prefix)) for part in _parts(condition))


def _now(condition: str, group: BaseModel, tree: BaseModel, prefix: str) -> str:
    """What the settings are that a condition compares: ", and loss.type is mse"."""
    if " -- " in condition:
        return ""
    compared = dict.fromkeys(part.name for part in _parts(condition) if part.sign)
    values = {_full(name, prefix): shown_value(_look(name, group, tree)) for name in compared}
    return "".join(f", and {name} is {value or 'not set'}" for name, value in values.items())


def _full(name: str, prefix: str) -> str:
    return prefix + name[1:] if name.startswith(".") else name
