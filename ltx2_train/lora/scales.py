"""The scale of a LoRA where no key of the file holds it: the settings of PEFT, which diffusers and others store.

They stand in the metadata entry `lora_adapter_metadata`, each name with the part of the pipeline before it
(`transformer.lora_alpha`), nested in a table of that part, or bare; or, beside PEFT's own `adapter_model.safetensors`,
in `adapter_config.json`. A layer counts by alpha / rank, or alpha / sqrt(rank) with `use_rslora`. The patterns name
layers whose rank or alpha is another: the end of a name at a dot, as a regular expression.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..files import parse_json
from .names import without_prefixes

ENTRY = "lora_adapter_metadata"
PEFT_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
_PEFT_KEYS = "base_model.model."
_ALPHAS = ("alpha", "ss_network_alpha")  # in metadata of trainers
_PART = "transformer"  # of a pipeline


@dataclass(frozen=True)
class AdapterScales:
    """What a file says of ranks and alphas; patterns by layer name."""

    rank: int | None
    alpha: float | None
    ranks: Mapping[str, float]
    alphas: Mapping[str, float]
    rslora: bool

    def alpha_of(self, *names: str) -> float | None:
        """The alpha of the layer that has these `names`; None where nothing says it."""
        return _matching(self.alphas, names, self.alpha)

    def rank_of(self, *names: str) -> float | None:
        """The rank that the layer should have."""
        return _matching(self.ranks, names, self.rank)


def adapter_scales(path: Path, metadata: Mapping[str, str]) -> AdapterScales | None:
    """What the metadata of the LoRA at `path`, or PEFT's file beside it, say; None where there is nothing.

    Raises CheckpointError where it is there and cannot be read: the file would count too much or too little.
    """
    if ENTRY in metadata:
        text, where = metadata[ENTRY], f"the metadata entry {ENTRY} of {path.name}"
    elif path.name == PEFT_FILE and (beside := path.with_name(PEFT_CONFIG)).is_file():
        text, where = beside.read_bytes(), str(beside)
    else:
        return None
    try:
        table = parse_json(text)
        found = _own(table)
        return AdapterScales(
            None if found.get("r") is None else int(found["r"]),
            None if found.get("lora_alpha") is None else float(found["lora_alpha"]),
            _numbers(found.get("rank_pattern")),
            _numbers(found.get("alpha_pattern")),
            bool(found.get("use_rslora", False)),
        )
    except (ValueError, TypeError, AttributeError, OverflowError):
        raise CheckpointError(
            f"{where} cannot be read, so the scale of the LoRA (alpha / rank) is not known. Save the LoRA again with "
            "the program that made it, or with the scale multiplied into its weights and without that entry."
        ) from None


def carried_scales(path: Path, metadata: Mapping[str, str]) -> dict[str, str]:
    """What the metadata of a copy of the LoRA at `path` need besides its own, so that it counts as much as before.

    PEFT's file beside it is not beside the copy. Raises CheckpointError where that cannot be read.
    """
    if ENTRY in metadata or adapter_scales(path, metadata) is None:
        return {}
    return {ENTRY: path.with_name(PEFT_CONFIG).read_text(encoding="utf-8-sig")}


def unsaid_by(path: Path, metadata: Mapping[str, str], keys: Iterable[str]) -> str:
    """That the LoRA at `path` has PEFT's `keys` and none of PEFT's settings, where its alpha is; or ""."""
    if not next(iter(keys), "").startswith(_PEFT_KEYS) or any(name in metadata for name in _ALPHAS):
        return ""
    lies = path.with_name(PEFT_CONFIG).is_file()
    beside = (
        f"{PEFT_CONFIG} counts beside a file named {PEFT_FILE} alone: give it that name"
        if lies
        else (f"PEFT keeps it in {PEFT_CONFIG} beside {PEFT_FILE}: put both into one folder under these names")
    )
    return f"Nothing says its alpha, so it counts as much as its rank (scale 1). {beside}, if it was another."


def denied_by(scales: AdapterScales | None, layers: Iterable[tuple[float, int, tuple[str, ...]]]) -> str:
    """That the metadata give `layers`, each with its scale by its .alpha key, its rank and its names, another scale; or
    ""."""
    others: list[tuple[str, float, float]] = []
    if scales is None:
        return ""
    for scale, rank, names in layers:
        if (alpha := scales.alpha_of(*names)) is not None:
            stated = alpha / (math.sqrt(rank) if scales.rslora else rank)
            if not math.isclose(stated, scale, rel_tol=1e-3):
                others.append((names[0], scale, stated))
    if not others:
        return ""
    name, scale, stated = others[0]
    more = f", as {len(others) - 1} more" if len(others) > 1 else ""
    return (
        f"Its .alpha keys and the alpha of its metadata ({ENTRY}) differ: {name} has a scale of {scale:g} by its key, "
        f"and {stated:g} by the metadata{more}. The keys count, as in ComfyUI."
    )


def _own(table: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings of the transformer's part, under their bare names."""
    nested = table.get(_PART)
    if isinstance(nested, Mapping):
        return nested
    named = {key[len(_PART) + 1 :]: value for key, value in table.items() if key.startswith(f"{_PART}.")}
    return named or table


def _numbers(table: Mapping[str, Any] | None) -> dict[str, float]:
    return {str(pattern): float(number) for pattern, number in (table or {}).items()}


def _matching(patterns: Mapping[str, float], names: tuple[str, ...], otherwise: float | None) -> float | None:
    for pattern, number in patterns.items():
        if any(_matches(spelled, name) for name in names for spelled in (pattern, without_prefixes(pattern))):
            return number
    return otherwise


def _matches(pattern: str, name: str) -> bool:
    try:
        return re.fullmatch(rf"(?:.*\.)?(?:{pattern})", name) is not None
    except re.error:
        return name == pattern or name.endswith(f".{pattern}")
