"""The copies of what a run saves in run.export_folder, where another program finds it.

Of LoRAs each one, under its own name, and the newest under the plain one too. A checkpoint is too large for that: there
is the newest alone.
"""

from __future__ import annotations

from pathlib import Path

from ..config import RunConfig
from ..errors import TrainerError
from ..events import Events
from ..files import copy_file
from ..full.file import maker_of
from .lora_files import (
    is_copy,
    is_whole,
    list_loras,
    lora_name,
    place_lora,
    place_newest,
    set_aside,
    taken_words,
    worth_keeping,
)
from .run_folder import RunFolder


def export(lora: Path, folder: Path, name: str, events: Events) -> Path:
    """Place the LoRA in `folder` too, under its own name and the plain one; returns the plain path."""
    placed = place_lora(lora, folder / lora.name)
    if told := taken_words(placed, folder / lora.name):
        events.message(told, "warning")
    return place_newest(placed, folder, name, events)


def export_one(checkpoint: Path, folder: Path, name: str, events: Events) -> Path:
    """Place the checkpoint in `folder` under the plain name alone, in place of the one before; returns its path.

    What another run or program left under that name gets another one, which is told.
    """
    plain = folder / lora_name(name)
    if worth_keeping(plain) and maker_of(plain) != maker_of(checkpoint):
        kept = set_aside(plain, name)
        events.message(f"{plain} was not of this run; it is now {kept.name}.", "warning")
    copy_file(checkpoint, plain)
    return plain


def exported(config: RunConfig, folder: RunFolder, newest: Path) -> Path | None:
    """The copy of the LoRA or checkpoint `newest`; None where there is none, or another file stands there."""
    if config.run.export_folder is None:
        return None
    name = lora_name(folder.name) if config.train.what == "full" else newest.name
    copy = config.run.export_folder / folder.name / name
    return copy if is_copy(copy, newest) else None


def renew_exports(config: RunConfig, folder: RunFolder, newest: Path, events: Events) -> None:
    """Write the copies anew that are no longer as large as what the run has, and that of `newest` where there is none;
    the same of the LoRAs of the running mean, where the run keeps one.

    What cannot be written is a warning.
    """
    if config.run.export_folder is None:
        return
    place = config.run.export_folder / folder.name
    _renew(config, folder, place, folder.name, newest, events)
    mean = folder.loras / lora_name(f"{folder.name}_ema")
    if config.ema.decay and config.train.what != "full" and is_whole(mean):
        _renew(config, folder, place, mean.stem, mean, events)


def _renew(config: RunConfig, folder: RunFolder, place: Path, name: str, newest: Path, events: Events) -> None:
    """As `renew_exports`, of the LoRAs called `name`; their copies lie in `place`."""
    saved = [path for _, path in list_loras(folder.loras, name)]
    whole = config.train.what == "full"
    made = next((path for path in reversed(saved) if is_copy(path, newest)), newest)
    sizes = {} if whole else {path: _size(place / path.name) for path in saved if worth_keeping(path)}
    # an older one that is not there was deleted by somebody
    broken = [path for path, size in sizes.items() if size is not None and size != _size(path)]
    if made in sizes and not any(is_copy(path, made) for _, path in list_loras(place, name)):
        broken = [path for path in sizes if path in (*broken, made)]
    try:
        told = []
        for path in broken:
            placed = place_lora(path, wanted := place / path.name)
            if placed == wanted:
                told.append(placed.name)
            elif not is_whole(wanted):  # a whole one of another run was told of as this one was saved
                events.message(taken_words(placed, wanted), "warning")
        if exported(config, folder, newest) is None:
            place_one = export_one if whole else export
            told.append(place_one(made, place, name, events).name)
    except TrainerError as error:
        events.message(f"The copy in run.export_folder was left out. {error}", "warning")
        return
    if told:
        was = "was" if len(told) == 1 else "were"
        events.message(f"{', '.join(told)} in {place} {was} damaged or missing, and {was} written anew.", "warning")


def _size(path: Path) -> int | None:
    """None where there is no such file."""
    try:
        return path.stat().st_size
    except OSError:
        return None
