"""A command as it was typed or saved in a script: its words, with quotes, line breaks and variables undone.

A path from Windows keeps its backslashes: only one before a quote or a blank is taken for an escape. Arrays of bash and
PowerShell are put where they are used. What a shell would have to work out ($(...), $1, a loop) is asked for where it
reaches a command of a trainer. Every other statement is either of a kind that reaches none, or named as not read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .script_lines import ARRAY, FLAG, TEST, TRAINER, Told, shown, statements, whole_lines
from .script_values import Branch, Values, filled, with_arrays

_ASSIGNMENT = re.compile(
    r"""^\s*(?:(?P<set>set\s+)"?|(?P<ps>\$(?:env:)?))?(?P<name>[A-Za-z_]\w*)\s*(?P<more>\+?)=(?!=)\s*(?P<value>.*?)\s*$""",
    re.IGNORECASE | re.DOTALL,
)
_EXPORT = re.compile(r"^\s*(?P<word>export|declare|local|readonly|typeset)\s+(?:-\w+\s+)*(?P<rest>.*)$", re.DOTALL)
_ONE_OF_EXPORT = re.compile(r"^(?P<name>[A-Za-z_]\w*)(?P<more>\+?)=(?P<value>.*)$", re.DOTALL)
# NAME=value before a command, for this command alone
_FOR_ONE = re.compile(
    r"""^\s*(?P<name>[A-Za-z_]\w*)=(?!\()(?P<value>(?:"[^"]*"|'[^']*'|\$\((?:[^()]|\([^()]*\))*\)|`[^`]*`|(?!\$\()[^\s"'`])*)\s+(?=\S)"""
)
_ENV = re.compile(r"^\s*(?:/\S*/)?env\s+(?:-\S+\s+)*(?=\w+=)")
_ALL_ARGUMENTS = re.compile(r'(?<!\S)"?(?:\$[@*]|%\*|@args)"?(?!\S)')
_REDIRECTED = re.compile(r"^\d*(?:>>?|<)(?P<to>.*)$|^&>")
_WORD = re.compile(r"""(?:"(?:\\"|[^"])*"|'[^']*'|\\[ "']|[^\s"'])+""")
_OF_PYTHON = ("venv", "virtualenv", "pip")  # which set it up
_LAUNCHERS = ("accelerate", "torch.", "deepspeed", "pdb", "debugpy", "cProfile")  # modules that start another
_NUMBER = re.compile(r"^-[\d.]")
# "..." and "(other training args)": a guide's words for flags that it leaves out
_LEFT_OUT = re.compile(r"(?<!\S)(?:\.\.\.|\([\w ]+\))(?!\S)")

