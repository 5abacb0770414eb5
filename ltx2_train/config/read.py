"""From TOML, tables and `--set` to a RunConfig.

Two courtesies: paths are relative to the run file, and the flag names of the community trainer are accepted
(`network_dim` for `lora.rank`, ...), so a settings file can be brought along.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from ..errors import ConfigError
from ..registry import nearest
from ..settings import parse
from .describe import aliases
from .groups import RunConfig

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def make_run(tables: Mapping[str, Any], base: Path | str = ".", source: str = "settings") -> RunConfig:
    """A RunConfig from nested tables; relative paths are taken from `base`. Raises ConfigError."""
    run = parse(RunConfig, _without_aliases(tables, source), source)
    return _resolve(run, Path(base).absolute())


def load_run(path: Path | str, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run file and apply `section.key=value` overrides. Raises ConfigError."""
    path = Path(path)
    tables = read_toml(path)
    for text in overrides:
        _override(tables, text)
    run = make_run(tables, path.absolute().parent, path.name)
    if run.run.folder is None:
        folder = run.run.model_copy(update={"folder": path.absolute().parent / "runs"})
        run = run.model_copy(update={"run": folder})
    return run


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file. Raises ConfigError that names the file and the line."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"Cannot read {path}: {error.strerror or error}. Check the path.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        hint = (
            " In TOML a backslash needs doubling; use / in paths or 'single quotes'." if "escape" in str(error) else ""
        )
        raise ConfigError(f"{path} is not valid TOML: {error}.{hint}") from None


def _without_aliases(tables: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Move community flag names to their place, be they at the top, in a group or in a table of their own."""
    groups = RunConfig.model_fields
    table = aliases()
    out: dict[str, Any] = {}
    moved: list[tuple[str, Any, str]] = []
    for key, value in tables.items():
        if key in groups:
            if not isinstance(value, Mapping):
                raise ConfigError(f"{source}: {key} must be a table ([{key}]), not {value!r}.")
            known = _fields_of(key)
            kept = {}
            for name, inner in value.items():
                if name not in known and name in table:
                    moved.append((name, inner, f"{key}.{name}"))
                else:
                    kept[name] = inner
            out[key] = {**out.get(key, {}), **kept}
        elif key in table:
            moved.append((key, value, key))
        elif isinstance(value, Mapping) and value and all(name in table for name in value):
            moved += [(name, inner, f"{key}.{name}") for name, inner in value.items()]
        else:
            near = nearest(key, [*groups, *table])
            hint = f" Did you mean {' or '.join(table.get(n, n) for n in near)}?" if near else ""
            raise ConfigError(f"{source}: {key}: unknown setting.{hint} Groups: {', '.join(groups)}.")
    for name, value, where in moved:
        parts = table[name].split(".")
        target = out
        for part in parts[:-1]:
            target = target.setdefault(part, {})
        if parts[-1] in target:
            raise ConfigError(f"{source}: {where} and {table[name]} are the same setting; keep one of them.")
        target[parts[-1]] = value
    return out


def _fields_of(group: str) -> set[str]:
    annotation = RunConfig.model_fields[group].annotation
    return set(annotation.model_fields) if isinstance(annotation, type) and issubclass(annotation, BaseModel) else set()


def _override(tables: dict[str, Any], text: str) -> None:
    path, sign, raw = text.partition("=")
    if not sign or not path.strip():
        raise ConfigError(f"--set {text!r}: expected section.key=value, for example --set train.steps=500.")
    try:
        value = tomllib.loads(f"value = {raw.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        value = raw.strip()
    parts = path.strip().split(".")
    target = tables
    for part in parts[:-1]:
        inner = target.setdefault(part, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"--set {text!r}: {part} is a setting, not a section.")
        target = inner
    target[parts[-1]] = value


def _resolve(value: Any, base: Path) -> Any:
    if isinstance(value, BaseModel):
        changed = {name: _resolve(getattr(value, name), base) for name in type(value).model_fields}
        return value.model_copy(update=changed)
    if isinstance(value, Path):
        expanded = value.expanduser()
        return expanded if expanded.is_absolute() else base / expanded
    return value
