"""Whether a LoRA file fits a model, told by names and sizes before anything big is loaded; and what is said of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from torch import nn

from ..errors import ConfigError
from ..events import Events
from ..families import FAMILIES, UNSIZED, name_of
from ..weights.keys import in_mode
from .file import LoraEntry, LoraFile
from .foreign import family_of, unknown_version, version_named
from .kinds import KIND_NAMES, LORA_KINDS, factor_shapes
from .others import OtherEntry
from .places import CHANGED, is_changed
from .settings import LoraSettings
from .targets import linear_size

_NAMED = 3
Sizes = Mapping[str, tuple[int, int]]
"""(out, in) of linears by dotted path."""
Layers = dict[str, "LoraEntry | OtherEntry"]
"""What a file has for layers, by dotted path."""


def linear_sizes(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Those of all linears of `model`, which may be on the meta device."""
    return {path: size for path, module in model.named_modules() if (size := linear_size(module)) is not None}


def fitting(file: LoraFile, sizes: Sizes) -> tuple[Layers, list[str]]:
    """The entries of `file` by the names in `sizes`, and those of its names that have no place there.

    Raises ConfigError where nothing fits or a size differs, with what the file is.
    """
    entries, unknown = file.match(sizes)
    if not entries:
        raise ConfigError(
            f"{file.path.name} has no layer that this model has: it holds {file.describe()}. "
            + _other_model(file, "It was made for another model, or for a branch that is not loaded.")
        )
    for path, entry in entries.items():
        if entry.size != sizes[path]:
            raise ConfigError(
                f"{file.path.name} is for another model: {path} is {entry.size[0]}x{entry.size[1]} there, "
                f"{sizes[path][0]}x{sizes[path][1]} here."
                + (f" It is of {name_of(file.version)}." if file.version else "")
            )
    return entries, unknown


def fitting_start(file: LoraFile, sizes: Sizes, settings: LoraSettings) -> tuple[Layers, list[str]]:
    """As `fitting`, to begin training with: `sizes` are those of the layers that are trained as `settings` say.

    Each layer must be of the kind that is trained. Layers of several ranks are all filled up; a file of one rank must
    have that one. The factors of a LoKr or LoHa must have the same sizes.
    """
    entries, unknown = file.match(sizes)
    if not entries:
        raise ConfigError(
            f"{file.path.name} has no layer in common with lora.target = {settings.target}. It holds "
            f"{file.describe()}. " + _other_model(file, "Choose the target it was trained with, or another file.")
        )
    chosen = {path: settings.layer(path) for path in entries}
    for path, entry in entries.items():
        algo = "lora" if isinstance(entry, LoraEntry) else entry.algo
        if LORA_KINDS[algo] is not LORA_KINDS[chosen[path].algo]:
            raise ConfigError(
                f"{file.path.name} has a {KIND_NAMES[algo]} for {path}, and lora.algo is {chosen[path].algo}. Set "
                f"lora.algo to {algo}, or start from another file."
            )
    rank = settings.rank
    ranks = sorted({entry.rank for path, entry in entries.items() if not _factored(entry) and entry.rank is not None})
    if len(ranks) == 1 and not settings.modules and ranks[0] != rank:
        raise ConfigError(
            f"{file.path.name} has rank {ranks[0]}, but lora.rank is {rank}. Set lora.rank to {ranks[0]}, or start "
            "from another file."
        )
    if ranks and ranks[-1] > rank and not settings.modules:
        raise ConfigError(
            f"The layers of {file.path.name} have ranks from {ranks[0]} to {ranks[-1]}, but lora.rank is {rank}. Set "
            f"lora.rank to {ranks[-1]}: layers of a lower rank are filled up."
        )
    for path, entry in entries.items():
        if entry.size != sizes[path]:
            raise ConfigError(
                f"{file.path.name} is for another model: {path} has {entry.size[1]} inputs and {entry.size[0]} outputs "
                f"there, {sizes[path][1]} and {sizes[path][0]} here."
            )
        if isinstance(entry, OtherEntry) and (wanted := factor_shapes(chosen[path], sizes[path])) != entry.shapes():
            raise ConfigError(
                f"{file.path.name} has other factors for {path}: {_shapes(entry.shapes())}, here {_shapes(wanted)}. "
                "Set lora.rank and lora.factor to those it was trained with."
            )
        if not _factored(entry) and (entry.rank or 0) > chosen[path].rank:
            raise ConfigError(
                f"{file.path.name} has rank {entry.rank} for {path}, but lora.modules give it {chosen[path].rank}. "
                "Raise that rank, or start from another file."
            )
    return entries, unknown


