"""LoRA files of the tools: which ones a user names in a widget, what a node writes, and the work between."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .. import ltx2_train as core
from ..ltx2_train.errors import ConfigError
from ..ltx2_train.files import digest
from . import host
from .host import io
from .made import always
from .wire import lora_file


def lora_named(text: str, widget: str = "lora_path", otherwise: str = "connect `lora`") -> Path:
    """The file behind a path or a name in the loras folders. Raises ConfigError where there is none."""
    text = text.strip().strip('"')
    if not Path(text).expanduser().is_absolute() and not host.stays_inside(text):
        raise ConfigError(f"{widget}: {text} leads out of the loras folders. Write a name in one, or a full path.")
    path = Path(text).expanduser()
    found = path if path.is_file() else host.lora_path(text)
    if found is not None:
        return found
    raise ConfigError(f"{widget}: there is no file {text}. Write the path of a LoRA file, or {otherwise}.")


def chosen_lora(lora: Mapping[str, Any] | None, lora_path: str, to_do: str) -> Path:
    """The one LoRA of a node that takes it from the socket `lora` or by `lora_path`. Raises ConfigError where there is
    none, or are two."""
    if lora is None:
        if not lora_path.strip():
            raise ConfigError(f"There is no LoRA to {to_do}: connect `lora`, or write `lora_path`.")
        return lora_named(lora_path)
    if lora_path.strip():
        raise ConfigError(f"There are two LoRAs to {to_do}: take the wire off `lora`, or empty `lora_path`.")
    return lora_file(lora)


def more_loras_input() -> Any:
    """The widget of a node that draws for LoRAs beside the one that is looked at; see `listed_loras`."""
    return io.String.Input(
        "more_loras",
        multiline=True,
        default="",
        optional=True,
        advanced=True,
        placeholder="ltx-2.3-22b-distilled-lora-384.safetensors | 0.6",
        tooltip="Other LoRAs that all that is drawn wears too, one in each line: the name in ComfyUI's loras folders "
        "or a path, then a bar and how strongly it counts; 1 where nothing is said.",
    )


def stamp(lora_path: str | None) -> Any:
    """What changes when the file behind `lora_path` does; None where there is no path."""
    if lora_path is None or not lora_path.strip():
        return None
    try:
        stat = lora_named(lora_path).stat()
    except (ConfigError, OSError):
        return always()
    return [stat.st_size, stat.st_mtime_ns]


def stamps(lora_paths: str | None) -> Any:
    """What changes when one of the files that `lora_paths` lists does."""
    try:
        stats = [path.stat() for path, _ in listed_loras(lora_paths or "")]
    except (ConfigError, OSError):
        return always()
    return [number for stat in stats for number in (stat.st_size, stat.st_mtime_ns)]


def listed_loras(text: str, widget: str = "lora_paths") -> list[tuple[Path, float]]:
    """(file, multiplier) of each line. Raises ConfigError where one names no file or no number."""
    found = []
    for line in filter(None, (line.strip() for line in text.splitlines())):
        name, bar, number = line.rpartition("|")
        try:
            multiplier = float(number) if bar else 1.0
        except ValueError:
            multiplier = math.nan
        if not math.isfinite(multiplier):
            raise ConfigError(
                f"{widget}: {number.strip()!r} is no number, in the line {line!r}. Write the file, a |, and how "
                "strongly it counts."
            )
        found.append((lora_named(name if bar else line, widget, "empty the line"), multiplier))
    return found


def file_mark(source: Path, *recipe: str) -> str:
    """A short name for what `recipe` makes of `source` as it is now."""
    return digest(str(source.resolve()), str(source.stat().st_mtime_ns), *recipe, length=8)


def worked(node: str | None, work: Callable[[host.ComfyEvents], core.LoraMade]) -> core.LoraMade:
    """What `work` makes, its progress shown at `node`, and its report when it is done."""
    events = host.ComfyEvents(node)
    try:
        made = work(events)
    finally:
        events.close()
    events.finish("finished", made.text())
    return made


def new_lora(save_name: str, otherwise: str) -> Path:
    """Where a node writes a LoRA: `save_name` in the loras folder, or `otherwise` among the runs where it is empty.

    Raises ConfigError where the name can be none of a file.
    """
    name = plain_name(save_name)
    return host.loras_folder() / f"{name}.safetensors" if name else host.runs_folder() / f"{otherwise}.safetensors"


def plain_name(save_name: str) -> str:
    """`save_name` without its ending, or "". Raises ConfigError where it can be none of a file."""
    name = save_name.strip().removesuffix(".safetensors").strip(" .")
    if any(sign in name for sign in '\\:*?"<>|') or ".." in name.split("/") or name.startswith("/"):
        raise ConfigError(f"save_name: {name!r} cannot be a file name. Use letters, digits, spaces, - and _.")
    return name
