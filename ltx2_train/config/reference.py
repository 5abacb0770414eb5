"""The reference of settings, and the tables of other programs' names, as Markdown; tests hold docs/ to them.

ltx2-train config --reference > docs/settings.md
ltx2-train config --names          the tables of docs/other_trainers.md
"""

from __future__ import annotations

from functools import cache
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from ..foreign import PROGRAMS, program_rows
from ..idle import counts_with, extra_of
from ..settings import inner_type, models_in
from .describe import aliases, bounds_text, walk_settings
from .groups import RunConfig
from .translate import find_row, known_names

FIRST_VERSION = "0.1"  # of settings that do not say `since`

_HEAD = """# Settings of a run file

Every setting, printed by `ltx2-train config --reference`. A run file is TOML: `[section]`, then `setting = value`. What
is left out has its default. Relative paths are seen from the file; those within the lines of a list of `sample.prompts`
are seen from the folder that the command runs in. `--set section.setting=value` overrides one on the command line.
`ltx2-train config --defaults` prints all of them as a file to begin with. What *counts only* beside another setting is
refused where it is set without it, before anything is read; what only says how a thing is done, or switches one off, is
told.

Other names are understood too. Plain ones are flags of the community trainer, those with a point are keys of the
official trainer's YAML, those with (S) are keys of SimpleTuner's config.json: see
[other_trainers.md](other_trainers.md). What a dataset file may say is in [dataset_file.md](dataset_file.md).
"""


def settings_page() -> str:
    """docs/settings.md: every setting by section, with default, unit, range, meaning, other names and version."""
    parts = [_HEAD.strip()]
    for section, title, kind in _sections(RunConfig):
        rows = [
            _row(f"{section}.{name}", name, field)
            for name, field in kind.model_fields.items()
            if not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel))
        ]
        inside = {
            one: f"{section}.{name}"
            for name, field in kind.model_fields.items()
            if _listed(field)
            for one in models_in(field.annotation)
        }
        if rows:
            head = ["| setting | default | range | meaning | other names | since |", "|---|---|---|---|---|---|"]
            parts.append("\n".join([f"## [{section}]", "", title, "", *head, *rows]))
        for one, setting in inside.items():
            parts.append(_table_inside(setting, one))
    return "\n\n".join(parts) + "\n"


def names_tables() -> str:
    """The tables of docs/other_trainers.md: what becomes of every name of the other programs."""
    parts = []
    for program, title in (
        ("community", "Flags of the community trainer"),
        ("official", "The official trainer's YAML"),
        ("simpletuner", "SimpleTuner's config.json"),
        ("simpletuner_data", "SimpleTuner's multidatabackend.json"),
        ("dataset_keys", "Keys of dataset files, of kohya's scripts and others"),
    ):
        names = sorted(known_names(program))
        rows = [f"| `{name}` | {_cell(row.outcome())} |" for name in names if (row := find_row(program, name))]
        parts.append("\n".join([f"## {title}", "", "| name | what becomes of it |", "|---|---|", *rows]))
    return "\n\n".join(parts) + "\n"


def _listed(field: FieldInfo) -> bool:
    """Whether a setting is a list of tables."""
    return get_origin(inner_type(field.annotation)) is list and any(models_in(field.annotation))


def _table_inside(setting: str, kind: type[BaseModel]) -> str:
    """What a table in the list of tables `setting` may say."""
    title = " ".join((kind.__doc__ or "").split())
    word = f' type = "{kind.model_fields["type"].default}"' if "type" in kind.model_fields else ""
    rows = [
        f"| `{name}` | {_default(field.get_default(call_default_factory=True))} | {_range(field, extra_of(field))} "
        f"| {_cell(field.description or '')} |"
        for name, field in kind.model_fields.items()
        if name != "type"
    ]
    head = ["| key | default | range | meaning |", "|---|---|---|---|"]
    return "\n".join([f"### [[{setting}]]{word}", "", title, "", *head, *rows])


def _sections(kind: type[BaseModel], prefix: str = "") -> list[tuple[str, str, type[BaseModel]]]:
    """(dotted name, what it is for, class) of every group, those inside of others behind them."""
    sections = []
    for name, field in kind.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            said = field.description or (inner.__doc__ or "").strip().split("\n\n")[0].replace("\n", " ")
            sections.append((f"{prefix}{name}", " ".join(said.split()), inner))
            sections += _sections(inner, f"{prefix}{name}.")
    return sections


def _row(dotted: str, name: str, field: FieldInfo) -> str:
    extra = extra_of(field)
    value: Any = RunConfig()
    for part in dotted.split("."):
        value = getattr(value, part)
    unit = f" {extra['unit']}" if "unit" in extra and value not in (None, ()) else ""
    cells = (
        f"`{name}`",
        f"{_default(value)}{unit}",
        _range(field, extra),
        _cell(_meaning(field, dotted)),
        ", ".join(f"`{one}`" if "(" not in one else one for one in _other_names().get(dotted, ())),
        str(extra.get("since", FIRST_VERSION)),
    )
    return f"| {' | '.join(cells)} |"


def _meaning(field: FieldInfo, dotted: str) -> str:
    """What a setting is for, and what it needs beside it to have an effect."""
    beside = counts_with(field, dotted.rpartition(".")[0] + ".")
    return f"{field.description or ''} Counts only {beside}." if beside else field.description or ""


def _default(value: Any) -> str:
    if value is None:
        return "not set"
    if value is PydanticUndefined:
        return "needed"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, (list, tuple, dict)):
        return f"`{list(value) if isinstance(value, tuple) else value}`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`" if value != "" else "empty"


def _range(field: FieldInfo, extra: dict[str, Any]) -> str:
    kind = inner_type(field.annotation)
    if get_origin(kind) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(kind))
    limits = bounds_text(field)
    unit = f" {extra['unit']}" if "unit" in extra else ""
    name = getattr(kind, "__name__", "")
    words = {"bool": "true or false", "str": "text", "Path": "path", "int": "whole number", "float": "number"}
    said = words.get(name, "list" if get_origin(kind) in (list, tuple) else "table" if get_origin(kind) is dict else "")
    if get_origin(kind) is not None and not said:
        said = "path or list"
    return _cell(", ".join(part for part in (f"{said}{unit}", limits) if part))


@cache
def _other_names() -> dict[str, list[str]]:
    """Dotted setting -> the names that other programs have for it."""
    names_of: dict[str, list[str]] = {dotted: [] for dotted, _ in walk_settings()}
    for name, dotted in aliases().items():
        if dotted in names_of:
            names_of[dotted].append(name)
    for program in PROGRAMS:
        mark = " (S)" if program == "simpletuner" else ""
        for row in program_rows(program).values():
            for dotted in row.takes:
                name = f"`{row.name}` (S)" if mark else row.name
                if dotted in names_of and name not in names_of[dotted]:
                    names_of[dotted].append(name)
    for dotted, names in names_of.items():
        own = dotted.rsplit(".", 1)[1]
        names_of[dotted] = [name for name in names if name != own]
    return names_of


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
