"""What the variables of a script stand for, and which of them nobody can know without running it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from .script_lines import shown

_VARIABLE = re.compile(
    r"(?P<output>\$\((?!\()(?:[^()]|\([^()]*\))*\))|\$env:(?P<a>\w+)|\$\{(?P<b>\w+)(?::?(?P<sign>[-=])(?P<default>[^{}$]*))?\}|%(?P<c>[A-Za-z_]\w*)%"
    r"|\$(?P<d>[A-Za-z_]\w*)|!(?P<e>[A-Za-z_]\w*)!"
)
# what a shell works out: a command's output, a part of a variable, what the script was called with, signs in quotes
_WORKED_OUT = re.compile(
    r"\$\((?:[^()]|\([^()]*\))*\)+|\$\{[^}]*\}|(?<!\\)`[^`\n]+`|\$[\d?#!$]|%(?:~[a-z]*)?\d(?!\w)|%%~?[a-z]*\w|%~\w+"
    r"|[%!][A-Za-z_]\w*:[^%!\s]+[%!]|\$'|\$\([^()]*$"
)
_USED_ARRAY = re.compile(r""""?\$\{(?P<a>\w+)\[[@*]\]\}"?|(?<!\S)@(?P<b>[A-Za-z_]\w*)(?!\S)""")
_SUM = re.compile(r"\$\(\((?P<sum>[^()$]*(?:\([^()$]*\)[^()$]*)*)\)\)")
_QUOTE_OPEN = re.compile(r"""^(?:[^"'\\]|\\.|'[^']*'|"(?:\\.|[^"\\])*")*"(?:\\.|[^"\\])*$""", re.DOTALL)  # at its end
_NOTHING = "nothing"


@dataclass
class Branch:
    """Where a statement stands: in which of the conditions, by number (0: in none that has branches), in which of its
    branches (`arm`), and whether in its last, which is taken where no other is. `condition` is what was asked."""

    number: int = 0
    last: bool = False
    condition: str = ""
    arm: int = 0


@dataclass
class Known:
    """What a name stands for. `others`: what it stands for where a condition of the script decides otherwise;
    `lacks`: sentences on what its text uses and is not known."""

    text: str
    others: list[str] = field(default_factory=list)
    lacks: list[str] = field(default_factory=list)
    condition: int = 0  # the one in which it was set last
    arm: int = 0  # the branch in which it was set last, where no condition decides any more
    outside: Known | None = None  # what it stood for before that condition
    set_to: list[str] = field(default_factory=list)  # in the branches of that condition
    any_case: bool = False  # Windows does not tell X from x

    @property
    def alternatives(self) -> list[str]:
        """The other texts, "" for none."""
        return ["" if one == _NOTHING else one for one in self.others]

    def within(self, condition: int) -> Known | None:
        """What the name stood for when it was set last in `condition`, or None where it was not."""
        found: Known | None = self
        while found is not None and found.condition != condition:
            found = found.outside
        return found if condition else None


class Values:
    """The variables of a script, or its arrays, as they are at one of its lines."""

    def __init__(self) -> None:
        self._known: dict[str, Known] = {}
        self.arms: dict[int, int] = {}  # condition -> its branch, of those that the statement stands in
        self.is_bash = False  # %NAME% and !NAME! are plain text

    def texts(self) -> dict[str, str]:
        """Name -> what it stands for."""
        return {name: value.text for name, value in self._known.items()}

    def copy(self) -> Values:
        """The same values, which go their own way."""
        other = Values()
        other._known, other.arms, other.is_bash = dict(self._known), self.arms, self.is_bash
        return other

    def find(self, name: str, exact: bool = True) -> Known | None:
        """What `name` stands for; where not `exact`, its letters may be of another size if Windows has set it."""
        found = self._known.get(name)
        if found is None and not exact:
            alike = (value for known, value in self._known.items() if known.lower() == name.lower() and value.any_case)
            found = next(alike, None)
        for condition, arm in self.arms.items():  # what another branch has set does not count in this one
            inner = None if found is None else found.within(condition)
            found = inner.outside if inner is not None and inner.arm != arm else found
        return found

    def set(
        self,
        name: str,
        text: str,
        lacks: Iterable[str] = (),
        branch: Branch | None = None,
        any_case: bool = False,
        others: Iterable[str] = (),
    ) -> None:
        """Set `name`, of which a condition decides where there is a `branch`; `others` are what a condition has
        decided of the text already."""
        if any_case:
            name = next((known for known in self._known if known.lower() == name.lower()), name)
        before = self._known.get(name)
        value = Known(text, list(others), list(lacks), any_case=any_case)
        if branch is not None and not (before is None and _asks_for_default(branch.condition, name)):
            value.others += [_NOTHING] if before is None else [*before.others, before.text or _NOTHING]
            value.condition, value.arm = branch.number, branch.arm
            same = None if before is None else before.within(branch.number)
            value.outside = before if same is None else same.outside
            value.set_to = [text] if same is None else [*same.set_to, text]
            if before is not None:
                value.lacks += before.lacks
                if branch.last and same is not None:  # one of the branches is always taken
                    kept = _NOTHING if same.outside is None else same.outside.text or _NOTHING
                    value.others = [one for one in value.others if one != kept or one in same.set_to]
            value.others = [one for one in dict.fromkeys(value.others) if one != text]
        self._known[name] = value

    def hide(self, name: str, why: str) -> None:
        """What `name` stands for is not known from here on."""
        before = self._known.get(name)
        text = f"${name}" if before is None else before.text
        self._known[name] = Known(text, lacks=[why], any_case=before is not None and before.any_case)


def _asks_for_default(condition: str, name: str) -> bool:
    """Whether `condition` is true where `name` is not set, as in [ -z "$NAME" ]: what follows is its default."""
    name = re.escape(name)
    return (
        re.search(
            rf"""-z\s+"?\$\{{?{name}\b|"?[%!]{name}[%!]"?\s*==\s*""|not\s+defined\s+{name}\b|-not\s+\$(?:env:)?{name}\b"""
            rf"""|!\s*\$(?:env:)?{name}\b|"\$\{{?{name}(?::?-)?\}}?"\s*==?\s*""(?!\S)""",
            condition,
            re.IGNORECASE,
        )
        is not None
    )


