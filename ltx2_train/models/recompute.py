"""Activation recomputing: what backward can work out again is not kept.

`recomputed` runs a piece of the network without keeping anything and runs it again in backward. `Remade` is the small
change: a tensor that is cheap to make from one that is kept anyway is kept as that recipe.

Own code rather than torch.utils.checkpoint, for four savings that the library cannot know of:
 - the second run is told so (`replay=True`) and leaves out products whose value nobody reads;
 - inside a replay a sublayer may be deferred altogether: its value is not needed, only its gradient, which is then
   computed slice by slice over the tokens, so that its wide intermediates never exist at full length;
 - the gradient that comes in is let go of when its first reader is done, not when the whole piece is;
 - gradients of trainable parameters are returned like those of any autograd function, so `torch.autograd.grad`,
   gradient hooks and data-parallel wrappers see them as usual.

The file is long because pieces, slices and recipes stand beside the stand-ins that they leave products out by.

Chen et al. 2016, arXiv:1604.06174.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

Computation = Callable[..., tuple[Tensor, ...]]
Scope = Callable[[bool], AbstractContextManager[Any]]


class Store(Protocol):
    """Where tensors wait for backward: `put` takes one and answers with what `get` gives an equal one for."""

    def put(self, tensor: Tensor) -> Any: ...

    def get(self, handle: Any) -> Tensor: ...


class Shares(Protocol):
    """Parameters of which this process holds a part each, `own`. Inside the scope there are their `wholes`; `parted`
    makes of the gradients of those the ones of the parts."""

    @property
    def own(self) -> Sequence[Tensor]: ...

    def wholes(self) -> Sequence[Tensor]: ...

    def parted(self, gradients: Sequence[Tensor | None]) -> Sequence[Tensor | None]: ...


def recomputed(
    run: Computation,
    tensors: Sequence[Tensor | None],
    parameters: Sequence[Tensor],
    scope: Scope | None = None,
    store: Store | None = None,
    stored: Collection[int] = (),
    kept: Kept | None = None,
    shares: Shares | None = None,
) -> tuple[Tensor, ...]:
    """`run(*tensors, replay=...)`, keeping only `tensors` for backward.

    `run` must read nothing that needs a gradient but `tensors` and `parameters`, and must be repeatable. It runs inside
    `scope(False)`; in backward its second run and the gradients of that lie inside one `scope(True)`. The tensors at
    the places `stored` are left to `store`, where given. What the first run puts into `kept`, which must be new, the
    second finds there. With `shares` the parameters are those.
    """
    places = frozenset(stored) if store is not None else frozenset()
    plan = _Plan(run, scope or _anywhere, store, places, Kept() if kept is None else kept, shares)
    box: list[Tensor | None] = []
    outputs = _Recomputed.apply(plan, box, len(tensors), *tensors, *(parameters if shares is None else shares.own))
    return Boxing.apply(box, *outputs)


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


class Kept:
    """Values of the first run of a piece, which the second one takes over instead of working them out again."""

    def __init__(self) -> None:
        self._values: list[Tensor] = []
        self._given = False

    def value(self, linear: nn.Module, x: Tensor) -> Tensor:
        """`linear(x)`. The second run must ask in the same order; its gradients are those of the linear."""
        if self._given:
            return _Known.apply(_unread(linear, x), self._values.pop(0))
        self._values.append(linear(x))
        return self._values[-1]

    def values(self, make: Callable[[], Sequence[Tensor]], count: int) -> Sequence[Tensor]:
        """The `count` tensors that `make` gives in the first run; the second does not call it, and adds no gradient."""
        if not self._given:
            self._values += (made := make())
            return made
        found, self._values = self._values[:count], self._values[count:]
        return found

    def take(self) -> list[Tensor]:
        """The values of the first run; they are held no longer here."""
        values, self._values = self._values, []
        return values

    def give(self, values: Sequence[Tensor]) -> None:
        """From now on the values are these."""
        self._values, self._given = list(values), True


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
    keeps it, a library's or our own, makes no difference, and neither does a view of it in another shape. The value
    itself lives as long as those who work with it hold it.

    With `on` false it keeps values, as if it were not there.
    """

    def __init__(self, on: bool = True) -> None:
        self.on = on
        self._recipes: list[_Recipe] = []
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack)

    def note(self, make: Callable[..., Any], *arguments: Any) -> Any:
        """`make(*arguments)`: a fresh tensor that fills its memory, noted, or several of which that is the first.
        `arguments` live until backward."""
        value = make(*arguments)
        if self.on and torch.is_grad_enabled():  # an adapter also keeps what needs no gradient itself
            self._recipes.append(_Recipe(_first(value), make, arguments))
        return value

    def __enter__(self) -> Remade:
        if self.on:
            self._hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self.on:
            self._hooks.__exit__(*error)
        self._recipes.clear()

    def _pack(self, tensor: Tensor) -> Any:
        storage = tensor.untyped_storage()
        for recipe in self._recipes:
            if recipe.storage() is storage:
                recipe.keepers += 1
                return recipe, tensor.shape, tensor.stride(), tensor.storage_offset()
        return tensor

    @staticmethod
    def _unpack(packed: Any) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        recipe, *view = packed
        return recipe.again().as_strided(*view)


