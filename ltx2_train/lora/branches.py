"""Take a LoRA apart by branch: keep the voice and drop the looks, or the other way round.

A LoRA of picture and sound is a sum of independent changes to single layers, so a part of it is a LoRA as well. The
tensors that stay are copied bit for bit under the keys they had; the metadata says what was taken out.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import CheckpointError, ConfigError
from ..files import parse_json, write_tensors
from ..registry import nearest
from ..weights.reader import TensorFile
from .effect import why_idle
from .file import load_lora_state
from .foreign import kind_and_layer
from .metadata import HASHES
from .names import checkpoint_name, split_key, without_prefixes
from .new_file import check_target, occupied, without_dates
from .places import doubts_of
from .scales import carried_scales
from .targets import BRANCHES, branch_of, count_branches, dotted

CROSS = "cross"
NAMES = ("video", "audio", "a2v", "v2a", CROSS)
REMOVED = "branches_removed"


@dataclass(frozen=True)
class BranchReport:
    """What became of a LoRA file: layers that stayed in `path`, and those taken out, by branch."""

    path: Path
    kept: dict[str, int]
    removed: dict[str, int]
    other_keys: tuple[str, ...] = ()  # left out with them, and of no layer that is known
    doubts: tuple[str, ...] = ()  # sentences on what it was made from

    def text(self) -> str:
        """A line or two for a terminal."""
        others = f"; left out, of no known layer: {', '.join(self.other_keys)}" if self.other_keys else ""
        line = f"{self.path.name}: kept {_counts(self.kept)}; removed {_counts(self.removed)}{others}"
        return "\n".join([line, *self.doubts])


def keep_branches(path: Path | str, branches: Collection[str], out: Path | str, replace: bool = False) -> BranchReport:
    """Write to `out` the layers of the LoRA at `path` that lie in `branches`: video, audio, a2v, v2a; cross is the
    last two. With `replace` any file at `out` is written over but `path`.

    Raises ConfigError where nothing would be left, its scale is not known, or `out` is `path` or another file;
    CheckpointError where `path` is no LoRA.
    """
    wanted = _resolve(branches)
    return _rewrite(Path(path), wanted, Path(out), f"no layer of {_listed(wanted)}", replace)


def drop_branches(path: Path | str, branches: Collection[str], out: Path | str, replace: bool = False) -> BranchReport:
    """Write to `out` the LoRA at `path` without `branches`, as keep_branches does."""
    unwanted = _resolve(branches)
    return _rewrite(Path(path), set(BRANCHES) - unwanted, Path(out), f"nothing but {_listed(unwanted)}", replace)


def _rewrite(path: Path, wanted: Collection[str], out: Path, why_empty: str, replace: bool) -> BranchReport:
    check_target(out, [path])
    file = load_lora_state(path)  # refuses what is no LoRA
    if file.unpaired:
        raise ConfigError(
            f"{path.name} is no whole LoRA: {file.unpaired[0]} lacks its other half. Save it again with the program "
            "that made it, or fetch it again."
        )
    file.require_scale()
    doubts = [f"{path.name} does nothing: {why}."] if (why := why_idle(path)) else []
    doubts += [f"{path.name}: {text}" for text in doubts_of(file)]
    entries = file.layers
    named = [dotted(name) for name in entries]
    kept = count_branches(name for name in named if branch_of(name) in wanted)
    removed = count_branches(name for name in named if branch_of(name) not in wanted)
    if not kept:
        raise ConfigError(
            f"{path.name} holds {why_empty}, so the new file would be empty. It holds {_counts(removed)}."
        )
    with TensorFile(path) as stored:
        tensors = {key: stored.read(key) for key in stored.tensors if branch_of(_path_of(key)) in wanted}
        others = [key for key in stored.tensors if key not in tensors and branch_of(_path_of(key)) == "other"]
        unknown = tuple(key for key in others if dotted(split_key(key).module) not in named)
        metadata = _metadata({**stored.metadata, **carried_scales(path, stored.metadata)}, kept, removed)
    if out.exists() and not replace and not _holds(out, tensors, metadata):
        raise occupied(out)
    write_tensors(out, tensors, metadata)
    return BranchReport(out, kept, removed, unknown, tuple(doubts))


def _holds(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bool:
    """Whether the file at `path` is what is about to be written, as after a second call."""
    try:
        with TensorFile(path) as file:
            if without_dates(file.metadata) != without_dates(metadata) or set(file.tensors) != set(tensors):
                return False
            return all(torch.equal(file.read(name), tensor) for name, tensor in tensors.items())
    except CheckpointError:
        return False


def _path_of(key: str) -> str:
    """The dotted path behind a key of any spelling; what follows the layer's name does no harm."""
    kind, layer = kind_and_layer(key)
    module = checkpoint_name(without_prefixes(layer)) if kind else split_key(key).module
    head, dot, rest = module.partition(".")
    return head + dot + rest if rest and head == "transformer_blocks" else dotted(head) + dot + rest


def _metadata(metadata: Mapping[str, str], kept: Mapping[str, int], removed: Mapping[str, int]) -> dict[str, str]:
    before: Counter[str] = Counter()
    try:
        before.update({str(name): int(count) for name, count in parse_json(metadata.get(REMOVED, "{}")).items()})
    except (ValueError, TypeError, AttributeError):
        pass  # not ours
    before.update(removed)
    told = {key: value for key, value in metadata.items() if key not in HASHES}
    return told | {"layers": json.dumps(dict(kept)), REMOVED: json.dumps(dict(before))}


def _resolve(branches: Collection[str]) -> set[str]:
    wanted: set[str] = set()
    for name in branches:
        if name not in NAMES:
            close = nearest(name, NAMES)
            raise ConfigError(
                f"{name!r} is no branch of a LoRA. Branches: {', '.join(NAMES)} (a2v and v2a together)."
                + (f" Did you mean {close[0]}?" if close else "")
            )
        wanted.update(("a2v", "v2a") if name == CROSS else (name,))
    if not wanted:
        raise ConfigError(f"No branch was named. Choose from {', '.join(NAMES)}.")
    return wanted


def _listed(branches: Collection[str]) -> str:
    return ", ".join(branch for branch in BRANCHES if branch in branches)


def _counts(layers: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {branch}" for branch, count in layers.items()) or "nothing"
