"""LoftQ between files and modules: which linears miss a low-rank part, and where that part is kept.

    W ~ Q + B A         A [rank, in], B [out, rank]

On load B A is found in some rounds and Q is then the quantized W - B A, so the two belong together. A quantized file
keeps Q(W) instead, good for any rank and for use without LoftQ; its companion `<file>.loftq_r<rank>.safetensors` holds
the best B A for that Q.

A and B are rounded to bfloat16 before the last Q is made, so that files hold them exactly.

Li et al. 2023, "LoftQ", arXiv:2310.08659.
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, ConfigError
from ..files import write_tensors
from ..quant.base import QuantLinear
from ..quant.formats import quantize_linear
from ..quant.loftq import loftq, low_rank
from ..quant.settings import QuantSettings
from ..threads import heed
from .fingerprint import part_fingerprint, same_weights
from .reader import TensorFile

LOFTQ_FILE = "loftq.safetensors"  # in a run folder: what the quantized base lacks, taken out of every saved LoRA
RANK, ITERS, MODULES, BASE = "loftq_rank", "loftq_iters", "num_modules", "base_fingerprint"
_KEYS = (".lora_A", ".lora_B")

FactorPair = tuple[Tensor, Tensor]


@dataclass
class Loftq:
    """The linears at `paths` get a LoRA of `rank`; `initial` is filled with (A, B) of each, in bfloat16 on the CPU.

    What `initial` holds already is used as it is instead of being worked out, which makes a resumed run quick and
    exact.
    """

    rank: int
    paths: Collection[str]
    initial: dict[str, FactorPair] = field(default_factory=dict)

    def quantize(self, path: str, linear: nn.Linear, settings: QuantSettings) -> QuantLinear:
        """`linear` without its low-rank part in the format of `settings`; the part is put into `initial`."""

        def quantized(weight: Tensor) -> QuantLinear:
            rest = nn.Linear(linear.in_features, linear.out_features, bias=False, device="meta")
            rest.weight, rest.bias = nn.Parameter(weight, requires_grad=False), linear.bias
            return quantize_linear(rest, settings.format, settings)

        weight = linear.weight.detach()
        if path not in self.initial:
            _, a, b = loftq(weight, quantized, self.rank, settings.loftq_iters, heed)
            self.initial[path] = _rounded(a, b)
        a, b = (part.to(weight.device, torch.float32) for part in self.initial[path])
        return quantized(torch.addmm(weight.float(), b, a, alpha=-1).to(weight.dtype))

    def save(self, path: Path | str, metadata: dict[str, str]) -> None:
        """Write `initial` atomically, keys `<path>.lora_A` and `<path>.lora_B`."""
        tensors = {}
        for layer, pair in self.initial.items():
            tensors |= {layer + end: part for end, part in zip(_KEYS, pair, strict=True)}
        write_tensors(path, tensors, {**metadata, RANK: str(self.rank), MODULES: str(len(self.initial))})

    def load(self, path: Path | str) -> None:
        """Fill `initial` from a file that `save` wrote. Raises CheckpointError where it is of other layers or rank."""
        with TensorFile(path) as file:
            for layer in self.paths:
                if any(layer + end not in file for end in _KEYS):
                    raise CheckpointError(f"{file.path.name} holds no LoftQ part for {layer}. Make it again.")
                a, b = (file.read(layer + end) for end in _KEYS)
                if a.shape[0] != self.rank:
                    raise ConfigError(
                        f"{file.path.name} holds LoftQ of rank {a.shape[0]}, but lora.rank is {self.rank}. Set "
                        f"lora.rank to {a.shape[0]}, or make it again with rank {self.rank}."
                    )
                self.initial[layer] = (a, b)


def residual(weight: Tensor, made: QuantLinear, rank: int, poll: Callable[[], None]) -> FactorPair:
    """(A, B), bfloat16 on the CPU: the best of `rank` for what `made` lacks of `weight`. `poll` as in `low_rank`."""
    b, a = low_rank(weight.float() - made.dequantize(torch.float32), rank, poll)
    return _rounded(a, b)


def companion(checkpoint: Path | str, rank: int) -> Path:
    """Where the LoftQ part of `rank` of a quantized checkpoint lies."""
    checkpoint = Path(checkpoint)
    return checkpoint.with_name(f"{checkpoint.stem}.loftq_r{rank}.safetensors")


def find_companion(checkpoint: Path | str, rank: int) -> Path:
    """The LoftQ part of `rank` of a quantized `checkpoint`. Raises ConfigError, naming the ranks there are, if none."""
    checkpoint = Path(checkpoint)
    path = companion(checkpoint, rank)
    if path.exists():
        return path
    others = sorted(checkpoint.parent.glob(f"{glob.escape(checkpoint.stem)}.loftq_r*.safetensors"))
    ranks = [other.stem.rpartition("_r")[2] for other in others]
    if ranks:
        raise ConfigError(
            f"{checkpoint.name} has LoftQ of rank {', '.join(ranks)} beside it, but lora.rank is {rank}. Set lora.rank "
            f"to {ranks[0]}, or make {path.name} with: {_command(checkpoint, rank)}"
        )
    raise ConfigError(
        f"quant.loftq is on and {checkpoint.name} is quantized already, so {path.name} must lie beside it. Make it "
        f"with: {_command(checkpoint, rank)}  - or switch quant.loftq off."
    )


def read_companion(checkpoint: Path | str, loftq: Loftq) -> None:
    """Fill `loftq` from the companion of a quantized `checkpoint`.

    Raises ConfigError where there is none of this rank, CheckpointError where it belongs to another file.
    """
    checkpoint = Path(checkpoint)
    path = find_companion(checkpoint, loftq.rank)
    with TensorFile(path) as file:
        made_for = file.metadata.get(BASE)
    if not same_weights(made_for, part_fingerprint(checkpoint, "transformer")):
        raise CheckpointError(
            f"{path.name} was made for another file than {checkpoint.name}. Make both again with: "
            f"{_command(checkpoint, loftq.rank)}"
        )
    loftq.load(path)


def _command(checkpoint: Path, rank: int) -> str:
    return f"ltx2-train quantize ORIGINAL.safetensors --out {checkpoint.name} --format nf4 --loftq --rank {rank}"


def _rounded(a: Tensor, b: Tensor) -> FactorPair:
    return a.to("cpu", torch.bfloat16), b.to("cpu", torch.bfloat16)
