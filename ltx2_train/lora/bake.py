"""LoRAs merged into a checkpoint for good: W + strength * alpha / rank * B A, weight by weight.

Everything else is copied as it is, so caches made with the original stay valid. One weight is in memory at a time.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..device import pick_device
from ..errors import CheckpointError, ConfigError
from ..events import Events, shielded
from ..files import atomic, parse_json
from ..weights import keys
from ..weights.fingerprint import BAKED
from ..weights.probe import probe
from ..weights.reader import TensorFile
from ..weights.stored import PLAIN_TYPES
from ..weights.writer import TensorEntry, TensorWriter, require_space
from .fit import tell_version
from .new_file import (
    HIGHEST_STRENGTH,
    LoraMade,
    Losses,
    check_target,
    require_each_once,
    require_no_zero,
    square_sum,
    tell_lost,
)
from .source import LoraSource, tell_doubts
from .targets import branch_of, count_branches

TOOL = "Baking"


def bake_loras(
    checkpoint: Path | str,
    loras: Sequence[Path | str],
    out: Path | str,
    strengths: Sequence[float] = (1.0,),
    replace: bool = False,
    device: str = "auto",
    events: Events | None = None,
) -> LoraMade:
    """Write `checkpoint` with `loras` in its weights, each at its strength, to `out`; one strength counts for all.

    The weights keep their dtype. `error` of the result is what rounding to it takes from the change. Raises ConfigError
    where a LoRA does not fit or is no plain one, CheckpointError where a weight it changes is quantized or a file is
    damaged, RunError where the disk is full, Stopped when the user stopped; then nothing has been written.
    """
    checkpoint, out, events = Path(checkpoint), Path(out), shielded(events)
    check_target(out, [checkpoint, *(Path(path) for path in loras)])
    require_each_once(loras)
    if out.exists() and not replace:
        raise ConfigError(f"{out} is there already. Choose another name, or delete it first.")
    each = _strengths(len(loras), strengths)
    require_no_zero(loras, each, "strength")
    place, losses = pick_device(device), Losses()
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(TensorFile(checkpoint))
        sources = [stack.enter_context(LoraSource(path, TOOL, events)) for path in loras]
        doubts = _told_of(sources, probe(checkpoint).version, events)
        weights = _weights(file, sources)
        entries = {name: TensorEntry(info.dtype, info.shape) for name, info in file.tensors.items()}
        require_space(out, sum(entry.nbytes for entry in entries.values()))
        metadata = file.metadata | {BAKED: _told(file.metadata, sources, each)}
        events.stage("bake LoRAs into the checkpoint", total := sum(info.nbytes for info in file.tensors.values()))
        done, changed = 0, False
        with atomic(out) as temporary, TensorWriter(temporary, entries, metadata, events.check_stop) as writer:
            for name in sorted(file.tensors, key=lambda name: file.tensors[name].offset):
                events.check_stop()
                if name in weights:
                    layer, owners = weights[name]
                    old = file.read(name, place)
                    new = _changed(old, layer, [(sources[number], each[number]) for number in owners], losses)
                    changed = changed or not torch.equal(old, new)
                    writer.write(name, new)
                else:
                    writer.write_bytes(name, file.pieces(name))
                done += file.tensors[name].nbytes
                events.progress(done, total, f"{done / 2**30:.1f} of {total / 2**30:.1f} GB")
            if not changed:
                raise _all_lost(file, sources)
    layers = [layer for layer, _ in weights.values()]
    ranks = sorted({rank for source in sources for rank in source.about.ranks})
    notes = [f"{source.path.name} at strength {strength:g}" for source, strength in zip(sources, each, strict=True)]
    notes += tell_lost(losses, "Bake it at a higher strength, or load the LoRA beside the checkpoint instead.", events)
    return LoraMade(out, count_branches(layers), ranks, [*doubts, *notes], losses.shares())


def _all_lost(file: TensorFile, sources: Sequence[LoraSource]) -> ConfigError:
    whose = " and ".join(source.path.name for source in sources)
    return ConfigError(
        f"{file.name} would stay as it is: every change of {whose} is too small for its numbers. Give a higher "
        "strength, or load the LoRA beside the checkpoint."
    )


def _told_of(sources: Sequence[LoraSource], version: str | None, events: Events) -> list[str]:
    """What was said of `sources`: those that do nothing or fit no model. Raises ConfigError where none does
    anything."""
    if not any(source.works for source in sources):
        raise ConfigError(
            f"{sources[0].path.name} does nothing: {sources[0].idle}. The checkpoint would stay as it is. Choose "
            "another."
        )
    doubts = tell_doubts(sources, events)
    for source in sources:
        if version is not None:
            tell_version(source.about, version, events)
    return doubts


def _changed(weight: Tensor, layer: str, changes: Sequence[tuple[LoraSource, float]], losses: Losses) -> Tensor:
    """The weight of `layer` with `changes`, each a LoRA and its strength. Raises ConfigError where it is not finite."""
    whole = weight.float()
    change = torch.zeros_like(whole)
    for source, strength in changes:
        a, b = source.factors(layer, weight.device)
        change.addmm_(b, a, alpha=strength)
    new = (whole + change).to(weight.dtype)
    if not bool(torch.isfinite(new).all()):
        whose = " and ".join(source.path.name for source, _ in changes)
        raise ConfigError(
            f"{layer}.weight would hold numbers that are not finite, with {whose} in it. Look at the LoRA with "
            "`ltx2-train lora inspect`; take another of its saves, or a lower strength."
        )
    losses.add(branch_of(layer), square_sum(new.float() - whole - change), square_sum(change))
    return new


def _weights(file: TensorFile, sources: Sequence[LoraSource]) -> dict[str, tuple[str, list[int]]]:
    """Name in the checkpoint -> (layer, numbers of the LoRAs that change it). Raises where one cannot be changed."""
    prefix = keys.transformer_prefix(file.tensors)
    if prefix is None:
        raise CheckpointError(f"{file.name} holds no transformer of LTX-2, so there is nothing to bake a LoRA into.")
    weights: dict[str, tuple[str, list[int]]] = {}
    for number, source in enumerate(sources):
        for layer, entry in source.layers.items():
            name = _name_of(layer, prefix, file)
            if name is None:
                raise ConfigError(
                    f"{source.path.name} changes {layer}, which {file.name} lacks. Choose the checkpoint it was "
                    "trained on."
                )
            info = file.tensors[name]
            if info.dtype not in PLAIN_TYPES:
                raise CheckpointError(
                    f"{file.name} is quantized ({name} is {info.dtype}), and a LoRA cannot be baked into weights that "
                    "are rounded so coarsely. Bake it into the bf16 checkpoint and quantize the result "
                    "(ltx2-train quantize)."
                )
            if info.shape != entry.size:
                raise ConfigError(
                    f"{source.path.name} is for another model: {layer} is {entry.size[0]}x{entry.size[1]} there and "
                    f"{'x'.join(map(str, info.shape))} in {file.name}."
                )
            weights.setdefault(name, (layer, []))[1].append(number)
    return weights


def _name_of(layer: str, prefix: str, file: TensorFile) -> str | None:
    """The weight of `layer` in the checkpoint; the text projection stands beside the transformer there."""
    return next((name for name in (f"{prefix}{layer}.weight", f"{layer}.weight") if name in file), None)


def _told(metadata: Mapping[str, str], sources: Sequence[LoraSource], strengths: Sequence[float]) -> str:
    """What was baked in, after what was before."""
    try:
        before = parse_json(metadata.get(BAKED, "[]"))
    except ValueError:
        before = []
    new = [
        {"file": source.path.name, "strength": strength, "trigger": source.about.trigger}
        for source, strength in zip(sources, strengths, strict=True)
    ]
    return json.dumps([*(before if isinstance(before, list) else []), *new], ensure_ascii=False)


def _strengths(count: int, strengths: Sequence[float]) -> list[float]:
    if not count:
        raise ConfigError("No LoRA was named. Name one or more.")
    if len(strengths) not in (1, count):
        raise ConfigError(
            f"{len(strengths)} strengths were given for {count} LoRAs. Give one for all, or one for each in order."
        )
    if not all(abs(value) <= HIGHEST_STRENGTH for value in strengths):
        raise ConfigError(f"A strength is no number from -{HIGHEST_STRENGTH} to {HIGHEST_STRENGTH}.")
    if not any(strengths):
        raise ConfigError("Every strength is 0, so the checkpoint would stay as it is. Give one that is not.")
    return [float(value) for value in strengths] * (count if len(strengths) == 1 else 1)
