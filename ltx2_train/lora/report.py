"""What is in a LoRA file, for people and for programs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..families import name_of
from ..files import parse_json
from .effect import does_nothing
from .file import LoraFile, load_lora_state, read_lora
from .foreign import family_of, kind_and_layer, kinds_of, unknown_version
from .metadata import REFERENCE
from .names import checkpoint_name, without_prefixes
from .places import doubts_of
from .targets import BRANCHES, block_of, branch_of, count_branches, dotted, layers_text

_IN_A_LINE = 8
# what other programs say of conditions
_CONDITIONS = ("ss_ic_lora_strategy", "ss_v2v_training", "ss_i2v_training")


@dataclass(frozen=True)
class LoraReport:
    """A LoRA file at a glance. `norms` are of the weight change at strength 1, per branch; `problems` are sentences.

    `blocks` are the same per block, by its number, "" for what lies outside of them. `conditions` are what the metadata
    say of what it is given besides a prompt: references and their size, frames, masks. `kind` is "LoRA", or
    the other kinds of change that the file holds, such as "LoKr"; those have no norms.
    """

    file: str
    ranks: list[int]
    alpha: float | None
    modules: list[str]
    branches: dict[str, int]
    norms: dict[str, float]
    size: int
    dtypes: list[str]
    base: str | None
    base_fingerprint: str | None
    version: str | None
    trigger: str | None
    step: int | None
    metadata: dict[str, str]
    problems: list[str]
    kind: str = "LoRA"
    blocks: dict[str, float] = field(default_factory=dict)
    conditions: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain data; numbers that are not finite become None."""
        data = asdict(self)
        for name, norms in (("norms", self.norms), ("blocks", self.blocks)):
            data[name] = {part: norm if math.isfinite(norm) else None for part, norm in norms.items()}
        return data

    def text(self) -> str:
        """A few lines for a terminal."""
        ranks = f"{self.ranks[0]} to {self.ranks[-1]}" if len(self.ranks) > 4 else "/".join(map(str, self.ranks))
        rank = f"rank {ranks}" if self.ranks else self.kind
        if self.ranks and self.kind != "LoRA":
            rank = f"{self.kind}, {rank}"
        alpha = "" if self.alpha is None else f", alpha {self.alpha:g}"
        base = [part for part in (self.base, self.version and f"({name_of(self.version)})") if part]
        size = f"{layers_text(len(self.modules))}, {self.size / 1e6:.1f} MB, {', '.join(self.dtypes)}"
        lines = [f"{self.file}: {rank}{alpha}, {size}", f"  base      {' '.join(base) or 'unknown'}"]
        if self.trigger:
            lines.append(f"  trigger   {self.trigger}")
        if self.step is not None:
            lines.append(f"  step      {self.step}")
        for branch, count in self.branches.items():
            norm = f", norm {self.norms[branch]:.4g}" if branch in self.norms else ""
            lines.append(f"  {branch:<9} {layers_text(count)}{norm}")
        for start in range(0, len(self.blocks), _IN_A_LINE):
            row = list(self.blocks.items())[start : start + _IN_A_LINE]
            label = "" if start else "blocks"
            lines.append(f"  {label:<9} " + "  ".join(f"{number or 'outside'}: {norm:.3g}" for number, norm in row))
        for key, value in self.conditions.items():
            lines.append(f"  {key}: {value}")
        lines += [f"  problem   {problem}" for problem in self.problems]
        return "\n".join(lines)


def inspect_lora(path: Path | str) -> LoraReport:
    """Read a LoRA file and say what is in it; of other kinds of change, how many layers they have.

    Raises CheckpointError where it is neither, or damaged.
    """
    path = Path(path)
    file = read_lora(path)
    if not file.kinds:
        file = load_lora_state(path)  # refuses what is no change of a model at all
    layers = file.layers
    named = {dotted(name): name for name in layers}
    others = (checkpoint_name(without_prefixes(kind_and_layer(key)[1])) for key in file.other_keys)
    changed = dict.fromkeys([*named, *map(dotted, others)])
    squares = {path: layers[name].squared_norm() for path, name in named.items()}
    norms = _norms(squares, branch_of, BRANCHES)
    meta = file.metadata
    return LoraReport(
        file=path.name,
        ranks=file.ranks,
        alpha=file.alpha,
        modules=list(changed),
        branches=count_branches(changed),
        norms=norms,
        blocks=_norms(squares, block_of),
        size=path.stat().st_size,
        dtypes=sorted(file.dtypes),
        base=file.base or None,
        base_fingerprint=meta.get("base_fingerprint"),
        version=file.version or None,
        trigger=file.trigger or None,
        step=file.step,
        metadata=dict(meta),
        problems=_problems(file, list(changed), norms),
        conditions=_conditions(file),
        kind=" and ".join([*(["LoRA"] if file.entries and "DoRA" not in file.kinds else []), *file.kinds]),
    )


