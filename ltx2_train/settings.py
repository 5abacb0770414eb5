"""The base of every group of settings, and the one place that turns a user's table into one.

A setting is a pydantic field with default, bounds and help; the TOML files, the command line and the node widgets
are derived from it. `json_schema_extra={"community": "network_dim"}` names the flag of the community trainer that means
the same, `{"unit": "pixels"}` the unit, `{"since": "0.2"}` the version that brought it, `{"advanced": True}` hides it
from a first look, `{"may_be_blank": True}` takes empty texts in a list.
"""

from __future__ import annotations

import math
import threading
import types
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo

from .errors import ConfigError
from .paths import path_fault
from .registry import nearest

S = TypeVar("S", bound="Settings")

_DTYPES = {"bfloat16": "bf16", "float16": "fp16", "half": "fp16", "float32": "fp32", "float": "fp32"}


def dtype_name(value: object) -> object:
    """The short name of a number format that is spelt as PyTorch does."""
    return _DTYPES.get(value.lower().removeprefix("torch."), value) if isinstance(value, str) else value


Dtype = Annotated[Literal["bf16", "fp16", "fp32"], BeforeValidator(dtype_name)]
"""A number format; bfloat16, float16 and float32 are understood as well."""


_BUILDING = threading.RLock()

Reaction = Literal["off", "warn", "error"]
"""What is done where something is not as it should be: nothing, a warning, or an end."""


class Settings(BaseModel):
    """A frozen group of settings; unknown keys are refused, whole numbers are accepted for floats."""

    # built when first used: a look at the settings, as ComfyUI takes when it starts, validates few of them
    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, protected_namespaces=(), defer_build=True
    )

    @classmethod
    def model_rebuild(
        cls,
        *,
        force: bool = False,
        raise_errors: bool = True,
        _parent_namespace_depth: int = 2,
        _types_namespace: Any = None,
    ) -> bool | None:
        """Build the class, one thread at a time: ComfyUI checks a prompt while another one runs."""
        with _BUILDING:
            return super().model_rebuild(
                force=force,
                raise_errors=raise_errors,
                _parent_namespace_depth=_parent_namespace_depth + 1,
                _types_namespace=_types_namespace,
            )

    @field_validator("*", mode="before")
    @classmethod
    def _plainly_wrong(cls, value: Any, info: ValidationInfo) -> Any:
        """Paths that no file can have, and true or false for a number, are refused where they are written."""
        annotation = cls.model_fields[info.field_name or ""].annotation
        if isinstance(value, str) and Path in _parts(annotation):
            if fault := path_fault(value):
                raise ValueError(fault)
        marks = cls.model_fields[info.field_name or ""].json_schema_extra
        blank = isinstance(value, (list, tuple)) and any(isinstance(one, str) and not one.strip() for one in value)
        if blank and not (isinstance(marks, dict) and marks.get("may_be_blank")):
            raise ValueError("holds an empty text. Take it out")
        # True is a whole number to Python and to pydantic, so that `rank = true` would be a rank of 1.
        return value if {bool, Any} & set(_kinds(annotation)) else _NoNumber.instead(value)


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


def limits(field: FieldInfo) -> dict[str, float]:
    """The bounds of a number: what of ge, gt, le and lt its field has."""
    names = ("ge", "gt", "le", "lt")
    return {
        name: bound for rule in field.metadata for name in names if (bound := getattr(rule, name, None)) is not None
    }


def parse(kind: type[S], table: Mapping[str, Any], source: str, problems: Iterable[str] = ()) -> S:
    """Validate `table` as `kind`. Raises ConfigError that lists every wrong key with its dotted path.

    `source` says where the table came from, for example the name of the file. `problems` are sentences on what was
    found wrong before; they are listed first.
    """
    lines = list(problems)
    try:
        settings = kind.model_validate(dict(table))
    except ValidationError as error:
        told = {line.partition(": ")[0] for line in lines}
        lines += [line for line in explain_refusals(kind, error) if line.partition(": ")[0] not in told]
    else:
        if not lines:
            return settings
    raise ConfigError(refusal_text(source, lines))


def refusal_text(source: str, lines: Iterable[str]) -> str:
    """The text of an error about settings of `source`, one line for each."""
    lines = list(dict.fromkeys(lines))
    head = "1 setting is" if len(lines) == 1 else "these settings are"
    return f"{source}: {head} not usable.\n" + "\n".join(f"  {line}" for line in lines)


def explain_refusals(kind: type[BaseModel], error: ValidationError) -> list[str]:
    """A sentence in plain words for each setting that pydantic refused, once."""
    found: dict[str, tuple[list[str], str]] = {}
    for problem in error.errors():
        path, words, given = _explained(kind, problem)
        told, _ = found.setdefault(path, ([], given))
        if words not in told:
            told.append(words)
    # where a setting may be of two types, each says what it would have liked
    return [(f"{path}: " if path else "") + " or ".join(told) + given for path, (told, given) in found.items()]


