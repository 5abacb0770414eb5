"""The base of every group of settings, and the one place that turns a user's table into one.

A setting is a pydantic field with default, bounds and help; the TOML files, the command line and the node widgets
are derived from it. `json_schema_extra={"community": "network_dim"}` names the flag of the community trainer that means
the same, `{"unit": "pixels"}` the unit, `{"advanced": True}` hides it from a first look.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from .errors import ConfigError
from .registry import nearest

S = TypeVar("S", bound="Settings")


class Settings(BaseModel):
    """A frozen group of settings; unknown keys are refused, whole numbers are accepted for floats."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _no_numbers(cls, table: Any) -> Any:
        # True is a whole number to Python and to pydantic, so that `rank = true` would be a rank of 1.
        if not isinstance(table, Mapping):
            return table
        numbers = (key for key, field in cls.model_fields.items() if not {bool, Any} & set(_kinds(field.annotation)))
        return {**table, **{key: _NoNumber.instead(table[key]) for key in numbers if key in table}}


class _NoNumber:
    """Stands for true or false where neither is meant, so that validation refuses it by its path."""

    def __init__(self, value: bool) -> None:
        self.value = value

    def __repr__(self) -> str:
        return repr(self.value)

    @classmethod
    def instead(cls, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [cls.instead(part) for part in value]
        return cls(value) if isinstance(value, bool) else value


def parse(kind: type[S], table: Mapping[str, Any], source: str) -> S:
    """Validate `table` as `kind`. Raises ConfigError that lists every wrong key with its dotted path.

    `source` says where the table came from, for example the name of the file.
    """
    try:
        return kind.model_validate(dict(table))
    except ValidationError as error:
        lines = [_explain(kind, problem) for problem in error.errors()]
        head = "1 setting is" if len(lines) == 1 else f"{len(lines)} settings are"
        raise ConfigError(f"{source}: {head} not usable.\n" + "\n".join(f"  {line}" for line in lines)) from None


def known_keys(kind: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    """Names that are legal at `location` (a pydantic error path whose last part is the refused key)."""
    model: type[BaseModel] | None = kind
    for part in location[:-1]:
        if isinstance(part, int) or model is None:
            continue
        field = model.model_fields.get(str(part))
        model = None if field is None else _model_in(field.annotation)
    return list(model.model_fields) if model is not None else []


def _explain(kind: type[BaseModel], problem: Any) -> str:
    location = tuple(problem["loc"])
    path = _dotted(location)
    if problem["type"] == "extra_forbidden":
        known = known_keys(kind, location)
        near = nearest(str(location[-1]), known)
        hint = f" Did you mean {' or '.join(near)}?" if near else f" Known: {', '.join(known)}." if known else ""
        return f"{path}: unknown setting.{hint}"
    if problem["type"] == "missing":
        return f"{path}: needs a value."
    text = problem["msg"].removeprefix("Value error, ")
    given = problem.get("input")
    shown = "" if isinstance(given, (dict, list)) and len(str(given)) > 60 else f" (given: {given!r})"
    return f"{path}: {text}{shown}" if path else f"{text}"


def _dotted(location: tuple[Any, ...]) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def _kinds(annotation: Any) -> Iterator[Any]:
    """Every type named in an annotation, whatever it is inside of; of a Literal its values' types."""
    if get_origin(annotation) is Literal:
        yield from (type(choice) for choice in get_args(annotation))
        return
    yield annotation
    for inner in get_args(annotation):
        yield from _kinds(inner)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in get_args(annotation):
        if (found := _model_in(inner)) is not None:
            return found
    return None
