"""A LoRA file that a tool reads layer by layer, so that a file of any size needs the memory of one layer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from ..errors import ConfigError
from ..events import Events
from ..weights.reader import TensorFile
from .effect import why_idle
from .file import LoraEntry, LoraFile, load_lora_header
from .foreign import family_of
from .known import known_layer
from .places import doubts_of, layers_of_others
from .targets import layers_text


class LoraSource:
    """A plain LoRA of an LTX-2 transformer. `layers`: dotted name -> its Entry, whose matrices have shapes alone; those
    of a text encoder beside it are left out.

    `idle` says why it changes nothing, "" where it does. `tool` is what the user called, for messages. Raises
    CheckpointError where the file is damaged, no LoRA at all, or holds numbers that are not finite; ConfigError where
    it is of another kind or of another model, or where its scale or its names leave a doubt; Stopped.
    """

    def __init__(self, path: Path | str, tool: str, events: Events) -> None:
        self.path = Path(path)
        self.about = load_lora_header(path)
        _require_plain(self.about, tool)
        self._names = _dotted_names(self.about)
        self.idle = why_idle(path, events)  # before a tool works for minutes, and writes half a file
        self.layers: dict[str, LoraEntry] = {layer: self.about.entries[name] for layer, name in self._names.items()}
        self._file = TensorFile(path)

    @property
    def version(self) -> str:
        """The LTX it was made for, or ""."""
        return self.about.version

    @property
    def works(self) -> bool:
        """Whether it changes anything."""
        return not self.idle

    @property
    def metadata(self) -> dict[str, str]:
        return self.about.metadata

    def keys(self, layer: str) -> dict[str, str]:
        """The keys of `layer` in the file: down, up and, if there is one, alpha."""
        return self.about.keys[self._names[layer]]

    def stored(self, layer: str) -> tuple[Tensor, Tensor]:
        """A [r, in] and B [out, r] of `layer` as they stand in the file, without its scale."""
        keys = self.keys(layer)
        return self._file.read(keys["down"]), self._file.read(keys["up"])

    def factors(self, layer: str, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """A [r, in] and B [out, r] of `layer` in float32 whose product is its change at strength 1."""
        a, b = self.stored(layer)
        a, b = a.to(device, torch.float32), b.to(device, torch.float32)
        return a, b * self.layers[layer].scale

    def dtype(self) -> torch.dtype:
        """That of its matrices; where they differ, one that holds them all."""
        return joint_dtype([part.dtype for entry in self.layers.values() for part in (entry.down, entry.up)])

    def __enter__(self) -> LoraSource:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._file.close()


def tell_doubts(sources: Sequence[LoraSource], events: Events) -> list[str]:
    """A sentence on each of `sources` that does nothing or has layers that no model has, which `events` are told."""
    told = [f"{one.path.name} does nothing: {one.idle}." for one in sources if one.idle]
    told += [f"{one.path.name}: {text}" for one in sources for text in doubts_of(one.about)]
    for one in sources:
        if left := layers_of_others(one.about):
            more = f" and {len(left) - 1} more" if len(left) > 1 else ""
            told.append(
                f"{one.path.name}: left out is {left[0]}{more}. `lora keep` and `drop` write names as they are."
            )
        strange = [layer for layer in one.layers if known_layer(layer) is None]
        if strange:
            more = f" and {len(strange) - 1} more" if len(strange) > 1 else ""
            told.append(f"{one.path.name}: {strange[0]}{more} is no layer of an LTX that is known here; it is kept.")
    for text in told:
        events.message(text, "warning")
    return told


def joint_dtype(dtypes: Sequence[torch.dtype]) -> torch.dtype:
    """The smallest of bf16, fp16, fp32 that holds numbers of all `dtypes`; types of 8 bits become bf16, fp64 fp32."""
    joint: torch.dtype | None = None
    for dtype in set(dtypes):
        dtype = torch.bfloat16 if dtype.itemsize < 2 else torch.float32 if dtype.itemsize > 4 else dtype
        joint = dtype if joint is None else torch.promote_types(joint, dtype)
    assert joint is not None
    return joint


def _require_plain(file: LoraFile, tool: str) -> None:
    file.require_scale()
    if file.kinds:
        listed = ", ".join(f"{kind} ({layers_text(count)})" for kind, count in file.kinds.items())
        raise ConfigError(
            f"{file.path.name} is no plain LoRA: it holds {listed}. {tool} works on plain LoRAs alone, since the "
            "product of two matrices is all that it can take apart. `lora inspect` describes the file."
        )
    for what, names in (("is not known", file.other_keys), ("lacks its other half", file.unpaired)):
        if names:
            raise ConfigError(f"{file.path.name} is no plain LoRA: {names[0]} {what}.")


def _dotted_names(file: LoraFile) -> dict[str, str]:
    """Dotted name of each layer -> its name in `file.entries`."""
    names: dict[str, str] = {}
    strange: list[str] = []
    others = layers_of_others(file)
    for name in file.entries:
        if name in others:  # under the names of a transformer nobody would find them
            continue
        layer = known_layer(name)
        if layer is None:
            strange.append(name)
            layer = name
        if layer in names:
            raise ConfigError(f"{file.path.name} holds the layer {layer} twice, in two spellings.")
        names[layer] = name
    if strange and (family := family_of(file.entries)):
        raise ConfigError(
            f"{file.path.name} is a LoRA of {family}: {strange[0]} is no layer of an LTX-2 transformer. Choose a LoRA "
            "of LTX-2."
        )
    if 2 * len(strange) > len(names):
        raise ConfigError(
            f"{file.path.name} is of another model: {strange[0]} is no layer of an LTX-2 transformer. Choose a LoRA of "
            "LTX-2."
        )
    if flat := [name for name in strange if "." not in name]:
        raise ConfigError(
            f"{file.path.name}: {flat[0]} is no layer that is known, and its name has underscores for dots, so it "
            "cannot be told which. Save the LoRA in the keys of ComfyUI with the program that made it."
        )
    return names
