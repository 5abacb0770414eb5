"""Layers of a file that are no plain LoRA and yet can be trained and drawn with: LoKr, LoHa, and DoRA by inputs.

Their parts stand under the names that LyCORIS gave them and ComfyUI reads, with or without `alpha`. A LoKr whose first
factor is a product is read as the product.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..weights.reader import TensorFile
from .adapter import Adapter
from .dora import SCALE, DoRALinear
from .factors import FactoredChange, LoHaLinear, LoKrLinear, hadamard
from .foreign import kind_and_layer
from .layer import LoRALinear
from .low_rank import squared_norm
from .names import checkpoint_name, without_prefixes

_LOHA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")


@dataclass(frozen=True)
class OtherEntry:
    """One layer: `parts` by the ends of their keys (of a DoRA lora_A, lora_B and dora_scale), and what multiplies their
    product when the file is applied at strength 1. `keys` are those of the file that it takes up."""

    algo: str
    parts: dict[str, Tensor]
    scale: float
    keys: tuple[str, ...]

    @property
    def size(self) -> tuple[int, int]:
        """(out, in) of the weight that it changes."""
        if self.algo == "lokr":
            first, last = self.parts["lokr_w1"].shape, list(self.parts.values())[-1].shape
            rows = list(self.parts.values())[1].shape[0]
            return first[0] * rows, first[1] * last[1]
        names = ("hada_w1_a", "hada_w1_b") if self.algo == "loha" else ("lora_B", "lora_A")
        return self.parts[names[0]].shape[0], self.parts[names[1]].shape[1]

    @property
    def rank(self) -> int | None:
        """The rank of its factors; None for a LoKr that is whole."""
        if self.algo == "lokr":
            return self.parts["lokr_w2_b"].shape[0] if "lokr_w2_b" in self.parts else None
        return self.parts["hada_w1_b" if self.algo == "loha" else "lora_A"].shape[0]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The matrices of the file."""
        return tuple(self.parts.values())

    @property
    def learned(self) -> bool:
        """Whether the matrix that training begins with as zeros has moved."""
        name = {"loha": "hada_w2_a", "dora": "lora_B"}.get(self.algo) or next(reversed(self.parts))
        return bool(self.parts[name].any())

    def squared_norm(self) -> float:
        """The square of the Frobenius norm of the change at strength 1; of a DoRA without what its lengths do."""
        parts = [part.float() for part in self.parts.values()]
        if self.algo == "loha":
            square = hadamard(*parts).square().sum()
        elif self.algo == "dora":
            square = squared_norm(parts[0], parts[1])
        else:
            square = parts[0].square().sum() * (parts[1] @ parts[2] if len(parts) > 2 else parts[1]).square().sum()
        return float(square) * self.scale**2

    def shapes(self) -> dict[str, tuple[int, int]]:
        """Sizes of its factors by the ends of their keys; empty for a DoRA."""
        if self.algo == "dora":
            return {}
        return {name: (part.shape[0], part.shape[1]) for name, part in self.parts.items()}


def read_others(
    file: TensorFile, keys: Sequence[str], plain: Mapping[str, Mapping[str, str]], weights: bool
) -> dict[str, OtherEntry]:
    """The layers that `keys`, those of no plain LoRA, make up, by module; `plain` has the keys of down, up and alpha.

    What cannot be read as one of the kinds is left out. Raises CheckpointError where shapes do not go together.
    """
    parts_of: dict[str, dict[str, str]] = {}
    for key in keys:
        kind, layer = kind_and_layer(key)
        if kind in ("LoKr", "LoHa", "DoRA"):
            part = key[len(layer) + 1 :].removesuffix(".weight")
            parts_of.setdefault(checkpoint_name(without_prefixes(layer)), {})[part] = key
    entries = {module: _entry(file, names, plain.get(module, {}), weights) for module, names in parts_of.items()}
    return {module: entry for module, entry in entries.items() if entry is not None}