def known_keys(kind: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    """Names that are legal at `location` (a pydantic error path whose last part is the refused key)."""
    model: type[BaseModel] | None = kind
    annotation: Any = None
    for part in location[:-1]:
        if isinstance(part, int) or model is None:
            continue
        if (branch := _branch(annotation, part)) is not None:
            model, annotation = branch, None
            continue
        if get_origin(annotation) is dict:  # the name of an entry
            annotation = None
            continue
        field = model.model_fields.get(str(part))
        annotation = None if field is None else field.annotation
        model = None if field is None else model_in(annotation)
    return list(model.model_fields) if model is not None else []


def model_in(annotation: Any) -> type[BaseModel] | None:
    """The group of settings that `annotation` is, or is a list of; of several kinds the first."""
    return next(models_in(annotation), None)


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The groups of settings in `annotation`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from models_in(inner)


def _branch(annotation: Any, part: Any) -> type[BaseModel] | None:
    """The group whose `type` is `part`, where `annotation` holds several kinds that are told apart by it."""
    kinds = list(models_in(annotation))
    typed = (kind for kind in kinds if "type" in kind.model_fields and kind.model_fields["type"].default == part)
    return next(typed, None) if len(kinds) > 1 else None


def inner_type(annotation: Any) -> Any:
    """The type inside of `X | None`, without what validates it."""
    if get_origin(annotation) in (Union, types.UnionType):
        kinds = [part for part in get_args(annotation) if part is not type(None)]
        return inner_type(kinds[0]) if len(kinds) == 1 else annotation
    return inner_type(get_args(annotation)[0]) if get_origin(annotation) is Annotated else annotation


def is_text(annotation: Any) -> bool:
    """Whether a setting of this type is plain text or a path, so that what is given needs no reading."""
    return inner_type(annotation) in (str, Path)


def _parts(annotation: Any) -> Iterator[Any]:
    """The types that a union names, or the one that `annotation` is."""
    if get_origin(annotation) in (Union, types.UnionType):
        for part in get_args(annotation):
            yield from _parts(part)
    else:
        yield get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _explained(kind: type[BaseModel], problem: Any) -> tuple[str, str, str]:
    """(dotted path, what is wrong and what is meant, what was given) of one finding of pydantic."""
    location = tuple(problem["loc"])
    path = _dotted(kind, location)
    if problem["type"] == "extra_forbidden":
        known = known_keys(kind, location)
        near = nearest(str(location[-1]), known)
        hint = f" Did you mean {' or '.join(near)}?" if near else f" Known: {', '.join(known)}." if known else ""
        return path, f"unknown setting.{hint}", ""
    if problem["type"] == "missing":
        return path, "needs a value.", ""
    given = problem.get("input")
    text = _words(problem["type"], problem.get("ctx") or {}, path, given)
    text = text or problem["msg"].removeprefix("Value error, ")
    shown = "" if isinstance(given, (Mapping, list, tuple)) and len(str(given)) > 60 else f" (given: {_said(given)})"
    return path, text, shown if path else ""


def _words(kind: str, about: Mapping[str, Any], path: str, given: Any) -> str:
    """Plain words for the kind of a finding; empty where pydantic's own say it well."""
    if kind == "literal_error":
        listed = str(about.get("expected", "")).replace(" or ", ", ")
        near = nearest(given, [choice.strip("'") for choice in listed.split(", ")], 1) if isinstance(given, str) else []
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return f"must be one of {listed}{hint}"
    if isinstance(given, float) and math.isnan(given):
        return "needs a number"
    limits = {"greater_than_equal": "ge", "greater_than": "gt", "less_than_equal": "le", "less_than": "lt"}
    if kind in limits:
        words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}[limits[kind]]
        limit = about.get(limits[kind])
        return (
            f"must be {words} {limit:g}"
            if isinstance(limit, (int, float)) and abs(limit) < 1e6
            else (f"must be {words} {limit}")
        )
    if kind == "too_long":
        return f"takes {about.get('max_length')} values, not {about.get('actual_length')}"
    if kind in ("string_too_long", "string_too_short"):
        length = len(given) if isinstance(given, str) else 0
        if kind == "string_too_short":
            return "must not be empty"
        return f"has {length} characters; at most {about.get('max_length')} are possible"
    for names, words in (
        (("int_parsing", "int_type", "int_from_float", "int_parsing_size"), "needs a whole number"),
        (("float_parsing", "float_type"), "needs a number"),
        (("finite_number",), "needs a finite number"),
        (("bool_parsing", "bool_type"), "needs true or false"),
        (("string_type",), "needs text, in quotes"),
        (("path_type",), "needs a path, in quotes"),
        (("list_type", "tuple_type"), "needs a list, [...]"),
        (("dict_type",), "needs a table, { name = value }"),
        (("model_type", "model_attributes_type"), f"must be a table: [{path}] with its settings below"),
    ):
        if kind in names:
            return words
    return ""


def _dotted(kind: type[BaseModel], location: tuple[Any, ...]) -> str:
    """`location` as a person would write it; what names a branch of a union is no part of it."""
    dotted, model = "", kind
    annotation: Any = None
    for part in location:
        if isinstance(part, int):
            dotted += f"[{part}]"
        elif (branch := _branch(annotation, part)) is not None:
            model, annotation = branch, None
        elif model is not None and get_origin(annotation) is dict:  # the name of an entry
            dotted, annotation = f"{dotted}.{part}", None
        elif model is not None:
            dotted += f".{part}" if dotted else str(part)
            field = model.model_fields.get(str(part))
            annotation = None if field is None else field.annotation
            model = None if annotation is None else model_in(annotation)
        elif get_origin(inner_type(annotation)) is dict:
            dotted += f".{part}"
            annotation = None
    return dotted


def _kinds(annotation: Any) -> Iterator[Any]:
    """Every type named in an annotation, whatever it is inside of; of a Literal its values' types."""
    if get_origin(annotation) is Literal:
        yield from (type(choice) for choice in get_args(annotation))
        return
    yield annotation
    for inner in get_args(annotation):
        yield from _kinds(inner)


def _said(value: Any) -> str:
    return repr(value) if len(repr(value)) <= 80 else f"{repr(value)[:77]}..."
