"""A command as it was typed or saved in a script: its words, with quotes, line breaks and variables undone.

A path from Windows keeps its backslashes: only one before a quote or a blank is taken for an escape. Arrays of bash and
PowerShell are put where they are used. What a shell would have to work out ($(...), $1, a loop) is asked for where it
reaches a command of a trainer. Every other statement is either of a kind that reaches none, or named as not read.
The file is long because a statement is read in the light of all that stand before it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from ..text_files import read_text
from .script_kinds import SETS, SETS_INSIDE, SETS_UP, STRUCTURE, WRITES, is_harmless, only_names
from .script_lines import ARRAY, SHELLS, TEST, TRAINER, Told, shell_of, shown, statements, whole_lines, with_own_folder
from .script_values import Branch, Values, filled, with_arrays
from .script_words import WORD, Command, command_of, unquoted, unredirected

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
_COMMA = re.compile(r"""(?P<quoted>"[^"]*"|'[^']*')|,""")
_OF_SHELLS = re.compile(r'(?<!\S)"?(?:\$[@*]|%\*)"?(?!\S)')  # where a script of PowerShell sets $args itself
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
_NEVER = re.compile(r"^\s*(?:if\s+(?:false|\$false|\(\$false\))(?=[\s;)]|$)|while\s+false\b)", re.IGNORECASE)
_LOOP = re.compile(r"^\s*(?:for|select)\s+(?P<a>[A-Za-z_]\w*)(?=\s+in\b|\s*$)|^\s*foreach\s*\(\s*\$(?P<b>\w+)[^{]*\{?")
_FOR_CMD = re.compile(r"^\s*for\s+(?:/\w\s+(?:\"[^\"]*\"\s+)?)*%%?\w\s+in\s*\([^)]*\)\s*do\s+\(?\s*", re.IGNORECASE)
_REMARK_INSIDE = re.compile(r"`\s*#[^`]*`")
_JUMPS = re.compile(r"^(?:goto\s+:?(?!eof\b)|call\s+:)", re.IGNORECASE)
_LABEL = re.compile(r"^\s*:([\w.-]+)\s*$")  # of cmd.exe
_NAMES = re.compile(r"[$%!]\{?(?:env:)?([A-Za-z_]\w*)")  # of the variables that a text uses
_DEFAULT = re.compile(r"\$\{\w+:?=")
# what a command is started with, behind words that are none of its own: `docker run -v $PWD:/x image python ...`
_STARTS = re.compile(r"^.*?(?<!\S)(?=\S*accelerate\s)|^.*?(?<!\S)(?=\S+\.py\b)|^.*?\s(?=-m\s)", re.DOTALL)
_GOES_TO = re.compile(
    r"""^\s*(?P<how>cd|chdir|pushd|popd|set-location|push-location|pop-location)\b(?:\s+(?:/d|-\w+|--))*\s*(?P<quote>["']?)(?P<to>.*?)(?P=quote)\s*$""",
    re.IGNORECASE,
)
_SOURCE = re.compile(r"""^\s*(?:source|\.|call)\s+(?P<quote>["']?)(?P<file>[^"'\s]+)(?P=quote)""", re.IGNORECASE)


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


