"""Activation recomputing: what backward can work out again is not kept.

`recomputed` runs a piece of the network without keeping anything and runs it again in backward. `Remade` is the small
change: a tensor that is cheap to make from one that is kept anyway is kept as that recipe.

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
from torch.nn.functional import gelu

Run = Callable[..., tuple[Tensor, ...]]


def recomputed(run: Run, tensors: Sequence[Tensor | None], parameters: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """`run(*tensors, replay=...)`, keeping only `tensors` for backward.

    `run` must read nothing that needs a gradient but `tensors` and `parameters`, and must be repeatable.
    """
    return _Recomputed.apply(run, len(tensors), *tensors, *parameters)


def deferred(
    run: Callable[..., Tensor],
    x: Tensor,
    others: Sequence[Tensor | None],
    parameters: Sequence[Tensor],
    step: int,
    value: bool,
) -> Tensor:
    """`run(x[:, part], *others, part=part, unread=...)` over slices of `step` tokens of x [B, T, D], keeping x only.

    Backward runs each slice again, with `unread=True`: only the gradient of what `run` returns matters then. Without
    `value` the forward pass runs nothing: the result is a stand-in of one number that nobody may read.
    """
    return _Deferred.apply(run, step, value, len(others), x, *others, *parameters)


def unread_gelu(linear: nn.Module, hidden: Tensor) -> Tensor:
    """A stand-in for `linear(gelu(hidden))` that has its gradient; where `linear` allows, it has not its value.

    A module offers this by a method `unread(x)`; a plain frozen linear needs none, and no GELU either.
    """
    if type(linear) is nn.Linear and not linear.weight.requires_grad:
        return _UnreadGelu.apply(hidden, linear.weight)
    return getattr(linear, "unread", linear)(gelu(hidden, approximate="tanh"))


def trainable(module: nn.Module) -> list[Tensor]:
    """The parameters of `module` that want a gradient."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


class Remade:
    """While entered, tensors that were noted are kept for backward as a recipe instead of as values.

    Autograd asks before it keeps a tensor; one that was noted is answered with how to make it again. Which operation
    keeps it, a library's or our own, makes no difference, and neither does a view of it in another shape.
    """

    def __init__(self) -> None:
        self._recipes: list[_Recipe] = []
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack)

    def note(self, make: Callable[..., Tensor], *arguments: Any) -> Tensor:
        """`make(*arguments)`, a fresh contiguous tensor, noted; `arguments` live until backward."""
        value = make(*arguments)
        if value.requires_grad:
            self._recipes.append(_Recipe(value, make, arguments))
        return value

    def __enter__(self) -> Remade:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._hooks.__exit__(*error)
        for recipe in self._recipes:
            recipe.value = None  # held so far lest its memory is given to another tensor
        self._recipes.clear()

    def _pack(self, tensor: Tensor) -> Any:
        for recipe in self._recipes:
            value = recipe.value
            if tensor.data_ptr() == value.data_ptr() and tensor.numel() == value.numel():
                recipe.keepers += 1
                return recipe, tensor.shape, tensor.stride()
        return tensor

    @staticmethod
    def _unpack(packed: Any) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        recipe, shape, stride = packed
        return recipe.again().as_strided(shape, stride)


class _Recipe:
    """How to make one tensor. Made once in a backward pass, whoever asks first, and let go after the last asked."""

    def __init__(self, value: Tensor, make: Callable[..., Tensor], arguments: tuple[Any, ...]) -> None:
        self.value: Tensor | None = value
        self.make = make
        self.arguments = tuple(a.detach() if isinstance(a, Tensor) else a for a in arguments)
        self.keepers = 0
        self.asked = 0

    def again(self) -> Tensor:
        value = self.value
        if value is None:
            with torch.no_grad():
                value = self.make(*self.arguments)
        self.asked += 1
        last = self.asked % self.keepers == 0
        self.value = None if last else value
        return value


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
    def forward(ctx: Any, run: Any, step: int, value: bool, count: int, x: Tensor, *others: Tensor | None) -> Tensor:
        ctx.run, ctx.step, ctx.parameters = run, step, others[count:]
        ctx.save_for_backward(x, *others[:count])
        if not value:
            return x.new_empty(()).expand(x.shape)
        out = torch.empty_like(x)
        for part in _parts(x, step):
            out[:, part] = run(x[:, part], *others[:count], part=part, unread=False)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, *others = _leaves(ctx.saved_tensors, ctx.needs_input_grad[4:])
        wanted = [*others, *ctx.parameters]
        grad_x = torch.empty_like(x) if x.requires_grad else None
        total: list[Tensor | None] = [None] * len(wanted)
        for part in _parts(x, ctx.step):
            piece = x.detach()[:, part].requires_grad_(x.requires_grad)
            with torch.enable_grad():
                out = ctx.run(piece, *others, part=part, unread=True)
            first, *rest = _gradients((out,), (grad[:, part],), [piece, *wanted])
            if grad_x is not None and first is not None:
                grad_x[:, part] = first
            total = [b if a is None else a if b is None else a + b for a, b in zip(total, rest, strict=True)]
        return None, None, None, None, grad_x, *total


class _UnreadGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(hidden, weight)
        return hidden.new_empty(()).expand(*hidden.shape[:-1], weight.shape[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        hidden, weight = ctx.saved_tensors
        # two-dimensional, since a product over a batch dimension is slower
        inner = (grad.reshape(-1, grad.shape[-1]).to(weight.dtype) @ weight).view(hidden.shape)
        return torch.ops.aten.gelu_backward(inner, hidden, approximate="tanh"), None


def _parts(x: Tensor, step: int) -> list[slice]:
    return [slice(start, min(start + step, x.shape[1])) for start in range(0, x.shape[1], step)]


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
