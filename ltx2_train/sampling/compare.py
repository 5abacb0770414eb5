"""Compare checkpoints: the base and LoRAs, each at every strength, on the same prompts and seeds, and all in one grid.

Texts are encoded once and the base is read once; from column to column only the LoRA changes. Each cell is a file of
its own, known by what it was made from, so a second call draws what is missing alone. Where nothing is, no model is
read at all.

    out/grid_{digest}.mp4                   the grid, with the sound of one cell
    out/cells/fox_000250_x1_s42_{digest}.mp4    base_s42_{digest}.mp4 without a LoRA
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..conditions.trained import Trained
from ..config import DrawSettings, RunConfig, SampleSettings
from ..config.base_files import BaseFiles
from ..dataset.dataset_file import DatasetConfig
from ..dataset.outputs import refuse_among_media
from ..dataset.sources import content_hash, source_stat
from ..errors import ConfigError
from ..events import Events, shielded
from ..files import digest
from ..lora.file import LoraFile
from ..settings import limits
from ..weights.fingerprint import part_fingerprint
from ..weights.text_encoder import text_fingerprint
from .grid import GridCell, can_be_shown, write_grid
from .guidance import require_stg_block
from .prompts import Prompt, require_drawable
from .sample import given_media, has_dataset, prompt_folder, shown_to, tell_idle, wanted_prompts
from .studio import Studio, checked_lora, open_studio, outer_lora, require_possible
from .two_stages import require_upsampler

RECIPE = "1"  # of the names of cells
AT_ONCE = 4  # cells that are drawn before they are decoded and saved; a stop loses no more of them
SOUND, PICTURE = (".wav", ".flac"), (".mp4", ".png")
# what of the settings makes no difference to a cell, or is in its prompt
_ELSEWHERE = frozenset(
    "every every_epochs at_start prompts validation_clips validation_first_frame strength seed width height frames fps "
    "steps guidance negative_prompt identity_guidance upsampler".split()
)


@dataclass(frozen=True)
class Column:
    """A LoRA at a strength; None is the base alone."""

    label: str
    lora: Path | None
    strength: float = 1.0


@dataclass(frozen=True)
class Cell:
    """One sample: `number` counts row by row from 1 on. `path` is None where drawing it failed."""

    number: int
    column: Column
    prompt: Prompt
    path: Path | None
    audio_path: Path | None


@dataclass(frozen=True)
class Comparison:
    """The grid and its cells; `drawn` of them were drawn by this call, the others were there."""

    grid: Path
    columns: tuple[Column, ...]
    cells: tuple[Cell, ...]
    drawn: int
    sound: Path | None = None

    def text(self) -> str:
        """A few lines for a terminal."""
        there = sum(cell.path is not None for cell in self.cells) - self.drawn
        failed = sum(cell.path is None for cell in self.cells)
        counts = [f"{self.drawn} drawn", f"{there} there before", f"{failed} failed"]
        told = ", ".join(count for count in counts if not count.startswith("0 "))
        return f"{len(self.columns)} columns, {len(self.cells)} samples: {told}\n{self.grid}"


def compare(
    run: RunConfig,
    loras: Mapping[str, Path],
    out: Path,
    events: Events | None = None,
    *,
    prompts: Sequence[str] | None = None,
    seeds: Sequence[int] = (),
    strengths: Sequence[float] = (),
    base: bool = True,
    sound_cell: int = 0,
    beside: Sequence[tuple[Path, float]] = (),
) -> Comparison:
    """Draw the prompts of `run` (or `prompts`) with each of `loras`, which are named by the labels of their columns.

    `base`: its own column comes first. Each prompt is drawn with each of `seeds`, one that names its own (--d) with
    that alone, and each LoRA at each of `strengths`; what is not given is as the settings say. The grid has the sound
    of cell `sound_cell`, counted row by row from 1 on; 0 is the last of the first row. Every cell wears the LoRAs
    `beside` at their strengths too. A sample that fails is reported and left out. Raises TrainerError.
    """
    events = shielded(events)
    events.stage("check")
    columns = _columns(loras, strengths or (run.sample.strength,), base)
    require_possible(out, [strength for _, strength in beside], [path for path, _ in beside])
    run = _without_lost_dataset(run)
    files = BaseFiles.find(run, events)
    if has_dataset(run):
        refuse_among_media(out, DatasetConfig.read(run.dataset_file(), run.foreign))
    settings, wanted = _rows(run, prompts, seeds, files.version)
    require_stg_block(settings, files.info.blocks)
    require_upsampler(settings)
    files.require_decoder(run.model.mode)
    heard = _heard(settings, wanted, run.model.mode, len(columns), sound_cell)
    metadata = {}
    for lora in dict.fromkeys(column.lora for column in columns if column.lora is not None):
        metadata[lora] = checked_lora(lora, files, run.model.mode, events, weights=False).metadata
    _tell_twins(list(metadata), events)
    trained = _one_form(run, metadata, any(prompt.given for prompt in wanted))
    require_drawable(wanted, run.model.mode, trained)
    tell_idle(run, settings, wanted, next(iter(metadata), None), events)
    names = _names(run, files, settings, columns, wanted, beside)
    folder = out / "cells"
    missing = {at: name for at, name in names.items() if _files_of(folder, name) is None}
    if missing:
        others = [(outer_lora(path, files, run.model.mode, events), strength) for path, strength in beside]
        texts = prompt_folder(run) if has_dataset(run) else out / "prompts"
        media = given_media(run, files, texts, trained)
        drawn = list(dict.fromkeys(wanted[row] for row, _ in missing))
        with open_studio(run, files, settings, drawn, texts, out, media, events) as studio:
            _draw(studio, files, run, columns, wanted, missing, folder, others)
    cells = []
    for number, (row, column) in enumerate(names, 1):
        path, sound = _files_of(folder, names[row, column]) or (None, None)
        cells.append(Cell(number, columns[column], wanted[row], path, sound))
    drawn_now = len({name for name in missing.values() if _files_of(folder, name) is not None})
    sound = cells[heard - 1].audio_path if heard else None
    grid = _grid(out, columns, wanted, cells, sound, bool(heard), events)
    about = {"columns": [column.label for column in columns], "prompts": [prompt.text for prompt in wanted]}
    events.sample(grid, about)
    return Comparison(grid, tuple(columns), tuple(cells), drawn_now, sound)


def _one_form(run: RunConfig, metadata: Mapping[Path, Mapping[str, str]], shown: bool) -> Trained:
    """How the LoRAs with that metadata are shown references. Raises ConfigError where they differ and some are
    `shown`."""
    forms = {lora: shown_to(run, told) for lora, told in metadata.items()}
    trained = next(iter(forms.values()), None) or shown_to(run, None)
    if other := [lora for lora, form in forms.items() if form != trained and shown]:
        raise ConfigError(
            f"{next(iter(forms)).name} and {other[0].name} were trained with references of other forms, so one prompt "
            "cannot show them the same. Compare them one by one, or take what the prompts are given out."
        )
    return trained


def _tell_twins(loras: Sequence[Path], events: Events) -> None:
    """Warn of files that hold the same, as the newest LoRA of a run under its second name does."""
    first: dict[str, Path] = {}
    for lora in loras:
        other = first.setdefault(_content(lora), lora)
        if other is not lora:
            events.message(f"{other.name} and {lora.name} hold the same LoRA, so their columns are alike.", "warning")


def _without_lost_dataset(run: RunConfig) -> RunConfig:
    """`run` without the dataset that it was trained on, where that is gone: a comparison can do without."""
    path = run.data.config if run.data.manifest is None else run.data.manifest
    if path is None or path.exists():
        return run
    return run.model_copy(update={"data": run.data.model_copy(update={"config": None, "manifest": None})})


def _columns(loras: Mapping[str, Path], strengths: Sequence[float], base: bool) -> list[Column]:
    """Raises ConfigError where there is nothing to compare."""
    if not loras:
        raise ConfigError("There is no LoRA to compare. Name one or more.")
    seen: set[Path] = set()
    for path in (Path(lora) for lora in loras.values()):
        if path.resolve() in seen:
            raise ConfigError(f"{path} is named twice, so its columns would be alike. Name it once.")
        seen.add(path.resolve())
    given = list(dict.fromkeys(float(strength) for strength in strengths))
    for strength in given:
        if not (math.isfinite(strength) and -10 <= strength <= 10):
            raise ConfigError(f"A strength is {strength:g}. Expected a number from -10 to 10.")
    found = [Column("base", None, 0.0)] if base else []
    for label, lora in loras.items():
        found += [
            Column(label if given == [1.0] else f"{label} x{strength:g}", Path(lora), strength) for strength in given
        ]
    return found


def _rows(
    run: RunConfig, prompts: Sequence[str] | None, seeds: Sequence[int], version: str
) -> tuple[DrawSettings, list[Prompt]]:
    """What each row draws with a model of `version`. Raises ConfigError."""
    settings, wanted = wanted_prompts(run, prompts, version)
    most = int(limits(SampleSettings.model_fields["seed"])["le"])
    for seed in seeds:
        if not 0 <= seed <= most:
            raise ConfigError(f"A seed is {seed}. Expected a whole number from 0 to {most}.")
    if not seeds:
        return settings, wanted
    # a prompt that names its seed has it whatever the settings say
    other = run.sample.model_copy(update={"seed": settings.seed ^ 1})
    again = wanted_prompts(run.model_copy(update={"sample": other}), prompts, version)[1]
    rows = []
    for prompt, changed in zip(wanted, again, strict=True):
        own = prompt.seed == changed.seed
        rows += [prompt] if own else [replace(prompt, seed=seed) for seed in dict.fromkeys(seeds)]
    return settings, rows


def _heard(settings: DrawSettings, rows: Sequence[Prompt], mode: str, columns: int, cell: int) -> int:
    """The number of the cell whose sound the grid has; 0 where there is none to hear. Raises ConfigError."""
    count = len(rows) * columns
    if not 0 <= cell <= count:
        raise ConfigError(f"sound_cell is {cell}, but the cells of this comparison are 1 to {count}.")
    number = cell or columns
    silent = ""
    if mode == "video":
        silent = "model.mode is video, which draws no sound"
    elif mode == "av" and settings.audio == "off":
        silent = "sample.audio is off"
    elif mode == "av" and rows[(number - 1) // columns].shape.frames == 1:
        silent = f"the prompt of that cell has one frame: {rows[(number - 1) // columns].text[:60]!r}"
    if silent and cell:
        raise ConfigError(f"sound_cell is {cell}, but there is no sound to hear: {silent}. Set sound_cell to 0.")
    return 0 if silent else number


def _names(
    run: RunConfig,
    files: BaseFiles,
    settings: DrawSettings,
    columns: Sequence[Column],
    rows: Sequence[Prompt],
    beside: Sequence[tuple[Path, float]],
) -> dict[tuple[int, int], str]:
    """The name of each cell, row by row, without its ending: its digest is of all that it is made from."""
    mode = run.model.mode
    shared = [
        RECIPE,
        mode,
        files.version,
        part_fingerprint(files.checkpoint, "transformer"),
        text_fingerprint(files.encoder, files.projection, run.gemma),
        "" if mode == "audio" else part_fingerprint(files.video_vae, "video_vae"),
        "" if mode == "video" else part_fingerprint(files.audio_vae, "audio_vae"),
        run.model.precision,
        run.quant.model_dump_json(),
        run.cache.vae_dtype,
        settings.model_dump_json(exclude=set(_ELSEWHERE)),
        *(f"{_content(path)} {strength:g}" for path, strength in beside),
        *([] if settings.upsampler is None else [_content(settings.upsampler)]),
    ]
    names = {}
    for row, prompt in enumerate(rows):
        given = [_content(path) for one in prompt.given for path in (one.path, one.mask) if path is not None]
        for column, one in enumerate(columns):
            lora = "" if one.lora is None else _content(one.lora)
            mark = digest(*shared, lora, f"{one.strength:g}", repr(prompt), *given)
            stem = "base" if one.lora is None else f"{one.lora.stem}_x{one.strength:g}"
            names[row, column] = f"{stem}_s{prompt.seed}_{mark}"
    return names


def _content(path: Path) -> str:
    return content_hash(path, *source_stat(path))


def _files_of(folder: Path, name: str) -> tuple[Path, Path | None] | None:
    """The file of a cell, and the one with its sound where that is another or the same; None where it was not drawn,
    or a file of it has been damaged since."""
    there = [folder / f"{name}{ending}" for ending in (*PICTURE, *SOUND) if (folder / f"{name}{ending}").is_file()]
    if not there or not all(map(can_be_shown, there)):
        return None
    sounds = [path for path in there if path.suffix in SOUND]
    merged = there[0] if there[0].suffix == ".mp4" else None
    return there[0], sounds[0] if sounds else merged


def _draw(
    studio: Studio,
    files: BaseFiles,
    run: RunConfig,
    columns: Sequence[Column],
    rows: Sequence[Prompt],
    missing: Mapping[tuple[int, int], str],
    folder: Path,
    others: Sequence[tuple[LoraFile, float]],
) -> None:
    """Draw what is missing, LoRA by LoRA, a few cells at a time."""
    quiet = Events()  # what of a LoRA is left out has been said
    for lora in dict.fromkeys(column.lora for column in columns):
        wanted = [cell for cell in missing if columns[cell[1]].lora == lora]
        if not wanted:
            continue
        state = None if lora is None else checked_lora(lora, files, run.model.mode, quiet)
        with studio.wearing(state, others) as loras:
            for number in dict.fromkeys(column for _, column in wanted):
                column = columns[number]
                if loras is not None:
                    loras.set_strength(column.strength)
                cells = {missing[row, number]: rows[row] for row, cell in wanted if cell == number}
                for names in _pieces(list(cells)):
                    studio.renderer.draw(
                        [cells[name] for name in names],
                        lambda index, prompt, names=names: folder / names[index],
                        {"label": column.label, "lora": lora and lora.name, "strength": column.strength},
                        failed=[],
                    )


def _pieces(names: Sequence[str]) -> Iterator[Sequence[str]]:
    return (names[start : start + AT_ONCE] for start in range(0, len(names), AT_ONCE))


def _grid(
    out: Path,
    columns: Sequence[Column],
    rows: Sequence[Prompt],
    cells: Sequence[Cell],
    sound: Path | None,
    numbered: bool,
    events: Events,
) -> Path:
    labels = [f"{prompt.text}   seed {prompt.seed}" for prompt in rows]
    placed = {
        divmod(cell.number - 1, len(columns)): GridCell(cell.path, str(cell.number) if numbered else "")
        for cell in cells
    }
    heads = [column.label for column in columns]
    mark = digest(*heads, *labels, *(str(cell.path) for cell in cells), str(sound))
    about = {"columns": heads, "rows": labels, "sound": None if sound is None else sound.name}
    return write_grid(out / f"grid_{mark}", heads, labels, placed, sound, about, events)
