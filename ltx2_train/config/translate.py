"""From names of other programs to settings, by the tables in `foreign`: one line for each name that was given."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Literal, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from ..dataset.entry import DatasetSettings
from ..foreign import PROGRAMS, NameRow, defaults_of, key_of, later_words, program_rows, row_of
from ..registry import nearest
from ..settings import inner_type, is_text
from ..toml import parse_value
from .converted import ReadWith, ValuePart
from .converters import convert
from .describe import aliases, walk_settings
from .groups import RunConfig

Outcome = Literal[
    "taken", "dataset", "no effect", "unused", "replaced", "not yet", "other command", "unknown", "not usable"
]
ASSUMED = "not given"  # the origin of what the other program takes where its file says nothing
OTHER_COMMANDS = {"ltx2_generate_video": "ltx2-train sample"}
# what stands in the way of training by the file as it is
REFUSED: tuple[Outcome, ...] = ("dataset", "replaced", "not yet", "other command", "unknown", "not usable")


@dataclass(frozen=True)
class Line:
    """What became of one name: `settings` are those it set, `text` says why where it set none."""

    name: str
    value: Any
    outcome: Outcome
    text: str = ""
    settings: tuple[str, ...] = ()

    def __str__(self) -> str:
        reason = f" {self.text}" if self.text else ""
        fate = {
            "taken": f"is {' and '.join(self.settings)}.",
            "dataset": f"belongs to the dataset file.{reason}",
            "no effect": f"has no effect:{reason}.",
            "unused": "is not used.",
            "replaced": f"is replaced:{reason}.",
            "not yet": f"is not there yet:{reason}.",
            "other command": f"belongs to another command:{reason}.",
            "unknown": f"unknown setting.{reason}",
            "not usable": f"{self.text}.",
        }[self.outcome]
        return f"{self.name}: {fate}" if self.outcome in ("unknown", "not usable") else f"{self.name} {fate}"


def lines_in_words(lines: Iterable[Line]) -> list[str]:
    """A sentence for each line; names that are not there for the same reason share one."""
    groups: dict[tuple[str, str], list[Line]] = {}
    for number, line in enumerate(lines):
        together = line.outcome in ("not yet", "no effect")
        groups.setdefault((line.outcome, line.text if together else str(number)), []).append(line)
    sentences = []
    for group in groups.values():
        names = ", ".join(dict.fromkeys(line.name for line in group))
        sentence = str(replace(group[0], name=names))
        if len(group) > 1:
            sentence = sentence.replace(f"{names} is ", f"{names} are ").replace(f"{names} has ", f"{names} have ")
        sentences.append(sentence)
    return sentences


@dataclass
class Translation:
    """The settings that came of names of `program`: nested tables, values of the dataset, and a line for each name.

    `plain`: the names stand in a run file of our own, where another name of a setting means that setting alone.
    """

    program: str
    tables: dict[str, Any] = field(default_factory=dict)
    dataset: dict[str, Any] = field(default_factory=dict)
    lines: list[Line] = field(default_factory=list)
    origin: dict[str, str] = field(default_factory=dict)
    plain: bool = False
    _read_with: list[tuple[str, Any, str]] = field(default_factory=list)  # a name, its value, and who reads it

    def add(self, name: str, value: Any, whole: Mapping[str, Any], shown: str = "") -> None:
        """Take one name over. `whole` is all that the file gives, `shown` how the name stands there."""
        shown = shown or name
        row = find_row(self.program, name)
        if row is not None and row.by and self.plain and aliases().get(name) in row.takes:
            row = replace(row, by="")
        if row is None and value is None and any(one.startswith(f"{name}.") for one in program_rows(self.program)):
            self._say(shown, value, "unused")  # a section with nothing in it
        elif row is None:
            self._say(shown, value, "unknown", _unknown(self.program, name))
        else:
            try:
                self._row(row, value, whole, shown)
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                self._say(shown, value, "not usable", f"{error} (given: {value!r})")

    def add_command(self, program: str, flags: Sequence[tuple[str, Any]]) -> None:
        """Account for a command that is none of a run, such as quantizing or merging."""
        rows = {name: find_row(self.program, f"{program}.{name}") for name, _ in flags}
        if not any(rows.values()):
            self._say(program, True, "other command", OTHER_COMMANDS.get(program, "this program has no such command"))
        for name, value in flags:
            row = rows[name]
            if row is not None:
                self._row(row, value, dict(flags), f"{program} --{name}")

    def put(self, setting: str, value: Any, shown: str) -> bool:
        """Set one setting; False, with a line that says so, where another name has set it to something else."""
        *groups, key = setting.split(".")
        table = self.tables
        for group in groups:
            table = table.setdefault(group, {})
        if key in table and table[key] != value:
            first = self.origin.get(setting, setting)
            self._say(shown, value, "not usable", f"{first} and {shown} are the same setting ({setting}); keep one")
            return False
        table[key] = value
        self.origin.setdefault(setting, shown)
        return True

    def settle(self) -> None:
        """A line for each value that another name reads, once all names have been added."""
        for name, value, reader in self._read_with:
            found = next((line for line in self.lines if line.name == reader), None)
            if found is not None and found.outcome == "taken":
                self._say(name, value, "taken", settings=found.settings)
            else:
                fate = "is not given" if found is None or found.outcome == "unused" else "cannot be used"
                self._say(name, value, "not usable", f"it goes with {reader}, which {fate}")
        self._read_with.clear()

    def assume_defaults(self) -> None:
        """What the program takes where its file is silent, where that would train another LoRA than it does."""
        given = {dotted for dotted in run_fields() if at(self.tables, dotted) is not None}
        assumed = dict(defaults_of(self.program))
        if "sample.prompts" not in given:  # no prompts, no samples: so it is in all of them
            assumed |= {"sample.every": 0, "sample.at_start": False}
        elif "sample.every_epochs" in given:
            assumed["sample.every"] = 0
        if "train.save_every_epochs" in given:
            assumed["train.save_every"] = 0
        if "train.epochs" in given:
            assumed.pop("train.steps", None)
        for setting, value in assumed.items():
            if setting not in given:
                self.put(setting, value, ASSUMED)

    def assumptions(self) -> list[str]:
        """A sentence on what `assume_defaults` set."""
        assumed = [setting for setting, origin in self.origin.items() if origin == ASSUMED]
        if not assumed:
            return []
        values = ", ".join(f"{setting} = {at(self.tables, setting)}" for setting in assumed)
        return [f"Not given, so as {PROGRAMS[self.program]} has it: {values}."]

    def of(self, *outcomes: Outcome) -> list[Line]:
        """The lines with one of `outcomes`, in the order of the file."""
        return [line for line in self.lines if line.outcome in outcomes]

    def _say(self, name: str, value: Any, outcome: Outcome, text: str = "", settings: tuple[str, ...] = ()) -> None:
        self.lines.append(Line(name, value, outcome, text, settings))

    def _row(self, row: NameRow, value: Any, whole: Mapping[str, Any], shown: str) -> None:
        if row.by and not row.unused(value):
            self._converted(row, value, whole, shown)
        elif row.by and row.takes:
            self._say(shown, value, "unused")  # a switch that is off
        elif row.takes:
            self._taken(row, value, shown)
        elif row.dataset:
            about = DatasetSettings.model_fields[row.dataset]
            value = from_text(about, value) if isinstance(value, str) else value
            if row.unused(value) or value == about.default:
                self._say(shown, value, "unused")
            else:
                self.dataset[row.dataset] = value
                self._say(shown, value, "dataset", f"Put `{row.dataset}` into [general] there", (row.dataset,))
        elif row.no_effect:
            if not row.values or row.unused(value) or str(value) in row.values or key_of(value) in row.values:
                self._say(shown, value, "no effect", row.no_effect)
            else:
                self._say(shown, value, "not yet", later_words(row.otherwise))
        elif row.unused(value):
            self._say(shown, value, "unused")
        elif row.command:
            self._say(shown, value, "other command", row.command)
        elif row.instead:
            self._say(shown, value, "replaced", row.instead)
        else:
            self._say(shown, value, "not yet", later_words(row.later))

    def _taken(self, row: NameRow, value: Any, shown: str) -> None:
        key, given = key_of(value), value
        if key in row.values:
            value = row.values[key]
        elif row.unused(value) and (value is not False or row.values):
            self._say(shown, value, "unused")
            return
        elif row.otherwise and not all(accepts(setting, value) for setting in row.takes):
            self._say(shown, value, "not yet", later_words(row.otherwise))
            return
        done = [self.put(setting, typed(setting, value), shown) for setting in row.takes]
        if all(done):
            self._say(shown, given, "taken", settings=row.takes)

    def _converted(self, row: NameRow, value: Any, whole: Mapping[str, Any], shown: str) -> None:
        parts = convert(row.by, value, row.name, whole)
        settings = [one for one in parts if not isinstance(one, (ValuePart, ReadWith))]
        if row.otherwise and not all(accepts(setting, given) for setting, given in settings):
            self._say(shown, value, "not yet", later_words(row.otherwise))
            return
        placed = [self.put(setting, given, shown) for setting, given in settings]
        if settings and all(placed):
            self._say(shown, value, "taken", settings=tuple(setting for setting, _ in settings))
        for one in parts:
            if isinstance(one, ValuePart):
                self.add(one.name, one.value, whole, one.name if shown == row.name else f"{shown}: {one.name}")
            elif isinstance(one, ReadWith):
                self._read_with.append((shown, value, one.name))
        if not parts:
            self._say(shown, value, "unused")


def find_row(program: str, name: str) -> NameRow | None:
    """The row of `name`; other names of settings are rows of the community trainer."""
    row = row_of(program, name)
    if row is None and program == "community" and name in aliases():
        return NameRow(name, takes=(aliases()[name],))
    return row


def known_names(program: str) -> list[str]:
    """Every name of `program` that has a row."""
    names = list(program_rows(program))
    return list(dict.fromkeys([*names, *aliases()])) if program == "community" else names


@cache
def run_fields() -> dict[str, FieldInfo]:
    """Dotted path -> field of every setting of a run file."""
    return dict(walk_settings())


def accepts(setting: str, value: Any) -> bool:
    """Whether `value` is one that the setting can have, in the words of its group."""
    if setting not in run_fields():  # a switch that its group turns into its own words
        return True
    table: Any = typed(setting, value)
    for part in reversed(setting.split(".")):
        table = {part: table}
    try:
        RunConfig.model_validate(table)
    except ValidationError as error:
        places = (".".join(str(part) for part in one["loc"]) for one in error.errors())
        return not any(place.startswith(setting) for place in places)
    return True


def typed(setting: str, value: Any) -> Any:
    """A value that came as text, from a command line, as the setting wants it."""
    return from_text(run_fields().get(setting), value) if isinstance(value, str) else value


def from_text(field_info: FieldInfo | None, text: str) -> Any:
    """What `text` means for a setting: itself where that is text or a path, else a value in the words of TOML."""
    quoted = text[:1] in ("'", '"')
    if field_info is not None and is_text(field_info.annotation) and not quoted:
        return text
    try:
        value = parse_value(text)
    except ValueError:
        value = text
    many = field_info is not None and get_origin(inner_type(field_info.annotation)) in (list, dict, tuple)
    return [value] if many and not isinstance(value, (list, dict)) else value


def at(tables: Mapping[str, Any], dotted: str) -> Any:
    """The value of a dotted setting in nested tables; None where it is not there."""
    value: Any = tables
    for part in dotted.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _unknown(program: str, name: str) -> str:
    if name in DatasetSettings.model_fields:
        return "It belongs to the dataset file (data.config)."
    near = nearest(name, [one for one in known_names(program) if program != "community" or "." not in one])
    hint = f"Did you mean {' or '.join(near)}? " if near else ""
    return f"{hint}{PROGRAMS[program][0].upper()}{PROGRAMS[program][1:]} is not known to have it."


def unfold(table: Mapping[str, Any], rows: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The names of nested tables, dotted, as deep as `rows` knows them."""
    for key, value in table.items():
        name = f"{prefix}{key}"
        deeper = any(row.startswith(f"{name}.") for row in rows)
        if isinstance(value, Mapping) and name not in rows and deeper:
            yield from unfold(value, rows, f"{name}.")
        else:
            yield name, value
