"""Settings fields -> ComfyUI widgets, and widget values -> the tables the core reads.

A setting is defined once, as a pydantic field. `Form` lists which settings a node shows, under which names; type,
default, bounds, choices and tooltip of each widget are read from the field. A setting that may be unset is shown with
a value that means so: an empty text, the choice "not set", or the number just below the smallest legal one.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ..ltx2_train.errors import ConfigError
from ..ltx2_train.settings import limits
from . import words
from .fields import field_at, marks_of
from .host import io

NOT_SET = "not set"
NO_TEXT = '""'  # in a widget whose empty text means that it is not set
SWITCH = {"auto": None, "on": True, "off": False}  # a yes or no that the core decides where it is not set
LARGEST_INT = 2**31 - 1
LARGEST_FLOAT = 1e6

SHOWN: set[str] = set()
"""The settings that some widget shows, by their dotted paths; those of a dataset have no dot."""

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Setting:
    """One widget: the dotted path of its setting, and what the node shows otherwise than the setting says.

    `default` is for a node that suggests another value than a bare run file (a size, a name); `unset` is the number
    that means "not set", where the setting has one of its own; `item` makes the widget stand for one entry of
    a setting that is a row of numbers, as the width of a resolution; `text` shows a text where the setting has choices;
    `one_line` has a list of texts in one line, with commas; `extra` goes to the widget as it is, for example
    `multiline=True`.
    """

    path: str
    name: str = ""
    label: str = ""
    default: Any = None
    unset: float | None = None
    step: float | None = None
    item: int | None = None
    text: bool = False
    one_line: bool = False
    extra: Mapping[str, Any] | None = None

    @property
    def id(self) -> str:
        return self.name or self.path.rsplit(".", 1)[-1]

    def shown_by(self, node: str, alone: bool = False) -> None:
        """Have errors of the core speak of this widget of `node`. Single words are left alone, as sentences have them,
        and so are settings of which this shows an item, where it is not `alone` in doing so."""
        SHOWN.add(self.path)
        if (alone or self.item is None) and ("." in self.path or "_" in self.path):
            words.note_widget(node, self.path, self.id)


class Form:
    """The settings that `nodes` (titles) show: `visible` ones always, `advanced` ones folded away and optional."""

    def __init__(
        self,
        kind: type[BaseModel],
        visible: Iterable[Setting],
        advanced: Iterable[Setting] = (),
        nodes: Iterable[str] = (),
    ) -> None:
        self.kind = kind
        self.visible = tuple(visible)
        self.advanced = tuple(advanced)
        paths = [setting.path for setting in self.settings]
        for node in nodes:
            for setting in self.settings:
                setting.shown_by(node, alone=paths.count(setting.path) == 1)

    @property
    def settings(self) -> tuple[Setting, ...]:
        return self.visible + self.advanced

    def visible_inputs(self) -> list[Any]:
        return [widget(self.kind, setting) for setting in self.visible]

    def advanced_inputs(self) -> list[Any]:
        return [widget(self.kind, setting, advanced=True) for setting in self.advanced]

    def defaults(self, visible: bool = False) -> dict[str, Any]:
        """What the advanced widgets hold when nobody touches them, by widget name; `visible`: the others too."""
        chosen = self.settings if visible else self.advanced
        return {setting.id: shown_default(shown_field(self.kind, setting), setting) for setting in chosen}

    def fill(self, execute: F) -> F:
        """Decorate an `execute` that takes `**settings`: its signature gets the advanced widgets with their defaults.

        So a call that gives only the visible widgets is the same call as one from the page. What is not given is not
        among the `settings`, and has its default wherever they are read.
        """
        signature = inspect.signature(execute)
        own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        keyword = inspect.Parameter.KEYWORD_ONLY
        own += [inspect.Parameter(setting.id, keyword) for setting in self.visible]
        own += [inspect.Parameter(name, keyword, default=value) for name, value in self.defaults().items()]
        execute.__signature__ = signature.replace(parameters=own)  # type: ignore[attr-defined]
        return execute

    def tables(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The widget values as nested tables of settings; unset ones are left out; one not given has its default."""
        tables: dict[str, Any] = {}
        for setting in self.settings:
            field = shown_field(self.kind, setting)
            shown = values[setting.id] if setting.id in values else shown_default(field, setting)
            value = value_of(field, setting, shown)
            if value is None:
                continue
            *groups, last = setting.path.split(".")
            table = tables
            for group in groups:
                table = table.setdefault(group, {})
            if setting.item is None:
                table[last] = value
            else:
                table[last] = [*table.get(last, []), value]
        return tables

    def instead(self, tables: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
        """`tables` with the widget values in place of theirs; what a widget leaves unset is unset whatever they say."""
        kept = merged(tables)
        for setting in self.settings:
            *groups, last = setting.path.split(".")
            table = kept
            for group in groups:
                table = table.get(group) or {}
            table.pop(last, None)
        return merged(kept, self.tables(values))

    def said(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """As `tables`, of those settings alone whose widgets are among the values, whatever they hold."""
        return Form(self.kind, [setting for setting in self.settings if setting.id in values]).tables(values)

    def changed(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """As `tables`, of those settings alone whose widgets do not hold their defaults."""
        untouched = self.defaults(visible=True)
        touched = [s for s in self.settings if values.get(s.id, untouched[s.id]) != untouched[s.id]]
        return Form(self.kind, touched).tables(values)


def merged(*tables: Mapping[str, Any]) -> dict[str, Any]:
    """Nested tables joined; a later one wins."""
    out: dict[str, Any] = {}
    for table in tables:
        for key, value in table.items():
            out[key] = merged(out.get(key) or {}, value) if isinstance(value, Mapping) else value
    return out


def shown_field(kind: type[BaseModel], setting: Setting) -> FieldInfo:
    """The field a widget shows; for one entry of a row of numbers, a field of that entry."""
    field = field_at(kind, setting.path)
    if setting.item is None:
        return field
    types = get_args(field.annotation)
    default = setting.default
    if not field.is_required():
        row = field.get_default(call_default_factory=True)
        default = row[min(setting.item, len(row) - 1)]
    return FieldInfo(
        annotation=types[min(setting.item, len(types) - 1)] if types[-1] is not Ellipsis else types[0],
        default=default,
        description=field.description,
        json_schema_extra=field.json_schema_extra,
    )


def widget(kind: type[BaseModel], setting: Setting, advanced: bool = False) -> Any:
    """The input that shows `setting`."""
    field = shown_field(kind, setting)
    inner, optional = _unwrap(field.annotation)
    options: dict[str, Any] = {"tooltip": tooltip(field, setting), "default": shown_default(field, setting)}
    options["extra_dict"] = {"setting": setting.path}  # by which the page finds the number of a recipe in other nodes
    if setting.label:
        options["display_name"] = setting.label
    if advanced:
        options |= {"optional": True, "advanced": True}
    options |= setting.extra or {}
    if get_origin(inner) is Literal and not setting.text:
        choices = [str(choice) for choice in get_args(inner)]
        return io.Combo.Input(setting.id, options=[NOT_SET, *choices] if optional else choices, **options)
    if inner is bool and optional:
        return io.Combo.Input(setting.id, options=list(SWITCH), **options)
    if inner is bool:
        return io.Boolean.Input(setting.id, **options)
    if inner is int:
        low, high = widget_bounds(field, setting)
        options.setdefault("min", int(low) if low is not None else -LARGEST_INT)
        options.setdefault("max", int(high) if high is not None else LARGEST_INT)
        if setting.step:
            options["step"] = int(setting.step)
        return io.Int.Input(setting.id, **options)
    if inner is float:
        low, high = widget_bounds(field, setting)
        step = setting.step or _step(field, setting)
        options.setdefault("min", float(low) if low is not None else -LARGEST_FLOAT)
        options.setdefault("max", float(high) if high is not None else LARGEST_FLOAT)
        options |= {"step": step, "round": step}
        return io.Float.Input(setting.id, **options)
    if _is_table(inner) or (_is_list(inner) and str in _item_types(inner) and not setting.one_line):
        options.setdefault("multiline", True)
    return io.String.Input(setting.id, **options)


def shown_default(field: FieldInfo, setting: Setting) -> Any:
    """What the widget holds before anyone touches it."""
    inner, optional = _unwrap(field.annotation)
    value = setting.default if setting.default is not None else field.get_default(call_default_factory=True)
    if get_origin(inner) is Literal:
        return NOT_SET if value is None else str(value)
    if inner in (int, float):
        value = unset_number(field, setting) if value is None else value
        return float(value) if inner is float else int(value)
    if inner is bool:
        return next(word for word, meant in SWITCH.items() if meant is value) if optional else value
    if value is None:
        return ""
    if isinstance(value, dict):
        return "\n".join(f"{name} = {item}" for name, item in value.items())
    if isinstance(value, (list, tuple)):
        return ("\n" if str in _item_types(inner) and not setting.one_line else ", ").join(str(item) for item in value)
    return str(value)


def value_of(field: FieldInfo, setting: Setting, shown: Any) -> Any:
    """What the setting gets for the widget value `shown`; None where it is to be left unset."""
    inner, optional = _unwrap(field.annotation)
    if get_origin(inner) is Literal:
        if optional and shown == NOT_SET:
            return None
        by_text = {str(choice): choice for choice in get_args(inner)}
        return by_text.get(str(shown), shown)
    if inner in (int, float):
        is_unset = optional and shown == unset_number(field, setting)
        return None if is_unset and not _has_default(field) else shown
    if inner is bool:
        return SWITCH.get(shown, shown) if optional else shown
    text = str(shown).strip()
    if _is_table(inner):
        return _table(setting, text, below=get_args(inner)[1] not in (float, Any)) or None
    if _is_list(inner):
        if str in _item_types(inner):
            parts = text.split(",") if setting.one_line else text.split("\n")
            return [part.strip() for part in parts if part.strip()] or None
        return [_number(part) for part in text.replace(";", ",").split(",") if part.strip()] or None
    if optional and text == NO_TEXT:
        return ""
    return text if text or not optional else None


def widget_bounds(field: FieldInfo, setting: Setting) -> tuple[float | None, float | None]:
    """Smallest and largest value of the widget; an unset number lies just below the smallest legal one."""
    inner, optional = _unwrap(field.annotation)
    rules, step = limits(field), 1 if inner is int else setting.step or _step(field, setting)
    low, high = rules.get("ge"), rules.get("le")
    if "gt" in rules:
        low = rules["gt"] + step
    if "lt" in rules:
        high = rules["lt"] - step
    if optional:
        low = unset_number(field, setting)
    return low, high


def tooltip(field: FieldInfo, setting: Setting) -> str:
    """The help of the field with its unit and bounds."""
    text = (field.description or "").strip()
    inner, optional = _unwrap(field.annotation)
    extra = marks_of(field)
    notes = [str(extra["unit"])] if "unit" in extra else []
    if inner in (int, float):
        rules = limits(field)
        low, high = _plain(rules.get("gt", rules.get("ge"))), _plain(rules.get("lt", rules.get("le")))
        if low and high and len(high) <= 10:
            notes.append(f"{low} to {high}")
        elif low:
            notes.append(f"{low} or more")
        if optional:
            notes.append(f"{unset_number(field, setting):g} = {'off' if _has_default(field) else 'not set'}")
    elif setting.one_line and _is_list(inner) and str in _item_types(inner):
        notes.append("commas between several")
    elif optional and inner is bool:
        notes.append("auto = not set")
    elif optional and get_origin(inner) is not Literal and not (_is_list(inner) and "ot set" in text):
        notes += ["empty = not set", f"{NO_TEXT} = none"] if inner is str else ["empty = not set"]
    return f"{text} ({'; '.join(notes)})" if notes else text


def _plain(value: float | None) -> str:
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def unset_number(field: FieldInfo, setting: Setting) -> float:
    """The number that means "not set": the setting's own, else 0 where 0 is not legal, else -1."""
    if setting.unset is not None:
        return setting.unset
    rules = limits(field)
    return 0 if rules.get("ge", 0) > 0 or rules.get("gt", -1) >= 0 else -1


def _has_default(field: FieldInfo) -> bool:
    """Whether an optional setting that is left out is set all the same, so that only its number says that it is off."""
    return not field.is_required() and field.get_default(call_default_factory=True) is not None


def _step(field: FieldInfo, setting: Setting) -> float:
    """A step that keeps what people type: the page rounds to it, and would make 0.0001 a 0, 0.999 a 1."""
    if setting.path.endswith("learning_rate"):
        return 1e-7
    default, step = field.default, 0.01
    if isinstance(default, (int, float)) and 0 < abs(default) < 0.1:
        step = float(f"1e{math.floor(math.log10(abs(default))) - 2}")
    return min(step, 1e-4) if "lt" in limits(field) else step  # shares that come near to an open end


def _number(text: str) -> Any:
    text = text.strip()
    try:
        return int(text)
    except ValueError:
        try:
            return float(text)
        except ValueError:
            return text  # the core names the setting and what it expects


def is_path(field: FieldInfo) -> bool:
    """Whether the setting is a file or a folder."""
    return _unwrap(field.annotation)[0] is Path


def _table(setting: Setting, text: str, below: bool = False) -> dict[str, Any]:
    """A table from one `name = value` a line; with tables `below`, the value is such as "rank 8, alpha 4". Raises
    ConfigError where a line is none."""
    table: dict[str, Any] = {}
    form = "pattern = rank 8, alpha 4" if below else "name = value"
    for line in filter(None, map(str.strip, text.splitlines())):
        name, sign, value = (part.strip() for part in line.partition("="))
        pairs = [part.replace("=", " ").split() for part in value.split(",")] if below else []
        if not sign or not name or any(len(pair) != 2 for pair in pairs):
            raise ConfigError(f"{setting.path}: {line!r} is not `{form}`. Write one of them a line.")
        table[name] = {key: _value(one) for key, one in pairs} if below else _value(value)
    return table


def _value(text: str) -> Any:
    words = {"true": True, "false": False}
    return words.get(text.lower(), _number(text))


def _unwrap(annotation: Any) -> tuple[Any, bool]:
    """The type inside Optional, and whether None is legal; of a list or path the list, which text can say as well."""
    if get_origin(annotation) not in (Union, UnionType):
        return annotation, False
    parts = [part for part in get_args(annotation) if part is not type(None)]
    optional = len(parts) < len(get_args(annotation))
    return next((part for part in parts if _is_list(part)), parts[0]), optional


def _is_table(kind: Any) -> bool:
    return get_origin(kind) is dict


def _is_list(kind: Any) -> bool:
    return get_origin(kind) in (list, tuple)


def _item_types(kind: Any) -> tuple[Any, ...]:
    """What the items of a list are; of a union, each of its kinds."""
    kinds = get_args(kind) if _is_list(kind) else ()
    return tuple(one for part in kinds for one in (get_args(part) if isinstance(part, UnionType) else (part,)))