# words before a statement that change nothing of what it says
_LED = re.compile(
    r"^\s*(?:(?:then|else|do|if|elif|while|until|!|time|exec|\{|\(|&|@)\s+|@(?=\w)|\((?!\()|call\s+(?=\S*(?:py|accelerate)))*",
    re.I,
)
_FUNCTION = re.compile(r"^\s*(?:function\s+(?P<name>[\w:-]+)\s*(?:\(\s*\))?|(?P<bare>[\w:-]+)\s*\(\s*\))\s*(?:\{\s*)?")
_CASE_OF = re.compile(r"^\s*case\s+.*?\s+in(?:\s+|$)", re.DOTALL)
_PATTERN = re.compile(r"""^\s*\(?(?P<of>(?:"[^"]*"|'[^']*'|[^\s()"'=])+)\)\s*""")
_IF_CMD = re.compile(
    r"^\s*if\s+(?:/i\s+)?(?P<asked>(?:not\s+)?(?:exist\s+\S+|defined\s+\S+|errorlevel\s+\d+|\S+\s*(?:==|\s(?:neq|equ|gtr|lss|geq|leq)\s)"
    r"\s*\S+))\s+(?P<rest>[^({\s].*)$",
    re.IGNORECASE,
)
_LOOP = re.compile(r"^\s*(?:for|select)\s+(?P<a>[A-Za-z_]\w*)(?=\s+in\b|\s*$)|^\s*foreach\s*\(\s*\$(?P<b>\w+)[^{]*\{?")
_FOR_CMD = re.compile(r"^\s*for\s+(?:/\w\s+(?:\"[^\"]*\"\s+)?)*%%?\w\s+in\s*\([^)]*\)\s*do\s+\(?\s*", re.IGNORECASE)
_DEFAULT = re.compile(r"\$\{\w+:?=")
# what a command is started with, behind words that are none of its own: `docker run -v $PWD:/x image python ...`
_STARTS = re.compile(r"^.*?(?<!\S)(?=(?:\S*/)?(?:python[\d.]*(?:\.exe)?|accelerate|torchrun|deepspeed)\s)", re.DOTALL)
_STRUCTURE = re.compile(
    r"^(?:fi|done|esac|else|then|do|[(){};]+|[)}]\s*else(?:\s*if\b.*)?\s*[({]?|if\b.*[({]|:\w+)?$", re.I | re.S
)
# statements that set variables in another way: all their words may be names
_SETS = re.compile(
    r"^\s*(?:read\b|mapfile\b|readarray\b|printf\s+-v\b|let\b|\(\(|unset\b|getopts\b|set\s+--|set\s+/[ap]\b|for\b|select\b|while\b|param\b"
    r"|set-variable\b|\w+\[.*?\]\s*\+?=|\[\w+\]\s*\$)",
    re.IGNORECASE,
)
_SETS_INSIDE = re.compile(r"(?<![-\w.])\$?(?:env:|script:|global:)?([A-Za-z_]\w*)\s*\+?=(?!=)")
_SOURCE = re.compile(r"""^\s*(?:source|\.|call)\s+(?P<quote>["']?)(?P<file>[^"'\s]+)(?P=quote)""", re.IGNORECASE)
_SETS_UP = re.compile(r"activate|conda|bashrc|profile|setvars|vcvars|nvm|^:", re.IGNORECASE)
# programs whose output and whose files no setting of a run comes from
_ONLY_NAMES = re.compile(
    r"^\s*(?:sudo\s+)?(?:\[\[?\s|(?:test|rm|ls|dir|cp|mv|chmod|git|grep|pgrep|pkill|killall|kill|ps|cat|head|tail|less|echo|printf|which"
    r"|where|mkdir|cd|touch|wc|find|tar|zip|scp|rsync|write-host|test-path)(?![\w-]))",
    re.IGNORECASE,
)
_HARMLESS = re.compile(
    r"^\s*(?:sudo\s+(?:-\S+\s+)*)?(?:\[\[?\s|(?:test|true|false|:|mkdir|md|ls|dir|pwd|sleep|timeout|wait|date|trap|shift|return|break|continue"
    r"|nvidia-smi|nvcc|free|df|du|uname|hostname|whoami|which|where|type|command|hash|ulimit|umask|module|ml|chmod|chown|touch|rm|del|rmdir|rd"
    r"|git|pip|pip3|conda|mamba|micromamba|poetry\s+install|uv\s+(?:pip|sync|venv)|apt|apt-get|brew|yum|dnf|deactivate|activate"
    r"|grep|egrep|head|tail|less|more|wc|sort|uniq|cut|tr|find|xargs\s+kill|pgrep|pkill|kill|killall|ps|htop|watch|clear|cls|title|color|chcp|ping|goto"
    r"|cat|printf|echo|tput|stat|realpath|basename|dirname|tar|unzip|zip|7z|rsync|scp|aws|gsutil|rclone|huggingface-cli|hf|wandb|tensorboard|ray"
    r"|curl|wget|aria2c|cp|mv|copy|xcopy|move|robocopy|ln|tee|log|ffmpeg|ffprobe|local|export|shopt|alias|disown|fg|bg|jobs|exit|cd|pushd|popd|logout|sync"
    r"|python[\d.]*(?:\.exe)?\s+(?:-m\s+(?:venv|pip|virtualenv|ensurepip)|--version|-V|-c\s+(?!.*(?:open|write|dump|copy|move|save))[\"'])"
    r"|write-host|write-output|write-error|start-sleep|set-location|new-item|remove-item|test-path|get-location|push-location|pop-location"
    r"|get-childitem|copy-item|move-item|invoke-webrequest|out-null|start-transcript|stop-transcript|set-strictmode|set-executionpolicy)"
    r"(?:\.exe)?(?![\w-]))",
    re.IGNORECASE,
)
_WRITES = re.compile(
    r"(?<![2&])>>?\s*(?!&|/dev/|nul\b|\$null)|^\s*(?:sudo\s+)?(?:tee|cp|mv|copy|move|ln|sed\s.*-i|perl\s.*-i|yq\s.*-i|wget|curl|aria2c)\b",
    re.I,
)


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


