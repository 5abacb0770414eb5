"""LoRA files: written in the keys that every LTX-2 program loads, read in all the usual spellings.

Written: `diffusion_model.<module>.lora_A.weight` [r, in] and `.lora_B.weight` [out, r], the module names being the
checkpoint's. There is no `.alpha` key, since some readers ignore it and others refuse it; B is multiplied by
alpha / rank instead, and the metadata records both, so that training can go on from the same file.

Read: the same, and whatever names.py knows, with the alpha of a key, of the metadata or of PEFT's own file.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError, ConfigError
from ..families import FAMILIES, UNSIZED
from ..weights.keys import GATES
from ..weights.reader import TORCH_NAMES, TensorFile
from .foreign import family_of, kinds_of, version_named
from .low_rank import squared_norm
from .names import PREFIX, Key, flat_names, split_key
from .others import OtherEntry, read_others
from .scales import AdapterScales, adapter_scales, denied_by, unsaid_by
from .targets import count_branches, layers_text

CHECKPOINT_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "")
NOT_FINITE, NOT_LEARNED = "holds numbers that are not finite", "nothing was learned"


@dataclass(frozen=True)
class LoraEntry:
    """One layer of a file: down [r, in], up [out, r], and its alpha, if the file says one."""

    down: Tensor
    up: Tensor
    alpha: float | None = None
    rslora: bool = False

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def size(self) -> tuple[int, int]:
        """(out, in) of the weight that it changes."""
        return self.up.shape[0], self.down.shape[1]

    @property
    def scale(self) -> float:
        """What multiplies up @ down when the file is applied at strength 1."""
        if self.alpha is None:
            return 1.0
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The matrices of the file."""
        return self.down, self.up

    @property
    def learned(self) -> bool:
        """Whether the matrix that training begins with as zeros has moved."""
        return bool(self.up.any())

    def squared_norm(self) -> float:
        """The square of the Frobenius norm of the change at strength 1."""
        return float(squared_norm(self.down, self.up)) * self.scale**2


