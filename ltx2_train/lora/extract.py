"""What a full finetune changed, as a LoRA: the best one of a rank for every linear whose weight differs.

    finetuned - base  ~  B A,      error = ||finetuned - base - B A|| / ||finetuned - base||  (Frobenius)

One weight of each file is in memory at a time. B and A come from a randomized SVD (`quant/loftq.py`).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..device import pick_device
from ..errors import CheckpointError, ConfigError
from ..events import Events, shielded
from ..quant.loftq import low_rank
from ..weights import keys
from ..weights.fingerprint import part_fingerprint
from ..weights.probe import probe
from ..weights.reader import TensorFile
from ..weights.stored import PLAIN_TYPES
from .file import NOT_FINITE
from .metadata import describe_run
from .new_file import (
    LoraMade,
    Losses,
    check_target,
    lora_keys,
    pick_dtype,
    rounded,
    square_sum,
    tell_lost,
    write_tensors_of,
)
from .targets import branch_of, count_branches


@dataclass(frozen=True)
class _Pair:
    """The same transformer in two files: prefix in each, and the names behind it that are linears, and that are not."""

    tuned: TensorFile
    base: TensorFile
    prefixes: tuple[str, str]
    linears: list[str]
    others: list[str]


def extract_lora(
    tuned: Path | str,
    base: Path | str,
    out: Path | str,
    rank: int = 32,
    dtype: str = "bf16",
    replace: bool = False,
    device: str = "auto",
    events: Events | None = None,
) -> LoraMade:
    """Write what the checkpoint `tuned` changed in the transformer of `base` to `out` as a LoRA of `rank`.

    What differs besides (biases, norms and tables, other parts) is counted in the notes: a LoRA cannot hold it.
    Raises ConfigError where the two are not of one model or do not differ, CheckpointError where one is quantized or
    damaged, Stopped when the user stopped.
    """
    out, events = Path(out), shielded(events)
    _check(Path(tuned), Path(base), out, rank, replace)
    place, losses = pick_device(device), Losses()
    with TensorFile(tuned) as first, TensorFile(base) as second:
        pair = _pair(first, second)
        number = pick_dtype(dtype, first.tensors[pair.prefixes[0] + pair.linears[0] + ".weight"].torch_dtype)
        tensors: dict[str, Tensor] = {}
        layers: dict[str, int] = {}
        events.stage("extract LoRA", len(pair.linears))
        for done, layer in enumerate(pair.linears, 1):
            events.check_stop()
            change = _change(pair, layer, place)
            if bool(change.any()):
                layers[layer] = kept = min(rank, *change.shape)
                b, a = low_rank(change, kept, events.check_stop)
                small_a, small_b, lost = rounded(a, b, number, layer)
                losses.add(branch_of(layer), square_sum(change - b @ a) + lost, square_sum(change))
                for key, tensor in zip(lora_keys(layer), (small_a, small_b), strict=True):
                    tensors[key] = tensor
            events.progress(done, len(pair.linears), layer)
        left_out = _left_out(pair, events)
        if not layers:
            same = f"{first.name} and {second.name} have the same weights in every linear of the transformer"
            raise ConfigError(" ".join([f"{same}; there is nothing to extract.", *left_out]))
    about = {
        "base": {
            "file": str(base),
            "fingerprint": part_fingerprint(base, "transformer"),
            "version": probe(base).version or "",
        },
        "name": out.stem,
        "extracted_from": Path(tuned).name,
        "extract_error": f"{losses.shares().get('all', 0.0):.6f}",
    }
    most = max(layers.values())
    lost = tell_lost(losses, "Give a higher rank.", events)
    write_tensors_of(out, tensors, describe_run(about, most, most, count_branches(layers)), replace, events.check_stop)
    return LoraMade(out, count_branches(layers), sorted(set(layers.values())), [*lost, *left_out], losses.shares())


def _change(pair: _Pair, layer: str, device: torch.device) -> Tensor:
    """What differs in the weight [out, in] of `layer`, in float32."""
    weights: list[Tensor] = []
    for file, prefix in zip((pair.tuned, pair.base), pair.prefixes, strict=True):
        weight = file.read(f"{prefix}{layer}.weight", device).float()
        if not bool(torch.isfinite(weight).all()):
            raise CheckpointError(f"{layer} of {file.name} {NOT_FINITE}. The file is damaged; fetch it again.")
        weights.append(weight)
    return weights[0] - weights[1]


def _check(tuned: Path, base: Path, out: Path, rank: int, replace: bool) -> None:
    if rank < 1:
        raise ConfigError(f"rank is {rank}. It is at least 1.")
    check_target(out, [tuned, base])
    if out.exists() and not replace:
        raise ConfigError(f"{out} is there already. Choose another name, or delete it first.")
    if tuned.exists() and base.exists() and tuned.samefile(base):
        raise ConfigError(f"{tuned.name} is named as finetune and as base. Name the checkpoint that it began with.")


def _pair(tuned: TensorFile, base: TensorFile) -> _Pair:
    prefixes: list[str] = []
    for file in (tuned, base):
        prefix = keys.transformer_prefix(file.tensors)
        if prefix is None:
            raise CheckpointError(f"{file.name} holds no transformer of LTX-2. Name two checkpoints of LTX-2.")
        if (found := quantized_in(file, prefix)) is not None:
            raise CheckpointError(
                f"{file.name} is quantized ({found} is {file.tensors[found].dtype}), and what rounding changed would "
                "be taken for what was learned. Use the bf16 checkpoint."
            )
        prefixes.append(prefix)
    shapes = [
        {
            name[len(prefix) :]: info.shape
            for name, info in file.tensors.items()
            if name.startswith(prefix) and (prefix or keys.part_of(name) in (None, "transformer"))
        }
        for file, prefix in zip((tuned, base), prefixes, strict=True)
    ]
    common = [name for name in shapes[0] if name in shapes[1]]
    for name in common:
        if shapes[0][name] != shapes[1][name]:
            raise ConfigError(
                f"{tuned.name} and {base.name} are of different models: {name} is {list(shapes[0][name])} in one and "
                f"{list(shapes[1][name])} in the other. Name the base that the finetune began with."
            )
    linears = [name[: -len(".weight")] for name in common if name.endswith(".weight") and len(shapes[0][name]) == 2]
    others = [name for name in common if not (name.endswith(".weight") and len(shapes[0][name]) == 2)]
    for (file, own), (other, names) in itertools.permutations(zip((tuned, base), shapes, strict=True)):
        if missing := [name for name in names if name not in own]:
            more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            raise ConfigError(
                f"{file.name} lacks {missing[0]}{more}, which {other.name} has: they are of different versions. A "
                "LoRA can only hold changes of weights that both have. Name the base that the finetune began with."
            )
    return _Pair(tuned, base, (prefixes[0], prefixes[1]), linears, others)


def quantized_in(file: TensorFile, prefix: str) -> str | None:
    """A tensor of the transformer that is no plain number, or None."""
    names = (name for name in file.tensors if name.startswith(prefix))
    return next((name for name in names if file.tensors[name].dtype not in PLAIN_TYPES), None)


def _left_out(pair: _Pair, events: Events) -> list[str]:
    """What differs and is no weight of a linear of the transformer, in a sentence, if there is any."""
    said: list[str] = []
    first, second = pair.prefixes
    inside = {(first + name, second + name) for name in pair.others}
    own = {
        prefix + name for prefix in pair.prefixes for name in (*pair.others, *(f"{one}.weight" for one in pair.linears))
    }
    outside = {(name, name) for name in pair.tuned.tensors if name in pair.base.tensors and name not in own}
    for what, names in (
        ("biases, norms and tables of the transformer", inside),
        ("tensors of other parts (VAE, vocoder, text projection)", outside),
    ):
        differing = [names_of for names_of in sorted(names) if _differs(pair, *names_of, events)]
        if differing:
            said.append(f"{len(differing)} {what}, {differing[0][0]} first")
    return [f"A LoRA cannot hold what differs besides: {'; '.join(said)}."] if said else []


def _differs(pair: _Pair, tuned: str, base: str, events: Events) -> bool:
    one, other = pair.tuned.tensors[tuned], pair.base.tensors[base]
    if one.shape != other.shape:
        return True
    if one.dtype == other.dtype:
        for piece, of_base in zip(pair.tuned.pieces(tuned), pair.base.pieces(base), strict=True):
            events.check_stop()
            if piece != of_base:
                return True
        return False
    events.check_stop()
    return bool((pair.tuned.read(tuned).float() != pair.base.read(base).float()).any())
