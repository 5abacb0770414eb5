"""TOML as people write it: what cannot be read is told with its line, its key and what to write instead.

The reader of the standard library stops at the first fault and speaks of grammar. Nearly all faults are of five kinds:
a Windows path in double quotes, text without quotes, a setting or section that stands twice, a line that is no setting.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import ConfigError
from .text_files import read_text

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_PLACE = re.compile(r"\s*\(at (?:line (\d+), column (\d+)|end of document)\)$")
_SETTING = re.compile(r"""^\s*(?P<key>[A-Za-z0-9_.\-"']+)\s*=\s*(?P<value>.*?)\s*$""")
_SECTION = re.compile(r"^\s*\[(?P<double>\[)?\s*(?P<name>[^\[\]]+?)\s*\]\]?\s*(#.*)?$")
# one string in double quotes, on one line; what it holds may have any backslash, also one before the closing quote
_QUOTED = re.compile(r'"(?P<text>[^"\n]*)"')
_ESCAPES = re.compile(r'\\(?![btnfr"\\]|u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8})')


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file. Raises ConfigError that names the file, the line and what to write instead."""
    try:
        text = read_text(path)
    except OSError as error:
        raise ConfigError(f"Cannot read {path}: {error.strerror or error}. Check the path.") from None
    except UnicodeError as error:
        raise ConfigError(f"{path} {error}") from None
    return parse_toml(text, str(path))


def parse_toml(text: str, source: str) -> dict[str, Any]:
    """The tables of `text`. Raises ConfigError that speaks of `source`."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        lines = list(_faults(text, str(error)))
        if len(lines) == 1:
            raise ConfigError(f"{source} is not valid TOML: {lines[0]}") from None
        more = "\n".join(f"  {line}" for line in lines)
        raise ConfigError(f"{source} is not valid TOML in {len(lines)} places.\n{more}") from None


def parse_value(text: str) -> Any:
    """One value in the words of TOML. Raises ValueError where it is none."""
    return tomllib.loads(f"value = {text}")["value"]


def _faults(text: str, message: str) -> Iterator[str]:
    """A sentence for each fault of `text`; `message` is what the reader says of the first one."""
    place = _PLACE.search(message)
    fault = _PLACE.sub("", message)
    lines = text.split("\n")
    number = int(place[1]) if place is not None and place[1] else len(lines)
    if any(word in fault for word in ("Unescaped", "Invalid hex", "unicode", "escape")):
        paths = list(_bad_paths(lines))
        yield from paths or [f"line {number}: {_shown(lines, number)}: {fault}. Write it in 'single quotes'."]
    elif "Cannot overwrite" in fault or ("Cannot declare" in fault and "twice" in fault):
        yield _twice(lines, number, fault)
    elif fault.startswith(("Illegal character", "Unterminated")):
        yield f"line {number}: {_shown(lines, number)}: the text is not closed. Put a quote at its end."
    else:
        yield _not_a_value(lines, number, fault)


def _bad_paths(lines: list[str]) -> Iterator[str]:
    """Every line with a backslash in double quotes that TOML takes for something else."""
    for number, line in enumerate(lines, 1):
        if line.lstrip().startswith("#"):
            continue
        if any(_ESCAPES.search(text["text"].replace("\\\\", "")) for text in _QUOTED.finditer(line)):
            better = _QUOTED.sub(lambda text: f"'{text['text']}'" if "\\" in text["text"] else text[0], line.strip())
            yield (
                f"line {number}: in \"double quotes\" a backslash begins an escape. Put the path into 'single quotes': "
                f"{better}"
            )


def _twice(lines: list[str], number: int, what: str) -> str:
    """Words for a setting or a section that stands a second time at line `number`."""
    section = _SECTION.match(lines[number - 1])
    if section is not None:
        name = section["name"]
        others = [n for n, line in enumerate(lines, 1) if (one := _SECTION.match(line)) and one["name"] == name]
        first = next((n for n in others if n != number), None)
        if first is not None:
            return f"line {number}: the section [{name}] stands in line {first} already. Put its settings together."
        return f"line {number}: {name} is a setting above and cannot be a section as well. Keep one of them."
    setting = _SETTING.match(lines[number - 1])
    if setting is None:
        return f"line {number}: {_shown(lines, number)}: {what}."
    within = "the file"
    first = None
    for n, line in enumerate(lines[: number - 1], 1):
        if (head := _SECTION.match(line)) is not None:
            within, first = f"[{head['name']}]", None
        elif (one := _SETTING.match(line)) is not None and one["key"] == setting["key"]:
            first = n
    where = f" (first in line {first})" if first is not None else ""
    return f"line {number}: {setting['key']} stands twice in {within}{where}. Keep one of the lines."


def _not_a_value(lines: list[str], number: int, what: str) -> str:
    setting = _SETTING.match(lines[number - 1]) if number <= len(lines) else None
    if setting is None:
        return (
            f"line {number}: {_shown(lines, number)}: no setting. A setting is written key = value, a section [name], "
            "a note begins with #."
        )
    key, value = setting["key"], setting["value"]
    if value.lower() in ("true", "false"):
        return f"line {number}: {key}: write {value.lower()} in small letters."
    if value.lower() in ("none", "null", "nil", ""):
        return f"line {number}: {key}: has no value. Leave the line out, or give it one."
    if re.fullmatch(r"[+-]?(\.\d+|\d+\.)([eE].*)?", value):
        return f"line {number}: {key}: a number needs a digit before and behind its point (0.5, 5.0), not {value}."
    if re.fullmatch(r"\d+,\d+", value):
        return f"line {number}: {key}: a number has a point, not a comma: {value.replace(',', '.')}."
    if value[:1] not in "\"'[{" and re.match(r"[^\d+-]", value):
        quote = "'" if "\\" in value else '"'
        return f"line {number}: {key}: text needs quotes: {key} = {quote}{value}{quote}"
    return f"line {number}: {key} = {value}: {what}. Correct the value."


def _shown(lines: list[str], number: int) -> str:
    line = lines[number - 1].strip() if number <= len(lines) else ""
    return line if len(line) <= 80 else line[:77] + "..."