class _Recipe:
    """How to make one tensor. Made once in a backward pass, whoever asks first, and let go after the last asked."""

    def __init__(self, value: Tensor, make: Callable[..., Tensor], arguments: tuple[Any, ...]) -> None:
        self.value: Tensor | None = None
        # tells memory apart, and knows when it is freed: it may go to another tensor then
        self.storage = weakref.ref(value.untyped_storage())
        self.make = make
        self.arguments = tuple(a.detach() if isinstance(a, Tensor) else a for a in arguments)
        self.keepers = 0
        self.asked = 0

    def again(self) -> Tensor:
        value = self.value
        if value is None:
            with torch.no_grad():
                value = _first(self.make(*self.arguments))
        self.asked += 1
        last = self.asked % self.keepers == 0
        self.value = None if last else value
        return value


class _Plan(NamedTuple):
    """How a piece is run, and where each of its inputs waits: places in `stored` at the store, others with autograd."""

    run: Computation
    scope: Scope
    store: Store | None
    stored: frozenset[int]
    kept: Kept
    shares: Shares | None


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: _Plan, box: list[Tensor], count: int, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        inputs = tensors[:count]
        ctx.set_materialize_grads(False)
        ctx.plan, ctx.box, ctx.count, ctx.parameters = plan, box, count, tensors[count:]
        # before the run, so that a copy goes on beside it
        ctx.handles = {}
        if plan.store is not None:
            ctx.handles = {i: plan.store.put(x) for i in plan.stored if (x := inputs[i]) is not None}
        with plan.scope(False):
            outputs = plan.run(*inputs, replay=False)
        mine = (None if i in plan.stored else x for i, x in enumerate(inputs))
        # values of the first run go this way too, since autograd lets go of them when backward is done
        ctx.save_for_backward(*mine, *plan.kept.take())
        return outputs

    @staticmethod
    def backward(ctx: Any, *stand_ins: Tensor | None) -> tuple[Any, ...]:
        plan, saved = ctx.plan, ctx.saved_tensors  # asked for once: what is a recipe would be made twice
        tensors, values = list(saved[: ctx.count]), saved[ctx.count :]
        for place, handle in ctx.handles.items():
            tensors[place] = plan.store.get(handle)
        inputs = leaves_of(tensors, ctx.needs_input_grad[3:])
        with plan.scope(True):
            plan.kept.give(values)
            with torch.enable_grad():
                outputs = plan.run(*inputs, replay=True)
                end = unboxed(ctx.box, outputs)
            wanted = ctx.parameters if plan.shares is None else plan.shares.wholes()
            found = gradients_of((end,), (end.new_empty(()),), [*inputs, *wanted])
            if plan.shares is not None:
                del outputs, end
                found[len(inputs) :] = plan.shares.parted(found[len(inputs) :])
            return None, None, None, *found


