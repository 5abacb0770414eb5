"""A LoRA of a lower rank: the best one there is, by singular values, and how much of the change is lost.

    B A = U S V  ~  the first r of them,      error = ||what is left out|| / ||B A||  (Frobenius)

U, S and V come from QR of the two factors, so that no weight change is ever formed in full.

Eckart and Young 1936.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..device import pick_device
from ..errors import ConfigError
from ..events import Events, shielded
from .low_rank import halved, singular
from .metadata import HASHES, METADATA_FORMAT
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
from .scales import ENTRY
from .source import LoraSource, tell_doubts
from .targets import branch_of, count_branches

TOOL = "Resizing"


def resize_lora(
    path: Path | str,
    out: Path | str,
    rank: int | None = None,
    max_error: float | None = None,
    dtype: str = "auto",
    replace: bool = False,
    device: str = "auto",
    events: Events | None = None,
) -> LoraMade:
    """Write the LoRA at `path` to `out` with layers of at most `rank`.

    With `max_error` each layer takes the lowest rank that loses no more than this share of its norm, never above
    `rank`. Layers whose rank is low enough keep it. Raises ConfigError where nothing would change, CheckpointError
    where the file is damaged, Stopped when the user stopped.
    """
    out, events = Path(out), shielded(events)
    _check(rank, max_error)
    check_target(out, [Path(path)])
    with LoraSource(path, TOOL, events) as source:
        before = source.about.ranks
        if max_error is None and rank is not None and rank >= before[-1]:
            raise ConfigError(
                f"{source.path.name} has rank {before[-1]} already, so rank {rank} would change nothing. Name a lower "
                "one."
            )
        notes = [*tell_doubts([source], events), f"from rank {_span(before)}"]
        number, losses = pick_dtype(dtype, source.dtype()), Losses()
        place = pick_device(device)
        tensors: dict[str, Tensor] = {}
        ranks: dict[str, int] = {}
        events.stage("resize LoRA", len(source.layers))
        for done, layer in enumerate(source.layers, 1):
            events.check_stop()
            u, s, v = singular(*source.factors(layer, place))
            ranks[layer] = kept = _rank_for(s, rank, max_error)
            *halves, lost = rounded(*halved(u[:, :kept], s[:kept], v[:kept]), number, layer)
            losses.add(branch_of(layer), square_sum(s[kept:]) + lost, square_sum(s))
            tensors.update(zip(lora_keys(layer), halves, strict=True))
            events.progress(done, len(source.layers), layer)
        metadata = _metadata(source, ranks, losses)
    notes += tell_lost(losses, "Give a higher rank.", events)
    write_tensors_of(out, tensors, metadata, replace, events.check_stop)
    return LoraMade(out, count_branches(ranks), sorted(set(ranks.values())), notes, losses.shares())


def _rank_for(s: Tensor, rank: int | None, max_error: float | None) -> int:
    most = min(len(s), rank or len(s))
    if max_error is None:
        return most
    squares = s.double().square()
    left = squares.flip(0).cumsum(0).flip(0)  # what is lost with the first 0, 1, 2 ... alone
    enough = torch.nonzero(left <= max_error**2 * left[0])
    return max(1, min(most, int(enough[0]) if len(enough) else len(s)))


def _metadata(source: LoraSource, ranks: dict[str, int], losses: Losses) -> dict[str, str]:
    most = str(max(ranks.values()))
    gone = {*HASHES, ENTRY}
    told = {key: value for key, value in source.metadata.items() if key not in gone}
    told |= {"format_version": METADATA_FORMAT, "rank": most, "alpha": most, "alpha_folded": "true"}
    told |= {"ss_network_dim": most, "ss_network_alpha": most, "ss_network_module": "ltx2_train.lora"}
    told |= {"resized_from": source.path.name, "resized_from_rank": _span(source.about.ranks)}
    told["resize_error"] = f"{losses.shares().get('all', 0.0):.6f}"
    return told


def _span(ranks: list[int]) -> str:
    return str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"


def _check(rank: int | None, max_error: float | None) -> None:
    if rank is None and max_error is None:
        raise ConfigError("Say how small: a rank, the largest error, or both.")
    if rank is not None and rank < 1:
        raise ConfigError(f"rank is {rank}. It is at least 1.")
    if max_error is not None and not 0.0 < max_error < 1.0:
        raise ConfigError(f"max_error is {max_error:g}. It is a share of the change, between 0 and 1, such as 0.05.")
