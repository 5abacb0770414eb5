"""The folder that a loader node points at: its widgets, what it holds, and whether it has changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import ltx2_train as core
from ..ltx2_train.errors import ConfigError, DataError, TrainerError
from ..ltx2_train.files import digest, is_hidden
from . import handles, host
from .host import io
from .made import always

NO_FOLDER = "(folder from the path below)"
NOUNS = {"video": "video", "image": "image", "audio": "recording"}
LOADERS = {"video": "Load Training Clips", "image": "Load Training Clips", "audio": "Load Training Audio"}


class FolderNode(io.ComfyNode):
    """A node that points at one folder; it runs again when something inside has changed."""

    @classmethod
    def fingerprint_inputs(
        cls, folder: str | None, path: str | None, recursive: bool | None = False, **settings: Any
    ) -> Any:
        return fingerprint(folder, path, recursive)


def outputs(counted: str) -> list[Any]:
    """The sockets of a loader node; `counted` says of what there are so many."""
    return [
        handles.Dataset.Output(
            "dataset",
            display_name="dataset",
            tooltip="For Prepare Dataset, Check Dataset, Preview Item or Combine Datasets.",
        ),
        io.Int.Output("count", display_name="count", tooltip=counted),
    ]


def folder_inputs(what: str, prefix: str = "", advanced: bool = False) -> list[Any]:
    """The two widgets that say where the media lie; `what` they are, in the plural. `prefix` begins their names.

    `advanced` ones are folded away, and need not be given.
    """
    more: dict[str, Any] = {"optional": True, "advanced": True} if advanced else {}
    first: dict[str, Any] = {"default": NO_FOLDER} if advanced else {}
    return [
        io.Combo.Input(
            f"{prefix}folder",
            options=[NO_FOLDER, *host.input_folders()],
            **first,
            **more,
            tooltip=f"Folder of {what} inside ComfyUI's input folder. Press R after adding one.",
        ),
        io.String.Input(
            f"{prefix}path",
            default="",
            tooltip="Folder anywhere on this machine; where given, it is used instead of the one above. A path that "
            "does not begin at a drive or at / is one below ComfyUI's input folder.",
            **more,
        ),
    ]


def named(folder: str, path: str) -> bool:
    """Whether the widgets name a folder at all."""
    return folder != NO_FOLDER or bool(path.strip())


def fingerprint(folder: str | None, path: str | None, recursive: bool | None) -> Any:
    """Names, sizes and times of everything inside, so that a changed caption or a new file is noticed."""
    if folder is None or path is None:  # it comes over a wire and is not known yet
        return always()
    try:
        root = _folder(folder, path)
    except TrainerError:  # execute says what is wrong with it
        return always()
    if root is None or not root.is_dir():
        return always()
    files = sorted(entry for entry in (root.rglob("*") if recursive else root.glob("*")) if entry.is_file())
    stats = [(entry, entry.stat()) for entry in files]
    return digest(*(f"{entry} {stat.st_size} {stat.st_mtime_ns}" for entry, stat in stats))


def chosen_folder(folder: str, path: str, prefix: str = "") -> Path:
    """The folder the widgets name. Raises DataError where they name none, or one that is not there."""
    root = _folder(folder, path, prefix)
    if root is None:
        raise DataError(f"No folder is chosen. Choose one in `{prefix}folder`, or write its path into `{prefix}path`.")
    if not root.is_dir():
        raise DataError(
            f"The folder {root} does not exist. Correct `{prefix}path`, or choose another in `{prefix}folder`.", root
        )
    return root


def media(root: Path, recursive: bool, kinds: Sequence[str]) -> dict[str, int]:
    """How many media of each of `kinds` `root` holds, those that it holds. Raises DataError where it holds none."""
    listed = (path for path in (root.rglob("*") if recursive else root.iterdir()) if not is_hidden(path, root))
    files = [path.suffix.lower() for path in listed if path.is_file()]
    counts = {kind: sum(suffix in core.MEDIA_SUFFIXES[kind] for suffix in files) for kind in core.MEDIA_SUFFIXES}
    if found := {kind: counts[kind] for kind in kinds if counts[kind]}:
        return found
    wanted = set().union(*(core.MEDIA_SUFFIXES[kind] for kind in kinds))
    other = next((kind for kind, count in counts.items() if count), None)
    if any(path.suffix.lower() in wanted and not is_hidden(path, root) for path in root.glob("*/*")):
        hint = "Its sub-folders do: choose one of them, or switch `recursive` on."
    elif other is not None:
        hint = f"It holds {counts_in_words({other: counts[other]})}; use {LOADERS[other]} for these."
    else:
        hint = "Choose another folder."
    raise DataError(f"The folder {root} holds {' and '.join(f'no {NOUNS[kind]}s' for kind in kinds)}. {hint}", root)


def counts_in_words(counts: Mapping[str, int]) -> str:
    """ "3 videos and 1 image"."""
    return " and ".join(f"{count} {NOUNS[kind]}{'' if count == 1 else 's'}" for kind, count in counts.items())


def ending(shared: Mapping[str, Any]) -> None:
    """Raise ConfigError where the ending of the captions is a path, which could lie anywhere."""
    text = str(shared["caption_extension"])
    if any(sign in text for sign in "/\\:"):
        raise ConfigError(f"caption_extension: {text!r} is a path. Write an ending, such as .txt.")


def _folder(folder: str, path: str, prefix: str = "") -> Path | None:
    text = path.strip().strip('"')  # Windows copies paths in quotes
    if not text:
        return None if folder == NO_FOLDER else host.input_folder(folder, f"{prefix}folder")
    place = Path(text).expanduser()
    return place if place.is_absolute() else host.input_folder(text, f"{prefix}path")