class Boxing(torch.autograd.Function):
    """Passes the outputs of a piece on. Their gradients go into `box`, for the piece to take.

    Autograd holds what it gives to a node until the node is done, here that of a whole block. What it takes out of the
    box is its own, and can be freed halfway.
    """

    @staticmethod
    def forward(ctx: Any, box: list[Tensor | None], *outputs: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.box = box
        return tuple(output.view_as(output) for output in outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        ctx.box[:] = grads
        return None, *(None if grad is None else grad.new_empty(()).expand(grad.shape) for grad in grads)


def unboxed(box: list[Tensor | None], outputs: Sequence[Tensor]) -> Tensor:
    """A number whose backward pass gives what is in `box` to `outputs`, and keeps none of it."""
    pairs = [(output, grad) for output, grad in zip(outputs, box, strict=True) if grad is not None]
    box.clear()
    number = outputs[0].new_empty(())
    return _Unboxing.apply([grad for _, grad in pairs], number, *(output for output, _ in pairs))


class _Unboxing(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, box: list[Tensor], number: Tensor, *outputs: Tensor) -> Tensor:
        ctx.box = box
        return number.view_as(number)

    @staticmethod
    def backward(ctx: Any, number: Tensor) -> tuple[Any, ...]:
        grads = tuple(ctx.box)
        ctx.box.clear()
        return None, None, *grads


def _anywhere(backward: bool) -> AbstractContextManager[Any]:
    return nullcontext()


class _Deferred(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, run: Any, step: int, value: bool, count: int, x: Tensor, *others: Tensor | None) -> Tensor:
        ctx.run, ctx.step, ctx.parameters = run, step, others[count:]
        ctx.save_for_backward(x, *others[:count])
        if not value:
            return x.new_empty(()).expand(x.shape)
        parts = _parts(x, step)
        if len(parts) == 1:
            return run(x, *others[:count], part=parts[0], unread=False)
        out = torch.empty_like(x)
        for part in parts:
            out[:, part] = run(x[:, part], *others[:count], part=part, unread=False)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, *others = leaves_of(ctx.saved_tensors, ctx.needs_input_grad[4:])
        assert x is not None
        wanted = [*others, *ctx.parameters]
        parts = _parts(x, ctx.step)
        grad_x = torch.empty_like(x) if x.requires_grad and len(parts) > 1 else None
        total: list[Tensor | None] = [None] * len(wanted)
        for part in parts:
            piece = x.detach()[:, part].requires_grad_(x.requires_grad)
            with torch.enable_grad():
                out = ctx.run(piece, *others, part=part, unread=True)
            first, *rest = gradients_of((out,), (grad[:, part],), [piece, *wanted])
            del piece, out
            if grad_x is not None and first is not None:
                grad_x[:, part] = first
                del first  # or it would be there beside the next slice
            total = [b if a is None else a if b is None else a + b for a, b in zip(total, rest, strict=True)]
        return None, None, None, None, grad_x if len(parts) > 1 else first, *total


def _unread(linear: nn.Module, x: Tensor) -> Tensor:
    """A stand-in for `linear(x)` with its gradients; where `linear` allows, without its product."""
    if type(linear) is nn.Linear and not linear.weight.requires_grad:
        return _UnreadLinear.apply(x, linear.weight)
    return getattr(linear, "unread", linear)(x)


class _Known(torch.autograd.Function):
    """`value`, with the gradient of the stand-in."""

    @staticmethod
    def forward(ctx: Any, stand_in: Tensor, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return grad, None


class _UnreadLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return x.new_empty(()).expand(*x.shape[:-1], weight.shape[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        (weight,) = ctx.saved_tensors
        return (grad.reshape(-1, grad.shape[-1]).to(weight.dtype) @ weight).view(*grad.shape[:-1], -1), None


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
        # into the memory of what it is made from: these are the widest tensors of a step
        return torch.ops.aten.gelu_backward.grad_input(inner, hidden, approximate="tanh", grad_input=inner), None


def _first(value: Any) -> Tensor:
    return value if isinstance(value, Tensor) else value[0]


def _parts(x: Tensor, step: int) -> list[slice]:
    return [slice(start, min(start + step, x.shape[1])) for start in range(0, x.shape[1], step)]


def leaves_of(tensors: Sequence[Tensor | None], wanted: Sequence[bool]) -> list[Any]:
    """The same values as inputs of a graph of their own, those that are `wanted` with a gradient."""
    pairs = zip(tensors, wanted, strict=False)
    return [None if tensor is None else tensor.detach().requires_grad_(want) for tensor, want in pairs]


def gradients_of(ends: Sequence[Tensor], grads: Sequence[Tensor | None], inputs: Sequence[Tensor | None]) -> list[Any]:
    """d ends / d inputs, None where an input needs none."""
    pairs = [(o, g) for o, g in zip(ends, grads, strict=True) if g is not None and o.requires_grad]
    places = [(i, x) for i, x in enumerate(inputs) if x is not None and x.requires_grad]
    result: list[Any] = [None] * len(inputs)
    if pairs and places:
        found = torch.autograd.grad(
            [o for o, _ in pairs], [x for _, x in places], [g for _, g in pairs], allow_unused=True
        )
        for (i, _), gradient in zip(places, found, strict=True):
            result[i] = gradient
    return result
