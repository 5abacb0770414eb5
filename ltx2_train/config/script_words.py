"""The words of a command, and the program and flags that they come to."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

from .script_lines import FLAG
from .translate import find_row

_OF_TRAINING = ("model.mode", "model.precision", "train.", "lora.", "optimizer.", "schedule.", "sample.")
_REDIRECTED = re.compile(r"^[\d*]*(?:>>?|<)(?P<to>.*)$|^&>")
WORD = re.compile(r"""(?:"(?:\\\\|\\"|[^"])*"|'[^']*'|\\[ "']|[^\s"'])+""")
_OF_PYTHON = ("venv", "virtualenv", "pip")  # which set it up
_LAUNCHERS = ("accelerate", "torch.", "deepspeed", "pdb", "debugpy", "cProfile")  # modules that start another
_NUMBER = re.compile(r"^-[\d.]")


@dataclass
class Command:
    """One command: the program it runs, its flags in order (one without a value is true), and words without a flag.

    `cut_short`: it was copied with words like "..." for flags that are left out. `is_script`: Python runs it.
    `launched_with`: words to a launcher that set nothing of a run.
    """

    program: str
    flags: list[tuple[str, Any]] = field(default_factory=list)
    plain: list[str] = field(default_factory=list)
    cut_short: bool = False
    is_script: bool = False
    launched_with: list[str] = field(default_factory=list)

    @property
    def of_trainer(self) -> bool:
        """Whether it may be a command of a program that is read."""
        return self.is_script or self.program in ("", "simpletuner")


def unredirected(words: Iterable[str]) -> list[str]:
    """`words` without where a shell puts out what the command prints."""
    kept: list[str] = []
    skip = False
    for word in words:
        redirected = _REDIRECTED.match(word)
        if skip or redirected is not None:
            skip = redirected is not None and not skip and not redirected["to"]
        else:
            kept.append(word)
    return kept


def unquoted(word: str) -> str:
    """A word without its quotes."""
    parts = re.findall(r""""(?:\\\\|\\"|[^"])*"|'[^']*'|\\[ "']|[^"'\\]+|\\|["']""", word)
    text = ""
    for part in parts:
        if part[:1] in "\"'" and len(part) > 1:
            inner = part[1:-1]
            if part[0] == '"':  # one of two backslashes, but for those that a path of a network begins with
                inner = re.sub(r"(?<=[^\\])\\\\(?!\\)", r"\\", re.sub(r"\\(?=[`\"$])", "", inner))
            text += inner
        elif part not in ('"', "'"):
            text += part[1:] if len(part) == 2 and part[0] == "\\" else part
    return text


def command_of(words: list[str]) -> Command:
    """The command that `words` without quotes are."""
    program, rest, launched_with = _program(words)
    command = Command(program, launched_with=launched_with)
    name: str | None = None
    values: list[str] = []

    def close() -> None:
        if name is not None:
            command.flags.append((name, True if not values else values[0] if len(values) == 1 else list(values)))

    for word in rest:
        if FLAG.match(word) and not _NUMBER.match(word):
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
    command.is_script = program not in _OF_PYTHON and any(one.endswith(".py") or one == "-m" for one in words)
    return command


def _program(words: list[str]) -> tuple[str, list[str], list[str]]:
    """The script that a command runs, and its words; those of accelerate count with them, and those of other launchers
    come last."""
    for number, word in enumerate(words):
        name = re.split(r"[\\/.]", word.removesuffix(".py"))[-1]
        module = number and words[number - 1] == "-m" and not word.startswith(_LAUNCHERS)
        if word.endswith(".py") or module:
            flags, others = _launcher(words[:number])
            rest = words[number + 1 :]
            plain = list(takewhile(lambda one: not one.startswith("-"), rest))
            return name, [*plain, *flags, *rest[len(plain) :]], others
        if word.startswith("-") and number == 0:
            return "", words, []
    if "simpletuner" in words[0]:
        return "simpletuner", words[2:], []
    return words[0], words[1:], []


def _launcher(words: list[str]) -> tuple[list[str], list[str]]:
    """The flags given to accelerate, and those of it and of other launchers that say nothing of a run;
    `--mixed_precision` is said a second time by the script itself."""
    flags: list[str] = []
    others: list[str] = []
    starts = [
        number for number, word in enumerate(words) if re.search(r"accelerate|torchrun|torch\.dist|deepspeed", word)
    ]
    begin = starts[0] if starts else len(words)
    is_accelerate = bool(starts) and "accelerate" in words[begin]
    for number, word in enumerate(words):
        if number < begin or word == "-m" or not word.startswith("--"):
            continue
        following = words[number + 1] if number + 1 < len(words) else ""
        value = [following] if following and not following.startswith("-") and "=" not in word else []
        own = word[2:].partition("=")[0]
        kept = flags if is_accelerate and own != "config_file" and find_row("community", own) is not None else others
        kept += [word, *value]
    return flags, others


def of_launchers(commands: Iterable[Command]) -> list[str]:
    """A note on what the launcher of each command is told."""
    return [f"{' '.join(one.launched_with)} of its launcher is not taken over" for one in commands if one.launched_with]


def is_of_training(name: str) -> bool:
    """Whether a flag says how is trained, and not how caches are made."""
    row = find_row("community", name)
    return row is not None and any(one.startswith(_OF_TRAINING) for one in row.takes)
