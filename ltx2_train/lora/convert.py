"""A LoRA in the keys of another program; what it does to the model stays the same.

    comfyui     diffusion_model.<layer>.lora_A.weight          what this program writes, and ComfyUI loads
    official    the same keys: the official trainer and its pipelines
    diffusers   transformer.<diffusers' layer>.lora_A.weight
    community   lora_unet_model_<layer with underscores>.lora_down.weight, with .alpha
    diffsynth   <layer>.lora_A.default.weight

A file of the community trainer gets an alpha for each layer. The others have no place for one that all of their readers
heed, so alpha / rank is multiplied into B, and an entry of the metadata that states it is taken out.
Matrices that need no factor are copied bit for bit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import ConfigError
from ..events import Events, shielded
from ..families import FAMILIES
from ..registry import nearest
from ..weights.writer import TensorEntry
from .low_rank import squared_norm
from .metadata import HASHES, METADATA_FORMAT, REFERENCE
from .names import FLAT_PREFIX, PREFIX, in_diffusers
from .new_file import LoraMade, Losses, check_target, pick_dtype, rounded, write_lora
from .scales import ENTRY
from .source import LoraSource, tell_doubts
from .targets import branch_of, count_branches, layers_text

TOOL = "Converting"
_COMMUNITY_MODULE = "networks.lora_ltx2"


@dataclass(frozen=True)
class KeyFormat:
    """How a program spells a LoRA: what stands for a layer, and the endings of its halves; `alpha` is one's, or ""."""

    spell: Callable[[str], str]
    down: str = ".lora_A.weight"
    up: str = ".lora_B.weight"
    alpha: str = ""


def _flat(layer: str) -> str:
    return f"{FLAT_PREFIX}model_{layer.replace('.', '_')}"


_OURS = KeyFormat(lambda layer: PREFIX + layer)
LORA_FORMATS: dict[str, KeyFormat] = {
    "comfyui": _OURS,
    "official": _OURS,
    "diffusers": KeyFormat(in_diffusers),
    "community": KeyFormat(_flat, ".lora_down.weight", ".lora_up.weight", ".alpha"),
    "diffsynth": KeyFormat(lambda layer: layer, ".lora_A.default.weight", ".lora_B.default.weight"),
}


def convert_lora(
    path: Path | str,
    to: str,
    out: Path | str,
    dtype: str = "auto",
    replace: bool = False,
    events: Events | None = None,
) -> LoraMade:
    """Write the LoRA at `path`, in whatever spelling, to `out` in the keys called `to`, one of LORA_FORMATS.

    `dtype` "auto" keeps that of each matrix (of 8 bits: bf16). Raises ConfigError where the file is no plain LoRA of an
    LTX-2 transformer or `to` is unknown, CheckpointError where it is damaged, Stopped when the user stopped.
    """
    if to not in LORA_FORMATS:
        close = nearest(to, LORA_FORMATS)
        raise ConfigError(
            f"{to!r} is no format of keys. Choose {', '.join(LORA_FORMATS)}."
            + (f" Did you mean {close[0]}?" if close else "")
        )
    out, events = Path(out), shielded(events)
    check_target(out, [Path(path)])
    with LoraSource(path, TOOL, events) as source:
        work = _Conversion(source, LORA_FORMATS[to], dtype, events)
        found = key_format(source)
        metadata = _metadata(source, to, found, work)
        write_lora(out, work.entries, metadata, work.tensors(), replace, events.check_stop)
        notes = [*tell_doubts([source], events), f"from the keys of {found} to those of {to}"]
        if work.folded:
            notes.append(f"alpha / rank multiplied into B of {layers_text(work.folded)}")
        if to == "diffusers" and any("embeddings_connector" in layer for layer in source.layers):
            notes.append("its layers of the text connectors are loaded into diffusers' connectors, apart from the rest")
        return LoraMade(out, count_branches(source.layers), source.about.ranks, notes, work.losses.shares())