@dataclass
class LoraFile:
    """A LoRA as it stands in a file. `entries` by module name in the checkpoint's spelling, as far as a key allows.

    `others` are the layers of another kind that can be trained and drawn with; a DoRA stands in both. `kinds` counts
    the layers of what is no plain LoRA, and `other_keys` are theirs. `problems` are sentences on what makes its scale
    uncertain, `denied` one on metadata that deny the scale of its keys, or that lack it.
    `dtypes` are those of its matrices. `keys` are those of each entry in the file: down, up, and alpha if there is one.
    """

    path: Path
    entries: dict[str, LoraEntry]
    metadata: dict[str, str]
    unpaired: list[str] = field(default_factory=list)
    other_keys: list[str] = field(default_factory=list)
    loads_in_comfyui: bool = True
    kinds: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    dtypes: frozenset[str] = frozenset()
    keys: dict[str, dict[str, str]] = field(default_factory=dict)
    others: dict[str, OtherEntry] = field(default_factory=dict)
    denied: str = ""

    @property
    def layers(self) -> dict[str, LoraEntry | OtherEntry]:
        """Every layer that can be trained and drawn with, of whatever kind."""
        return {**self.entries, **self.others}

    @property
    def strange_keys(self) -> list[str]:
        """Keys of nothing that can be trained or drawn with."""
        known = {key for entry in self.others.values() for key in entry.keys}
        return [key for key in self.other_keys if key not in known]

    @property
    def ranks(self) -> list[int]:
        return sorted({entry.rank for entry in self.layers.values() if entry.rank is not None})

    @property
    def stated_alpha(self) -> float | None:
        """The alpha it was trained with, as its metadata say."""
        for name in ("alpha", "ss_network_alpha"):
            try:
                return float(self.metadata[name])
            except (KeyError, ValueError):
                continue
        return None

    @property
    def alpha(self) -> float | None:
        """The alpha it was trained with, where the file says so."""
        if (stated := self.stated_alpha) is not None:
            return stated
        return next((entry.alpha for entry in self.entries.values() if entry.alpha is not None), None)

    @property
    def base(self) -> str:
        """The file name of the base it was trained on, as it says itself; or ""."""
        return self.metadata.get("base") or self.metadata.get("ss_sd_model_name", "")

    @property
    def trigger(self) -> str:
        """Its trigger word, or ""."""
        return self.metadata.get("trigger") or self.metadata.get("modelspec.trigger_phrase", "")

    @property
    def step(self) -> int | None:
        """After how many steps it was saved, where it says so."""
        step = self.metadata.get("step") or self.metadata.get("ss_steps") or ""
        return int(step) if step.isdigit() else None

    def reference_factor(self, name: str) -> str:
        """What `name`, such as reference_downscale_factor, is in its metadata, under either program's name; or ""."""
        return self.metadata.get(name) or self.metadata.get(f"ss_{name}", "")

    @property
    def _newer(self) -> str:
        """2.3 or 2.5, whose layers have the same sizes: only a word can tell."""
        return "2.5" if version_named(self.metadata) == "2.5" else "2.3"

    @property
    def version(self) -> str:
        """The LTX it was made for, a key of FAMILIES or "LTX-Video", by its layers, else by its metadata; or "".

        LTX-Video is told by its metadata alone, since each of its layers has the name of one of LTX-2.
        """
        if any(GATES in name or "prompt_adaln" in name for name in self.layers):
            return self._newer
        stated = version_named(self.metadata)
        if stated == UNSIZED or (stated in FAMILIES and not FAMILIES[stated].connectors):
            return stated
        for name, entry in self.layers.items():
            if "caption_projection" in name:
                return "2.0"
            if name in ("adaln_single.linear", "audio_adaln_single.linear"):
                rows, width = entry.size
                return {6 * width: "2.0", 9 * width: self._newer}.get(rows, "")
        return stated

    def describe(self) -> str:
        """Its size in words: layers per branch, or of what other model it is."""
        layers = self.layers
        counts = ", ".join(f"{count} {branch}" for branch, count in count_branches(layers).items())
        if family := family_of(layers):
            return f"{layers_text(len(layers))} of {family}"
        return f"{layers_text(len(layers))} ({counts})" if counts else layers_text(len(layers))

    def require_scale(self) -> None:
        """Raise ConfigError where its scale is not known."""
        if self.problems:
            raise ConfigError(f"{self.path.name} cannot be used: {self.problems[0]}")

    def match(self, modules: Iterable[str]) -> tuple[dict[str, LoraEntry | OtherEntry], list[str]]:
        """The layers by the names of `modules`, and the names in the file that are none of them.

        Raises ConfigError where the file is more than can be drawn with: half of it would change the model otherwise;
        and where its scale is not known.
        """
        self.require_scale()
        for fault, names in (("cannot be used", self.strange_keys), ("lacks its other half", self.unpaired)):
            if names:
                raise ConfigError(
                    f"{self.path.name} is not a plain LoRA: {names[0]} {fault}. Choose a plain LoRA, a LoKr, a LoHa, "
                    "or a DoRA that scales inputs (dora_scale of one row), without full weights."
                )
        modules = list(modules)
        spelled = {name: name for name in modules}
        for name in modules:
            for flat in flat_names(name):
                spelled.setdefault(flat, name)
        matched: dict[str, LoraEntry | OtherEntry] = {}
        unknown = []
        for name, entry in self.layers.items():
            module = spelled.get(name)
            if module is None:
                unknown.append(name)
            elif module in matched:
                raise ConfigError(_twice(self.path, module))
            else:
                matched[module] = entry
        return matched, unknown


def load_lora_state(path: Path | str) -> LoraFile:
    """Read a LoRA of any usual spelling. Raises CheckpointError where it is damaged or no plain LoRA at all."""
    file = read_lora(path)
    if not file.layers:
        what = "not a LoRA: no lora_A / lora_B or lora_down / lora_up pair is in it"
        if file.kinds:
            what = "no plain LoRA but " + ", ".join(f"{kind} ({layers_text(n)})" for kind, n in file.kinds.items())
        elif "tree" in file.metadata:
            what = "the state of a run, which goes on from it when started again; its LoRAs lie in its lora folder"
        raise CheckpointError(f"{file.path.name} is {what}. OFT, full checkpoints and their kin cannot be used here.")
    return file