def _norms(squares: Mapping[str, float], part_of: Callable[[str], str], order: Sequence[str] = ()) -> dict[str, float]:
    """Frobenius norm of each part of the model, of squares by layer; in `order`, else by number."""
    sums: dict[str, float] = {}
    for path, square in squares.items():
        sums[part_of(path)] = sums.get(part_of(path), 0.0) + square
    names = [name for name in order if name in sums] if order else sorted(sums, key=lambda name: int(name or -1))
    return {name: math.sqrt(max(sums[name], 0.0)) for name in names}


def _conditions(file: LoraFile) -> dict[str, Any]:
    """What the metadata say of conditions, under their own names."""
    conditions: dict[str, Any] = {key: file.reference_factor(key) for key in REFERENCE}
    conditions |= {key: file.metadata.get(key) for key in _CONDITIONS}
    try:
        settings = parse_json(file.metadata.get("settings", "{}"))
    except ValueError:
        settings = {}
    for stream in ("video", "audio"):
        group = settings.get(stream) if isinstance(settings, dict) else None
        if isinstance(group, dict):
            conditions[f"{stream}.conditions"] = group.get("conditions")
            conditions[f"{stream}.generated"] = None if group.get("generated", True) else False
    return {key: value for key, value in conditions.items() if value not in (None, "", [])}


def _problems(file: LoraFile, modules: list[str], norms: Mapping[str, float]) -> list[str]:
    problems = [f"{text[:1].upper()}{text[1:]}" for text in file.problems]
    if family := family_of(modules):
        problems.append(f"It changes {family}, not the transformer of LTX-2.")
    elif not file.loads_in_comfyui:
        problems.append("ComfyUI does not load it: keys must begin with diffusion_model.")
    if file.unpaired:
        problems.append(f"{len(file.unpaired)} layers lack their other half, {file.unpaired[0]} first.")
    if strange := file.strange_keys:
        kinds = kinds_of(strange)
        known = [key for key in strange if kind_and_layer(key)[0]]
        what = f"of {' and '.join(kinds)}" if len(known) == len(strange) else "of nothing that is known here"
        if known and len(known) < len(strange):
            what = f"of {' and '.join(kinds)}, or {what}"
        problems.append(
            f"{len(strange)} keys are {what}, {strange[0]} first: it can neither be drawn with nor started from."
        )
    if stated := unknown_version(file.metadata) if not file.version else "":
        problems.append(f"Its metadata say version {stated[:40]}, which is no LTX that is known here.")
    bad = [
        name
        for name, entry in file.layers.items()
        if not all(bool(torch.isfinite(part).all()) for part in entry.tensors)
    ]
    if bad:
        problems.append(f"{len(bad)} layers hold numbers that are not finite, {bad[0]} first.")
    elif not all(math.isfinite(norm) for norm in norms.values()) and not file.problems:
        problems.append("Its norm is too large for a number of 32 bits: it would change the model beyond all use.")
    said, of_keys = file.stated_alpha, {entry.alpha for entry in file.entries.values() if entry.alpha is not None}
    if said is not None and of_keys and said not in of_keys:  # layers of several ranks have several
        found = ", ".join(f"{alpha:g}" for alpha in sorted(of_keys)[:8])
        problems.append(f"Its metadata say alpha {said:g}, its .alpha keys {found}; the keys count.")
    ours = file.metadata.get("ss_network_module") == "ltx2_train.lora"  # whose scale is in its weights
    if not (ours or said is None or of_keys) and any(said != entry.rank for entry in file.entries.values()):
        problems.append(f"Its metadata say alpha {said:g}, but no .alpha key does: it counts as much as its rank.")
    if why := does_nothing(file):
        what = "its layers do nothing beside these keys" if strange else "it does nothing"
        problems.append(f"{why[:1].upper()}{why[1:]}: {what}.")
    spelled = Counter(name.replace(".", "_") for name in file.layers)
    if twice := [name for name, count in spelled.items() if count > 1]:
        problems.append(
            f"{layers_text(len(twice))} stand in it in two spellings, {twice[0]} first: nothing can use both."
        )
    problems += doubts_of(file)
    if len(file.ranks) > 1:
        shown = ", ".join(map(str, file.ranks[:8])) + (" ..." if len(file.ranks) > 8 else "")
        problems.append(f"Its layers have different ranks: {shown}.")
    if not family and (others := [module for module in modules if branch_of(module) == "other"]):
        lie = "layer lies" if len(others) == 1 else "layers lie"
        problems.append(f"{len(others)} {lie} outside the known parts of the transformer blocks, {others[0]} first.")
    return problems
