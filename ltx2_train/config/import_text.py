"""The text of an imported run file: each setting with the name it had, and what was not taken over as comments."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..foreign import PROGRAMS
from .describe import group_line, walk_settings
from .groups import RunConfig
from .import_paths import DATASET_NAME, relative
from .translate import ASSUMED, Line, Outcome, Translation, at, run_fields

NEEDED = ("model.checkpoint", "model.text_encoder")
TITLES: dict[Outcome, str] = {
    "not usable": "Cannot be used",
    "unknown": "Not known",
    "not yet": "Not there yet: the run trains without it",
    "replaced": "Replaced",
    "other command": "Other commands",
    "no effect": "No effect here",
    "unused": "Off, or as it is here anyway",
}


def run_lines(
    translation: Translation, head: str, folder: Path, out: Path, notes: Sequence[str], problems: Sequence[str]
) -> Iterator[str]:
    """The lines of the run file for the folder `out`; relative paths of `translation` are seen from `folder`.

    `head` says what it was made of.
    """
    yield f"# By `ltx2-train import` from {head}."
    yield "# Behind each setting stands the name it had there."
    yield from (f"# {note}." for note in notes)
    run = as_run(translation)
    section = ""
    for setting, field in run_fields().items():
        group, key = setting.rsplit(".", 1)
        value, names = _value(translation, run, setting)
        if value is None and setting not in NEEDED:
            continue
        if group != section:
            yield from ("", f"[{group}]")
            section = group
        if value is None:
            yield f"# {key} = '...'  # needed: {field.description}"
            continue
        yield from _with_note(group_line(key, _path_text(setting, value, folder, out)), names, translation.program)
    for outcome, title in TITLES.items():
        lines = translation.of(outcome)
        if lines:
            yield from ("", f"# --- {title}")
            yield from (f"#   {_written(line)}" for line in lines)
    if problems:
        yield from ("", "# --- To be put right by hand")
        yield from (f"#   {problem}" for problem in problems)


def _value(translation: Translation, run: RunConfig | None, setting: str) -> tuple[Any, list[str]]:
    """What the run file says for `setting`, and the names it comes from; None where nothing was given."""
    group = setting.split(".")[0]
    if run is None:
        value: Any = translation.tables
        for part in setting.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value, [translation.origin.get(setting, "")]
    model: Any = run
    for part in setting.split(".")[:-1]:
        if part not in model.model_fields_set:
            return None, []
        model = getattr(model, part)
    key = setting.split(".")[-1]
    if key not in model.model_fields_set:
        return None, []
    value = model.model_dump(mode="json", include={key})[key]
    names = [translation.origin[setting]] if setting in translation.origin else _switches(translation, group)
    return value, names


def _switches(found: Translation, group: str) -> list[str]:
    """Names of switches (fp8_base, ...) that a group turned into words of its own."""
    known = {setting for setting, _ in walk_settings()}
    return [
        origin for setting, origin in found.origin.items() if setting.split(".")[0] == group and setting not in known
    ]


def _path_text(setting: str, value: Any, folder: Path, out: Path) -> Any:
    """A path of the run file as seen from `out`."""
    kind = str(run_fields()[setting].annotation)
    if not isinstance(value, str) or "Path" not in kind or value == DATASET_NAME:
        return value
    return relative(value, folder, out)


def _with_note(line: str, names: Iterable[str], program: str) -> Iterator[str]:
    names = [name for name in dict.fromkeys(names) if name]
    if names == [ASSUMED]:
        note = f"not given; this is what {PROGRAMS[program]} takes"
    else:
        note = ", ".join(name for name in names if name != ASSUMED)
    if not note:
        yield line
    elif "\n" in line:
        yield from (f"# {note}", line)
    else:
        yield f"{line}  # {note}"


def in_brief(value: Any) -> str:
    """A value for a line of a report."""
    text = str(value).lower() if isinstance(value, bool) else " ".join(str(value).split())
    return text if len(text) <= 100 else text[:97] + "..."


def set_by(setting: str, translation: Translation, run: RunConfig | None) -> list[str]:
    """`setting = value`; of a switch that its group turns into words of its own, those that come of it alone."""
    if setting in run_fields():
        value, _ = _value(translation, run, setting)
        return [setting if value is None else f"{setting} = {in_brief(value)}"]
    group, key = setting.rsplit(".", 1)
    given = at(translation.tables, group) or {}
    for table in ({key: given.get(key)}, given):
        try:
            model = getattr(RunConfig.model_validate({group: table}), group)
        except (ValidationError, AttributeError):
            continue
        values = model.model_dump(mode="json", include=model.model_fields_set)
        return [f"{group}.{name} = {in_brief(one)}" for name, one in values.items()] or ["off"]
    return [setting]


def as_run(translation: Translation) -> RunConfig | None:
    """What the settings come to; None where they do not go together."""
    try:
        return RunConfig.model_validate(translation.tables)
    except ValidationError:
        return None


def _written(line: Line) -> str:
    return f"{line.name} = {in_brief(line.value)}" + (f": {' '.join(line.text.split())}" if line.text else "")
