"""The lines of a script as its shell joins and parts them: whole lines with their numbers, and their statements.

bash, cmd.exe and PowerShell continue a line with a backslash, a caret and a backtick; a quote that is open at the end
of a line of bash or PowerShell goes on below. Lines that a script writes into a file are none of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

# what starts training or caching in a program that is read
TRAINER = re.compile(r"\bltx2_(?:train|cache|quantize|merge)\w*|\bsimpletuner(?:\.exe)?\s+train\b|[\\/]train\.py\b")
# ARGS=(--a 1, or $a = @("--a", "1"; up to the bracket that closes it
ARRAY = re.compile(
    r"""^\s*(?:(?:export|local|readonly|(?:declare|typeset)(?:\s+-\w+)*)\s+)?\$?(?P<name>[A-Za-z_]\w*)\s*"""
    r"""(?P<more>\+?)=\s*@?\((?!\()(?P<inner>.*)$""",
    re.DOTALL,
)
FLAG = re.compile(r"^--?[A-Za-z]")
TEST = re.compile(r"^\s*(?:\[|test\s|if\s)")  # which decides about what follows && or ||
# what a command behind && is to follow, rather than to be decided by
_SUCCEEDS = re.compile(
    r"^\s*(?:(?:cd|pushd|source|\.|call|export|set|mkdir|module|conda|echo|git|pip)\s|\w+=\S*\s*$|$)", re.IGNORECASE
)
REMARK = re.compile(r"^\s*(#|::|@?rem\b)", re.IGNORECASE)
# a statement that only says something to the shell
_TO_SHELL = re.compile(r"^\s*@?(echo\b(?!.*>)|set [-+](?!-)|setlocal\b|endlocal\b|pause\b|exit\b)", re.IGNORECASE)
# what parts the statements of a line; quotes are matched first and so passed over
_PARTS = re.compile(
    r"""(?P<quoted>"(?:\\\\|\\"|[^"])*"|'[^']*'|\$\((?:[^()]|\([^()]*\))*\)|`[^`]*`)"""
    r"""|&&|\|\||(?<!\S)(?:\|&?|&)(?!\S)|;;?&?|(?<=[^\s>&])&$|\n""",
    re.DOTALL,
)
_BEHIND_REMARK = re.compile(r"""("[^"]*"|'[^']*')|\s+#\s.*$""")
_CASE = re.compile(r"^\s*\(?--?[\w|-]+(?:\s*\|\s*[\w-]+)*\)")  # --rank) of a case, which is no flag
# a file that bash writes from the lines that follow, up to a word
_HERE = re.compile(r"(?<!<)<<-?\s*[\"']?(?P<end>[A-Za-z_]\w*)[\"']?")  # nor <<<, nor a shift of bits
_INTO = re.compile(r"(?:>>?|\btee(?:\s+-a)?)\s*[\"']?(?P<file>[^\s\"'<>|&;]+)")
_PRINTS = re.compile(r"^\s*(?:(?:cat|echo|printf)\b|:(?=\s|$))")
_BLOCK_REMARK = re.compile(r"<#.*?#>", re.DOTALL)  # of PowerShell
_LONG_REMARK = re.compile(r"^[ \t]*@?rem\b[^\n]*(?:\^[ \t]*\n[^\n]*)+$", re.IGNORECASE | re.MULTILINE)
_OF_POWERSHELL = (  # what its scripts write for an array and for a value
    (re.compile(r"^([ \t]*)(?:\[void\][ \t]*)?\$(\w+)\.Add\((.*)\)[ \t]*$", re.I | re.M), r"\1$\2 += \3"),
    (
        re.compile(
            r"\[(?:System\.)?Collections\.ArrayList\]::new\(\)|New-Object\s+System\.Collections\.ArrayList", re.I
        ),
        "@()",
    ),
    (
        re.compile(
            r"^([ \t]*)\[(?:int|string|double|float|bool|switch|array)(?:\[\])?\][ \t]*(?=\$\w+[ \t]*=)", re.I | re.M
        ),
        r"\1",
    ),
)
_OF_SCRIPT = (  # what a script calls its own folder
    re.compile(
        r"\$\((?:cd\s+)?\"?\$\(dirname\s+(?:--\s+)?\"?\$(?:0|\{BASH_SOURCE\[0\]\}|\{BASH_SOURCE\}|BASH_SOURCE)\"?\)\"?"
        r"(?:\s*(?:&&|;)\s*pwd(?:\s+-P)?)?\s*\)"
    ),
    re.compile(r"\$\(dirname\s+(?:--\s+)?\"?\$(?:0|\{BASH_SOURCE\[0\]\}|\{BASH_SOURCE\}|BASH_SOURCE)\"?\)"),
    re.compile(r"\$\{?PSScriptRoot\}?(?!\w)", re.IGNORECASE),
)
_POWERSHELL = re.compile(r"^\s*(?:\$(?:env:)?\w+\s*\+?=|param\s*\(|foreach\s*\(|if\s*\(.*\)\s*\{)", re.I | re.M)
_BASH = re.compile(
    r"^#!|(?:^|;)[ \t]*(?:fi|esac|done)[ \t]*(?:$|[;&|<>)#])|\$[({]|\w\s*\(\)\s*\{|^\s*export\s", re.MULTILINE
)
_CMD = re.compile(
    r"\^\s*$|^\s*@echo\b|^\s*rem\b|%\w+%|^\s*set\s+\"?\w+=|^\s*if\s+(?:not\s+)?(?:exist|defined)\b", re.I | re.M
)
_CMD_ALONE = re.compile(r"\^[ \t]*$|^[ \t]*@echo\b", re.I | re.M)
# the shell that the ending of a name says; lines of Windows are saved as .sh and .txt, too
SHELLS = {".bat": "cmd", ".cmd": "cmd", ".ps1": "powershell"}
_MOST_LINES = 100  # of one quoted text


@dataclass
class Told:
    """What is to be said of a script: `notes` on what counts all the same, `problems` with what has to be written."""

    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class Statement(NamedTuple):
    """One statement; `tested` says whether a test decides about it, `piped` whether its output goes to another one."""

    text: str
    tested: bool = False
    piped: bool = False

    @property
    def hides_command(self) -> bool:
        """Whether it gives a trainer's command to a file or to another program."""
        return TRAINER.search(self.text) is not None and (">" in self.text or self.piped)


def shown(text: str) -> str:
    """A piece of a script for a sentence."""
    text = " ".join(text.split())
    return f"`{text if len(text) <= 70 else text[:67] + '...'}`"


def shell_of(text: str) -> str:
    """The shell that a script is for, by the signs of each: "bash", "cmd" or "powershell"."""
    if _POWERSHELL.search(text):
        return "powershell"
    sure = _CMD_ALONE.search(text) is not None
    return "cmd" if _CMD.search(text) and (sure or not _BASH.search(text)) else "bash"


def whole_lines(text: str, told: Told, first: int, shell: str) -> Iterator[tuple[int, str]]:
    """Lines of a script for `shell`, from the number `first`, with what continues them.

    A line that begins with a flag belongs to the one before, and where a shell sees that otherwise, `told` says so.
    """
    whole, start = "", first
    open_line = False
    why_ended = ""
    lines = _without_files(text.replace("\r\n", "\n").replace("\r", "\n"), told, first)
    for number, raw in _quotes_closed(lines, shell == "cmd", told):
        line = raw.rstrip()
        in_array = open_line and ARRAY.match(whole) is not None
        if not line.strip():
            why_ended = why_ended or ("" if in_array else f"line {number} is empty")
            open_line = in_array
            continue
        if not open_line and (REMARK.match(line) or not any(True for _ in statements(line))):
            continue
        if REMARK.match(line):
            why_ended = why_ended or ("" if in_array else f"line {number} is a remark")
            continue
        is_flag = bool(FLAG.match(line.strip())) and not _CASE.match(line)
        if why_ended and is_flag and whole and not FLAG.match(whole.strip()):
            flag = line.split()[0]
            told.notes.append(
                f"{why_ended}: a shell ends the command there, so {flag} (line {number}) was not given to it; "
                "here it counts"
            )
        why_ended = _why_ended(raw, number)
        joined = open_line or is_flag
        open_line = _goes_on(line) and not line.endswith(('"\\', "\\\\"))
        line = without_remark(line[:-1].rstrip() if open_line else line)
        if (array := ARRAY.match(f"{whole} {line}" if joined and whole else line)) is not None:
            open_line = not array["inner"].rstrip().endswith(")")  # up to the line that closes it
            why_ended = "" if open_line else why_ended
        if joined and whole:
            whole += " " + line.strip()
        else:
            if whole:
                yield start, whole
            whole, start = line, number
    if whole:
        yield start, whole


def _without_remark_of_cmd(found: re.Match[str]) -> str:
    within = found.string[: found.start()].rstrip().endswith("^")  # of a command, whose lines go on
    return found[0] if within else "\n" * found[0].count("\n")


def with_own_folder(text: str, shell: str, folder: str) -> str:
    """`text` without the block remarks of PowerShell, and with `folder` where it names that of the script itself."""
    if shell == "powershell":  # as many lines as before
        text = _BLOCK_REMARK.sub(lambda found: "\n" * found[0].count("\n"), text)
        for form, plain in _OF_POWERSHELL:
            text = form.sub(plain, text)
    if shell == "cmd":
        text = _LONG_REMARK.sub(_without_remark_of_cmd, text)
    if folder:
        for form in _OF_SCRIPT:
            text = form.sub(lambda _: folder, text)
        text = re.sub(r"%~dp0\\?/?", lambda _: f"{folder}/", text, flags=re.IGNORECASE)
    return text


def statements(line: str) -> Iterator[Statement]:
    """The statements of a line but those that only say something to the shell; brackets around all of it are undone."""
    bare = line.strip()
    if bare.startswith("(") and bare.endswith(")") and not bare.startswith("(("):
        line = bare[1:-1]
    if ARRAY.match(line) and line.rstrip().endswith(")"):
        yield Statement(line)
        return
    start, tested = 0, False
    for end in [*(found.span() for found in _PARTS.finditer(line) if not found["quoted"]), (len(line), len(line))]:
        text, parted = line[start : end[0]], line[end[0] : end[1]]
        one = Statement(text, tested, parted[:1] == "|" and parted != "||")
        tested = parted in ("&&", "||") and (tested or parted == "||" or not _SUCCEEDS.match(text))
        start = end[1]
        if text.strip() and (not _TO_SHELL.match(text) or one.hides_command):
            yield one


def without_remark(line: str) -> str:
    """`line` without what stands behind a # that is not in quotes."""
    return _BEHIND_REMARK.sub(lambda found: found[1] or "", line)


def _without_files(text: str, told: Told, first: int) -> Iterator[tuple[int, str]]:
    """The lines of `text` with their numbers, without those that it writes into files."""
    lines = text.split("\n")
    skip_to = 0
    for index, line in enumerate(lines):
        if index < skip_to:
            continue
        yield first + index, line
        here = None if REMARK.match(line) else _HERE.search(line)
        body = range(index + 1, len(lines))
        end = next((number for number in body if here is not None and lines[number].strip() == here["end"]), None)
        if end is None:
            continue
        inner = "\n".join(lines[index + 1 : end])
        into = _INTO.search(line)
        if into is not None:
            told.notes.append(f"{into['file']} is written by the script, and what lies there now is read")
            if TRAINER.search(inner):
                told.problems.append(
                    f"line {first + index}: the command that the script writes into {into['file']} is not read. Write "
                    "it into a file of its own."
                )
        elif TRAINER.search(inner) and not _PRINTS.match(line):
            yield from ((first + number, lines[number]) for number in range(index + 1, end))  # a shell runs them
        skip_to = end + 1


def _quotes_closed(lines: Iterator[tuple[int, str]], is_cmd: bool, told: Told) -> Iterator[tuple[int, str]]:
    """`lines`, and those together between which a quote is open."""
    held: list[tuple[int, str]] = []
    quote = text = ""
    for number, line in lines:
        if is_cmd or (not quote and REMARK.match(line)):
            yield number, line
            continue
        quote = _open_quote(line, quote)
        held.append((number, line))
        if not quote:
            yield held[0][0], text + line
            held, text = [], ""
            continue
        # a backslash at the end of a line in double quotes goes with the line
        text += line[:-1] if quote == '"' and line.endswith("\\") else f"{line}\n"
        if len(held) == _MOST_LINES:
            break
    if held:
        told.problems.append(
            f"line {held[0][0]}: {shown(held[0][1])} opens a quote that is not closed. Close it, or write the command "
            "into a file of its own."
        )
        yield from held
        yield from lines


def _open_quote(line: str, quote: str) -> str:
    """The quote that is open at the end of `line`, where `quote` is at its begin; "" for none."""
    index = 0
    while index < len(line):
        sign = line[index]
        if sign == "\\" and quote != "'":
            # the end of a path of Windows, rather than an escape
            index += (
                1 if quote and line[index + 1 : index + 2] == quote and line[index + 2 :].strip() in ("", "\\") else 2
            )
            continue
        if quote:
            quote = "" if sign == quote else quote
        elif sign == "#" and (index == 0 or line[index - 1].isspace()):
            break
        elif sign == '"' or (sign == "'" and not _is_apostrophe(line, index)):
            quote = sign
        index += 1
    return quote


def _is_apostrophe(line: str, index: int) -> bool:
    before, behind = line[index - 1 : index], line[index + 1 : index + 2]
    return before.isalpha() and "'" not in line[index + 1 :] and (behind.isalpha() or not behind.strip())


def _goes_on(line: str) -> bool:
    """Whether a line ends in a sign that continues it; two backticks are the command of bash between them."""
    return line.endswith(("\\", "^")) or (line.endswith("`") and line.count("`") % 2 == 1)


def _why_ended(line: str, number: int) -> str:
    """Why a shell ends a command with a line, which is the `number`th; "" where it goes on."""
    if without_remark(line) != line:
        return f"a remark stands in line {number}"
    if not _goes_on(line.rstrip()):
        return f"line {number} has no sign at its end that continues it"
    return "" if line == line.rstrip() else f"a blank stands behind the last sign of line {number}"
