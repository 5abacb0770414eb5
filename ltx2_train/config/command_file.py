"""A command as it was typed or saved in a script: its words, with quotes, line breaks and variables undone.

bash, cmd.exe and PowerShell continue a line with a backslash, a caret and a backtick. A path from Windows keeps its
backslashes: only one before a quote or a blank is taken for an escape. Arrays of bash and PowerShell are put where they
are used. What a shell would have to work out ($(...), $1) is named as missing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

_REMARK = re.compile(r"^\s*(#|::|@?rem\b)", re.IGNORECASE)
# a statement that only says something to the shell
_TO_SHELL = re.compile(
    r"^\s*(@?echo\b|set -|setlocal|endlocal|pause\b|cd\b|pushd\b|popd\b|source\b|\.\s|call\b(?!.*\.py\b)|exit\b)",
    re.IGNORECASE,
)
# what parts the statements of a line; quotes are matched first and so passed over
_PARTS = re.compile(r"""(?P<quoted>"(?:\\"|[^"])*"|'[^']*'|\$\([^)]*\)|`[^`]*`)|&&|\|\||(?<!\S)(?:\|&?|&)(?!\S)|;""")
# a command in quotes that is given to another shell
_INNER = re.compile(
    r"""^\s*(?:\S*/)?(?:(?:ba|z)?sh\s+-\w*c|cmd(?:\.exe)?\s+/[ck])\s+(?P<quote>["'])(?P<inner>.*)(?P=quote)\s*$""", re.I
)
_ASSIGNMENT = re.compile(
    r"""^\s*(?:export\s+|set\s+"?|\$env:|\$)?(?P<name>[A-Za-z_]\w*)\s*=\s*(?P<value>[^\s].*?)"?\s*$""", re.IGNORECASE
)
# ARGS=(--a 1, or $a = @("--a", "1"; up to the bracket that closes it
_ARRAY = re.compile(
    r"""^\s*(?:(?:export|local|declare(?:\s+-\w+)*)\s+)?\$?(?P<name>[A-Za-z_]\w*)\s*(?P<more>\+?)=\s*@?\((?P<inner>.*)$"""
)
# NAME=value before a command, for this command alone
_FOR_ONE = re.compile(
    r"""^\s*(?P<name>[A-Za-z_]\w*)=(?P<value>"[^"]*"|'[^']*'|(?:\$\([^)]*\)|`[^`]*`|(?!\$\()[^\s"'`])*)\s+(?=\S)"""
)
_USED_ARRAY = re.compile(r""""?\$\{(?P<a>\w+)\[[@*]\]\}"?|(?<!\S)@(?P<b>[A-Za-z_]\w*)(?!\S)""")
_VARIABLE = re.compile(
    r"\$env:(?P<a>\w+)|\$\{(?P<b>\w+)(?::?-(?P<default>[^}]*))?\}|%(?P<c>\w+)%|\$(?P<d>[A-Za-z_]\w*)|!(?P<e>[A-Za-z_]\w*)!"
)
# what a shell works out: a command's output, a part of a variable, what the script was called with
_WORKED_OUT = re.compile(r"\$\([^)]*\)|\$\{[^}]*\}|`[^`\n]+`|\$\d|%(?:~[a-z]*)?\d(?!\w)")
_ALL_ARGUMENTS = re.compile(r'(?<!\S)"?(?:\$[@*]|%\*)"?(?!\S)')
_REDIRECTED = re.compile(r"^\d*(?:>>?|<)(?P<to>.*)$|^&>")
_WORD = re.compile(r"""(?:"(?:\\"|[^"])*"|'[^']*'|\\[ "']|[^\s"'])+""")
_FLAG = re.compile(r"^--?[A-Za-z]")
_BEHIND_REMARK = re.compile(r"""("[^"]*"|'[^']*')|\s+#\s.*$""")
_TEST = re.compile(r"^\s*(?:\[|test\s)")  # which decides about what follows && or ||
_BRANCH = re.compile(r"^\s*(?:then|else|do)\s+", re.IGNORECASE)
# a file that bash writes from the lines that follow, up to a word
_HERE = re.compile(r"(?<!<)<<-?\s*[\"']?(?P<end>[A-Za-z_]\w*)[\"']?")  # nor <<<, nor a shift of bits
_INTO = re.compile(r">>?\s*[\"']?(?P<file>[^\s\"'<>|&;]+)")
_OF_PYTHON = ("venv", "virtualenv", "pip")  # which set it up
_NUMBER = re.compile(r"^-[\d.]")
# "..." and "(other training args)": a guide's words for flags that it leaves out
_LEFT_OUT = re.compile(r"(?<!\S)(?:\.\.\.|\([\w ]+\))(?!\S)")


@dataclass
class Command:
    """One command: the program it runs, its flags in order (one without a value is true), and words without a flag.

    `cut_short`: it was copied with words like "..." for flags that are left out. `is_script`: Python runs it.
    """

    program: str
    flags: list[tuple[str, Any]] = field(default_factory=list)
    plain: list[str] = field(default_factory=list)
    cut_short: bool = False
    is_script: bool = False


class _Variables(dict[str, str]):
    """What a script sets; `before` holds other values that a name may have, since a condition decides.

    `undecided`: what is set now is set under a condition. `lacks`: of a name, what its value uses and is not set.
    """

    def __init__(self) -> None:
        super().__init__()
        self.before: dict[str, list[str]] = {}
        self.undecided = False
        self.lacks: dict[str, list[str]] = {}

    def __setitem__(self, name: str, value: str) -> None:
        if not self.undecided:
            self.before.pop(name, None)
        elif self.get(name, value) != value:
            self.before.setdefault(name, []).append(self[name])
        super().__setitem__(name, value)


def read_commands(text: str, told: list[str] | None = None) -> tuple[list[Command], dict[str, str], list[str]]:
    """The commands of a script, the variables it sets, and the names of variables that it uses and does not set, or
    that it sets to one value or another.

    Flags that follow where a shell ends the command are taken all the same; a sentence on each place, and on each file
    that the script writes itself, goes to `told`.
    """
    told = [] if told is None else told
    text = _without_files(text, told)
    variables = _Variables()
    arrays: dict[str, str] = {}
    commands: list[Command] = []
    missing: list[str] = []
    bash, depth = re.search(r"(?:^|[\s;])(?:fi|esac)\b", text) is not None, 0
    for line in _whole_lines(text, told):
        if (array := _ARRAY.match(line)) is not None:
            inner = re.sub(r"\)\s*$", "", _with_arrays(array["inner"], arrays))
            inner = re.sub(r""",(?=\s*["'])""", " ", inner)  # PowerShell has commas between them
            before = f"{arrays.get(array['name'], '')} " if array["more"] else ""
            arrays[array["name"]] = before + _insert(inner, variables, missing)
            continue
        for statement, tested in _statements(line):
            depth = max(0, depth + _deeper(statement, bash))
            variables.undecided = tested or depth > 0
            command = _read_statement(statement, arrays, variables, missing)
            commands += [command] if command is not None else []
    names = [name for name in variables.before if re.search(rf"[$%!]\{{?(?:env:)?{name}\b", text)]
    missing += [f"{name} ({' or '.join([*variables.before[name], variables[name]])})" for name in names]
    return [one for one in commands if one.flags or one.plain], variables, list(dict.fromkeys(missing))


def _deeper(statement: str, bash: bool) -> int:
    """By how much a statement of bash, or else of cmd.exe or PowerShell, leads deeper into conditions."""
    words = statement.lower().split()
    if bash:
        return {"if": 1, "case": 1, "fi": -1, "esac": -1}.get(words[0], 0)
    if words in ([")"], ["}"]):
        return -1
    return int(words[0].startswith("if") and words[-1][-1] in "({")


def _without_files(text: str, told: list[str]) -> str:
    """`text` without the lines that a script writes into files."""
    kept: list[str] = []
    end = ""
    lines = text.replace("\r\n", "\n").split("\n")
    for number, line in enumerate(lines):
        if end:
            end = "" if line.strip() == end else end
            continue
        kept.append(line)
        here = None if _REMARK.match(line) else _HERE.search(line)
        if here is not None and any(other.strip() == here["end"] for other in lines[number + 1 :]):
            end = here["end"]
            if (into := _INTO.search(line)) is not None:  # else a program reads it
                told.append(f"{into['file']} is written by the script, and what lies there now is read")
    return "\n".join(kept)


def _read_statement(
    statement: str, arrays: Mapping[str, str], variables: _Variables, missing: list[str]
) -> Command | None:
    """The command of a statement, or None where it sets variables (which are added to `variables`) or has no word.

    What it uses and is not set is added to `missing` where it may train.
    """
    statement = _BRANCH.sub("", statement)
    while (one := _FOR_ONE.match(statement)) is not None:
        _assign(one, variables)
        statement = statement[one.end() :]
    assignment = _ASSIGNMENT.match(statement)
    if assignment is not None and not statement.lstrip().startswith("-"):
        _assign(assignment, variables)
        return None
    whole, lacked = _ALL_ARGUMENTS.sub(" ", _LEFT_OUT.sub(" ", statement)), list[str]()
    words = _unredirected(_WORD.findall(_insert(_with_arrays(whole, arrays), variables, lacked)))
    if not words:
        return None
    plain = [_plain(word) for word in words]
    command = _command(plain)
    command.cut_short = whole != statement
    command.is_script = command.program not in _OF_PYTHON and any(one.endswith(".py") or one == "-m" for one in plain)
    if command.is_script or command.program in ("", "simpletuner"):
        missing += lacked
    return command


def _assign(found: re.Match[str], variables: _Variables) -> None:
    lacked: list[str] = []
    variables[found["name"]] = _insert(found["value"].strip("\"'"), variables, lacked)
    variables.lacks[found["name"]] = lacked


def _statements(line: str) -> Iterator[tuple[str, bool]]:
    """The statements of a line but those that only say something to the shell, and whether a test decides about each;
    brackets around all of it are undone."""
    bare = line.strip()
    if bare.startswith("(") and bare.endswith(")"):
        line = bare[1:-1]
    start, tested = 0, False
    for end in [*(found.span() for found in _PARTS.finditer(line) if not found["quoted"]), (len(line), len(line))]:
        statement, parted = line[start : end[0]], line[end[0] : end[1]]
        decided, tested = tested, parted in ("&&", "||") and (tested or _TEST.match(statement) is not None)
        start = end[1]
        if (given := _INNER.match(statement)) is not None:
            yield from _statements(given["inner"])
        elif statement.strip() and not _TO_SHELL.match(statement):
            yield statement, decided


def _with_arrays(text: str, arrays: Mapping[str, str]) -> str:
    """`text` with the words of each array where it is used; one that is not known stays as it is."""
    return _USED_ARRAY.sub(lambda found: arrays.get(found["a"] or found["b"], found[0]), text)


def _unredirected(words: Iterable[str]) -> list[str]:
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


def _whole_lines(text: str, told: list[str]) -> Iterator[str]:
    """Lines with what continues them; a line that begins with a flag belongs to the one before, and where a shell
    sees that otherwise, it goes to `told`."""
    whole = ""
    open_line = False
    why_ended = ""
    for number, raw in enumerate(text.replace("\r\n", "\n").split("\n"), 1):
        line = raw.rstrip()
        in_array = open_line and _ARRAY.match(whole) is not None
        if not line.strip():
            why_ended = why_ended or ("" if in_array else f"line {number} is empty")
            open_line = in_array
            continue
        if not open_line and (_REMARK.match(line) or not any(True for _ in _statements(line))):
            continue
        if _REMARK.match(line):
            why_ended = why_ended or ("" if in_array else f"line {number} is a remark")
            continue
        if why_ended and _FLAG.match(line.strip()) and whole and not _FLAG.match(whole.strip()):
            flag = line.split()[0]
            told.append(
                f"{why_ended}: a shell ends the command there, so {flag} (line {number}) was not given to it; "
                "here it counts"
            )
        why_ended = _why_ended(raw, number)
        joined = open_line or bool(_FLAG.match(line.strip()))
        open_line = _goes_on(line) and not line.endswith(('"\\', "\\\\"))
        line = line[:-1].rstrip() if open_line else line
        line = _without_remark(line)
        if (array := _ARRAY.match(f"{whole} {line}" if joined and whole else line)) is not None:
            open_line = not array["inner"].rstrip().endswith(")")  # up to the line that closes it
            why_ended = "" if open_line else why_ended
        if joined and whole:
            whole += " " + line.strip()
        else:
            if whole:
                yield whole
            whole = line
    if whole:
        yield whole


def _without_remark(line: str) -> str:
    """`line` without what stands behind a # that is not in quotes."""
    return _BEHIND_REMARK.sub(lambda found: found[1] or "", line)


def _goes_on(line: str) -> bool:
    """Whether a line ends in a sign that continues it; two backticks are the command of bash between them."""
    return line.endswith(("\\", "^")) or (line.endswith("`") and line.count("`") % 2 == 1)


def _why_ended(line: str, number: int) -> str:
    """Why a shell ends a command with a line, which is the `number`th; "" where it goes on."""
    if _without_remark(line) != line:
        return f"a remark stands in line {number}"
    if not _goes_on(line.rstrip()):
        return f"line {number} has no sign at its end that continues it"
    return "" if line == line.rstrip() else f"a blank stands behind the last sign of line {number}"


def _insert(text: str, variables: _Variables, missing: list[str]) -> str:
    def value(match: re.Match[str]) -> str:
        name = match["a"] or match["b"] or match["c"] or match["d"] or match["e"]
        for known, inner in variables.items():
            if known.lower() == name.lower():
                missing.extend(variables.lacks.get(known, ()))
                return inner
        if match["default"] is not None:
            return match["default"]
        missing.append(name)
        return match[0]

    missing += [found[0].lstrip("$") for found in _WORKED_OUT.finditer(text) if not _VARIABLE.fullmatch(found[0])]
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
    flags: list[str] = []
    begin = next((number for number, word in enumerate(words) if "accelerate" in word), len(words))
    for number, word in enumerate(words):
        if number < begin or word == "-m" or not word.startswith("--"):
            continue
        following = words[number + 1] if number + 1 < len(words) else ""
        value = [following] if following and not following.startswith("-") and "=" not in word else []
        flags += [word, *value]
    return flags
