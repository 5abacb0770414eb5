"""A small autograd engine in Python, for tensors that pretend to be on a card: torch's own asks the driver for streams.

It walks the same graph in the same order (later nodes first) and calls the same nodes; only the queue is ours.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any

import torch
from torch import Tensor

Node = Any
Place = tuple[Node, int]  # a node and which of its inputs


def gradients(
    roots: Sequence[Tensor], seeds: Sequence[Tensor | None], inputs: Sequence[Tensor] | None
) -> list[Tensor | None]:
    """d roots / d inputs; with `inputs` None the leaves take up their gradients and nothing is returned."""
    starts = [torch.autograd.graph.get_gradient_edge(root) for root in roots]
    wanted: dict[Place, list[int]] = defaultdict(list)
    for index, tensor in enumerate(inputs or ()):
        edge = torch.autograd.graph.get_gradient_edge(tensor)
        wanted[edge.node, edge.output_nr].append(index)
    nodes = _reachable([start.node for start in starts])
    needed = None if inputs is None else _leading_to({node for node, _ in wanted}, nodes)
    missing = _uses(nodes)
    collected: dict[Node, dict[int, Tensor]] = defaultdict(dict)
    result: list[Tensor | None] = [None] * len(inputs or ())
    queue, number = [], count()

    def add(node: Node, place: int, gradient: Tensor) -> None:
        there = collected[node]
        gradient = _fitting(node, place, gradient)
        there[place] = gradient if place not in there else there[place] + gradient

    def push(node: Node) -> None:
        order = 1 << 62 if _is_leaf(node) else node._sequence_nr()
        heapq.heappush(queue, (-order, next(number), node))

    for root, start, seed in zip(roots, starts, seeds, strict=True):
        add(start.node, start.output_nr, torch.ones_like(root) if seed is None else seed)
    for node in {start.node for start in starts}:
        if missing[node] == 0:
            push(node)
    while queue:
        _, _, node = heapq.heappop(queue)
        found = collected.pop(node, {})
        for (one, place), indices in wanted.items():
            if one is node and place in found:
                for index in indices:
                    result[index] = found[place]
        if _is_leaf(node):
            if inputs is None and found:
                _accumulate(node.variable, found[0])
            continue
        below = [(edge[0], edge[1]) for edge in node.next_functions]
        useful = found and (needed is None or any(one in needed for one, _ in below))
        outputs = _call(node, found) if useful else [None] * len(below)
        for (one, place), gradient in zip(below, outputs, strict=False):
            if one is None:
                continue
            if gradient is not None:
                add(one, place, gradient)
            missing[one] -= 1
            if missing[one] == 0:
                push(one)
    return result


@contextmanager
def in_python() -> Iterator[None]:
    """While entered, backward passes are done here."""
    apply = torch.autograd.Function.__dict__["apply"]

    def backward(tensors: Any, grad_tensors: Any = None, *_: Any, **__: Any) -> None:
        gradients(_several(tensors), _seeds(tensors, grad_tensors), None)

    def grad(outputs: Any, inputs: Any, grad_outputs: Any = None, *_: Any, **__: Any) -> tuple[Tensor | None, ...]:
        return tuple(gradients(_several(outputs), _seeds(outputs, grad_outputs), _several(inputs)))

    def noting(cls: Any, *arguments: Any, **named: Any) -> Any:
        out = apply.__func__(cls, *arguments, **named)
        for tensor in out if isinstance(out, tuple) else (out,):
            node = getattr(tensor, "grad_fn", None)
            if isinstance(node, torch._C._FunctionBase):
                node.takes = [isinstance(argument, Tensor) for argument in arguments]
                break
        return out

    with by_torch():  # which puts everything back
        torch.autograd.backward, torch.autograd.grad = backward, grad
        Tensor.backward = lambda self, gradient=None, *_, **__: backward(self, gradient)
        torch.autograd.Function.apply = classmethod(noting)
        yield


_PLACES = (
    (torch.autograd, "backward"),
    (torch.autograd, "grad"),
    (Tensor, "backward"),
    (torch.autograd.Function, "apply"),
)
_TORCHS = [owner.__dict__[name] for owner, name in _PLACES]


@contextmanager
def by_torch() -> Iterator[None]:
    """While entered, backward passes are torch's own again."""
    before = [owner.__dict__[name] for owner, name in _PLACES]
    for (owner, name), own in zip(_PLACES, _TORCHS, strict=True):
        setattr(owner, name, own)
    try:
        yield
    finally:
        for (owner, name), own in zip(_PLACES, before, strict=True):
            setattr(owner, name, own)


def _several(tensors: Any) -> list[Tensor]:
    return [tensors] if isinstance(tensors, Tensor) else list(tensors)


def _seeds(tensors: Any, seeds: Any) -> list[Tensor | None]:
    return [None] * len(_several(tensors)) if seeds is None else _several(seeds)


def _is_leaf(node: Node) -> bool:
    return type(node).__name__ == "AccumulateGrad"


def _reachable(roots: Sequence[Node]) -> set[Node]:
    seen, waiting = set(roots), list(roots)
    while waiting:
        for below, _ in waiting.pop().next_functions:
            if below is not None and below not in seen:
                seen.add(below)
                waiting.append(below)
    return seen


def _uses(nodes: set[Node]) -> dict[Node, int]:
    """How many gradients each node waits for."""
    uses: dict[Node, int] = defaultdict(int)
    for node in nodes:
        for below, _ in node.next_functions:
            if below is not None:
                uses[below] += 1
    return uses


def _leading_to(ends: set[Node], nodes: set[Node]) -> set[Node]:
    above: dict[Node, list[Node]] = defaultdict(list)
    for node in nodes:
        for below, _ in node.next_functions:
            if below is not None:
                above[below].append(node)
    seen, waiting = set(ends), list(ends)
    while waiting:
        for node in above[waiting.pop()]:
            if node not in seen:
                seen.add(node)
                waiting.append(node)
    return seen


def _call(node: Node, found: dict[int, Tensor]) -> list[Tensor | None]:
    metadata = getattr(node, "_input_metadata", ())
    inputs = [found.get(place) for place in range(max(len(metadata), max(found) + 1))]
    with torch.no_grad():
        if isinstance(node, torch._C._FunctionBase):  # a function of ours: it answers for every argument
            out = node.apply(*inputs)
            answers = out if isinstance(out, tuple) else (out,)
            return [answer for answer, takes in zip(answers, node.takes, strict=False) if takes]
        out = node(*inputs)
    return list(out) if isinstance(out, tuple) else [out]


def _fitting(node: Node, place: int, gradient: Tensor) -> Tensor:
    """`gradient` in shape and dtype of what it belongs to, as the engine makes it."""
    if _is_leaf(node):
        shape, dtype = node.variable.shape, node.variable.dtype
    else:
        try:
            meta = node._input_metadata[place]
            shape, dtype = tuple(meta.shape), meta.dtype
        except (AttributeError, IndexError, RuntimeError):
            return gradient
    if tuple(gradient.shape) != tuple(shape):
        gradient = gradient.sum_to_size(*shape)
    return gradient if gradient.dtype == dtype else gradient.to(dtype)


def _accumulate(variable: Tensor, gradient: Tensor) -> None:
    with torch.no_grad():
        variable.grad = gradient if variable.grad is None else variable.grad + gradient
