"""Everything a run needs to go on where it stopped, in one safetensors file written in one move.

A state holds the LoRA, the optimizer, the schedule, the random generators and the place in the data. Tensors are
stored as tensors; the nested dictionaries around them are JSON in the metadata with the tensors' names in their
place. There is no pickle, so a state from a stranger is only data.
"""

from __future__ import annotations

import contextlib
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError, RunError
from ..files import CHECK_SUMS, check_sum, entries, write_checked
from ..full.parts import Gathered
from ..weights.reader import TensorFile

FORMAT = "ltx2_train_state_1"
_TENSOR, _PAIRS, _TUPLE = "__tensor__", "__pairs__", "__tuple__"
_TREE_SUM = "tree_crc32"
_NAME = r"state_(\d+)\.safetensors"


def save_state(path: Path, content: Mapping[str, Any]) -> Path:
    """Write nested dictionaries of tensors, numbers, strings, lists and None. Raises RunError on a full disk."""
    tensors: dict[str, Tensor | Gathered] = {}
    tree = json.dumps(_pack(content, "", tensors, {}))
    write_checked(path, tensors, {"format": FORMAT, "tree": tree, _TREE_SUM: _crc(tree)})
    return path


def load_state(path: Path) -> dict[str, Any]:
    """What `save_state` wrote; tensors on the CPU. Raises RunError where the file is damaged or not a state."""
    with _state_file(path) as file:
        tensors = {name: file.read(name) for name in file.tensors}
        for name, written in json.loads(file.metadata.get(CHECK_SUMS, "{}")).items():
            if check_sum(tensors[name]) != written:
                raise ValueError(f"{name} has other bytes than were written")
        return _unpack(json.loads(file.metadata["tree"]), tensors)


def read_tree(path: Path) -> dict[str, Any]:
    """What `save_state` wrote with None for every tensor, from the header alone. Raises RunError as `load_state`."""
    with _state_file(path) as file:
        return _unpack(json.loads(file.metadata["tree"]), dict.fromkeys(file.tensors))


@contextlib.contextmanager
def _state_file(path: Path) -> Iterator[TensorFile]:
    try:
        with TensorFile(path) as file:
            if file.metadata.get("format") != FORMAT:
                raise RunError(f"{path} is not a training state of this program ({FORMAT}).")
            tree = file.metadata["tree"]
            if file.metadata.get(_TREE_SUM, _crc(tree)) != _crc(tree):
                raise ValueError("what it says of the run has other bytes than were written")
            step, named = json.loads(tree).get("step"), re.fullmatch(_NAME, path.name)
            if step is not None and named and int(named[1]) != step:
                raise RunError(
                    f"The state {path} was saved after step {step}, not {int(named[1])}. Name it {state_name(step)}."
                )
            yield file
    except (CheckpointError, OSError, KeyError, ValueError, RecursionError) as error:
        reason = getattr(error, "reason", "") or f"{type(error).__name__}: {error}"
        raise RunError(f"The state {path} is damaged and cannot be gone on from: {reason}.") from error


def _crc(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x}"


def state_name(step: int) -> str:
    """File name of the state after `step` steps; sorts by step."""
    return f"state_{step:08d}.safetensors"


def list_states(folder: Path) -> list[tuple[int, Path]]:
    """(step, path) of the states in `folder`, oldest first; a folder of such a name is none. Raises OSError where it is
    closed to this user."""
    found = []
    for path in entries(folder):
        if (match := re.fullmatch(_NAME, path.name)) and not path.is_dir():
            found.append((int(match[1]), path))
    return sorted(found)


def random_state() -> dict[str, Tensor]:
    """The generators that torch itself draws from (dropout); our own are seeded anew from the step's number."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: Mapping[str, Tensor]) -> None:
    """Undo everything drawn since `random_state`."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _pack(value: Any, name: str, tensors: dict[str, Tensor | Gathered], names: dict[int, str]) -> Any:
    if isinstance(value, (Tensor, Gathered)):
        # bitsandbytes shares lookup tables between parameters; a safetensors file holds each memory once
        known = names.setdefault(id(value), name)
        tensors[known] = value
        return {_TENSOR: known}
    if isinstance(value, Mapping):
        # JSON knows only string keys; optimizers number their parameters
        if all(isinstance(key, str) for key in value):
            return {key: _pack(inner, f"{name}.{key}" if name else key, tensors, names) for key, inner in value.items()}
        return {_PAIRS: [[key, _pack(inner, f"{name}.{key}", tensors, names)] for key, inner in value.items()]}
    if isinstance(value, tuple):
        return {_TUPLE: [_pack(inner, f"{name}.{index}", tensors, names) for index, inner in enumerate(value)]}
    if isinstance(value, list):
        return [_pack(inner, f"{name}.{index}", tensors, names) for index, inner in enumerate(value)]
    assert value is None or isinstance(value, (bool, int, float, str)), f"{name}: cannot save a {type(value).__name__}"
    return value


def _unpack(tree: Any, tensors: Mapping[str, Tensor | None]) -> Any:
    if isinstance(tree, list):
        return [_unpack(inner, tensors) for inner in tree]
    if isinstance(tree, dict):
        if _TENSOR in tree:
            return tensors[tree[_TENSOR]]
        if _PAIRS in tree:
            return {key: _unpack(inner, tensors) for key, inner in tree[_PAIRS]}
        if _TUPLE in tree:
            return tuple(_unpack(inner, tensors) for inner in tree[_TUPLE])
        return {key: _unpack(inner, tensors) for key, inner in tree.items()}
    return tree
