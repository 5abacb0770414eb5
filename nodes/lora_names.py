"""LoRA files of the tools: which ones a user names in a widget, what a node writes, and the work between."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

from .. import ltx2_train as core
from ..ltx2_train.errors import CheckpointError, ConfigError
from ..ltx2_train.files import digest
from . import host
from .host import io
from .made import always, keep_made, make_way
from .wire import lora_file, read_wire_lora


class Written(Protocol):
    """A report of the core on a LoRA that it wrote."""

    @property
    def path(self) -> Path: ...

    def text(self) -> str: ...


W = TypeVar("W", bound=Written)


def lora_named(text: str, widget: str = "lora_path", otherwise: str = "connect `lora`") -> Path:
    """The file behind a path or a name in the loras folders. Raises ConfigError where there is none."""
    text = text.strip().strip('"')
    if not Path(text).expanduser().is_absolute() and not host.stays_inside(text):
        raise ConfigError(f"{widget}: {text} leads out of the loras folders. Write a name in one, or a full path.")
    path = Path(text).expanduser()
    file = path if path.is_file() else host.lora_path(text)
    if file is not None:
        return file
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


def whole_lora(lora: Path, run_name: str) -> Path:
    """`lora`, which the run has saved. Raises CheckpointError where it has been damaged or deleted since."""
    try:
        core.probe(lora)
    except CheckpointError:
        is_so = "is damaged" if lora.is_file() else "is missing"
        raise CheckpointError(
            f"{lora} {is_so}. Press Run again in the workflow that trains {run_name}: its newest LoRA is written anew "
            "from its last state. In place of an earlier one choose another step."
        ) from None
    return lora


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


def lora_input() -> Any:
    """The socket `lora` of a node that changes one."""
    return io.LoraModel.Input("lora", optional=True, tooltip="The LoRA of Train LoRA or Load LoRA Model.")


def lora_path_input(to_do: str) -> Any:
    """The widget `lora_path`, see `chosen_lora`."""
    return io.String.Input(
        "lora_path",
        default="",
        tooltip=f"LoRA file to {to_do}, where none is connected; a name in ComfyUI's loras folders will do.",
    )


def dtype_input(default: str, tooltip: str) -> Any:
    """The widget `dtype` of a node that writes a LoRA."""
    return io.Combo.Input(
        "dtype", options=list(core.FILE_DTYPES), default=default, optional=True, advanced=True, tooltip=tooltip
    )


def lora_outputs(lora: str, report: str = "Its layers and ranks, and what was lost.") -> list[Any]:
    """The outputs of a node that writes a LoRA: `lora` and `report` say what they are; see `written_lora`."""
    return [
        io.LoraModel.Output("lora", display_name="lora", tooltip=lora),
        io.String.Output("report", display_name="report", tooltip=report),
        io.String.Output("path", display_name="path", tooltip="Path of the new file."),
    ]


def written_lora(report: Written) -> io.NodeOutput:
    """The values of `lora_outputs`."""
    return io.NodeOutput(read_wire_lora(report.path), report.text(), str(report.path))


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
    loras = []
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
        loras.append((lora_named(name if bar else line, widget, "empty the line"), multiplier))
    return loras


def file_mark(source: Path, *recipe: str) -> str:
    """A short name for what `recipe` makes of `source` as it is now."""
    return digest(str(source.resolve()), str(source.stat().st_mtime_ns), *recipe, length=8)


def worked(node: str | None, out: Path, work: Callable[[host.ComfyEvents], W]) -> W:
    """What `work` makes and writes to `out`, its progress shown at `node`, and its report when it is done."""
    events = host.ComfyEvents(node)
    make_way(out)
    try:
        report = work(events)
    finally:
        events.close()
    keep_made(node, [report.path])
    events.finish("finished", report.text())
    return report


def new_lora(save_name: str, otherwise: str) -> Path:
    """Where a node writes a LoRA: `save_name` in the loras folder, or `otherwise` among the runs where it is empty.

    Raises ConfigError where the name can be none of a file.
    """
    name = plain_name(save_name)
    return host.loras_folder() / f"{name}.safetensors" if name else host.runs_folder() / f"{otherwise}.safetensors"


def named_here(save_name: str) -> bool:
    """Whether `new_lora` names the file by its recipe, so that what is there may be written over: it was made alike."""
    return not plain_name(save_name)


def new_checkpoint_input() -> Any:
    """The widget `save_name` of a node that writes a checkpoint."""
    return io.String.Input(
        "save_name", default="", tooltip="Name of the new checkpoint in ComfyUI's checkpoints folder."
    )


def new_checkpoint(save_name: str) -> Path:
    """Where a node writes a checkpoint. Raises ConfigError where the name is empty, or can be none of a file."""
    name = plain_name(save_name)
    if not name:
        raise ConfigError("save_name is empty. Write the name of the new checkpoint.")
    return host.checkpoints_folder() / f"{name}.safetensors"


def plain_name(save_name: str) -> str:
    """`save_name` without its ending, or "". Raises ConfigError where it can be none of a file."""
    given = save_name.strip()
    name = given.removesuffix(".safetensors").strip(" .")
    leads_out = ".." in given.split("/") or name.startswith("/")
    if leads_out or any(sign in name for sign in '\\:*?"<>|') or (given and not name):
        raise ConfigError(f"save_name: {given!r} cannot be a file name. Use letters, digits, spaces, - and _.")
    return name