def read_commands(text: str, folder: Path | None = None, name: str = "") -> Script:
    """The commands of a script, whose `source` files are looked for in `folder`; its `name` may tell the shell.

    Flags that follow where a shell ends the command are taken all the same.
    """
    reader = _Reader(folder)
    reader.read(text, shell=SHELLS.get(Path(name).suffix.lower(), ""))
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
    kind: str  # "if", "loop", "function" or "other", in which all is done
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
        self._arms = 0
        self._begins_function = False
        self._is_bash = False
        self._condition = ""
        self._tested = self._hides_command = False
        self._unknown_sets: list[str] = []  # statements after which any variable may be another
        self._sourced: set[Path] = set()
        self._functions: set[str] = set()
        self._outer: list[tuple[Values, Values, str, list[Path | None]]] = []
        self._skipped: tuple[str, Branch | None] = ("", None)  # the label that a condition jumps to, past what comes
        self._at = (0, "")  # the statement that is read, with its line
        self._changes: list[tuple[str, str]] = []  # each variable that is set, with a sentence that says where
        self._used: list[tuple[list[_Block], set[str], int]] = []  # of commands: where, what they use, changes before
        self._labels: dict[str, int] = {}  # changes before each label
        self._hands_on = False  # whether a function hands its own arguments to a command
        self._arguments = ""  # a sentence where the script sets its own arguments
        self._gone_to = ""  # the statement that has gone to another folder
        self._here: list[Path | None] = [
            folder
        ]  # where statements stand, behind where popd goes back to; None: not here

    def read(self, text: str, first: int = 1, tested: bool = False, shell: str = "") -> None:
        """Read `text`, whose first line has the number `first`; `tested`: a test decides about all of it. Without a
        `shell` its signs tell it."""
        outer = self._is_bash
        shell = shell or shell_of(text)
        text = with_own_folder(text, shell, "" if self.folder is None else self.folder.as_posix())
        self._is_bash = self.variables.is_bash = shell == "bash"
        for number, line in whole_lines(text, self.told, first, shell):
            bare = line.strip()
            if bare == "(" or (bare[:1] == "(" and bare[-1:] == ")" and bare[:2] != "(("):
                self._outer.append(
                    (self.variables.copy(), self.arrays.copy(), self._gone_to, self._here)
                )  # a shell of its own
            for one in statements(line):
                self._tested, self._hides_command = tested or one.tested, one.hides_command
                self._follow_blocks(one.text)
                if any(_NEVER.match(block.branch.condition) for block in self._blocks):
                    continue
                if (label := _LABEL.match(one.text)) is not None:
                    self._labels[label[1].lower()] = len(self._changes)
                    if label[1].lower() == self._skipped[0]:
                        self._skipped = ("", None)
                branches = [block.branch for block in self._blocks] + [one for one in self._skipped[1:] if one]
                self.variables.arms = self.arrays.arms = {branch.number: branch.arm for branch in branches}
                self._read_statement(number, one.text)
                if TEST.match(one.text) is not None:
                    self._condition = one.text
            if bare[-1:] == ")" and bare[:1] in "()" and self._outer:
                self.variables, self.arrays, self._gone_to, self._here = self._outer.pop()
        self._is_bash = self.variables.is_bash = outer

    def _follow_blocks(self, statement: str) -> None:
        """Keep count of the conditions and loops that a statement opens or closes."""
        words = statement.lower().split()
        first, block = words[0], self._blocks[-1] if self._blocks else None
        if self._is_bash:
            if first in ("if", "case", "for", "while", "until", "select"):
                self._open("if" if first in ("if", "case") else "loop", statement)
            elif first in ("fi", "esac", "done", "}") and block is not None:
                self._blocks.pop()
            elif _FUNCTION.match(statement):
                self._begins_function = "{" not in statement
                if not self._begins_function:
                    self._open("function", statement)
            elif first == "{":
                self._open("function" if self._begins_function else "other", statement)
                self._begins_function = False
            elif first in ("else", "elif") and block is not None:
                self._next_arm(block, first == "else")
            return
        closes, opens = first[0] in ")}", words[-1][-1] in "({" and "=" not in first
        if closes and len(words) > 1 and words[1].startswith("else") and block is not None:
            self._next_arm(block, "if" not in words)
        elif closes and block is not None:
            self._blocks.pop()
        elif opens:
            kind = re.match(r"if|switch|for|while|function", first)
            self._open("if" if kind and kind[0] in ("if", "switch") else "loop" if kind else "other", statement)

    def _open(self, kind: str, statement: str) -> None:
        self._blocks.append(_Block(kind, self._new_branch(statement)))

    def _next_arm(self, block: _Block, last: bool) -> None:
        self._arms += 1
        condition = "" if _NEVER.match(block.branch.condition) else block.branch.condition
        block.branch = replace(block.branch, last=last, arm=self._arms, condition=condition)

    def _branch(self) -> Branch | None:
        """The condition that decides about the statement, or None."""
        if self._tested:
            return Branch(condition=self._condition)
        inner = next((block.branch for block in reversed(self._blocks) if block.kind != "other"), None)
        return inner or self._skipped[1]

    def _new_branch(self, condition: str) -> Branch:
        self._arms += 1
        return Branch(self._arms, condition=condition, arm=self._arms)

    def _read_statement(self, number: int, statement: str) -> None:
        self._at = (number, statement)
        body = self._led(number, statement)
        if (asked := _IF_CMD.match(body)) is not None and not self._is_bash:
            self._tested, self._condition = True, asked["asked"]
            body = asked["rest"]
        if STRUCTURE.match(body.strip()):
            return
        body = _REMARK_INSIDE.sub(" ", _LED.sub("", body)).strip()
        while (one := _FOR_ONE.match(_ENV.sub("", body))) is not None:
            self.environment[one["name"]] = filled(unquoted(one["value"]), self.variables, [])
            body = _ENV.sub("", body)[one.end() :]
        if STRUCTURE.match(body):
            return
        if re.match(r"(?:source|\.)\s", body) and SETS_UP.search(body):
            return
        if (source := _SOURCE.match(body)) is not None and not _JUMPS.match(body) and not TRAINER.search(body):
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
            self._next_arm(self._blocks[-1], pattern["of"] == "*")
            body = body[pattern.end() :]
        return _closed(body)

    def _assigned(self, number: int, statement: str, body: str) -> bool:
        """Whether a statement sets variables or an array, which are set then."""
        if (array := ARRAY.match(body)) is not None:
            lacks: list[str] = []
            inner = re.sub(r"\)\s*$", "", with_arrays(array["inner"], self.arrays, lacks))
            if body.startswith("$") and not re.fullmatch(r"""(?:"[^"]*"|'[^']*'|\$\w+|[\d.]+|[\s,])*""", inner):
                lacks.append(_sets(array["name"], number, statement))  # words of PowerShell that are run
            if body.startswith("$"):  # PowerShell has commas between words
                inner = _COMMA.sub(lambda found: found["quoted"] or " ", inner)
            inner = filled(re.sub(r""",(?=\s*["'])""", " ", inner), self.variables, lacks)
            self._set(self.arrays, array["name"], inner.strip(), lacks, bool(array["more"]), True, " ")
            return True
        if (export := _EXPORT.match(body)) is not None:
            words = [_ONE_OF_EXPORT.match(word) for word in WORD.findall(export["rest"])]
            for one in filter(None, words):
                self._assign(one["name"], unquoted(one["value"]), bool(one["more"]))
                if export["word"] == "export":
                    self.environment[one["name"]] = self.variables.texts()[one["name"]]
            if "$(" in export["rest"] and not any(words):
                self._unknown_sets.append(f"line {number} {shown(statement)}")
            return True
        found = _ASSIGNMENT.match(body)
        if found is None or body.startswith("-"):
            return False
        value, windows = found["value"], bool(found["set"] or found["ps"])
        if found["ps"] and self.arrays.find(found["name"], exact=False) is not None:
            self._array_of_powershell(number, statement, found["name"], value if found["more"] else "")
            return True
        if found["ps"] and not re.fullmatch(r"""(?:@)?"[^"]*"|'[^']*'|[+-]?[\d.eE+-]+|\$(?:env:)?\w+""", value):
            self.variables.hide(found["name"], _sets(found["name"], number, statement))
            return True
        if found["set"]:
            value = value.removesuffix('"') if re.match(r'(?i)\s*set\s+"', body) else value
            value = value.strip('"') if " " not in value else value
        else:
            value = unquoted(value)
        self._assign(found["name"], value, bool(found["more"]), windows)
        if found["set"] or (found["ps"] or "").lower() == "$env:":
            self.environment[found["name"]] = self.variables.texts().get(found["name"], value)
        return True

    def _array_of_powershell(self, number: int, statement: str, name: str, more: str) -> None:
        """Put the words `more` behind those of an array; where they are none, what it holds is not known."""
        one = r"""(?:"[^"]*"|'[^']*'|[\w.+-]+)"""
        if re.fullmatch(rf"{one}(?:\s*,\s*{one})*", more):
            lacks: list[str] = []
            words = filled(" ".join(re.findall(one, more)), self.variables, lacks)
            self._set(self.arrays, name, words, lacks, True, True, " ")
        else:
            self.arrays.hide(name, _sets(name, number, statement))

    def _change(self, name: str) -> None:
        """Take down that a statement sets `name`; a command that uses it in the same loop has it anew in each round."""
        sentence = _sets(name, *self._at)
        self._changes.append((name, sentence))
        for loops, names, _ in self._used:
            if name in names and any(block in self._blocks for block in loops):
                self.asked.append(sentence)

    def _turn_back(self, label: str) -> None:
        """Ask for what is set between a command and a jump back before it."""
        if (begin := self._labels.get(label)) is not None:
            for _, names, before in self._used:
                self.asked += [text for name, text in self._changes[before:] if before >= begin and name in names]

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
        self._change(name)
        others: list[str] = []
        if more and (before := values.find(name, exact=not windows)) is not None:
            others = [f"{one}{between}{text}" for one in before.alternatives]
            text, lacks = f"{before.text}{between}{text}", [*before.lacks, *lacks]
        values.set(name, text, lacks, self._branch(), windows, others)

    def _source(self, number: int, statement: str, name: str) -> None:
        """Read a file that the script reads as its own, if it lies beside it."""
        if SETS_UP.search(name):
            return
        path = None if self.folder is None else self.folder / name.replace("\\", "/")
        if path is None or not path.is_file() or path in self._sourced:
            self.unread.append((number, statement))
            self._unknown_sets.append(f"line {number} {shown(statement)}")
            return
        self._sourced.add(path)
        try:
            self.read(read_text(path))
        except (OSError, UnicodeError):
            self.unread.append((number, statement))

    def _is_done(self, number: int, statement: str, body: str) -> bool:
        """Whether a statement is a jump, sets variables in another way, or is of a kind that says nothing of a run."""
        if _DEFAULT.search(body):
            filled(body, self.variables, [])
        if _JUMPS.match(body):
            self._turn_back(_label(body[4:]))
            if self._branch() is None or body[:4].lower() == "call":
                self._unknown_sets.append(f"line {number} {shown(statement)}")
            else:
                self._skipped = (_label(body[4:]), self._new_branch(statement))
            return True
        if SETS.match(body):
            if re.match(r"set\s+--", body):
                self._arguments = _sets("@", number, statement)
            self._hide(number, statement, re.findall(r"[A-Za-z_]\w*", body))
            return True
        if is_harmless(body) and (not TRAINER.search(body) or (only_names(body) and not self._hides_command)):
            self._go(number, statement, body)
            if WRITES.search(body) and "<<" not in body.replace("<<<", ""):
                self.writes.append((number, statement))
            return True
        of_own = body.split()[0] in self._functions and not TRAINER.search(body)
        if of_own or "activate" in body.split()[0].lower():
            if self._hands_on and len(body.split()) > 1:
                self.asked.append(f"line {number}: {shown(statement)} hands flags to the command. Write them into it")
            return True
        return False

    def _go(self, number: int, statement: str, body: str) -> None:
        """Take down the folder that a statement goes to, and that it is another than the script's, if it is here."""
        if (goes := _GOES_TO.match(body)) is None or self.folder is None:
            return
        how, to = goes["how"].lower(), filled(goes["to"], self.variables, []).replace("\\", "/")
        here = self._here[-1]
        if how.startswith("pop"):
            self._here = self._here[:-1] or [here]
        else:
            there = None if here is None else here / to
            there = there if there is not None and there.is_dir() else Path(to) if Path(to).is_absolute() else None
            self._here = [*(self._here if how.startswith("push") else self._here[:-1]), there]
        here = self._here[-1]
        other = here is not None and here.is_dir() and not here.samefile(self.folder)
        self._gone_to = f"line {number} {shown(statement)}" if other else ""

    def _command(self, number: int, statement: str, body: str) -> None:
        """Read a command, or find that it is none of a trainer."""
        if self._is_done(number, statement, body):
            return
        lacks = []
        given = _ALL_ARGUMENTS if self.arrays.find("args", exact=False) is None else _OF_SHELLS
        if given.search(body):
            lacks = [self._arguments] if self._arguments else []
            handed = any(block.kind == "function" for block in self._blocks)
            self._hands_on |= handed and TRAINER.search(body) is not None
            if not lacks and not handed and TRAINER.search(body):
                self.told.notes.append(f"line {number}: flags that the script is started with are not in the file")
        whole = given.sub(" ", _LEFT_OUT.sub(" ", body))
        if self._read_inner(number, whole):
            return
        start = begin.end() if (begin := _STARTS.match(whole)) is not None else 0
        if not self._is_bash:  # PowerShell hands an array on word by word
            whole = re.sub(
                r"(?<!\S)\$(\w+)(?!\S)",
                lambda one: f"@{one[1]}" if self.arrays.find(one[1], exact=False) else one[0],
                whole,
            )
        text = filled(whole[:start], self.variables, [])
        text += filled(with_arrays(whole[start:], self.arrays, lacks), self.variables, lacks)
        words = [unquoted(word) for word in unredirected(WORD.findall(text))]
        if not words:
            return
        command = command_of(words)
        command.cut_short = _LEFT_OUT.search(body) is not None
        if command.of_trainer:
            loops = [block for block in self._blocks if block.kind == "loop"]
            if loops and not re.match(r"\s*(?:until|while)\b", statement, re.IGNORECASE):
                self.told.notes.append(f"line {number}: the command stands in a loop, and is taken once")
            if self._gone_to:
                self.told.notes.append(f"{self._gone_to}: paths are taken from the script's own folder, not from there")
            self._used.append((loops, set(_NAMES.findall(whole)), len(self._changes)))
            if (branch := self._branch()) is not None and branch.condition and "cache" in command.program:
                if not any(block.kind == "function" for block in self._blocks):
                    self.told.notes.append(
                        f"line {number}: {command.program} stands under a condition; its flags are taken"
                    )
            self.commands.append(command)
            self._ask(lacks, whole if TRAINER.search(text) else "")
        elif TRAINER.search(text):
            self.asked.append(
                f"line {number}: {shown(statement)} holds a command of a trainer that is not read. Write it with its "
                "values, as python runs it, into a file of its own."
            )
        else:
            self.commands.append(command)  # a guide's words, or a program of others
            self.unread.append((number, statement))
            self._hide(number, statement, SETS_INSIDE.findall(body))
        if not TRAINER.search(text) and WRITES.search(body):
            self.writes.append((number, statement))

    def _read_inner(self, number: int, body: str) -> bool:
        """Read what is given in quotes to another shell, here or on another machine; False where there is none."""
        raw = WORD.findall(body)
        if raw and raw[0] == "eval":
            lacks: list[str] = []
            text = with_arrays(" ".join(unquoted(word) for word in raw[1:]), self.arrays, lacks)
            text = filled(text, self.variables, lacks)
            if TRAINER.search(text):
                self._ask(lacks, body)
            elif lacks:
                self._unknown_sets.append(f"line {number} {shown(body)}")
                return True
            self.read(text, number, self._tested)
            return True
        for word in raw:
            word = re.sub(r"^--?\w+=(?=[\"'])", "", word)  # sbatch --wrap="..."
            if word[0] not in "\"'":
                if word.endswith(".py") or (TRAINER.search(word) and " " not in word):
                    return False
                continue
            lacks = []
            text = unquoted(word if word[0] == "'" else filled(word, self.variables, lacks))
            if TRAINER.search(text) and re.search(r"\s", text.strip()) and not text.endswith(".py"):
                self._ask(lacks, word)
                self.read(text, number, self._tested)
                return True
        return False

    def _ask(self, lacks: list[str], whole: str) -> None:
        """Ask for what a command uses and nobody knows; `whole` is the command before its variables were put in."""
        self.asked += lacks
        if self._unknown_sets and re.search(r"[$%!]\{?\w", whole):
            self.asked.append(
                f"{self._unknown_sets[-1]}: what it sets is not known, and the command uses variables. Write their "
                "values into the command."
            )

    def _hide(self, number: int, statement: str, names: Iterable[str]) -> None:
        for name in dict.fromkeys(names):
            self._change(name)
            self.variables.hide(name, _sets(name, number, statement))
            if self.arrays.find(name) is not None:
                self.arrays.hide(name, _sets(name, number, statement))


def _sets(name: str, number: int, statement: str) -> str:
    return f"${name}: line {number} {shown(statement)} sets it; write its value"


def _label(text: str) -> str:
    """The label that a jump names, of which case says nothing."""
    words = text.strip().removeprefix(":").split()
    return words[0].lower() if words else ""


def _closed(body: str) -> str:
    """`body` without the bracket at its end that closes what it stands in."""
    bare = body.rstrip()
    if re.search(r"\s\}$", bare) or (bare.endswith(")") and bare.count("(") < bare.count(")")):
        return bare[:-1]
    return body
