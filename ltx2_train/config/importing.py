"""`ltx2-train import`: a file of another program becomes run.toml and dataset.toml, every line of it accounted for.

What is taken over bears its old name as a comment; what is not stands in the file as comments, with the reason. So the
files can be trained on as they are, and nothing is lost without a word.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..dataset.dataset_file import DatasetConfig, load_table, without_idle
from ..dataset.entry import FOLDER_KEYS, FOLDER_LIST_KEYS, SOURCE_KEYS
from ..dataset.foreign_keys import LISTS, in_form, translate
from ..dataset.layouts import LIST_NAME, FolderLayout, folder_layout
from ..dataset.simpletuner import is_backends, read_backends
from ..errors import ConfigError, TrainerError
from ..files import write_texts
from ..foreign import PROGRAMS
from ..media.names import is_file
from ..paths import from_folder, path_fault
from ..settings import explain_refusals
from ..toml import read_toml
from .describe import compact, group_line, groups
from .groups import RunConfig
from .import_needs import needed_settings
from .import_paths import DATASET_NAME, moved_paths, rebased
from .import_text import NEEDED, TITLES, as_run, in_brief, run_lines, set_by
from .read import load_run, not_as_asked, taken_over
from .sources import MEDIA_KEYS, SettingsFile, is_dataset_table, read_source
from .translate import ASSUMED, Line, Translation, accepts, lines_in_words

RUN_NAME = "run.toml"
# what a dataset reads and nobody makes
_READ = {*SOURCE_KEYS, *FOLDER_LIST_KEYS, *(key for key in FOLDER_KEYS if "cache" not in key)}


@dataclass
class Imported:
    """What came of a file: settings of a run, the table of a dataset file, and a line for each name that it gave.

    `data` is the table of the dataset file, or None where the source names none that can be read; `lists` are texts of
    files that go beside it; `problems` are sentences on what has to be put right by hand, `left_out` those on media
    of a folder that no dataset takes.
    """

    source: Path
    program: str
    translation: Translation
    folder: Path
    data: dict[str, Any] | None = None
    data_notes: list[str] = field(default_factory=list)
    lists: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    whole_run: bool = True
    datasets: list[Path] = field(default_factory=list)  # dataset files that the source names

    @property
    def read(self) -> list[Path]:
        """The files that were taken over."""
        return [self.source, *self.datasets]

    @property
    def lines(self) -> list[Line]:
        """What became of each name that the source gave, in its order."""
        return self.translation.lines

    @property
    def complete(self) -> bool:
        """Whether nothing has to be put right by hand but for paths that are not there."""
        return not self.problems and not self.left_out and not self.translation.of("not usable", "unknown")

    def run_toml(self, out: Path) -> str:
        """The text of the run file, for the folder `out`."""
        head = f"{self.source.name}, a file of {PROGRAMS[self.program]}" if self.lines else self.source.name
        lines = run_lines(self.translation, head, self.folder, out, self.notes, self.problems)
        return "\n".join(lines).strip() + "\n"

    def dataset_toml(self, out: Path) -> str:
        """The text of the dataset file, for the folder `out`; empty where there is none."""
        import tomli_w

        if self.data is None:
            return ""
        head = [f"# By `ltx2-train import` from {self.source.name}."]
        head += [f"# {note}" for note in self.data_notes]
        head += [f"# Not taken over: {line}." for line in self.left_out]
        head += [
            f"# {line.settings[0]} is {line.name} of {self.source.name}." for line in self.translation.of("dataset")
        ]
        table = moved_paths(self.data, self.folder, out)
        parts = [f"[general]\n{tomli_w.dumps(table['general'])}"] if table["general"] else []
        parts += [f"[[{key}]]\n{tomli_w.dumps(entry)}" for key in LISTS for entry in table.get(key, ())]
        return compact("\n".join([*head, "", "\n".join(parts)]))

    def write(self, out: Path | str | None = None, replace: bool = False) -> list[Path]:
        """Write both files into `out` (a folder beside the source, named after it) and return their paths.

        Raises ConfigError where one of them is there already and `replace` is not set, or is what was read.
        """
        out = self._into(out)
        texts = {DATASET_NAME: self.dataset_toml(out), **self.lists, RUN_NAME: self.run_toml(out)}
        paths = {out / name: text for name, text in texts.items() if text}
        there = [path for path in paths if path.exists()]
        if own := [path for path in there if any(path.samefile(one) for one in self.read if one.exists())]:
            raise ConfigError(
                f"{own[0]} is a file that is taken over, and stays as it is. Name another folder with --out."
            )
        if there and not replace:
            raise ConfigError(f"{there[0]} is there already. Name another folder with --out, or add --replace.")
        write_texts(paths)
        return list(paths)

    def run_path(self, out: Path | str | None = None) -> Path:
        """Where `write` with the same `out` puts the run file."""
        return self._into(out) / RUN_NAME

    def _into(self, out: Path | str | None) -> Path:
        return Path(out) if out is not None else self.folder / f"{self.source.stem or self.source.name}_ltx2"

    def missing(self, run: Path) -> list[str]:
        """A sentence for each file that the written run file `run` needs and that is not there."""
        config = load_run(run)
        lines = []
        for setting in (*NEEDED, "lora.weights"):
            group, key = setting.split(".")
            value = getattr(getattr(config, group), key)
            if setting == "data.config" and config.slider.wanted:
                continue  # it is trained from prompts, or from pairs of caches
            if value is None and setting in NEEDED:
                lines.append(f"{setting} is not set")
            elif value is not None and not value.exists():
                lines.append(f"{setting}: {value} does not exist")
        if isinstance(config.sample.prompts, Path) and not config.sample.prompts.exists():
            lines.append(f"sample.prompts: {config.sample.prompts} does not exist")
        return [*lines, *self._missing_data(), *self._missing_media(config)]

    def _missing_data(self) -> list[str]:
        """A sentence for each folder or list of the dataset that is not there; folders of caches are made."""
        lines = []
        for key in LISTS:
            for number, entry in enumerate((self.data or {}).get(key, ())):
                for name in sorted(entry.keys() & _READ):
                    paths = entry[name] if isinstance(entry[name], list) else [entry[name]]
                    lines += [
                        f"{key}[{number}].{name}: {path} does not exist"
                        for path in (from_folder(self.folder, str(one)) for one in paths)
                        if path.name not in self.lists and not path.exists()
                    ]
        return lines

    def _missing_media(self, config: RunConfig) -> list[str]:
        """A sentence for each medium of the official trainer's samples that is not there."""
        if self.program != "official" or config.sample.prompts is None:
            return []
        named: list[tuple[str, Any]] = []
        for line in self.translation.of("taken"):
            if line.name in ("validation.images", "validation.reference_videos"):
                named += [(line.name, medium) for medium in line.value]
            elif line.name == "validation.samples":
                shown = (one for sample in line.value for one in sample.get("conditions") or ())
                named += [(line.name, one.get(key)) for one in shown for key in MEDIA_KEYS]
        return [f"{name}: {medium} does not exist" for name, medium in named if medium and not Path(medium).exists()]

    def commands(self, run: Path) -> str:
        """What trains the written run file `run`."""
        if load_run(run).slider.wanted:
            return f"ltx2-train slider {run}"
        encoded = [entry.get("preprocessed_data_root") for entry in (self.data or {}).get("datasets", ())]
        once = [f"ltx2-train cache import {from_folder(self.folder, str(one))}" for one in encoded if one]
        return "; ".join([*once, f"ltx2-train cache build {run}", f"ltx2-train train {run}"])

    def _taken_lines(self) -> Iterator[str]:
        """Of each name that was taken over: its value there, the setting here and the value of that."""
        run = as_run(self.translation)
        for line in self.translation.of("taken", "dataset"):
            if line.outcome == "dataset":
                values = [f"{key} = {in_brief(line.value)}" for key in line.settings]
            else:
                values = [one for key in line.settings for one in set_by(key, self.translation, run)]
            where = f" of {DATASET_NAME}" if line.outcome == "dataset" else ""
            yield f"{line.name} {in_brief(line.value)} -> {', '.join(values)}{where}"

    def summary(self) -> str:
        """What was taken over and what was not, for people."""
        taken = len(self.translation.of("taken", "dataset"))
        counts = [(len(self.translation.of(outcome)), title.lower().split(":")[0]) for outcome, title in TITLES.items()]
        head = f"{self.source.name} ({PROGRAMS[self.program]}): {taken} setting{'' if taken == 1 else 's'} taken over"
        if not self.lines:
            number = len((self.data or {}).get("datasets", ()))
            head = f"{self.source.name}: {number} dataset{'' if number == 1 else 's'}"
        text = [head + "".join(f", {number} {title}" for number, title in counts if number) + "."]
        left_out = self.translation.of("not usable", "unknown", "not yet", "replaced", "other command")
        text += [f"  {line}" for line in self._taken_lines()]
        text += [f"  {line}" for line in lines_in_words([*left_out, *self.translation.of("no effect")])]
        if unused := [line.name for line in self.translation.of("unused")]:
            text.append(f"  off, or as it is here anyway: {', '.join(dict.fromkeys(unused))}")
        text += [f"  {note}." for note in self.notes]
        text += [f"  {problem}" for problem in self.problems]
        text += [f"  not taken over: {line}" for line in self.left_out]
        return "\n".join([*text, *self.translation.assumptions()])


