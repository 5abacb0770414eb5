"""From TOML, tables and `--set` to a RunConfig.

Two courtesies: paths are relative to the run file, and files and names of other programs are understood (`network_dim`
for `lora.rank`; a whole TOML, YAML, JSON or saved command of theirs). All that is wrong is told at once.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from ..dataset.entry import DatasetSettings
from ..errors import ConfigError
from ..paths import from_folder, is_record
from ..registry import nearest
from ..settings import parse
from ..toml import read_toml, tomllib
from .describe import aliases, groups
from .groups import RunConfig
from .sample import SIZES
from .sources import DATASET_TABLES, SettingsFile, read_source
from .translate import REFUSED, Translation, find_row, from_text, lines_in_words, run_fields

__all__ = ["load_run", "make_run", "read_toml", "check_overrides", "taken_over", "tomllib"]


def make_run(
    tables: Mapping[str, Any], base: Path | str = ".", source: str = "settings", overrides: Sequence[str] = ()
) -> RunConfig:
    """A RunConfig from nested tables and `section.key=value` overrides; relative paths are taken from `base`.

    Raises ConfigError.
    """
    tables = copy.deepcopy(dict(tables))
    for text in overrides:
        _override(tables, text)
    run = _made(tables, Path(base).absolute(), source)
    run._asked = _names_of(overrides)
    return run


def load_run(path: Path | str, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run file, or a file of another program, and apply `section.key=value` overrides. Raises ConfigError."""
    path = Path(path)
    source = read_source(path)
    problems: list[str] = []
    notes: list[str] = []
    if source is None:
        tables = read_toml(path)
    else:
        translation = taken_over(source)
        tables = translation.tables
        notes = [*source.notes, *lines_in_words(translation.of("no effect")), *translation.assumptions()]
        problems = [*source.problems, *lines_in_words(translation.of(*REFUSED))]
        if problems:
            problems.append(f"`ltx2-train import {path.name}` writes a run file that leaves these out, and says so.")
    for override in overrides:
        _override(tables, override)
    base = path.absolute().parent if source is None else source.folder
    run = _made(tables, base, path.name, problems, notes)
    run._foreign, run._asked = source is not None, _names_of(overrides)
    run._record_of = path.absolute().parent if is_record(path) else None
    # files of other programs carry settings of ways that they do not go; so does what a run wrote of all its settings
    if run.foreign or is_record(path):
        harmless = [one for one in run.without_effect if one.setting not in run._asked]
        run._notes = (*run.notes, *(str(one) for one in harmless))
        run._said = frozenset(one.setting for one in harmless)
    if run.run.folder is None:
        folder = run.run.model_copy(update={"folder": path.absolute().parent / "runs"})
        run = run.model_copy(update={"run": folder})
    return run


def taken_over(source: SettingsFile) -> Translation:
    """The settings that come of a file of another program, with what that program takes where the file is silent."""
    translation = Translation(source.program)
    names = [
        (name, str(from_folder(source.folder, value)) if name == "lycoris_config" and isinstance(value, str) else value)
        for name, value in source.names
    ]
    whole = dict(names)
    for name, value in names:
        translation.add(name, value, whole)
    for command in source.others:
        translation.add_command(command.program, command.flags)
    translation.settle()
    if source.trains:
        translation.assume_defaults()
    return translation


def _made(
    tables: Mapping[str, Any], base: Path, source: str, problems: Sequence[str] = (), notes: Sequence[str] = ()
) -> RunConfig:
    plain, more, said = _with_own_names(tables)
    run = _resolve(parse(RunConfig, plain, source, [*problems, *more]), base)
    run._notes = (*notes, *said, *not_as_asked(plain.get("sample"), run))
    return run


def not_as_asked(given: Any, run: RunConfig) -> Iterator[str]:
    """Sentences on sizes of samples that none can have, of those that the table `given` of a run file asks for."""
    for name in SIZES if isinstance(given, Mapping) else ():
        asked, drawn = given.get(name), getattr(run.sample, name)
        if isinstance(asked, int) and asked != drawn and (name == "frames" or run.model.mode != "audio"):
            yield f"sample.{name} {asked} is not {SIZES[name]}; {drawn} is used instead."