def _factored(entry: LoraEntry | OtherEntry) -> bool:
    return isinstance(entry, OtherEntry) and entry.algo != "dora"


def _shapes(shapes: Mapping[str, tuple[int, int]]) -> str:
    return ", ".join(f"{name} {rows}x{columns}" for name, (rows, columns) in shapes.items())


def tell_changed(file: LoraFile, events: Events) -> None:
    """Warn where the bytes of `file` are not those that were written, or its metadata deny its scale."""
    for text in filter(None, (CHANGED if is_changed(file.path, file.metadata) else "", file.denied)):
        events.message(f"{file.path.name}: {text}", "warning")


def tell_version(file: LoraFile, version: str, events: Events) -> None:
    """Warn where `file` is of another LTX than the base, which is `version`."""
    made_for = file.version
    if not made_for and "format_version" in file.metadata and (stated := unknown_version(file.metadata)):
        events.message(
            f"{file.path.name} says that it is of LTX-{stated[:40]}, which is not known here; it was made by a newer "
            f"program. Its layers fit {name_of(version)}, and whether it does there what it should is not known.",
            "warning",
        )
    if made_for in ("", version):
        return
    if version == "2.5" and made_for == "2.3" and not version_named(file.metadata):
        return  # the layers of both have the same sizes, and nothing says which it is
    if made_for == UNSIZED and not FAMILIES[version].connectors:
        return  # of which size, its layers have told by fitting
    base = name_of(version)
    events.message(
        f"{file.path.name} is a LoRA of {name_of(made_for)}, and the base is {base}. Some layers have the same sizes "
        f"in both but mean something else, so it will do harm or nothing. Use a LoRA of {base}, or the base it was "
        "made for.",
        "warning",
    )


def tell_left_out(file: LoraFile, left_out: Sequence[str], mode: str, events: Events) -> None:
    """Say which layers of `file` have no place in a model of `mode`."""
    total = len(file.layers)
    elsewhere = [name for name in left_out if not in_mode(name, mode)]
    nowhere = [name for name in left_out if in_mode(name, mode)]
    if elsewhere:
        events.message(
            f"{len(elsewhere)} of the {total} layers of {file.path.name} are left out: they belong to what model.mode "
            f"= {mode} does without."
        )
    if nowhere:
        family = family_of(nowhere)
        events.message(
            f"{len(nowhere)} of the {total} layers of {file.path.name} have no place in this model and are left out: "
            f"{_some(nowhere)}{f', which are of {family}' if family else ''}. What is drawn lacks them.",
            "warning",
        )


def tell_start(file: LoraFile, trained: Collection[str], events: Events) -> None:
    """Say what of `file` training does not begin with, and which of the layers that are `trained` begin afresh."""
    entries, dropped = file.match(trained)
    if dropped:
        events.message(
            f"{len(dropped)} of the {len(file.layers)} layers of {file.path.name} are not trained here and are "
            f"dropped: {_some(dropped)}. To keep those that this model has, choose lora.target or "
            "lora.include_patterns so that they are trained.",
            "warning",
        )
    if fresh := len(trained) - len(entries):
        events.message(
            f"{fresh} of the {len(trained)} layers that are trained are not in {file.path.name}; they begin afresh."
        )
    ranks = sorted({entry.rank for entry in entries.values() if isinstance(entry, LoraEntry)})
    if len(ranks) > 1:
        events.message(
            f"The layers of {file.path.name} have ranks from {ranks[0]} to {ranks[-1]}; the lower ones are filled up."
        )


def _other_model(file: LoraFile, otherwise: str) -> str:
    family = family_of(file.layers)
    return f"It is a LoRA of {family}. Choose one of an LTX-2 transformer." if family else otherwise


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