def import_settings(file: Path | str) -> Imported:
    """What a file or folder of another program comes to here; nothing is written.

    `file` may be a TOML, a script with commands, a YAML, a JSON, a dataset file, or a folder of media. Raises
    ConfigError where it is of no known kind or cannot be read.
    """
    path = Path(file)
    if path.is_dir():
        return _of_folder(path)
    if not path.exists():
        raise ConfigError(f"{path} does not exist. Check the path.")
    if (table := _dataset_of(path)) is not None:
        program = "simpletuner" if isinstance(table, list) else "community"
        imported = Imported(path, program, Translation(program), path.absolute().parent, whole_run=False)
        _take_dataset(imported, table, path.absolute().parent)
        for setting, value in needed_settings(imported.data or {}).items():
            imported.translation.put(setting, value, path.name)
        imported.translation.put("data.config", DATASET_NAME, path.name)
        return imported
    source = read_source(path)
    if source is None:
        if strange := [name for name in read_toml(path) if name not in groups()]:
            raise ConfigError(
                f"{path} is a file of no program that is read, and no run file: {', '.join(strange[:3])} "
                f"{'is no group' if len(strange) == 1 else 'are no groups'} of settings."
            )
        raise ConfigError(f"{path} is a run file of this program already: ltx2-train train {path}")
    translation = taken_over(source)
    imported = Imported(
        path, source.program, translation, source.folder, problems=list(source.problems), notes=source.notes
    )
    _drop_unusable(imported)
    _find_dataset(imported, source)
    _drop_idle(imported)
    return imported


