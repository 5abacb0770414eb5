"""The LoRA files of a run: one for each save, with its step in the name, and the newest under the plain name too.

    fox_000250.safetensors    after 250 steps; no other LoRA is ever written over it
    fox.safetensors           the newest; where the disk has links, the same file under a second name

Earlier versions wrote fox-step00000250.safetensors, and the last LoRA as fox.safetensors alone.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterator
from itertools import count
from pathlib import Path

from ..errors import CheckpointError
from ..events import Events
from ..files import copy_file, entries, remove
from ..lora.places import is_changed
from ..weights.reader import ENDING, TensorFile


def lora_name(name: str, step: int | None = None) -> str:
    """The file name of the LoRA of run `name` after `step` steps; the plain name without one."""
    return f"{name}{ENDING}" if step is None else f"{name}_{step:06d}{ENDING}"


def list_loras(folder: Path, name: str) -> list[tuple[int, Path]]:
    """(step, path) of the LoRAs of run `name` in `folder`, oldest first; the plain name is not among them.

    Raises OSError where the folder is closed to this user.
    """
    pattern = re.compile(rf"{re.escape(name)}(?:_(\d{{6,}})(?:_\d+)?|-step(\d{{8,}})){re.escape(ENDING)}")
    matches = ((pattern.fullmatch(path.name), path) for path in entries(folder))
    return sorted((int(match[1] or match[2]), path) for match, path in matches if match)


def write_lora_beside(wanted: Path, write: Callable[[Path], None]) -> Path:
    """`write` a LoRA to `wanted`, or to a numbered name beside it where another one stands there; returns the path.

    Where the same LoRA stands there already, it stays as it is.
    """
    names = _names(wanted)
    path, taken = next(names), []
    while worth_keeping(path):
        taken.append(path)
        path = next(names)
    write(path)
    for other in taken:
        if _same(other, path):
            path.unlink()
            return other
    return path


def place_lora(source: Path, wanted: Path) -> Path:
    """Put the LoRA `source` at `wanted` too, or beside it where another one stands there; returns the path."""
    for path in _names(wanted):
        if not worth_keeping(path):
            copy_file(source, path)
        elif not _same(source, path):
            continue
        return path
    raise AssertionError("names never end")


def place_newest(lora: Path, folder: Path, name: str, events: Events) -> Path:
    """Put `lora` into `folder` under the plain name of the run.

    What stands there first gets another name, which is told, unless it has one: with its step, or, where another run or
    program made it, with `_before`. A run that is made longer replaces nothing.
    """
    plain = folder / lora_name(name)
    if worth_keeping(plain) and not _same_file(plain, lora):
        with TensorFile(plain) as file:
            step, maker = file.metadata.get("step", ""), file.metadata.get("ss_output_name", name)
        if not any(str(number) == step and _same(path, plain) for number, path in list_loras(folder, name)):
            is_own = step.isdecimal() and maker == name
            kept = place_lora(plain, folder / (lora_name(name, int(step)) if is_own else f"{name}_before{ENDING}"))
            events.message(f"{plain} was another LoRA{_made_by(step, maker, name)}; it is now {kept.name}.", "warning")
    copy_file(lora, plain)
    return plain


def set_aside(plain: Path, name: str) -> Path:
    """Give what stands under the plain name of run `name` another one, which is returned."""
    kept = next(path for path in _names(plain.with_name(f"{name}_before{ENDING}")) if not os.path.lexists(path))
    return plain.rename(kept)


def _made_by(step: str, maker: str, name: str) -> str:
    """What a LoRA says it is, in brackets behind a blank; nothing where it does not."""
    said = [f"of {maker}"] if maker != name else []
    said += [f"step {step}"] if step else []
    return f" ({', '.join(said)})" if said else ""


def taken_words(placed: Path, wanted: Path) -> str:
    """A sentence where `placed` stands beside its name `wanted`, as another file has that; else an empty one."""
    if placed.name == wanted.name:
        return ""
    if is_whole(wanted):
        return f"Another LoRA is called {wanted.name} in {wanted.parent} and is kept; this one is {placed.name}."
    return (
        f"{wanted} is damaged, or was changed since it was written (its hash says so), and stays; the whole one is "
        f"{placed.name}. Delete {wanted.name} if you have no use for it."
    )


def is_whole(path: Path, step: int | None = None) -> bool:
    """Whether a LoRA or checkpoint can be read; of a LoRA of this program, whether its bytes are those written. With a
    `step`, whether it is of that one, as far as it says."""
    try:
        with TensorFile(path) as file:
            of_step = step is None or file.metadata.get("step", str(step)) == str(step)
            return of_step and not is_changed(path, file.metadata)
    except CheckpointError:
        return False


def step_of(path: Path) -> int | None:
    """The step that a LoRA or checkpoint says it is of; None where it does not, or cannot be read."""
    try:
        with TensorFile(path) as file:
            said = file.metadata.get("step", "")
    except CheckpointError:
        return None
    return int(said) if said.isdecimal() else None


def is_copy(path: Path, saved: Path) -> bool:
    """Whether `path` is the file `saved`, or a whole copy of it. What a file says of itself is of one save alone."""
    if _same_file(path, saved):
        return True
    try:
        if path.stat().st_size != saved.stat().st_size:
            return False
        with TensorFile(path) as one, TensorFile(saved) as other:
            alike = one.metadata == other.metadata and one.tensors.keys() == other.tensors.keys()
    except (OSError, CheckpointError):
        return False
    return alike and is_whole(path)


def with_its_step(lora: Path, name: str, step: int) -> Path:
    """The LoRA `lora` of run `name` under the name with its step, for the plain one is that of a longer run, once there
    is one; `lora` where there is none."""
    saved = [path for made, path in list_loras(lora.parent, name) if made == step]
    return next((path for path in reversed(saved) if is_copy(path, lora)), lora)


def renew_names(folder: Path, name: str, step: int, whole: Path, events: Events) -> list[Path]:
    """Place `whole` under the plain name and the one with its step, where no whole file stands there; returns what was
    written. Nothing, where `whole` is of an earlier step."""
    plain = folder / lora_name(name)
    saved = [path for made, path in list_loras(folder, name) if made == step]
    written: list[Path] = []
    if whole != plain and whole not in saved:
        return written
    if not any(is_whole(path, step) for path in saved):
        written.append(place_lora(whole, folder / lora_name(name, step)))
    if not is_whole(plain, step):
        written.append(place_newest(written[0] if written else whole, folder, name, events))
    return written


def prune(folder: Path, name: str, keep: int, finished: Collection[int]) -> str:
    """Delete all but the newest `keep` LoRAs and those that the run was finished with; says what could not be."""
    old = [path for step, path in list_loras(folder, name)[:-keep] if step not in finished]
    return remove(file for path in old for file in (path, path.with_suffix(".json")))


def _names(wanted: Path) -> Iterator[Path]:
    yield wanted
    for number in count(2):
        yield wanted.with_name(f"{wanted.stem}_{number}{wanted.suffix}")


def worth_keeping(path: Path) -> bool:
    """Whether something worth keeping stands at `path`; a file that a power cut left damaged is not."""
    if not os.path.lexists(path):
        return False
    try:
        with open(path, "rb"):
            pass
    except OSError:  # held by another program, or a folder
        return True
    try:
        with TensorFile(path):
            return True
    except CheckpointError:
        return False


def _same_file(a: Path, b: Path) -> bool:
    try:
        return a.samefile(b)
    except OSError:
        return False


def _same(a: Path, b: Path) -> bool:
    """Whether two LoRAs have the same tensors; what they say of themselves, such as a date, may differ."""
    if _same_file(a, b):
        return True
    try:
        with TensorFile(a) as first, TensorFile(b) as second:
            if first.tensors.keys() != second.tensors.keys():
                return False
            return all(
                (info.dtype, info.shape) == (second.tensors[name].dtype, second.tensors[name].shape)
                and first.read_bytes(name) == second.read_bytes(name)
                for name, info in first.tensors.items()
            )
    except CheckpointError:
        return False
