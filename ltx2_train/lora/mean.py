"""The mean of LoRAs that one run has saved, weighted towards the last: an EMA of the weights after the fact.

A LoRA that was saved at step s counts decay ^ (last - s), times the steps since the one before it, which it stands for.
What is averaged are the changes B A of the weights, and not A and B, whose mean is another change. The mean of n
changes has n times their rank; its best approximation in the rank of the files, along its singular vectors, is written.
A LoKr, a LoHa or a DoRA has no such approximation: there the factors are averaged, as a running mean does.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError
from ..files import write_tensors
from .effect import why_idle
from .file import PREFIX, LoraFile, load_lora_state
from .low_rank import factored
from .new_file import check_target
from .places import doubts_of
from .save import tensors_hash


@dataclass(frozen=True)
class MeanReport:
    """The file that was written, the share of each step in it, and the share of the mean that its rank holds; `idle`
    has a sentence on each file that does nothing, and on files of several runs."""

    path: Path
    shares: dict[int, float]
    kept: float
    idle: tuple[str, ...] = ()

    def text(self) -> str:
        """Some lines for a terminal."""
        shares = ", ".join(f"step {step} {share:.1%}" for step, share in self.shares.items())
        count, held = len(self.shares), f"{self.kept:.2%}"
        mean = f"{self.path.name}: the mean of {count} LoRAs ({shares}); its rank holds {held} of it"
        return "\n".join([mean, *self.idle])


def mean_of_loras(
    paths: Sequence[Path | str], out: Path | str, decay: float = 0.999, rank: int | None = None
) -> MeanReport:
    """Write to `out` the mean of the LoRAs at `paths`, which one run saved at several steps; `rank`: that of the files.

    Raises ConfigError where they do not go together, or `out` is there already; CheckpointError where one is no LoRA.
    """
    out = Path(out)
    if not 0 < decay < 1:
        raise ConfigError(f"The decay is {decay:g}; it must lie between 0 and 1, for example 0.999.")
    if rank is not None and rank < 1:
        raise ConfigError(f"rank is {rank}. It is at least 1.")
    check_target(out, [])
    if out.exists():
        raise ConfigError(f"{out} is there already. Choose another name, or delete it first.")
    given = [load_lora_state(path) for path in paths]
    files = {_step_of(file): file for file in given}
    if len(files) < 2:
        raise ConfigError(
            "A mean needs LoRAs of at least two steps of a run. Name more files, or the folder of the run."
        )
    files = dict(sorted(files.items()))
    idle = tuple(_doubts(given, files))
    _require_alike(list(files.values()))
    shares = _shares(list(files), decay)
    last = next(reversed(files.values()))
    if last.others and rank is not None:
        raise ConfigError(
            f"{last.path.name} is no plain LoRA. Of such files the factors are averaged, whose rank stays. Leave the "
            "rank out."
        )
    highest = _highest_rank(list(files.values()), last)
    if rank is not None and rank > highest:
        raise ConfigError(f"rank is {rank}, and the mean of these {len(files)} LoRAs has {highest} at most. Lower it.")
    rank = rank or (last.ranks[-1] if last.ranks else int(last.metadata.get("rank") or 0))
    tensors: dict[str, Tensor] = {}
    whole = held = 0.0
    for module, other in last.others.items():
        for end, tensor in other.parts.items():
            parts = [
                file.others[module].parts[end].float() * share
                for file, share in zip(files.values(), shares, strict=True)
            ]
            key = f"{PREFIX}{module}.{end}{'.weight' if end.startswith('lora_') else ''}"
            tensors[key] = torch.stack(parts).sum(0).to(tensor.dtype).contiguous()
    for module in (name for name in last.entries if name not in last.others):
        parts = [(file.entries[module], share) for file, share in zip(files.values(), shares, strict=True)]
        a = torch.cat([entry.down.float() for entry, _ in parts])
        b = torch.cat([entry.up.float() * (entry.scale * share) for entry, share in parts], dim=1)
        a, b = factored(a, b)
        sizes = (a.norm(dim=1) * b.norm(dim=0)).square()  # squares of the singular values, largest first
        whole, held = whole + float(sizes.sum()), held + float(sizes[:rank].sum())
        dtype = last.entries[module].down.dtype
        tensors[f"{PREFIX}{module}.lora_A.weight"] = a[:rank].to(dtype).contiguous()
        tensors[f"{PREFIX}{module}.lora_B.weight"] = b[:, :rank].to(dtype).contiguous()
    write_tensors(out, tensors, _metadata(last, tensors, rank, decay, list(files)))
    return MeanReport(out, dict(zip(files, shares, strict=True)), held / whole if whole else 1.0, idle)


def _doubts(given: Sequence[LoraFile], files: Mapping[int, LoraFile]) -> Iterator[str]:
    """What is to be said of the LoRAs that were `given`, and of those that are taken, by step."""
    for file in files.values():
        if why := why_idle(file.path):
            yield f"{file.path.name} does nothing: {why}."
        yield from (f"{file.path.name}: {text}" for text in doubts_of(file))
    yield from _of_several_runs(given)
    for file in given:
        if file.metadata != (taken := files[_step_of(file)]).metadata:
            yield f"{file.path.name} is left out: {taken.path.name} is of its step, too."


def _of_several_runs(files: Sequence[LoraFile]) -> Iterator[str]:
    """What is to be said where files name other runs, whose mean is of no one way that was gone."""
    named = {file.metadata.get("name", ""): file.path.name for file in files if file.metadata.get("name")}
    if len(named) > 1:
        runs = ", ".join(f"{path} of {name}" for name, path in named.items())
        yield f"These are LoRAs of {len(named)} runs ({runs}); a mean is meant for those that one run saved."
    seeds = {file.metadata["ss_seed"]: file.path.name for file in files if file.metadata.get("ss_seed")}
    if len(named) <= 1 and len(seeds) > 1:
        runs = ", ".join(f"{path} with the seed {seed}" for seed, path in seeds.items())
        yield f"These are LoRAs of {len(seeds)} runs ({runs}); a mean is meant for those that one run saved."


def _highest_rank(files: Sequence[LoraFile], last: LoraFile) -> int:
    """The rank that holds all of the mean in every layer: the ranks of the files together, or a side of the layer."""
    plain = [(name, entry) for name, entry in last.entries.items() if name not in last.others]
    return max(
        (
            min(sum(len(file.entries[name].down) for file in files), entry.down.shape[1], len(entry.up))
            for name, entry in plain
        ),
        default=0,
    )


def _shares(steps: Sequence[int], decay: float) -> list[float]:
    first = steps[1] - steps[0]  # what the first stands for is not known: as much as the second
    lengths = [first, *(later - earlier for earlier, later in zip(steps, steps[1:], strict=False))]
    weights = [length * decay ** (steps[-1] - step) for length, step in zip(lengths, steps, strict=True)]
    return [weight / sum(weights) for weight in weights]


def _step_of(file: LoraFile) -> int:
    try:
        return int(file.metadata["step"])
    except (KeyError, ValueError):
        raise ConfigError(
            f"{file.path.name} does not say after how many steps it was saved, so its share in the mean is not known. "
            "Name LoRAs that this program saved."
        ) from None


def _require_alike(files: Sequence[LoraFile]) -> None:
    first = files[0]
    for file in files:
        file.require_scale()
        if file.unpaired or file.strange_keys:
            raise ConfigError(f"{file.path.name} holds what is not known here, so a mean cannot be made of it.")
        if _sizes(file) != _sizes(first):
            raise ConfigError(
                f"{file.path.name} and {first.path.name} change other layers, so they are not of one run. Name the "
                "LoRAs of one run."
            )


def _sizes(file: LoraFile) -> dict[str, Any]:
    """What must agree: sizes of the weights, and of the factors where those are averaged."""
    sizes: dict[str, Any] = {module: entry.size for module, entry in file.layers.items()}
    return sizes | {
        module: {end: part.shape for end, part in entry.parts.items()} for module, entry in file.others.items()
    }


def _metadata(last: LoraFile, tensors: dict[str, Tensor], rank: int, decay: float, steps: list[int]) -> dict[str, str]:
    digest = tensors_hash(tensors)
    return {
        **last.metadata,
        "rank": str(rank),
        "alpha": str(rank),
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(rank),
        "mean_of_steps": json.dumps(steps),
        "mean_decay": f"{decay:g}",
        "sshs_model_hash": digest,
        "modelspec.hash_sha256": f"0x{digest}",
    }