def filled(text: str, variables: Values, lacks: list[str]) -> str:
    """`text` with its variables put in; a sentence on each that is not known, or not for sure, goes to `lacks`."""
    used: list[str] = []

    def value(match: re.Match[str]) -> str:
        if match["output"] or (variables.is_bash and (match["c"] or match["e"])):
            return match[0]
        name = match["a"] or match["b"] or match["c"] or match["d"] or match["e"]
        known = variables.find(name, exact=False)
        if known is not None:
            lacks.extend(known.lacks)
            lacks.extend(_undecided(name, known, variables.arms))
            if re.search(r'"|\\$', known.text) is None or _QUOTE_OPEN.match(match.string[: match.start()]) is None:
                return known.text
            return re.sub(r"(\\+)$", r"\1\1", known.text.replace('"', '\\"'))
        if match["default"] is not None:
            if match["sign"] == "=":
                variables.set(name, match["default"])
            return match["default"]
        used.append(name)
        return match[0]

    for _ in range(3):  # a default may be a variable
        used.clear()
        last, text = text, _VARIABLE.sub(value, text)
        if text == last:
            break
    text = _SUM.sub(lambda found: _sum(found, variables), text)
    worked_out = [found[0].lstrip("$") or found[0] for found in _WORKED_OUT.finditer(text) if _is_worked_out(found[0])]
    lacks += [unset(name) for name in dict.fromkeys([*used, *worked_out])]
    return text


def _is_worked_out(text: str) -> bool:
    found = _VARIABLE.fullmatch(text)
    return found is None or found["output"] is not None


def with_arrays(text: str, arrays: Values, lacks: list[str]) -> str:
    """`text` with the words of each array where it is used."""

    def words(found: re.Match[str]) -> str:
        name = found["a"] or found["b"]
        known = arrays.find(name, exact=False)
        if known is None:
            lacks.extend([unset(found[0])] if found["b"] else [])
            return found[0]
        lacks.extend(known.lacks)
        lacks.extend(_undecided(name, known, arrays.arms))
        return known.text

    return _USED_ARRAY.sub(words, text)


def _undecided(name: str, known: Known, arms: dict[int, int]) -> list[str]:
    """A sentence on the values that `name` may have, where a condition decides; what they begin with alike is left
    out where it is long."""
    if not known.others or known.arm in arms.values():
        return []
    values = [*known.others, known.text]
    alike = os.path.commonprefix([one.split(" ") for one in values if one != _NOTHING])
    rest = [f"... {' '.join(one.split(' ')[len(alike) :])}" if one != _NOTHING else one for one in values]
    words = " or ".join(shown(one)[1:-1] or _NOTHING for one in (rest if len(alike) > 4 else values))
    return [f"${name} ({words}): a condition of the script decides; write its value"]


def unset(name: str) -> str:
    """A sentence on what a script uses and nobody knows, be it not set there or a form that is not worked out."""
    return (
        f"{'' if name[0] in '`%@!$' else '$'}{name}: the script uses it, and it is not worked out here; write its value"
    )


def _sum(found: re.Match[str], variables: Values) -> str:
    """What a sum of whole numbers comes to, as bash has it; itself where it is anything else."""

    def number(name: re.Match[str]) -> str:
        known = variables.find(name[0])
        return name[0] if known is None or known.lacks or known.others else known.text

    text = re.sub(r"[A-Za-z_]\w*", number, found["sum"])
    if not re.fullmatch(r"[\d\s+*()-]{1,60}", text) or "**" in text.replace(" ", ""):
        return found[0]
    try:
        return str(_added(text))
    except ValueError:
        return found[0]


def _added(text: str) -> int:
    """The value of a term of + - * and brackets. Raises ValueError where it is none."""
    signs = re.findall(r"\d+|[-+*()]", text)

    def one() -> int:
        sign = signs.pop(0) if signs else ""
        if sign == "(":
            value = total()
            if not signs or signs.pop(0) != ")":
                raise ValueError(text)
            return value
        if not sign.isdigit() or (len(sign) > 1 and sign[0] == "0"):
            raise ValueError(text)
        return int(sign)

    def product() -> int:
        value = one()
        while signs[:1] == ["*"]:
            signs.pop(0)
            value *= one()
        return value

    def total() -> int:
        value = product()
        while signs[:1] in (["+"], ["-"]):
            value += product() if signs.pop(0) == "+" else -product()
        return value

    value = total()
    if signs:
        raise ValueError(text)
    return value