@dataclass
class Script:
    """What a script holds: its commands, and the variables it sets, of which `environment` is seen by programs.

    `asked` are sentences on values that a command uses and that nobody knows without running the script; `told` those
    on what counts all the same; `unread` are statements that are not read, with their lines, `writes` those that may
    write files.
    """

    commands: list[Command]
    variables: dict[str, str]
    environment: dict[str, str]
    asked: list[str]
    told: list[str]
    unread: list[tuple[int, str]]
    writes: list[tuple[int, str]]


def read_commands(text: str, folder: Path | None = None) -> Script:
    """The commands of a script, whose `source` files are looked for in `folder`.

    Flags that follow where a shell ends the command are taken all the same.
    """
    reader = _Reader(folder)
    reader.read(text)
    return Script(
        [one for one in reader.commands if one.flags or one.plain],
        reader.variables.texts(),
        reader.environment,
        list(dict.fromkeys([*reader.told.problems, *reader.asked])),
        list(dict.fromkeys(reader.told.notes)),
        reader.unread,
        reader.writes,
    )


@dataclass
class _Block:
    kind: str  # "if", "loop" or "other"
    branch: Branch


class _Reader:
    """Reads statement by statement, with what is set so far."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.variables, self.arrays = Values(), Values()
        self.environment: dict[str, str] = {}
        self.commands: list[Command] = []
        self.asked: list[str] = []
        self.told = Told()
        self.unread: list[tuple[int, str]] = []
        self.writes: list[tuple[int, str]] = []
        self._blocks: list[_Block] = []
        self._number_of_blocks = 0
        self._is_bash = False
        self._condition = ""
        self._tested = self._hides_command = False
        self._unknown_sets: list[str] = []  # statements after which any variable may be another
        self._sourced: set[Path] = set()
        self._functions: set[str] = set()
        self._arguments = ""  # a sentence where the script sets its own arguments

    def read(self, text: str, first: int = 1) -> None:
        """Read `text`, whose first line has the number `first`."""
        outer = self._is_bash
        self._is_bash = re.search(r"(?:^|[\s;])(?:fi|esac|done)\b", text) is not None
        for number, line in whole_lines(text, self.told, first):
            for one in statements(line):
                self._tested, self._hides_command = one.tested, one.hides_command
                self._follow_blocks(one.text)
                self._read_statement(number, one.text)
                if TEST.match(one.text) is not None:
                    self._condition = one.text
        self._is_bash = outer

    def _follow_blocks(self, statement: str) -> None:
        """Keep count of the conditions and loops that a statement opens or closes."""
        words = statement.lower().split()
        first, block = words[0], self._blocks[-1] if self._blocks else None
        if self._is_bash:
            if first in ("if", "case", "for", "while", "until", "select"):
                self._open("if" if first in ("if", "case") else "loop", statement)
            elif first in ("fi", "esac", "done") and block is not None:
                self._blocks.pop()
            elif first in ("else", "*)", "elif") and block is not None:
                block.branch.last = first != "elif"
            return
        closes, opens = first[0] in ")}", words[-1][-1] in "({" and "=" not in first
        if closes and len(words) > 1 and words[1].startswith("else") and block is not None:
            block.branch.last = "if" not in words
        elif closes and block is not None:
            self._blocks.pop()
        elif opens:
            is_loop = re.match(r"for|while", first)
            self._open("if" if first.startswith(("if", "switch")) else "loop" if is_loop else "other", statement)

    def _open(self, kind: str, statement: str) -> None:
        self._number_of_blocks += 1
        self._blocks.append(_Block(kind, Branch(self._number_of_blocks, condition=statement)))

    def _branch(self) -> Branch | None:
        """The condition that decides about the statement, or None."""
        if self._tested:
            return Branch(condition=self._condition)
        return next((block.branch for block in reversed(self._blocks) if block.kind == "if"), None)

    def _read_statement(self, number: int, statement: str) -> None:
        body = self._led(number, statement)
        if (asked := _IF_CMD.match(body)) is not None and not self._is_bash:
            self._tested, self._condition = True, asked["asked"]
            body = asked["rest"]
        if _STRUCTURE.match(body.strip()):
            return
        body = _LED.sub("", body).strip()
        while (one := _FOR_ONE.match(_ENV.sub("", body))) is not None:
            self.environment[one["name"]] = filled(_plain(one["value"]), self.variables, [])
            body = _ENV.sub("", body)[one.end() :]
        if _STRUCTURE.match(body):
            return
        if (source := _SOURCE.match(body)) is not None and not TRAINER.search(body):
            self._source(number, statement, source["file"])
        elif not self._assigned(number, statement, body):
            self._command(number, statement, body)

    def _led(self, number: int, statement: str) -> str:
        """A statement without the head of the loop, function or case that it stands behind."""
        if (loop := _LOOP.match(statement)) is not None:
            name = loop["a"] or loop["b"]
            self.variables.hide(name, _sets(name, number, statement))
            return statement[loop.end() :] if loop["b"] else ""
        if (function := _FUNCTION.match(statement)) is not None:
            self._functions.add(function["name"] or function["bare"])
        body = _FOR_CMD.sub("", _CASE_OF.sub("", _FUNCTION.sub("", statement)))
        if (pattern := _PATTERN.match(body)) is not None and any(one.kind == "if" for one in self._blocks):
            if pattern["of"] == "*":
                self._blocks[-1].branch.last = True
            body = body[pattern.end() :]
        return _closed(body)

    def _assigned(self, number: int, statement: str, body: str) -> bool:
        """Whether a statement sets variables or an array, which are set then."""
        if (array := ARRAY.match(body)) is not None:
            lacks: list[str] = []
            inner = re.sub(r"\)\s*$", "", with_arrays(array["inner"], self.arrays, lacks))
            inner = filled(re.sub(r""",(?=\s*["'])""", " ", inner), self.variables, lacks)  # PowerShell has commas
            self._set(self.arrays, array["name"], inner.strip(), lacks, bool(array["more"]), True, " ")
            return True
        if (export := _EXPORT.match(body)) is not None:
            words = [_ONE_OF_EXPORT.match(word) for word in _WORD.findall(export["rest"])]
            for one in filter(None, words):
                self._assign(one["name"], _plain(one["value"]), bool(one["more"]))
                if export["word"] == "export":
                    self.environment[one["name"]] = self.variables.texts()[one["name"]]
            if "$(" in export["rest"] and not any(words):
                self._unknown_sets.append(f"line {number} {shown(statement)}")
            return True
        found = _ASSIGNMENT.match(body)
        if found is None or body.startswith("-"):
            return False
        value, windows = found["value"], bool(found["set"] or found["ps"])
        if found["ps"] and not re.fullmatch(r"""(?:@)?"[^"]*"|'[^']*'|[+-]?[\d.eE+-]+|\$(?:env:)?\w+""", value):
            self.variables.hide(found["name"], _sets(found["name"], number, statement))
            return True
        if found["set"]:
            value = value.removesuffix('"') if re.match(r'(?i)\s*set\s+"', body) else value
            value = value.strip('"') if " " not in value else value
        else:
            value = _plain(value)
        self._assign(found["name"], value, bool(found["more"]), windows)
        if found["set"] or (found["ps"] or "").lower() == "$env:":
            self.environment[found["name"]] = self.variables.texts().get(found["name"], value)
        return True

    def _assign(self, name: str, value: str, more: bool, windows: bool = False) -> None:
        lacks: list[str] = []
        self._set(self.variables, name, filled(value, self.variables, lacks), lacks, more, windows)

    def _set(
        self,
        values: Values,
        name: str,
        text: str,
        lacks: list[str],
        more: bool,
        windows: bool = False,
        between: str = "",
    ) -> None:
        if more and (before := values.find(name, exact=not windows)) is not None:
            text, lacks = f"{before.text}{between}{text}", [*before.lacks, *lacks]
        values.set(name, text, lacks, self._branch(), windows)

    def _source(self, number: int, statement: str, name: str) -> None:
        """Read a file that the script reads as its own, if it lies beside it."""
        if _SETS_UP.search(name):
            return
        path = None if self.folder is None else self.folder / name.replace("\\", "/")
        if path is None or not path.is_file() or path in self._sourced:
            self.unread.append((number, statement))
            self._unknown_sets.append(f"line {number} {shown(statement)}")
            return
        self._sourced.add(path)
        try:
            self.read(path.read_text(encoding="utf-8-sig"))
        except (OSError, UnicodeDecodeError):
            self.unread.append((number, statement))

    def _command(self, number: int, statement: str, body: str) -> None:
        """Read a command, or find that it is none of a trainer."""
        if _DEFAULT.search(body):
            filled(body, self.variables, [])
        if _SETS.match(body):
            if re.match(r"set\s+--", body):
                self._arguments = _sets("@", number, statement)
            self._hide(number, statement, re.findall(r"[A-Za-z_]\w*", body))
            return
        if _HARMLESS.match(body) and (
            not TRAINER.search(body) or (_ONLY_NAMES.match(body) and not self._hides_command)
        ):
            if _WRITES.search(body) and "<<" not in body:
                self.writes.append((number, statement))
            return
        if body.split()[0] in self._functions:
            return
        lacks = [self._arguments] if self._arguments and _ALL_ARGUMENTS.search(body) else []
        whole = _ALL_ARGUMENTS.sub(" ", _LEFT_OUT.sub(" ", body))
        if self._read_inner(number, whole):
            return
        start = begin.end() if (begin := _STARTS.match(whole)) is not None else 0
        text = filled(whole[:start], self.variables, [])
        text += filled(with_arrays(whole[start:], self.arrays, lacks), self.variables, lacks)
        words = [_plain(word) for word in _unredirected(_WORD.findall(text))]
        if not words:
            return
        command = _command(words)
        command.cut_short = _LEFT_OUT.search(body) is not None
        command.is_script = command.program not in _OF_PYTHON and any(
            one.endswith(".py") or one == "-m" for one in words
        )
        if command.of_trainer:
            self.commands.append(command)
            self.asked += lacks
            if self._unknown_sets and TRAINER.search(text) and re.search(r"[$%!]\{?\w", whole):
                self.asked.append(
                    f"{self._unknown_sets[-1]}: what it sets is not known, and the command uses variables. Write their "
                    "values into the command."
                )
        elif TRAINER.search(text):
            self.asked.append(
                f"line {number}: {shown(statement)} holds a command of a trainer that is not read. Write it with its "
                "values, as python runs it, into a file of its own."
            )
        else:
            self.commands.append(command)  # a guide's words, or a program of others
            self.unread.append((number, statement))
            self._hide(number, statement, _SETS_INSIDE.findall(body))
        if not TRAINER.search(text) and _WRITES.search(body):
            self.writes.append((number, statement))

    def _read_inner(self, number: int, body: str) -> bool:
        """Read what is given in quotes to another shell, here or on another machine; False where there is none."""
        raw = _WORD.findall(body)
        if raw and raw[0] == "eval":
            lacks: list[str] = []
            text = filled(
                with_arrays(" ".join(_plain(word) for word in raw[1:]), self.arrays, lacks), self.variables, lacks
            )
            if TRAINER.search(text):
                self.asked += lacks
                self.read(text, number)
            else:
                self._unknown_sets.append(f"line {number} {shown(body)}")
            return True
        for word in raw:
            word = re.sub(r"^--?\w+=(?=[\"'])", "", word)  # sbatch --wrap="..."
            if word[0] not in "\"'":
                if word.endswith(".py") or (TRAINER.search(word) and " " not in word):
                    return False
                continue
            lacks = []
            text = _plain(filled(word, self.variables, lacks))
            if TRAINER.search(text) and re.search(r"\s", text.strip()) and not text.endswith(".py"):
                self.asked += [one for one in lacks if "condition" in one]
                self.read(text, number)
                return True
        return False

    def _hide(self, number: int, statement: str, names: Iterable[str]) -> None:
        for name in dict.fromkeys(names):
            self.variables.hide(name, _sets(name, number, statement))