def fill_adapter(layer: Adapter, entry: OtherEntry) -> None:
    """Let `layer`, which is of the same kind and size, change its base as `entry` does."""
    if isinstance(layer, FactoredChange):
        layer.begin_with(entry.parts, entry.scale)
        return
    assert isinstance(layer, DoRALinear), type(layer)
    rank = entry.parts["lora_A"].shape[0]
    layer.lora_A.data[:rank].copy_(entry.parts["lora_A"])
    layer.lora_B.data.zero_()
    layer.lora_B.data[:, :rank].copy_(entry.parts["lora_B"].float() * (entry.scale / layer.own_scale))
    layer.begin_with(entry.parts[SCALE])


def layer_of(base: nn.Module, entry: OtherEntry) -> Adapter:
    """A layer round `base` that does what `entry` says. The weight of `base` must be there."""
    rank = entry.rank or 1
    layer: LoRALinear | FactoredChange
    if entry.algo == "dora":
        layer = DoRALinear(base, rank, rank)
    else:
        kind = LoKrLinear if entry.algo == "lokr" else LoHaLinear
        layer = kind(base, rank, rank, entry.shapes())
    fill_adapter(layer, entry)
    return layer


def _entry(file: TensorFile, names: dict[str, str], plain: Mapping[str, str], weights: bool) -> OtherEntry | None:
    def read(key: str) -> Tensor:
        info = file.tensors[key]
        if not info.torch_dtype.is_floating_point:
            raise CheckpointError(
                f"{file.name} stores {key} as {info.dtype}. Quantized files cannot be used; choose its bf16 or fp16 "
                "version."
            )
        return file.read(key) if weights else torch.empty(info.shape, dtype=info.torch_dtype, device="meta")

    if any(len(file.tensors[key].shape) != 2 for key in names.values()):
        return None  # of a convolution, or of no program that is known
    alpha = float(file.read(plain["alpha"]).reshape(-1)[0]) if "alpha" in plain else None
    used = tuple(names.values()) + ((plain["alpha"],) if "alpha" in plain else ())
    if set(names) == set(_LOHA):
        parts = {name: read(names[name]) for name in _LOHA}
        rank = parts["hada_w1_b"].shape[0]
        algo = "loha"
        good = all(parts[f"hada_w{n}_a"].shape == (parts["hada_w1_a"].shape[0], rank) for n in "12")
        good &= all(parts[f"hada_w{n}_b"].shape == (rank, parts["hada_w1_b"].shape[1]) for n in "12")
    elif _is_lokr(names):
        parts, rank, good = _kronecker({name: read(key) for name, key in names.items()})
        algo = "lokr"
    elif set(names) == {SCALE} and {"down", "up"} <= set(plain):
        parts = {"lora_A": read(plain["down"]), "lora_B": read(plain["up"]), SCALE: read(names[SCALE])}
        rank, width = parts["lora_A"].shape
        if parts[SCALE].shape != (1, width):
            return None  # by outputs, which ComfyUI divides by another norm than other programs
        algo, used, good = "dora", (*used, plain["down"], plain["up"]), parts["lora_B"].shape[1] == rank
    else:
        return None
    if not good:
        shapes = ", ".join(f"{name} {list(part.shape)}" for name, part in parts.items())
        raise CheckpointError(
            f"{file.name} is damaged: {next(iter(names.values()))} and its others do not fit: {shapes}."
        )
    return OtherEntry(algo, parts, 1.0 if alpha is None or rank is None else alpha / rank, used)


def _is_lokr(names: Mapping[str, str]) -> bool:
    firsts = ({"lokr_w1"}, {"lokr_w1_a", "lokr_w1_b"})
    seconds = ({"lokr_w2"}, {"lokr_w2_a", "lokr_w2_b"})
    return any(set(names) == first | second for first in firsts for second in seconds)


def _kronecker(parts: dict[str, Tensor]) -> tuple[dict[str, Tensor], int | None, bool]:
    """The factors, w1 whole; the rank that alpha is divided by, if any; and whether their sizes go together."""
    rank, good, factors = None, True, {}
    for name in ("lokr_w1", "lokr_w2"):
        if name in parts:
            factors[name] = parts[name]
            continue
        a, b = parts[f"{name}_a"], parts[f"{name}_b"]
        rank, good = b.shape[0], good and a.shape[1] == b.shape[0]
        if name == "lokr_w2":
            factors |= {"lokr_w2_a": a, "lokr_w2_b": b}
        else:
            factors[name] = a.float() @ b.float() if good else a
    return factors, rank, good