def load_lora_header(path: Path | str) -> LoraFile:
    """As `load_lora_state` with weights that have shapes alone (on the meta device); alphas are numbers."""
    file = read_lora(path, weights=False)
    return file if file.layers else load_lora_state(path)


def read_lora(path: Path | str, weights: bool = True) -> LoraFile:
    """What is in a file, be it a LoRA or another kind of change. Raises CheckpointError where it is damaged."""
    path = Path(path)
    parts: dict[str, dict[str, str]] = {}
    keys: dict[str, Key] = {}
    other: list[str] = []
    with TensorFile(path, "LoRA") as file:
        scales = adapter_scales(path, file.metadata)
        for name in file.tensors:
            key = split_key(name)
            if key.part is None:
                other.append(name)
                continue
            keys[name] = key
            if key.part in parts.setdefault(key.module, {}):
                raise CheckpointError(_twice(path, key.module))
            parts[key.module][key.part] = name
        entries, problems = dict[str, LoraEntry](), list[str]()
        for module, names in parts.items():
            if "down" in names and "up" in names:
                spelled = (module, keys[names["down"]].spelled)
                entries[module] = _entry(file, module, names, scales, spelled, problems, weights)
        named = ((module, keys[parts[module]["down"]].spelled) for module in entries if "alpha" in parts[module])
        denied = denied_by(scales, ((entries[names[0]].scale, entries[names[0]].rank, names) for names in named))
        if scales is None and entries and not any("alpha" in names for names in parts.values()):
            denied = unsaid_by(path, file.metadata, keys)
        others = read_others(file, other, parts, weights)
        if not problems:
            problems += _without_alpha(parts, {**entries, **others})
        metadata = file.metadata
        matrices = [info.dtype for info in file.tensors.values() if len(info.shape) > 1]
        dtypes = frozenset(TORCH_NAMES.get(dtype, dtype) for dtype in matrices)
    return LoraFile(
        path,
        entries,
        metadata,
        [module for module in parts if module not in entries and module not in others],
        other,
        all(key.comfyui for key in keys.values() if key.part != "alpha"),
        kinds_of(other),
        problems,
        dtypes,
        {module: names for module, names in parts.items() if module in entries},
        others,
        denied,
    )


def _entry(
    file: TensorFile,
    module: str,
    names: Mapping[str, str],
    scales: AdapterScales | None,
    spelled: tuple[str, ...],
    problems: list[str],
    weights: bool,
) -> LoraEntry:
    """The layer `module`, of which `names` are the keys; a scale that is not certain is added to `problems`."""
    down, up = (file.tensors[names[part]] for part in ("down", "up"))
    if len(down.shape) != 2 or len(up.shape) != 2 or down.shape[0] != up.shape[1] or not down.shape[0]:
        raise CheckpointError(
            f"{file.path.name} is damaged: {module} has shapes {list(down.shape)} and {list(up.shape)}, "
            "which do not multiply."
        )
    for info in (down, up):
        if not info.torch_dtype.is_floating_point:
            raise CheckpointError(
                f"{file.path.name} stores {module} as {info.dtype}. Quantized LoRAs cannot be used; choose its bf16 or "
                "fp16 version."
            )
    tensors = [
        file.read(names[part]).to(computed_in(info.torch_dtype))
        if weights
        else torch.empty(info.shape, dtype=computed_in(info.torch_dtype), device="meta")
        for part, info in (("down", down), ("up", up))
    ]
    alpha, rslora = None, False
    if "alpha" in names:
        value = file.read(names["alpha"])
        if value.numel() != 1:
            raise CheckpointError(f"{file.path.name} is damaged: {names['alpha']} holds {value.numel()} numbers.")
        alpha = float(value)
    elif scales is not None and (alpha := scales.alpha_of(*spelled)) is not None:
        rslora, rank = scales.rslora, scales.rank_of(*spelled)
        if rank is not None and rank != down.shape[0] and not problems:
            problems.append(
                f"its metadata say that {module} has rank {rank:g} and alpha {alpha:g}, but its weights have rank "
                f"{down.shape[0]}, so its scale is not known. Save it again with the program that made it."
            )
    if alpha is not None and not math.isfinite(alpha) and not problems:
        problems.append(f"it gives {module} the alpha {alpha}, which is no number. Choose another file.")
    return LoraEntry(tensors[0], tensors[1], alpha, rslora)


