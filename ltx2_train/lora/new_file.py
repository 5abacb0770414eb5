"""Writing what a LoRA tool makes: one tensor at a time, under the final name only when whole, over nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..device import DTYPE_NAMES
from ..errors import CheckpointError, ConfigError
from ..events import Events
from ..files import atomic
from ..paths import name_fault
from ..weights.reader import ENDING, TensorFile
from ..weights.writer import TensorEntry, TensorWriter, require_space
from .low_rank import squared_norm
from .metadata import DATES
from .names import PREFIX
from .targets import layers_text

HIGHEST_STRENGTH = 100
_MOST_LOST = 0.5  # share of the change that may be lost without a word of advice


@dataclass(frozen=True)
class LoraMade:
    """What a tool wrote to `path`: its layers by branch, their ranks, and `notes`, sentences for the user.

    `error` is the part of the change that was lost, by branch, as a share of its Frobenius norm; "all" is the whole.
    """

    path: Path
    layers: dict[str, int]
    ranks: list[int]
    notes: list[str] = field(default_factory=list)
    error: dict[str, float] = field(default_factory=dict)

    def text(self) -> str:
        """A few lines for a terminal."""
        counts = ", ".join(f"{count} {branch}" for branch, count in self.layers.items())
        ranks = f"rank {self.ranks[0]}" if len(self.ranks) == 1 else f"ranks {self.ranks[0]} to {self.ranks[-1]}"
        lines = [f"{self.path.name}: {layers_text(sum(self.layers.values()))} ({counts}), {ranks}"]
        if self.error:
            lines.append("  lost      " + ", ".join(f"{name} {_percent(share)}" for name, share in self.error.items()))
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "path": str(self.path),
            "layers": self.layers,
            "ranks": self.ranks,
            "notes": self.notes,
            "error": self.error,
        }


def _percent(share: float) -> str:
    return f"{share:.2%}" if share >= 1e-4 else "under 0.01%"


class Losses:
    """Squares of what was left out and of the whole, by branch."""

    def __init__(self) -> None:
        self._squares: dict[str, tuple[float, float]] = {}

    def add(self, branch: str, lost: float, whole: float) -> None:
        before = self._squares.get(branch, (0.0, 0.0))
        self._squares[branch] = before[0] + lost, before[1] + whole

    def shares(self) -> dict[str, float]:
        """Lost share of the Frobenius norm, by branch; "all" is that of the whole. Empty where nothing was lost."""
        if not any(lost for lost, _ in self._squares.values()):
            return {}
        found = {branch: (lost / whole) ** 0.5 for branch, (lost, whole) in self._squares.items() if whole}
        lost, whole = (sum(pair[side] for pair in self._squares.values()) for side in (0, 1))
        return {**found, "all": (lost / whole) ** 0.5}


def square_sum(values: Tensor) -> float:
    """The sum of the squares of `values`, also where float32 does not hold it."""
    total = float(values.square().sum())
    return total if math.isfinite(total) else float(values.double().square().sum())


def rounded(a: Tensor, b: Tensor, dtype: torch.dtype, layer: str) -> tuple[Tensor, Tensor, float]:
    """A and B of `layer` in `dtype`, and the square of what that takes from B A. Raises ConfigError as `in_dtype`."""
    small_a, small_b = in_dtype(a, dtype, layer), in_dtype(b, dtype, layer)
    a, b = a.to("cpu", torch.float32), b.to("cpu", torch.float32)
    lost_a, lost_b = small_a.float() - a, small_b.float() - b
    if not bool(lost_a.any()) and not bool(lost_b.any()):
        return small_a, small_b, 0.0
    # B' A' - B A = (B' - B) A' + B (A' - A)
    lost = squared_norm(torch.cat([small_a.float(), lost_a]), torch.cat([lost_b, b], dim=1))
    return small_a, small_b, max(0.0, float(lost))


def lora_keys(layer: str) -> tuple[str, str]:
    """The keys of A and B of `layer`, as ComfyUI loads them."""
    return f"{PREFIX}{layer}.lora_A.weight", f"{PREFIX}{layer}.lora_B.weight"


def pick_dtype(name: str, automatic: torch.dtype) -> torch.dtype:
    """The dtype called `name`; auto is `automatic`. Raises ConfigError for other names."""
    if name == "auto":
        return automatic
    if name not in DTYPE_NAMES:
        raise ConfigError(f"dtype is {name!r}. Choose auto, {', '.join(DTYPE_NAMES)}.")
    return DTYPE_NAMES[name]


def in_dtype(tensor: Tensor, dtype: torch.dtype, what: str) -> Tensor:
    """`tensor` in `dtype` on the CPU. Raises ConfigError where its numbers do not fit, or all of them become zero,
    which happens in fp16 alone."""
    small = tensor.to("cpu", dtype)
    if not bool(torch.isfinite(small).all()):
        cause = "is not finite" if not bool(torch.isfinite(tensor).all()) else f"does not fit into {dtype}"
        raise ConfigError(f"{what} holds a number that {cause}. Choose dtype bf16 or fp32, or another LoRA.")
    if not bool(small.any()) and bool(tensor.any()):
        raise ConfigError(
            f"{what} holds nothing but numbers that are too small for {dtype}: the largest is "
            f"{float(tensor.abs().max()):.1e}, and all would become zero. Choose dtype bf16 or fp32."
        )
    return small


def check_target(out: Path, sources: Sequence[Path]) -> None:
    """Raise ConfigError unless `out` can be the name of the new file: it must be none of `sources`."""
    if out.suffix != ENDING:
        raise ConfigError(f"{out.name!r} must end in {ENDING}, or no program finds it.")
    if fault := name_fault(out.stem):
        raise ConfigError(f"The name of the new file, {out.name[:60]!r}, {fault.removesuffix('.')}.")
    if out.is_dir():
        raise ConfigError(f"{out} is a folder. Name a file to write.")
    for source in sources:
        if out.exists() and source.exists() and out.samefile(source):
            raise ConfigError(f"{out.name} would be written over itself. Choose another file to write to.")


def require_each_once(paths: Sequence[Path | str]) -> None:
    """Raise ConfigError where one LoRA is named twice: it would count twice, which hardly anybody means."""
    seen: set[Path] = set()
    for path in map(Path, paths):
        if path.resolve() in seen:
            raise ConfigError(f"{path.name} is named twice. Name it once, with a number that is twice as high.")
        seen.add(path.resolve())


def require_no_zero(paths: Sequence[Path | str], numbers: Sequence[float], word: str) -> None:
    """Raise ConfigError where a LoRA is given the number 0, a `word`, so that nothing of it would count."""
    for path, number in zip(map(Path, paths), numbers, strict=True):
        if not number:
            raise ConfigError(
                f"The {word} of {path.name} is 0, so nothing of it would count. Leave it out, or give a number that is "
                "not 0."
            )


def tell_lost(losses: Losses, advice: str, events: Events) -> list[str]:
    """A sentence with `advice`, which `events` are told, where most of the change was lost; or none."""
    share = losses.shares().get("all", 0.0)
    if share <= _MOST_LOST:
        return []
    told = f"{share:.0%} of the change was lost, so the new file does little of it. {advice}"
    events.message(told, "warning")
    return [told]


def write_lora(
    out: Path,
    entries: Mapping[str, TensorEntry],
    metadata: Mapping[str, str],
    tensors: Iterable[tuple[str, Tensor]],
    replace: bool,
    poll: Callable[[], None],
) -> None:
    """Write `tensors` to `out` as they come; `entries` announces all of them. What `poll` raises ends it.

    A file that is there is replaced with `replace` alone; without, it must be what is about to be written, as after a
    second call, but for dates. Raises ConfigError where it is not, RunError where the disk refuses.
    """
    same_expected = out.exists() and not replace
    if same_expected and not _looks_like(out, entries, metadata):
        raise occupied(out)
    require_space(out, sum(entry.nbytes for entry in entries.values()))
    with atomic(out) as temporary:
        with TensorWriter(temporary, entries, metadata, poll) as writer:
            for name, tensor in tensors:
                writer.write(name, tensor)
        if same_expected and not _same_tensors(temporary, out):
            raise occupied(out, by_the_same=True)


def write_tensors_of(
    out: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], replace: bool, poll: Callable[[], None]
) -> None:
    """As `write_lora`, of tensors that are all there."""
    entries = {name: TensorEntry.of(tensor) for name, tensor in tensors.items()}
    write_lora(out, entries, metadata, tensors.items(), replace, poll)


def _looks_like(path: Path, entries: Mapping[str, TensorEntry], metadata: Mapping[str, str]) -> bool:
    try:
        with TensorFile(path) as file:
            found = {name: TensorEntry(info.dtype, info.shape) for name, info in file.tensors.items()}
            return without_dates(file.metadata) == without_dates(metadata) and found == dict(entries)
    except CheckpointError:
        return False


def _same_tensors(one: Path, other: Path) -> bool:
    with TensorFile(one) as first, TensorFile(other) as second:
        return all(first.read_bytes(name) == second.read_bytes(name) for name in first.tensors)


def without_dates(metadata: Mapping[str, str]) -> dict[str, str]:
    """`metadata` of a LoRA without when it was made: a run that is made again gives the same one on another day."""
    return {key: value for key, value in metadata.items() if key not in DATES}


def occupied(out: Path, by_the_same: bool = False) -> ConfigError:
    """That another file stands at `out`; `by_the_same`: it says the same of itself, and has other numbers."""
    what = "holds something else, which would be lost"
    if by_the_same:
        what = (
            "was made in the same way of LoRAs of these names, and its numbers are others: they were trained anew, or "
            "it is damaged"
        )
    return ConfigError(
        f"{out} is there already and {what}. Choose another name, or delete it first (--replace does on the command "
        "line)."
    )