def _of_folder(path: Path) -> Imported:
    layout = folder_layout(path)
    if layout is None:
        raise ConfigError(
            f"{path} holds no images, videos or sounds, nor sub-folders of them with repeats in the name."
        )
    imported = Imported(path, "community", Translation("community"), path.absolute().parent, whole_run=False)
    imported.data, imported.data_notes = layout.table, [f"{layout.words}."]
    imported.left_out = layout.left
    _size_for_a_start(layout, imported)
    if layout.rows:
        imported.lists[LIST_NAME] = layout.list_text()
        _use_pairs(layout, imported)
    imported.translation.put("data.config", DATASET_NAME, path.name)
    return imported


def _use_pairs(layout: FolderLayout, imported: Imported) -> None:
    """What a run needs to train on all that the pairs give."""
    if any("control_path" in row for row in layout.rows):
        imported.translation.put("video.conditions", [{"type": "reference"}], "NAME_start")
    if any("audio_path" in row for row in layout.rows):
        imported.translation.put("model.mode", "av", "NAME_audio")


def _size_for_a_start(layout: FolderLayout, imported: Imported) -> None:
    """A folder says nothing of sizes and lengths; without a length videos would be single frames."""
    entries = layout.table["datasets"]
    if any("audio_directory" not in entry for entry in entries):
        layout.table["general"] = {"resolution": [768, 512], "enable_bucket": True}
        for entry in entries:
            if "video_directory" in entry or "video_jsonl_file" in entry:
                entry["target_frames"] = [49]
                imported.data_notes.append("Size and length are a start; 49 frames are two seconds.")
    elif entries:
        imported.translation.put("model.mode", "audio", "sounds alone")
    layout.table["datasets"] = layout.table.pop("datasets")  # [general] first


def _dataset_of(path: Path) -> Any:
    """The table of a dataset file, or of SimpleTuner's list; None where the file is something else."""
    if path.suffix.lower() not in (".toml", ".json"):
        return None
    table = load_table(path)
    if isinstance(table, list) and table and not is_backends(table):
        raise ConfigError(
            f"{path} is a list without instance_data_dir, so none of data backends. A list of media is named in a "
            "dataset file, as video_jsonl_file, image_jsonl_file, audio_jsonl_file or dataset_file."
        )
    return table if isinstance(table, list) or is_dataset_table(table) else None


