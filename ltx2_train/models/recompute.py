"""Activation recomputing: run a piece of the network without keeping anything, run it again in backward.

Own code rather than torch.utils.checkpoint, for three savings that the library cannot know of:
 - the second run is told so (`replay=True`) and leaves out products whose value nobody reads;
 - inside a replay a sublayer may be deferred altogether: its value is not needed, only its gradient, which is then
   computed slice by slice over the tokens, so that its wide intermediates never exist at full length;
 - gradients of trainable parameters are returned like those of any autograd function, so `torch.autograd.grad`,
   gradient hooks and data-parallel wrappers see them as usual.

Chen et al. 2016, arXiv:1604.06174.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Run = Callable[..., tuple[Tensor, ...]]


def recomputed(run: Run, tensors: Sequence[Tensor | None], parameters: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """`run(*tensors, replay=...)`, keeping only `tensors` for backward.

    `run` must read nothing that needs a gradient but `tensors` and `parameters`, and must be repeatable.
    """
    return _Recomputed.apply(run, len(tensors), *tensors, *parameters)


def deferred(
    run: Callable[..., Tensor], x: Tensor, others: Sequence[Tensor | None], parameters: Sequence[Tensor], step: int
) -> Tensor:
    """A stand-in for `run(x, *others, part=slice(None))` [B, T, D] that has its gradient but not its value.

    Backward calls `run(x[:, part], *others, part=part)` for slices of `step` tokens. The result's storage is one
    number: nothing may read it.
    """
    return _Deferred.apply(run, step, len(others), x, *others, *parameters)


def unread(linear: nn.Module, x: Tensor) -> Tensor:
    """A stand-in for `linear(x)` that has its gradient but not its value, where `linear` knows how; else `linear(x)`.

    A module offers this by a method `unread(x)`; a plain frozen linear needs none.
    """
    if type(linear) is nn.Linear and not linear.weight.requires_grad:
        return _UnreadLinear.apply(x, linear.weight)
    method = getattr(linear, "unread", None)
    return linear(x) if method is None else method(x)


def trainable(module: nn.Module) -> list[Tensor]:
    """The parameters of `module` that want a gradient."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, run: Run, count: int, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.run, ctx.parameters = run, tensors[count:]
        ctx.save_for_backward(*tensors[:count])
        return run(*tensors[:count], replay=False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        inputs = _leaves(ctx.saved_tensors, ctx.needs_input_grad[2:])
        with torch.enable_grad():
            outputs = ctx.run(*inputs, replay=True)
        return None, None, *_gradients(outputs, grads, [*inputs, *ctx.parameters])


class _Deferred(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, run: Any, step: int, count: int, x: Tensor, *others: Tensor | None) -> Tensor:
        ctx.run, ctx.step, ctx.parameters = run, step, others[count:]
        ctx.save_for_backward(x, *others[:count])
        return x.new_empty(()).expand(x.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, *others = _leaves(ctx.saved_tensors, ctx.needs_input_grad[3:])
        wanted = [*others, *ctx.parameters]
        grad_x = torch.empty_like(x) if x.requires_grad else None
        total: list[Tensor | None] = [None] * len(wanted)
        for start in range(0, x.shape[1], ctx.step):
            part = slice(start, min(start + ctx.step, x.shape[1]))
            piece = x.detach()[:, part].requires_grad_(x.requires_grad)
            with torch.enable_grad():
                out = ctx.run(piece, *others, part=part)
            first, *rest = _gradients((out,), (grad[:, part],), [piece, *wanted])
            if grad_x is not None and first is not None:
                grad_x[:, part] = first
            total = [b if a is None else a if b is None else a + b for a, b in zip(total, rest, strict=True)]
        return None, None, None, grad_x, *total


class _UnreadLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return x.new_empty(()).expand(*x.shape[:-1], weight.shape[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        (weight,) = ctx.saved_tensors
        return grad.to(weight.dtype) @ weight, None


def _leaves(tensors: Sequence[Tensor | None], wanted: Sequence[bool]) -> list[Tensor | None]:
    pairs = zip(tensors, wanted, strict=False)
    return [None if tensor is None else tensor.detach().requires_grad_(want) for tensor, want in pairs]


def _gradients(outputs: Sequence[Tensor], grads: Sequence[Tensor | None], inputs: Sequence[Tensor | None]) -> list[Any]:
    """d outputs / d inputs, None where an input needs none."""
    ends = [(o, g) for o, g in zip(outputs, grads, strict=True) if g is not None and o.requires_grad]
    places = [i for i, tensor in enumerate(inputs) if tensor is not None and tensor.requires_grad]
    result: list[Any] = [None] * len(inputs)
    if ends and places:
        found = torch.autograd.grad(
            [o for o, _ in ends], [inputs[i] for i in places], [g for _, g in ends], allow_unused=True
        )
        for i, gradient in zip(places, found, strict=True):
            result[i] = gradient
    return result