def _sets(name: str, number: int, statement: str) -> str:
    return f"${name}: line {number} {shown(statement)} sets it; write its value"


def _closed(body: str) -> str:
    """`body` without the bracket at its end that closes what it stands in."""
    bare = body.rstrip()
    if re.search(r"\s\}$", bare) or (bare.endswith(")") and bare.count("(") < bare.count(")")):
        return bare[:-1]
    return body


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


def _plain(word: str) -> str:
    """A word without its quotes."""
    parts = re.findall(r""""(?:\\"|[^"])*"|'[^']*'|\\[ "']|[^"'\\]+|\\|["']""", word)
    text = ""
    for part in parts:
        if part[:1] in "\"'" and len(part) > 1:
            text += part[1:-1].replace('\\"', '"')
        elif part not in ('"', "'"):
            text += part[1:] if len(part) == 2 and part[0] == "\\" else part
    return text


def _command(words: list[str]) -> Command:
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
    return command


def _program(words: list[str]) -> tuple[str, list[str], list[str]]:
    """The script that a command runs, and its words; those of accelerate count with them, and those of other launchers
    come last."""
    for number, word in enumerate(words):
        name = re.split(r"[\\/.]", word.removesuffix(".py"))[-1]
        module = number and words[number - 1] == "-m" and not word.startswith(_LAUNCHERS)
        if word.endswith(".py") or module:
            flags, others = _launcher(words[:number])
            return name, [*flags, *words[number + 1 :]], others
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
        kept = flags if is_accelerate and not word.startswith("--config_file") else others
        kept += [word, *value]
    return flags, others