def _drop_unusable(imported: Imported) -> None:
    """Take out each setting whose value cannot be, with a line that says why; conflicts stay, and are told."""
    translation = imported.translation
    for setting, origin in list(translation.origin.items()):
        *groups, key = setting.split(".")
        table = translation.tables
        for group in groups:
            table = table.get(group, {})
        if key not in table or accepts(setting, table[key]):
            continue
        wrong: dict[str, Any] = {key: table.pop(key)}
        value = wrong[key]
        for group in reversed(groups):
            wrong = {group: wrong}
        try:
            RunConfig.model_validate(wrong)
        except ValidationError as error:
            reason = "; ".join(explain_refusals(RunConfig, error))
            translation.lines = [line for line in translation.lines if line.name != origin]
            translation.lines.append(Line(origin, value, "not usable", reason))
        del translation.origin[setting]
    try:
        RunConfig.model_validate(translation.tables)
    except ValidationError as error:
        imported.problems += explain_refusals(RunConfig, error)


def _drop_idle(imported: Imported) -> None:
    """Take out each setting that has no effect beside the others, with a line that says so."""
    translation = imported.translation
    run = as_run(translation)
    if run is None:  # told already
        return
    imported.notes += [text.rstrip(".") for text in not_as_asked(translation.tables.get("sample"), run)]
    for one in run.without_effect:
        *groups, key = one.setting.split(".")
        table = reduce(dict.__getitem__, groups, translation.tables)
        table.pop(key, None)
        origin = translation.origin.pop(one.setting, ASSUMED)
        if origin != ASSUMED:
            translation.lines = [
                line for line in translation.lines if (line.name, line.settings) != (origin, (one.setting,))
            ]
            translation.lines.append(Line(origin, one.value, "no effect", f"as {one.setting} {one.reason}"))


def _find_dataset(imported: Imported, source: SettingsFile) -> None:
    """The dataset file that the source names, in our words; or one made of what it says itself."""
    given = imported.translation.tables.get("data", {}).get("config")
    if given is not None and source.program == "official":
        imported.data = {"datasets": [{"preprocessed_data_root": given, **imported.translation.dataset}]}
        imported.data_notes.append(f"Once, before the first run: ltx2-train cache import {given}")
    elif given is not None:
        path = from_folder(source.folder, str(given))
        imported.datasets.append(path)
        if path_fault(str(given)) or not is_file(path):
            imported.problems.append(
                f"{given}: the dataset file is not there. Put it right in {RUN_NAME} (data.config)."
            )
            _tell_unplaced(imported)
            return
        try:
            _take_dataset(imported, load_table(path), source.folder if source.program == "simpletuner" else path.parent)
        except TrainerError as error:
            imported.problems.append(str(error))
    if imported.data is not None:
        imported.translation.tables.setdefault("data", {})["config"] = DATASET_NAME
    else:
        _tell_unplaced(imported)


def _tell_unplaced(imported: Imported) -> None:
    """A line for each setting of a dataset that the file gives, where there is no dataset to put it into."""
    imported.problems += [
        f"{line.name}: put `{group_line(line.settings[0], line.value)}` into [general] of the dataset file"
        for line in imported.translation.of("dataset")
    ]


def _take_dataset(imported: Imported, table: Any, folder: Path) -> None:
    """`table` of a dataset file that lies in `folder` as the dataset of `imported`."""
    notes: list[str] = []
    table = table if isinstance(table, list) else in_form(table, imported.problems)
    if isinstance(table, list):
        backends = read_backends(table, imported.translation.dataset, folder)
        table, notes = backends.table, backends.notes
        imported.problems += backends.problems
        if imported.whole_run or backends.mode != "video":
            imported.translation.put("model.mode", backends.mode, "dataset_type and audio.auto_split of the datasets")
    elif imported.translation.dataset:
        # a flag holds where the file says nothing, neither in [general] nor in a dataset
        table = {**table, "general": {**imported.translation.dataset, **(table.get("general") or {})}}
    out, more, problems = translate(table)
    imported.problems += problems
    imported.data = rebased(out, folder, imported.folder)
    imported.data, idle = without_idle(imported.data)
    imported.data_notes = [*notes, *more, *idle]
    try:
        DatasetConfig.from_table(dict(imported.data), imported.folder, "the dataset")
    except TrainerError as error:
        imported.problems += [line.strip() for line in str(error).split("\n")[1:]] or [str(error)]
