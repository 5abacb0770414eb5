"""A command as it was typed or saved in a script: its words, with quotes, line breaks and variables undone.

bash, cmd.exe and PowerShell continue a line with a backslash, a caret and a backtick. A path from Windows keeps its
backslashes: only one before a quote or a blank is taken for an escape.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

# a line that only says something to the shell
_REMARK = re.compile(r"^\s*(#|::|@?rem\b|@?echo\b|set -|setlocal|endlocal|pause\b|cd\b|source\b|call\b|exit\b)", re.I)
_ASSIGNMENT = re.compile(
    r"""^\s*(?:export\s+|set\s+"?|\$env:|\$)?(?P<name>[A-Za-z_]\w*)\s*=\s*(?P<value>[^\s].*?)"?\s*$""", re.IGNORECASE
)
_VARIABLE = re.compile(r"\$env:(?P<a>\w+)|\$\{(?P<b>\w+)\}|%(?P<c>\w+)%|\$(?P<d>[A-Za-z_]\w*)")
_WORD = re.compile(r"""(?:"(?:\\"|[^"])*"|'[^']*'|\\[ "']|[^\s"'])+""")
_FLAG = re.compile(r"^--?[A-Za-z]")
_NUMBER = re.compile(r"^-[\d.]")
# "..." and "(other training args)": a guide's words for flags that it leaves out
_LEFT_OUT = re.compile(r"(?<!\S)(?:\.\.\.|\([\w ]+\))(?!\S)")


@dataclass
class Command:
    """One command: the program it runs, its flags in order (one without a value is true), and words without a flag.

    `cut_short`: it was copied with words like "..." for flags that are left out.
    """

    program: str
    flags: list[tuple[str, Any]] = field(default_factory=list)
    plain: list[str] = field(default_factory=list)
    cut_short: bool = False


def read_commands(text: str) -> tuple[list[Command], dict[str, str], list[str]]:
    """The commands of a script, the variables it sets, and the names of variables that it uses and does not set."""
    variables: dict[str, str] = {}
    commands: list[Command] = []
    missing: list[str] = []
    for line in _whole_lines(text):
        assignment = _ASSIGNMENT.match(line)
        if assignment is not None and not line.lstrip().startswith("-"):
            variables[assignment["name"]] = _insert(assignment["value"].strip("\"'"), variables, missing)
            continue
        whole = _LEFT_OUT.sub(" ", line)
        words = [_plain(word) for word in _WORD.findall(_insert(whole, variables, missing))]
        if words:
            commands.append(_command(words))
            commands[-1].cut_short = whole != line
    return [one for one in commands if one.flags or one.plain], variables, list(dict.fromkeys(missing))


def _whole_lines(text: str) -> Iterator[str]:
    """Lines with what continues them; a line that begins with a flag belongs to the one before."""
    whole = ""
    open_line = False
    for raw in text.replace("\r\n", "\n").split("\n"):
        line = raw.rstrip()
        if not line.strip():
            open_line = False
            continue
        if _REMARK.match(line) and not open_line:
            continue
        if line.lstrip().startswith("#"):
            continue
        joined = open_line or bool(_FLAG.match(line.strip()))
        open_line = line.endswith(("\\", "^", "`")) and not line.endswith(('"\\', "\\\\"))
        line = line[:-1].rstrip() if open_line else line
        line = re.sub(r"\s+#\s.*$", "", line)
        if joined and whole:
            whole += " " + line.strip()
        else:
            if whole:
                yield whole
            whole = line
    if whole:
        yield whole


def _insert(text: str, variables: dict[str, str], missing: list[str]) -> str:
    def value(found: re.Match[str]) -> str:
        name = next(part for part in found.groups() if part)
        for known, inner in variables.items():
            if known.lower() == name.lower():
                return inner
        missing.append(name)
        return found[0]

    return _VARIABLE.sub(value, text)


def _plain(word: str) -> str:
    """A word without its quotes."""
    parts = re.findall(r""""(?:\\"|[^"])*"|'[^']*'|\\[ "']|[^"'\\]+|\\""", word)
    text = ""
    for part in parts:
        if part[:1] in "\"'" and len(part) > 1:
            text += part[1:-1].replace('\\"', '"')
        else:
            text += part[1:] if len(part) == 2 and part[0] == "\\" else part
    return text


def _command(words: list[str]) -> Command:
    program, rest = _program(words)
    command = Command(program)
    name: str | None = None
    values: list[str] = []

    def close() -> None:
        if name is not None:
            command.flags.append((name, True if not values else values[0] if len(values) == 1 else list(values)))

    for word in rest:
        if _FLAG.match(word) and not _NUMBER.match(word):
            close()
            name, sign, value = word.lstrip("-").partition("=")
            values = [value] if sign else []
            if name.startswith("no-"):  # argparse's --no-flag
                command.flags.append((name[3:].replace("-", "_"), False))
                name = None
        elif name is not None:
            values.append(word)
        else:
            command.plain.append(word)
    close()
    return command


def _program(words: list[str]) -> tuple[str, list[str]]:
    """The script that a command runs, and its words; those of what launches it count with them."""
    for number, word in enumerate(words):
        name = re.split(r"[\\/.]", word.removesuffix(".py"))[-1]
        if word.endswith(".py") or (number and words[number - 1] == "-m" and "accelerate" not in word):
            return name, [*_launcher(words[:number]), *words[number + 1 :]]
        if word.startswith("-") and number == 0:
            return "", words
    if "simpletuner" in words[0]:
        return "simpletuner", words[2:]
    return words[0], words[1:]


def _launcher(words: list[str]) -> list[str]:
    """The flags given to accelerate; `--mixed_precision` is said a second time by the script itself."""
    kept: list[str] = []
    for number, word in enumerate(words):
        if word == "-m" or not word.startswith("--"):
            continue
        following = words[number + 1] if number + 1 < len(words) else ""
        value = [following] if following and not following.startswith("-") and "=" not in word else []
        kept += [word, *value]
    return kept