def _without_alpha(
    parts: Mapping[str, Mapping[str, str]], layers: Mapping[str, LoraEntry | OtherEntry]
) -> Iterator[str]:
    """What is to be said of a file that gives an alpha to some of its layers alone; nothing where all have scale 1."""
    ranked = [name for name, entry in layers.items() if entry.rank is not None]  # a whole LoKr needs no alpha
    alone = [name for name in ranked if "alpha" not in parts.get(name, {})]
    left = [name for name in alone if isinstance(entry := layers[name], OtherEntry) or entry.alpha is None]
    scaled = [name for name in ranked if "alpha" in parts.get(name, {}) and layers[name].scale != 1.0]
    if left and scaled:
        yield (
            f"{len(left)} of its {len(ranked)} layers have no .alpha, {left[0]} first, and the others do "
            f"({scaled[0]}: a scale of {layers[scaled[0]].scale:g}), so the scale of these is not known. Save it again "
            "with the program that made it."
        )


def computed_in(dtype: torch.dtype) -> torch.dtype:
    """A format of 8 bits is one to store numbers in; bf16 holds each of them exactly."""
    return torch.bfloat16 if dtype.itemsize == 1 else dtype


def _twice(path: Path, module: str) -> str:
    return (
        f"{path.name} holds the layer {module} twice, in two spellings or for two adapters. Which of them counts is "
        "not known; save each as a file of its own."
    )


def verify_saved(path: Path | str, checkpoint_tensors: Mapping[str, Any], trained: bool = False) -> None:
    """Open a LoRA that was just saved and hold it against the checkpoint it is for.

    `checkpoint_tensors` maps names of the checkpoint file to shapes, or to things with a `shape`. Every key must
    name a weight of the checkpoint, in pairs, with fitting sizes and finite numbers; with `trained` at least one B
    must differ from zero. Raises CheckpointError that lists what is wrong.
    """
    file = load_lora_state(path)
    problems = [f"{module} lacks its other half" for module in file.unpaired]
    problems += [f"unexpected key {key}" for key in file.strange_keys]
    if not file.loads_in_comfyui:
        problems.append(f"keys do not begin with {PREFIX}")
    for module, entry in file.layers.items():
        weight = _weight_of(module, checkpoint_tensors)
        if weight is None:
            problems.append(f"{module} is not a layer of the checkpoint")
        elif len(weight) == 2 and entry.size != weight:
            problems.append(f"{module} is {entry.size[0]}x{entry.size[1]}, in the checkpoint {weight[0]}x{weight[1]}")
        if not all(bool(torch.isfinite(part).all()) for part in entry.tensors):
            problems.append(f"{module} {NOT_FINITE}")
    if trained and not any(entry.learned for entry in file.layers.values()):
        problems.append(f"every B is zero: {NOT_LEARNED}")
    if problems:
        more = f"\n  ... and {len(problems) - 5} more" if len(problems) > 5 else ""
        advice = {
            NOT_FINITE: "Lower the learning rate, or save in fp32 or bf16.",
            NOT_LEARNED: "See that the learning rate is not too low for save_precision, and that what is trained has "
            "a part in the loss.",
            "": "The checkpoint is not the one that was trained on.",
        }
        found = {next((one for one in (NOT_FINITE, NOT_LEARNED) if one in text), "") for text in problems}
        listed, mend = "\n  ".join(problems[:5]), " ".join(text for kind, text in advice.items() if kind in found)
        raise CheckpointError(f"{Path(path).name} was written, but would not work:\n  {listed}{more}\n{mend}")


def _weight_of(module: str, tensors: Mapping[str, Any]) -> tuple[int, ...] | None:
    for prefix in CHECKPOINT_PREFIXES:
        found = tensors.get(f"{prefix}{module}.weight")
        if found is not None:
            return tuple(getattr(found, "shape", found))
    return None
