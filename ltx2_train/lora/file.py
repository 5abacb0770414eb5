"""LoRA files: written in the keys that every LTX-2 program loads, read in all the usual spellings.

Written: `diffusion_model.<module>.lora_A.weight` [r, in] and `.lora_B.weight` [out, r], the module names being the
checkpoint's. There is no `.alpha` key, since some readers ignore it and others refuse it; B is multiplied by
alpha / rank instead, and the metadata records both, so that training can go on from the same file.

Read: the same; `lora_down` / `lora_up` with or without `.alpha`; and the usual prefixes, `lora_unet_` among them,
whose underscores are resolved by the names of the layers at hand.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError, ConfigError
from ..weights.reader import TensorFile
from .targets import count_branches

PREFIX = "diffusion_model."
CHECKPOINT_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}

_DOWN = (".lora_A.weight", ".lora_down.weight", ".lora_A.default.weight", ".lora_A", ".lora.down.weight")
_UP = (".lora_B.weight", ".lora_up.weight", ".lora_B.default.weight", ".lora_B", ".lora.up.weight")
_ALPHA = (".alpha",)
_DOTTED_PREFIXES = ("base_model.model.", "model.diffusion_model.", "diffusion_model.", "transformer.")
_FLAT_PREFIX = "lora_unet_"


@dataclass(frozen=True)
class Entry:
    """One layer of a file: down [r, in], up [out, r], and the value of its `.alpha` key, if any."""

    down: Tensor
    up: Tensor
    alpha: float | None = None

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        """What multiplies up @ down when the file is applied at strength 1."""
        return 1.0 if self.alpha is None else self.alpha / self.rank


@dataclass
class LoraFile:
    """A LoRA as it stands in a file. `entries` by module name as spelled there, without the prefix."""

    path: Path
    entries: dict[str, Entry]
    metadata: dict[str, str]
    unpaired: list[str] = field(default_factory=list)
    other_keys: list[str] = field(default_factory=list)
    loads_in_comfyui: bool = True

    @property
    def ranks(self) -> list[int]:
        return sorted({entry.rank for entry in self.entries.values()})

    @property
    def alpha(self) -> float | None:
        """The alpha it was trained with, where the file says so."""
        for name in ("alpha", "ss_network_alpha"):
            try:
                return float(self.metadata[name])
            except (KeyError, ValueError):
                continue
        return next((entry.alpha for entry in self.entries.values() if entry.alpha is not None), None)

    def describe(self) -> str:
        """Its size in words: layers per branch."""
        counts = ", ".join(f"{count} {branch}" for branch, count in count_branches(self.entries).items())
        return f"{len(self.entries)} layers ({counts})" if counts else f"{len(self.entries)} layers"

    def match(self, modules: Iterable[str]) -> tuple[dict[str, Entry], list[str]]:
        """The entries by the names of `modules`, and the names in the file that are none of them.

        Raises ConfigError where the file is more than a plain LoRA: half of it would change the model otherwise.
        """
        for what, names in (("cannot be used", self.other_keys), ("lacks its other half", self.unpaired)):
            if names:
                raise ConfigError(
                    f"{self.path.name} is not a plain LoRA: {names[0]} {what}. Choose a LoRA without DoRA, LoHa, LoKr "
                    "or full weights."
                )
        modules = list(modules)
        spelled = {name: name for name in modules}
        for name in modules:
            spelled.setdefault(name.replace(".", "_"), name)
        found, unknown = {}, []
        for name, entry in self.entries.items():
            module = spelled.get(name) or spelled.get(name.removeprefix("model_"))
            if module is None:
                unknown.append(name)
            else:
                found[module] = entry
        return found, unknown


def load_lora_state(path: Path | str) -> LoraFile:
    """Read a LoRA of any usual spelling. Raises CheckpointError where it is damaged or not a plain LoRA."""
    path = Path(path)
    parts: dict[str, dict[str, Tensor]] = {}
    other: list[str] = []
    loads = True
    with TensorFile(path) as file:
        for key in file.tensors:
            module, part = _split(key)
            if part is None:
                other.append(key)
                continue
            loads = loads and key.startswith((PREFIX, _FLAT_PREFIX)) and not key.startswith("lora_unet_model_")
            parts.setdefault(module, {})[part] = file.read(key)
        metadata = file.metadata
    entries = {
        module: Entry(found["down"], found["up"], float(found["alpha"]) if "alpha" in found else None)
        for module, found in parts.items()
        if "down" in found and "up" in found
    }
    unpaired = [module for module in parts if module not in entries]
    if not entries:
        raise CheckpointError(
            f"{path.name} is not a LoRA: no lora_A / lora_B or lora_down / lora_up pair is in it. "
            "LoKr, LoHa and full checkpoints cannot be used here."
        )
    for module, entry in entries.items():
        if entry.down.ndim != 2 or entry.up.ndim != 2 or entry.down.shape[0] != entry.up.shape[1]:
            raise CheckpointError(
                f"{path.name} is damaged: {module} has shapes {list(entry.down.shape)} and {list(entry.up.shape)}, "
                "which do not multiply."
            )
    return LoraFile(path, entries, metadata, unpaired, other, loads)


def verify_saved(path: Path | str, checkpoint_tensors: Mapping[str, Any], trained: bool = False) -> None:
    """Open a LoRA that was just saved and hold it against the checkpoint it is for.

    `checkpoint_tensors` maps names of the checkpoint file to shapes, or to things with a `shape`. Every key must
    name a weight of the checkpoint, in pairs, with fitting sizes and finite numbers; with `trained` at least one B
    must differ from zero. Raises CheckpointError that lists what is wrong.
    """
    file = load_lora_state(path)
    problems = [f"{module} lacks its other half" for module in file.unpaired]
    problems += [f"unexpected key {key}" for key in file.other_keys]
    if not file.loads_in_comfyui:
        problems.append(f"keys do not begin with {PREFIX}")
    for module, entry in file.entries.items():
        weight = _weight_of(module, checkpoint_tensors)
        if weight is None:
            problems.append(f"{module} is not a layer of the checkpoint")
        elif len(weight) == 2 and (entry.up.shape[0], entry.down.shape[1]) != weight:
            problems.append(
                f"{module} is {entry.up.shape[0]}x{entry.down.shape[1]}, in the checkpoint {weight[0]}x{weight[1]}"
            )
        if not (torch.isfinite(entry.down).all() and torch.isfinite(entry.up).all()):
            problems.append(f"{module} holds numbers that are not finite")
    if trained and not any(bool(entry.up.any()) for entry in file.entries.values()):
        problems.append("every B is zero: nothing was learned")
    if problems:
        more = f"\n  ... and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise CheckpointError(
            f"{Path(path).name} was written, but would not work:\n  " + "\n  ".join(problems[:5]) + more + "\n"
            "Not finite: lower the learning rate or save in fp32 or bf16. Otherwise the checkpoint is not the one that "
            "was trained on."
        )


def _weight_of(module: str, tensors: Mapping[str, Any]) -> tuple[int, ...] | None:
    for prefix in CHECKPOINT_PREFIXES:
        found = tensors.get(f"{prefix}{module}.weight")
        if found is not None:
            return tuple(getattr(found, "shape", found))
    return None


def _split(key: str) -> tuple[str, str | None]:
    """(module, "down" | "up" | "alpha" | None) of a key."""
    for part, endings in (("down", _DOWN), ("up", _UP), ("alpha", _ALPHA)):
        for ending in endings:
            if key.endswith(ending):
                module = key[: -len(ending)]
                for prefix in _DOTTED_PREFIXES:
                    module = module.removeprefix(prefix)
                return module.removeprefix(_FLAT_PREFIX), part
    return key, None
