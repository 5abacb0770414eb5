"""Files of other programs, read into names and values: their TOML, YAML and JSON, and commands saved in a script.

.toml                flags of the community trainer, flat or in sections that mean nothing there
.yaml .yml           the official trainer's configuration
.json                SimpleTuner's config.json, or its list of data backends
.sh .bat .cmd .ps1 .txt    commands: the community trainer's scripts, the official one's, SimpleTuner's
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..files import parse_json
from ..foreign import program_rows
from ..media.names import is_file
from ..paths import from_folder
from ..text_files import read_text
from ..toml import read_toml
from .command_file import Script, read_commands
from .describe import aliases, groups
from .script_lines import shown
from .script_words import Command, is_of_training, of_launchers
from .translate import known_names, unfold
from .yaml_file import read_yaml

COMMANDS = (".sh", ".bat", ".cmd", ".ps1", ".txt")
FILES = (".toml", ".yaml", ".yml", ".json", *COMMANDS)
DATASET_TABLES = ("general", "datasets", "validation_datasets")
MEDIA_KEYS = ("image_or_video", "video", "audio", "mask")  # of a condition of the official trainer's samples
_NAMES_DATA = ("dataset_config", "dataset_manifest", "data_backend_config")
# scripts of the community trainer that make a run together; the others are commands of their own
_TRAINS = ("ltx2_train_network", "ltx2_train_slider", "")
_OF_A_RUN = (*_TRAINS, "ltx2_cache_latents", "ltx2_cache_text_encoder_outputs", "ltx2_cache_dino_features")
# keys, of which all stand in a file of a program that is not read
_NOT_READ = (
    ({"micro_batch_size_per_gpu"}, "a file of diffusion-pipe"),
    ({"pipeline_stages"}, "a file of diffusion-pipe"),
    ({"adapter"}, "a file of diffusion-pipe"),
    ({"directory"}, "a dataset file of diffusion-pipe"),
    ({"job", "config"}, "a job of ai-toolkit"),
    ({"training_method", "__version"}, "a file of OneTrainer"),
    ({"LoRA_type"}, "a file of the GUI of kohya's scripts"),
    ({"compute_environment"}, "a configuration of accelerate"),
    ({"nodes", "links"}, "a workflow of ComfyUI"),
)


@dataclass
class SettingsFile:
    """What a file gives: names and values of `program`, in order.

    Relative paths are seen from `folder`: that of the file, or one above it where the dataset file that it names is
    found there, since programs are started from the top of their tree.
    `trains` says whether it describes training and not the making of caches alone; `others` are commands of its that
    are none of a run; `problems` are sentences on what cannot be read.
    """

    program: str
    path: Path
    names: list[tuple[str, Any]] = field(default_factory=list)
    trains: bool = True
    others: list[Command] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        own = self.path.absolute().parent
        named = [value for name, value in self.names if name in _NAMES_DATA and isinstance(value, str)]
        found = [folder for folder in (own, *own.parents[:4]) for name in named if is_file(from_folder(folder, name))]
        return found[0] if found else own


def read_source(path: Path) -> SettingsFile | None:
    """The names that the file at `path` gives, or None where it is a run file of this program.

    Raises ConfigError where the file is of none of the programs, or cannot be read.
    """
    suffix = path.suffix.lower()
    if path.is_dir():
        raise ConfigError(f"{path} is a folder, no run file. `ltx2-train import {path}` writes a dataset file for it.")
    if suffix == ".toml":
        return _toml(path)
    if suffix in (".yaml", ".yml"):
        return _official_file(path)
    if suffix == ".json":
        return _json(path)
    if suffix in COMMANDS:
        return _script(path)
    raise ConfigError(
        f"{path} is no run file: it ends in none of {' '.join(FILES)}. A command that it holds can be saved as .sh, "
        ".bat or .ps1."
    )


def _refuse_others(path: Path, table: Any) -> None:
    """Raise ConfigError where `table` is that of a program that is not read."""
    for keys, words in _NOT_READ if isinstance(table, Mapping) else ():
        if keys <= table.keys():
            raise ConfigError(
                f"{path} is {words}, which is not read. Write a run file: config --defaults. For a folder of media "
                "`ltx2-train import FOLDER` writes the dataset file."
            )


def is_dataset_table(table: Any) -> bool:
    """Whether a table is that of a dataset file."""
    return isinstance(table, Mapping) and (
        isinstance(table.get("datasets"), list) or ("general" in table and all(key in DATASET_TABLES for key in table))
    )


def _toml(path: Path) -> SettingsFile | None:
    table = read_toml(path)
    if is_dataset_table(table):
        raise ConfigError(
            f"{path} is a dataset file. Name it as data.config in a run file, or let `ltx2-train import` write one."
        )
    if not isinstance(table.get("run"), Mapping):
        _refuse_others(path, table)
    if "model_family" in table:
        return SettingsFile("simpletuner", path, list(_bare(table)))
    if "targets" in table or table.get("mode") in ("text", "reference"):
        return SettingsFile("community", path, [(f"slider.{key}", value) for key, value in table.items()])
    if isinstance(table.get("network"), Mapping) and "base_algo" in table["network"]:
        return SettingsFile("community", path, list(unfold(table, program_rows("community"))))
    flags = known_names("community")
    ours = groups()
    given: list[tuple[str, Any]] = []
    for key, value in table.items():
        if isinstance(value, Mapping) and key not in flags:
            own = ours.get(key, ())
            if any(name in own and name not in aliases() for name in value):
                return None
            given += value.items()
        else:
            given.append((key, value))
    if not any(name in flags for name, _ in given):
        return None
    if all(key in ours and set(value) <= set(ours[key]) for key, value in table.items() if isinstance(value, Mapping)):
        if all(isinstance(value, Mapping) for value in table.values()):
            return None  # [train] learning_rate, seed: the same words in both
    return SettingsFile("community", path, given)


def _official_file(path: Path) -> SettingsFile:
    return _official(path, read_yaml(path, _text(path)))


def _official(path: Path, table: Any) -> SettingsFile:
    _refuse_others(path, table)
    known = {name.split(".")[0] for name in program_rows("official")}
    if not isinstance(table, Mapping) or not any(key in known for key in table):
        raise ConfigError(f"{path} is not the official trainer's configuration: none of {', '.join(sorted(known))}.")
    table = _numbers(table)
    folder = path.absolute().parent
    validation = table.get("validation")
    if isinstance(validation, dict) and all(
        isinstance(validation.get(key) or [], list) for key in ("samples", "images", "reference_videos")
    ):
        # prompts name their media in one line, so they need to be found from anywhere
        for key in ("images", "reference_videos"):
            if media := validation.get(key):
                validation[key] = [None if medium is None else str(folder / str(medium)) for medium in media]
        for sample in validation.get("samples") or []:
            conditions = sample.get("conditions") if isinstance(sample, dict) else None
            for condition in conditions if isinstance(conditions, list) else ():
                for key in MEDIA_KEYS:
                    if isinstance(condition, dict) and condition.get(key):
                        condition[key] = str(folder / str(condition[key]))
    return SettingsFile("official", path, list(unfold(table, program_rows("official"))))


def _json(path: Path) -> SettingsFile:
    try:
        table = parse_json(_text(path))
    except ValueError as error:
        raise ConfigError(f"{path} is not valid JSON: {error}.") from None
    if isinstance(table, list):
        raise ConfigError(f"{path} is a list of datasets. Name it as data.config in a run file.")
    if isinstance(table, Mapping) and is_dataset_table(table):
        raise ConfigError(f"{path} is a dataset file. Name it as data.config in a run file.")
    _refuse_others(path, table)
    names = list(_bare(table)) if isinstance(table, Mapping) else []
    if not any(name in program_rows("simpletuner") for name, _ in names):
        raise ConfigError(f"{path} is not SimpleTuner's config.json, and a run file is TOML.")
    return SettingsFile("simpletuner", path, names)


def _script(path: Path) -> SettingsFile:
    script = read_commands(_text(path), path.absolute().parent, path.name)
    found = _of_commands(path, script)
    told = " ".join(found.notes)
    unread = [
        f"line {number} is not read: {shown(text)}"
        for number, text in script.unread
        if f"line {number} {shown(text)}" not in told
    ]
    return replace(found, problems=[*script.asked, *found.problems], notes=[*found.notes, *unread])


def _of_commands(path: Path, script: Script) -> SettingsFile:
    """What the commands of a script come to."""
    commands, environment = script.commands, script.environment
    if not any(one.of_trainer for one in commands):
        rest = [*script.asked, *(f"line {number}: {shown(text)}" for number, text in script.unread)]
        more = f" What it holds: {'; '.join(rest[:5])}" if rest else ""
        raise ConfigError(f"{path} holds no command with flags.{more}")
    notes = ["... stands for flags that are not in the file"] if any(one.cut_short for one in commands) else []
    notes += script.told
    if configs := [one for one in commands if _is_official(one)]:
        _require_one(path, configs)
        found = _official_file(path.absolute().parent / configs[0].plain[0])
        rest = [f"--{name} of {configs[0].program} is not taken over" for name, _ in configs[0].flags]
        rest += [*of_launchers(configs), *_written_before(script, [("", configs[0].plain[0])])]
        rest += _passed_over([one for one in commands if one not in configs])
        return replace(found, notes=[*notes, *rest])
    if own := [one for one in commands if one.program == "simpletuner"]:
        _require_one(path, own)
        notes += _passed_over([one for one in commands if one not in own])
        flags, twice, more_notes = _collected(path, own, own)
        more_notes += [f"{word} is not read; import the settings that it names" for one in own for word in one.plain]
        more_notes += _written_before(script, [*flags, ("", "config.json")])
        return SettingsFile("simpletuner", path, flags, True, [], twice, [*notes, *more_notes])
    of_run = [one for one in commands if one.program in _OF_A_RUN]
    others = [one for one in commands if one not in of_run and one.program.startswith("ltx2_")]
    if not of_run and not any(one.program.startswith("ltx2_") for one in commands):
        raise ConfigError(
            f"{path} runs no script of the community trainer ({', '.join(filter(None, _OF_A_RUN))}) or another one."
        )
    notes += _passed_over([one for one in commands if one not in of_run and one not in others])
    training = [one for one in of_run if one.program in _TRAINS]
    _require_one(path, training)
    flags, problems, more_notes = _collected(path, of_run, training)
    problems = [*_without_flag([*of_run, *others]), *problems]
    notes += [*more_notes, *_of_environment(environment), *_written_before(script, flags)]
    notes += of_launchers(of_run)
    known = {**script.variables, **environment}
    names = dict(flags) | {name: value for name, value in known.items() if name in program_rows("community")}
    return SettingsFile("community", path, list(names.items()), bool(training), others, problems, notes)


def _without_flag(commands: Iterable[Command]) -> list[str]:
    """A sentence on each word that a command has before its flags, or that only looks like one."""
    lines = []
    for one in commands:
        lines += [f"{word}: stands before the flags of {one.program} and belongs to none" for word in one.plain]
        values = [str(word) for _, value in one.flags for word in (value if isinstance(value, list) else [value])]
        lines += [
            f"{word}: has a sign of print, which is no hyphen or quote to a program. Write it anew"
            for word in values
            if word and word[0] in "\u2010\u2011\u2012\u2013\u2014\u2212\u201c\u201d\u2018\u2019"
        ]
    return lines


def _of_environment(environment: Mapping[str, str]) -> list[str]:
    """Notes on variables of the environment that programs would have seen."""
    notes = []
    if (card := environment.get("CUDA_VISIBLE_DEVICES", "0")) != "0":
        notes.append(f"CUDA_VISIBLE_DEVICES = {card} is not taken over; set it again, or model.device to the card")
    rest = [
        name
        for name, value in environment.items()
        if name.startswith(("LTX", "WANDB_", "PYTORCH_"))
        and name not in program_rows("community")
        and value != "expandable_segments:True"  # as it is here anyway
    ]
    if rest:
        notes.append(f"{', '.join(rest)} of the environment {'is' if len(rest) == 1 else 'are'} not taken over")
    return notes


def _written_before(script: Script, flags: Iterable[tuple[str, Any]]) -> list[str]:
    """Notes on files of the flags that the script itself makes or changes."""
    named = {Path(value.replace("\\", "/")).name for _, value in flags if isinstance(value, str)}
    return [
        f"line {number} {shown(text)} may write {name}, and what lies there now is read"
        for number, text in script.writes
        for name in sorted(named)
        if Path(name).suffix in (".toml", ".txt", ".json", ".jsonl", ".yaml", ".yml", ".safetensors")
        and re.search(rf"(?<![\w.-]){re.escape(name)}", text)
    ]


def _passed_over(commands: Iterable[Command]) -> list[str]:
    """A note on each other script of Python that is run besides, once."""
    names = dict.fromkeys(one.program for one in commands if one.is_script)
    return [f"{name} is a command of its own and is not taken over" for name in names]


def _is_official(command: Command) -> bool:
    return command.program == "train" and bool(command.plain) and command.plain[0].endswith((".yaml", ".yml"))


def _require_one(path: Path, training: Sequence[Command]) -> None:
    """Raise ConfigError where a script trains more than once: a run file is one run."""
    if len(training) > 1:
        named = ", ".join(" ".join([one.program or "flags", *one.plain[:1]]) for one in training)
        raise ConfigError(
            f"{path} holds {len(training)} training commands ({named}), and a run file is one run. Put each into a "
            "file of its own."
        )


def _collected(
    path: Path, commands: Sequence[Command], training: Sequence[Command]
) -> tuple[list[tuple[str, Any]], list[str], list[str]]:
    """The flags of commands that make one run, each once; what is wrong with them; and notes.

    What training is told counts. Raises ConfigError where a --config_file cannot be read.
    """
    given: dict[str, list[tuple[str, Any, bool]]] = {}
    problems: list[str] = []
    notes: list[str] = []
    for command in commands:
        for name, value in _once(command.program or "the command", command.flags, problems).items():
            given.setdefault(name, []).append((command.program, value, command in training))
        own = dict(command.flags)
        for name, value in _once("the config_file", _config_file(own.get("config_file"), path), problems).items():
            if name not in own:
                given.setdefault(name, []).append((command.program, value, command in training))
            elif own[name] != value:
                notes.append(f"{name} = {own[name]} of the command counts, not {value} of its config_file")
    flags: list[tuple[str, Any]] = []
    for name, all_given in given.items():
        first = next((one for one in all_given if one[2]), all_given[0])
        flags.append((name, first[1]))
        if training and not first[2] and is_of_training(name):
            trains = training[0].program or "the command"
            notes.append(f"{name} = {first[1]} of {first[0]} counts, and {trains} does not give it")
        for program, value, _ in all_given:
            if value != first[1] and first[2]:
                notes.append(f"{name} = {first[1]} of {first[0]} counts, not {value} of {program}")
            elif value != first[1]:
                problems.append(f"{name}: {first[0]} says {first[1]}, {program} says {value}; keep one of them")
    return flags, problems, notes


def _once(where: str, flags: Iterable[tuple[str, Any]], problems: list[str]) -> dict[str, Any]:
    """The flags by name, the last of each; a line in `problems` for each that has two values."""
    found: dict[str, Any] = {}
    for name, value in flags:
        if found.get(name, value) != value:
            problems.append(
                f"{name}: {where} gives it twice, as {found[name]} and as {value}; keep the last, which counts there"
            )
        found[name] = value
    return found


def _config_file(name: Any, path: Path) -> Iterator[tuple[str, Any]]:
    """The names and values of a --config_file of a command in the script at `path`."""
    if isinstance(name, str):
        file = path.absolute().parent / name
        table = read_toml(file if file.suffix else file.with_name(file.name + ".toml"))
        for key, value in table.items():
            yield from value.items() if isinstance(value, Mapping) else ((key, value),)


def _bare(table: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Names without the dashes that older files of SimpleTuner have."""
    for name, value in table.items():
        yield name.lstrip("-"), value


def _numbers(value: Any) -> Any:
    """YAML 1.1 takes 1e-4, which has no point, for text."""
    if isinstance(value, Mapping):
        return {str(key): _numbers(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_numbers(inner) for inner in value]
    if isinstance(value, str) and value[:1] in "+-.0123456789" and "e" in value.lower():
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _text(path: Path) -> str:
    try:
        return read_text(path)
    except OSError as error:
        raise ConfigError(f"Cannot read {path}: {error.strerror or error}. Check the path.") from None
    except UnicodeError as error:
        raise ConfigError(f"{path} {error}") from None
