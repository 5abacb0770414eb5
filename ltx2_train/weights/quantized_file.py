"""Writes a checkpoint with a quantized transformer once, so that later runs load it at a fraction of the size.

Tensor by tensor: a linear of the transformer's blocks is read, quantized and written before the next one is read;
everything else is copied as it is, so caches made with the original file stay valid. What is written is byte for byte
what quantizing on load makes on the same device.

An nf4 file is laid out as the community trainer's: `<layer>.weight` uint8, `<layer>.scale_weight`, `<layer>.nf4_shape`
and the metadata `nf4_quantized`, `nf4_block_size`. The other formats follow the same pattern, see `stored.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from ..device import card_is_full, pick_device, release
from ..errors import CheckpointError, ConfigError, OutOfMemory, Stopped
from ..events import Events, shielded
from ..files import atomic
from ..quant.base import QuantLinear
from ..quant.formats import FORMATS
from ..quant.nf4 import Nf4
from ..quant.settings import QuantSettings
from . import keys, stored
from .fingerprint import part_fingerprint
from .keys import BLOCKS
from .loftq import BASE, ITERS, Loftq, companion, residual
from .probe import describe_checkpoint
from .quantize import Quantizer, eligible, quant_device
from .reader import TensorFile
from .stored import stored_in
from .writer import TensorEntry, TensorWriter, require_space


@dataclass(frozen=True)
class QuantizedFile:
    """What came of quantizing a checkpoint; `companion` is the LoftQ file where one was asked for."""

    path: Path
    format: str
    layers: int
    bytes_before: int
    bytes_after: int
    companion: Path | None = None

    def summary(self) -> str:
        """Two sentences for the user."""
        share = f"{100 * self.bytes_after / self.bytes_before:.0f} %"
        sizes = f"{self.bytes_after / 1e9:.2f} GB, {share} of the {self.bytes_before / 1e9:.2f} GB of the original"
        more = f" LoftQ: {self.companion.name}, keep it beside the file." if self.companion else ""
        return f"{self.path.name}: {self.layers} linears in {self.format}; {sizes}.{more}"


def quantize_checkpoint(
    source: Path | str,
    target: Path | str,
    settings: QuantSettings,
    rank: int | None = None,
    events: Events | None = None,
) -> QuantizedFile:
    """Write `source` to `target` with the transformer's blocks in settings.format; the old file stays.

    With settings.loftq the part that a LoRA of `rank` begins with is written beside it. Raises ConfigError where the
    settings make no sense here, CheckpointError where the source cannot be used, RunError where the disk is full,
    Stopped when the user stopped; then nothing has been written.
    """
    source, target, events = Path(source), Path(target), shielded(events)
    _check_settings(source, target, settings, rank)
    device = quant_device(settings, pick_device("auto"))
    with TensorFile(source) as file:
        layers = _layers(file)
        quantize = Quantizer(settings, settings.format, device, torch.float32)
        plan = _plan(file, layers, quantize)
        total = sum(entry.nbytes for entries in plan.values() for entry in entries.values())
        require_space(target, total)
        loftq = Loftq(rank, layers) if settings.loftq and rank is not None else None
        entries = {name: entry for group in plan.values() for name, entry in group.items()}
        metadata = file.metadata | _metadata(source, settings)
        try:
            poll = partial(_heed, events)
            with atomic(target) as temporary, TensorWriter(temporary, entries, metadata, poll) as writer:
                _fill(writer, file, plan, layers, quantize, loftq, events)
        except RuntimeError as error:
            if not card_is_full(error):
                raise
            raise OutOfMemory(
                f"{device} ran out of memory while {source.name} was quantized. Set quant.device to cpu (--device cpu)."
            ) from error
        release(device)
    beside = None
    if loftq is not None:
        beside = companion(target, loftq.rank)
        about = {
            ITERS: "1",
            stored.NF4_BLOCK_SIZE: str(settings.block_size),
            BASE: part_fingerprint(target, "transformer"),
        }
        loftq.save(beside, about)
    return QuantizedFile(target, settings.format, len(layers), source.stat().st_size, target.stat().st_size, beside)


def _check_settings(source: Path, target: Path, settings: QuantSettings, rank: int | None) -> None:
    if settings.format in ("auto", "none"):
        raise ConfigError(f'quant.format is {settings.format}; to quantize a file, name a format, for example "nf4".')
    if settings.awq:
        raise ConfigError(
            "quant.awq looks at batches of a dataset and cannot be written into a file. Train from the bf16 "
            "checkpoint with quant.awq on, or switch it off."
        )
    if settings.loftq and (rank is None or rank < 1):
        raise ConfigError("LoftQ is made for one rank of LoRA: name it (--rank 32), the same as lora.rank.")
    if rank is not None and not settings.loftq:
        raise ConfigError("A rank is for LoftQ alone (--loftq). Leave it out, or switch LoftQ on.")
    if target.suffix != ".safetensors":
        raise ConfigError(f"{target.name} must end in .safetensors, or nobody will find it as a checkpoint.")
    if target.exists() and source.exists() and target.samefile(source):
        raise ConfigError(f"{target} is the original itself. Choose another name; the original is still needed.")


def _layers(file: TensorFile) -> dict[str, str]:
    """path in the model -> name in the file of every linear to quantize. Raises CheckpointError where there is none."""
    prefix = keys.transformer_prefix(file.tensors)
    info = describe_checkpoint(file)
    if prefix is None or info.kind not in ("ltx2", "ltxv", "part"):
        raise CheckpointError("\n".join(info.problems) or f"{file.path.name} holds no transformer.")
    found = stored_in(file)
    if found.in_blocks() or found.format or any("transformer_blocks." in layer for layer in found.unreadable):
        words = info.quant_format or info.precision
        raise CheckpointError(
            f"{file.path.name} is quantized already ({words}); doing it twice only adds errors. "
            "Use the bf16 checkpoint."
        )
    if info.kind != "part" and info.problems:
        raise CheckpointError("\n".join(info.problems))
    names = (name.removesuffix(".weight") for name in file.tensors if name.endswith(".weight"))
    return {
        name.removeprefix(prefix): name
        for name in names
        if name.startswith(prefix) and eligible(name) and len(file.tensors[f"{name}.weight"].shape) == 2
    }


def _plan(file: TensorFile, layers: Mapping[str, str], quantize: Quantizer) -> dict[str, dict[str, TensorEntry]]:
    """For each tensor of `file`, what is written in its place: names and shapes of the new file."""
    weights = {f"{name}.weight" for name in layers.values()}
    like: dict[tuple, dict[str, TensorEntry]] = {}
    plan: dict[str, dict[str, TensorEntry]] = {}
    for name, info in file.tensors.items():
        if name not in weights:
            plan[name] = {name: TensorEntry(info.dtype, info.shape)}
            continue
        key = (info.dtype, info.shape)
        if key not in like:  # few shapes are repeated by all blocks; zeros of each show what comes out
            zeros = torch.zeros(info.shape, dtype=info.torch_dtype, device=quantize.device)
            made = _made(quantize, f"{BLOCKS}.0.x", zeros)
            like[key] = {end: TensorEntry.of(tensor) for end, tensor in _parts(made)}
        layer = name.removesuffix(".weight")
        plan[name] = {layer + end: entry for end, entry in like[key].items()}
    return plan


def _fill(
    writer: TensorWriter,
    file: TensorFile,
    plan: Mapping[str, Mapping[str, TensorEntry]],
    layers: Mapping[str, str],
    quantize: Quantizer,
    loftq: Loftq | None,
    events: Events,
) -> None:
    paths = {f"{name}.weight": path for path, name in layers.items()}
    total, done = sum(info.nbytes for info in file.tensors.values()), 0
    events.stage("quantize the checkpoint", total)
    for name in sorted(plan, key=lambda name: file.tensors[name].offset):
        _heed(events)
        path, info = paths.get(name), file.tensors[name]
        if path is None:
            writer.write_bytes(name, file.pieces(name))
        else:
            weight = file.read(name, quantize.device)
            made = _made(quantize, path, weight)
            for end, tensor in _parts(made):
                writer.write(name.removesuffix(".weight") + end, tensor)
            if loftq is not None:
                loftq.initial[path] = residual(weight, made, loftq.rank, partial(_heed, events))
            del weight, made
        done += info.nbytes
        events.progress(done, total, f"{done / 2**30:.1f} of {total / 2**30:.1f} GB")


def _heed(events: Events) -> None:
    if events.should_stop():
        raise Stopped("Stopped on request. Nothing was written.")


def _made(quantize: Quantizer, path: str, weight: Tensor) -> QuantLinear:
    """The linear of `weight`, which is one of those that are quantized, as it will be stored."""
    made = quantize(path, _linear(weight))
    assert made is not None, path
    return made


def _parts(made: QuantLinear) -> Iterator[tuple[str, Tensor]]:
    """(ending in the file, tensor) of everything a quantized linear stores."""
    for name, tensor in made.stored().items():
        yield stored.ending_of(name), tensor.view(torch.uint8) if name in made.byte_types else tensor
    if isinstance(made, Nf4):
        yield stored.NF4_SHAPE, torch.tensor([made.out_features, made.in_features])


def _metadata(source: Path, settings: QuantSettings) -> dict[str, str]:
    metadata = {
        stored.FORMAT: settings.format,
        stored.VERSION: stored.VERSION_WRITTEN,
        stored.SOURCE: part_fingerprint(source, "transformer"),
    }
    kind = FORMATS.get(settings.format)
    if issubclass(kind, Nf4):
        metadata |= {stored.NF4_MARK: "true", stored.NF4_BLOCK_SIZE: str(settings.block_size)}
    if kind.byte_types:
        metadata[stored.TYPES] = json.dumps(dict(kind.byte_types))
    return metadata


def _linear(weight: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    return linear