def _with_own_names(tables: Mapping[str, Any]) -> tuple[dict[str, Any], list[str], list[str]]:
    """Names of the community trainer moved to their place, wherever they stand; sentences on what is wrong, and notes.

    They may stand at the top, in a group or in a table of their own.
    """
    known, problems = groups(), []
    out: dict[str, Any] = {}
    foreign: list[tuple[str, Any, str]] = []
    for key, value in tables.items():
        if key in known and isinstance(value, Mapping):
            out[key] = {name: inner for name, inner in value.items() if name in known[key] or not _is_known(name)}
            foreign += [(name, inner, f"{key}.{name}") for name, inner in value.items() if name not in out[key]]
        elif key in known:
            problems.append(f"{key} must be a table ([{key}]), not {value!r}.")
        elif key in DATASET_TABLES:
            problems.append(f"{key}: belongs to the dataset file, which data.config names.")
        elif isinstance(value, Mapping) and not _is_known(key) and any(_is_known(name) for name in value):
            foreign += [(name, inner, f"{key}.{name}") for name, inner in value.items()]
        elif isinstance(value, Mapping) and value and all(_is_known(f"{key}.{name}") for name in value):
            foreign += [(f"{key}.{name}", inner, f"{key}.{name}") for name, inner in value.items()]
        elif _is_known(key) or key in DatasetSettings.model_fields:
            foreign.append((key, value, key))
        else:
            near = nearest(key, [*known, *aliases()])
            hint = f" Did you mean {' or '.join(aliases().get(n, n) for n in near)}?" if near else ""
            problems.append(f"{key}: unknown setting.{hint} Groups: {', '.join(known)}.")
    moved = Translation("community", tables=out, plain=True)
    moved.origin = {f"{group}.{name}": f"{group}.{name}" for group in out for name in out[group]}
    whole = {name: value for name, value, _ in foreign}
    for name, value, where in foreign:
        moved.add(name, value, whole, where)
    moved.settle()
    return out, [*problems, *lines_in_words(moved.of(*REFUSED))], lines_in_words(moved.of("no effect"))


def _is_known(name: str) -> bool:
    return find_row("community", name) is not None


def check_overrides(overrides: Sequence[str]) -> None:
    """Raise ConfigError where `section.key=value` overrides give one setting two values, under whatever names."""
    given: dict[str, str] = {}
    for text in overrides:
        path, _, raw = (part.strip() for part in text.partition("="))
        path = aliases().get(path, path)
        if given.setdefault(path, raw) != raw:
            raise ConfigError(f"{path} is given twice, as {given[path]} and as {raw}. Give it once.")


def _names_of(overrides: Sequence[str]) -> frozenset[str]:
    """The dotted settings that `overrides` give."""
    names = (override.partition("=")[0].strip() for override in overrides)
    return frozenset(aliases().get(name, name) for name in names)


def _override(tables: dict[str, Any], override: str) -> None:
    path, sign, raw = override.partition("=")
    path = path.strip()
    if not sign or not path:
        raise ConfigError(f"--set {override!r}: expected section.key=value, for example --set train.steps=500.")
    path = aliases().get(path, path)
    if path not in run_fields() and any(name.startswith(f"{path}.") for name in run_fields()):
        raise ConfigError(
            f"--set {override!r}: {path} is a section. Give each of its settings: --set {path}.key=value."
        )
    target = tables
    *sections, key = path.split(".")
    for part in sections:
        inner = target.setdefault(part, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"--set {override!r}: {part} is a setting, not a section.")
        target = inner
    target[key] = from_text(run_fields().get(path), raw.strip())


def _resolve(value: Any, base: Path) -> Any:
    if isinstance(value, BaseModel):
        changed = {name: _resolve(getattr(value, name), base) for name in type(value).model_fields}
        return value.model_copy(update=changed)
    return from_folder(base, value) if isinstance(value, Path) else value