def key_format(source: LoraSource) -> str:
    """Which of LORA_FORMATS a file is in; "another program" where it is in none."""
    for name, kind in LORA_FORMATS.items():
        if all(source.keys(layer)["down"] == kind.spell(layer) + kind.down for layer in source.layers):
            return name
    return "another program"


class _Conversion:
    def __init__(self, source: LoraSource, kind: KeyFormat, dtype: str, events: Events) -> None:
        self.source, self.kind, self.events = source, kind, events
        self.folded = 0
        self.losses = Losses()
        self.alphas: Counter[float] = Counter()
        self.entries: dict[str, TensorEntry] = {}
        self._dtypes: dict[str, torch.dtype] = {}
        self._factors: dict[str, float] = {}
        for layer, entry in source.layers.items():
            alpha = float(entry.rank)
            if kind.alpha and entry.alpha is not None and not entry.rslora:
                alpha = entry.alpha  # goes into a key of its own
                self._factors[layer] = 1.0
            else:
                self._factors[layer] = entry.scale
            self.folded += self._factors[layer] != 1.0
            self.alphas[alpha] += 1
            stored = torch.bfloat16 if entry.up.dtype.itemsize < 2 else entry.up.dtype
            self._dtypes[layer] = pick_dtype(dtype, stored)
            spelled = kind.spell(layer)
            for end, tensor in ((kind.down, entry.down), (kind.up, entry.up)):
                self.entries[spelled + end] = TensorEntry.of(tensor.to(self._dtypes[layer]))
            if kind.alpha:
                self.entries[spelled + kind.alpha] = TensorEntry("F32", ())

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        self.events.stage("convert LoRA", len(self.source.layers))
        for done, (layer, entry) in enumerate(self.source.layers.items(), 1):
            self.events.check_stop()
            a, b = self.source.stored(layer)
            factor, dtype, spelled = self._factors[layer], self._dtypes[layer], self.kind.spell(layer)
            b = b if factor == 1.0 else b.float() * factor
            small_a, small_b, lost = rounded(a, b, dtype, layer)
            self.losses.add(branch_of(layer), lost, float(squared_norm(a, b)))
            yield spelled + self.kind.down, small_a
            yield spelled + self.kind.up, small_b
            if self.kind.alpha:
                own = entry.alpha if entry.alpha is not None and not entry.rslora else float(entry.rank)
                yield spelled + self.kind.alpha, torch.tensor(own)
            self.events.progress(done, len(self.source.layers), layer)


def _metadata(source: LoraSource, to: str, keys_before: str, work: _Conversion) -> dict[str, str]:
    """That of the source, less what no longer holds, and in the names that readers of the new keys look for."""
    about = source.about
    gone = {*HASHES, ENTRY, "alpha", "alpha_folded", "ss_network_alpha", "ss_network_module"}
    metadata = {key: value for key, value in about.metadata.items() if key not in gone}
    metadata |= {"converted_from": keys_before, "converted_to": to, "rank": str(about.ranks[-1])}
    metadata["ss_network_dim"] = metadata["rank"]
    if work.kind.alpha:
        (alpha, count) = work.alphas.most_common(1)[0]
        if count == len(source.layers):
            metadata |= {"alpha": f"{alpha:g}", "ss_network_alpha": f"{alpha:g}"}
        metadata["ss_network_module"] = _COMMUNITY_MODULE
        family = FAMILIES.get(about.version)
        metadata.setdefault("ss_base_model_version", family.base_word if family else "ltx2_v1")
    else:
        alpha = about.alpha
        metadata |= {"alpha_folded": "true", "ss_network_module": "ltx2_train.lora"}
        if alpha is not None:
            metadata |= {"alpha": f"{alpha:g}", "ss_network_alpha": f"{alpha:g}"}
    if to in ("comfyui", "official"):
        metadata["format_version"] = METADATA_FORMAT
    if about.version in FAMILIES:
        metadata |= {"version": about.version, "ss_ltx_version": about.version}
    for key in REFERENCE:
        if factor := about.reference_factor(key):
            metadata |= {key: factor, f"ss_{key}": factor}
    return metadata
