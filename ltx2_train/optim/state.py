"""The state of an optimizer as tensors and JSON, so that it can be saved without pickle.

`Optimizer.state_dict()` is a tree of dicts, lists, numbers and tensors (8-bit optimizers nest deeper than torch's
own). The tree is stored as JSON in which a tensor is replaced by its name, and the keys of dicts, which may be
numbers, are kept in pairs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..errors import RunError

TENSOR, PAIRS, TUPLE = "tensor", "pairs", "tuple"


def pack_state(optimizer: Optimizer) -> tuple[dict[str, Tensor], str]:
    """The tensors of the state by name, on their devices and unshared, and the rest as a JSON text."""
    tensors: dict[str, Tensor] = {}
    tree = _encode(optimizer.state_dict(), "optimizer", tensors)
    return tensors, json.dumps(tree)


def unpack_state(optimizer: Optimizer, tensors: Mapping[str, Tensor], text: str) -> None:
    """Put a packed state into `optimizer`. Raises RunError where it is from another optimizer or other parameters."""
    try:
        state = _decode(json.loads(text), tensors)
        sizes = [len(group["params"]) for group in state["param_groups"]]
        expected = [len(group["params"]) for group in optimizer.param_groups]
        if sizes != expected:
            raise ValueError(f"it is for groups of {sizes} parameters, the run has {expected}")
        unknown = set(optimizer.param_groups[0]) - set(state["param_groups"][0]) - {"params"}
        if unknown:
            raise ValueError(f"it lacks {', '.join(sorted(unknown))}, so another optimizer wrote it")
        optimizer.load_state_dict(state)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise RunError(
            f"The saved optimizer state does not fit this run: {error}. Resume with the optimizer, rank and targets "
            "that the run began with, or start a new run from its LoRA (lora.weights)."
        ) from error


def _encode(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[name] = value.detach().clone()
        return {TENSOR: name}
    if isinstance(value, Mapping):
        return {PAIRS: [[key, _encode(inner, f"{name}.{key}", tensors)] for key, inner in value.items()]}
    if isinstance(value, (list, tuple)):
        items = [_encode(inner, f"{name}.{index}", tensors) for index, inner in enumerate(value)]
        return {TUPLE: items} if isinstance(value, tuple) else items
    assert value is None or isinstance(value, (bool, int, float, str)), f"{name}: {type(value).__name__} in the state"
    return value


def _decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(inner, tensors) for inner in value]
    if isinstance(value, dict):
        if TENSOR in value:
            # the optimizer updates its state in place; the caller's tensors stay as they are
            return torch.clone(tensors[value[TENSOR]])
        if TUPLE in value:
            return tuple(_decode(inner, tensors) for inner in value[TUPLE])
        return {key: _decode(inner, tensors) for key, inner in value[PAIRS]}
    return value
