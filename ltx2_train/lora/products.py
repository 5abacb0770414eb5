"""The products of linears that read one input x, with their low-rank terms, as one node of the graph.

    y_i = W_i x + b_i + scale_i * B_i (A_i x)

It keeps x and all A_i x, and no more. The factors A are multiplied at once. The low-rank product is written first and
the base's goes on top of it, where a product that adds to its target costs no pass of its own; backward does the same
with the gradient to x, in which all of them meet. The composition by the library would keep more, and would read and
write y and the gradient once more for every term.

The base of a layer is a plain linear, a module with `add_product` and `add_product_back` (see QuantLinear), or any
other module, whose value is handed over. A plain linear may take part without factors.

Shape letters: N tokens, I in, O out, r rank, R all ranks together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ..models.norms import device_type

_PER_PART = 5  # tensors of a part, see `Part.tensors`


@dataclass(frozen=True)
class LinearPart:
    """One linear. `y` is the base's value where the base makes its own; `a` [r, I] and `b` [O, r] are the parameters,
    both None without a low-rank term, `held` the same two in the dtype of the products where they lie ready."""

    base: nn.Module
    y: Tensor | None = None
    a: Tensor | None = None
    b: Tensor | None = None
    held: tuple[Tensor, Tensor] | None = None
    scale: float = 1.0

    def tensors(self) -> tuple[Tensor | None, ...]:
        """What autograd has to see: y, the weight and bias of a plain base, A, B."""
        plain = (self.base.weight, self.base.bias) if type(self.base) is nn.Linear else (None, None)
        return (self.y, *plain, self.a, self.b)

    def factors(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """A and B for products in `dtype`."""
        assert self.a is not None
        assert self.b is not None
        return self.held if self.held is not None and self.held[0].dtype == dtype else (self.a, self.b)


def owns_product(base: nn.Module) -> bool:
    """Whether the product of `base` can be made here."""
    return not base.weight.requires_grad if type(base) is nn.Linear else hasattr(base, "add_product")


def low_rank_products(
    x: Tensor,
    parts: Sequence[LinearPart],
    value: bool = True,
    mask: Tensor | None = None,
    used: Callable[[], None] | None = None,
) -> tuple[Tensor, ...]:
    """[.., O] of each of `parts`, one of which has a low-rank term at least, for x [.., I].

    `mask`, like x, multiplies the input of the low-rank terms; `used` is called once backward has needed it. Without
    `value` nothing is computed but A x, and what comes back are stand-ins that only have the right gradient.
    """
    job = _Job(tuple(parts), value, used)
    return _LowRank.apply(job, x, mask, *(tensor for part in parts for tensor in part.tensors()))


class _Job:
    """The linears of one call, those with factors among them, and the ranks of these."""

    def __init__(self, parts: tuple[LinearPart, ...], value: bool, used: Callable[[], None] | None) -> None:
        self.parts, self.value, self.used = parts, value, used
        self.low = [index for index, part in enumerate(parts) if part.a is not None]
        self.ranks = [part.a.shape[0] for part in parts if part.a is not None]


class _LowRank(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, job: _Job, x: Tensor, mask: Tensor | None, *flat: Tensor | None) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.job = job
        x2 = x.reshape(-1, x.shape[-1])
        factors = [job.parts[i].factors(x.dtype) for i in job.low]
        inner = x2 if mask is None else x2 * mask.reshape(x2.shape)
        small = linear(inner, _below_each_other([a for a, _ in factors], x.dtype))  # [N, R]
        weights = flat[1::_PER_PART]
        ctx.save_for_backward(x, mask, small, *weights, *(a for a, _ in factors), *(b for _, b in factors))
        if not job.value:
            none = x.new_empty(())
            return tuple(none.expand(*x.shape[:-1], _outputs(part)) for part in job.parts)
        terms: list[tuple[Tensor, Tensor] | None] = [None] * len(job.parts)
        for i, own, (_, b) in zip(job.low, small.split(job.ranks, dim=1), factors, strict=True):
            terms[i] = own, b.to(x.dtype)
        values = [_value(x2, part, term) for part, term in zip(job.parts, terms, strict=True)]
        return tuple(value.view(*x.shape[:-1], value.shape[-1]) for value in values)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        job: _Job = ctx.job
        x, mask, small, *rest = ctx.saved_tensors
        count, low = len(job.parts), len(job.low)
        weights, factors_a, factors_b = rest[:count], rest[count : count + low], rest[count + low :]
        wants, dtype, x2 = ctx.needs_input_grad[3:], x.dtype, x.reshape(-1, x.shape[-1])
        flat = [None if grad is None else grad.reshape(-1, grad.shape[-1]).to(dtype) for grad in grads]
        gradients: list[Tensor | None] = [None] * (_PER_PART * count)
        for i, part in enumerate(job.parts):
            gradients[_PER_PART * i] = grads[i] if part.y is not None else None
        g_small = torch.empty_like(small)  # [N, R]
        columns = zip(job.low, factors_b, small.split(job.ranks, dim=1), g_small.split(job.ranks, dim=1), strict=True)
        for i, b, own, target in columns:
            g, scale, place = flat[i], job.parts[i].scale, _PER_PART * i + 4
            if g is None:
                target.zero_()
                continue
            torch.mm(g, b.to(dtype), out=target)
            if scale != 1.0:
                target.mul_(scale)
            if wants[place]:
                grad_b = _written_in(_kept_in(job.parts[i]), g.t(), own)
                gradients[place] = grad_b if scale == 1.0 else grad_b.mul_(scale)
        mask = None if mask is None else mask.reshape(x2.shape)
        if any(wants[_PER_PART * i + 3] for i in job.low):
            inner = x2 if mask is None else x2 * mask
            whole = _written_in(_kept_in(job.parts[job.low[0]]), g_small.t(), inner)  # [R, I]
            for i, rows in zip(job.low, whole.split(job.ranks), strict=True):
                gradients[_PER_PART * i + 3] = rows
            del inner
        shape, x, x2 = x.shape, None, None  # made again for this pass alone, as a rule: as large as its gradient
        grad_x = None
        if ctx.needs_input_grad[1]:
            grad_x = g_small @ _below_each_other(factors_a, dtype)
            grad_x = grad_x if mask is None else grad_x.mul_(mask)
            for part, weight, g in zip(job.parts, weights, flat, strict=True):
                if g is not None and part.y is None:  # a base with a value of its own has a gradient of its own
                    grad_x = _add_back(grad_x, part.base, weight, g)
            grad_x = grad_x.view(shape)
        if job.used is not None:
            job.used()
        return None, grad_x, None, *gradients


def _value(x: Tensor, part: LinearPart, term: tuple[Tensor, Tensor] | None) -> Tensor:
    """[N, O] of one linear; `term` is A x [N, r] and B."""
    base = part.base
    if term is None:
        assert type(base) is nn.Linear, type(base)
        return linear(x, base.weight, base.bias)
    small, b = term
    if part.y is not None:
        y = part.y.reshape(-1, part.y.shape[-1])
        return torch.addmm(y, small.to(y.dtype), b.to(y.dtype).t(), alpha=part.scale)
    bias: Any = base.bias
    if bias is not None:
        out = torch.addmm(bias.to(x.dtype), small, b.t(), alpha=part.scale)
    else:
        out = small @ b.t()
        out = out if part.scale == 1.0 else out.mul_(part.scale)
    if type(base) is nn.Linear:
        return out.addmm_(x, base.weight.t())
    add: Any = base
    return add.add_product(x, out)


def _add_back(total: Tensor, base: nn.Module, weight: Tensor | None, grad: Tensor) -> Tensor:
    """`total` [N, I] and the gradient to the input of `base`."""
    if weight is not None:
        return total.addmm_(grad, weight.to(total.dtype))
    add: Any = base
    return add.add_product_back(grad, total)


def _below_each_other(factors: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """The factors [r, I] as one [R, I]: without a copy where they lie so."""
    first = factors[0]
    if len(factors) == 1:
        return first.to(dtype)
    place = first.storage_offset()
    for one in factors:
        if one.dtype != dtype or not one.is_contiguous() or one.storage_offset() != place or not _share(one, first):
            return torch.cat([other.to(dtype) for other in factors])
        place += one.numel()
    return first.as_strided((sum(one.shape[0] for one in factors), first.shape[1]), (first.shape[1], 1))


def _share(one: Tensor, other: Tensor) -> bool:
    return one.untyped_storage()._cdata == other.untyped_storage()._cdata


def _written_in(dtype: torch.dtype, left: Tensor, right: Tensor) -> Tensor:
    """left @ right in `dtype`: not rounded on the way there where the device can write it so."""
    if dtype != left.dtype and device_type(left) == "cuda" and _writes_wide(left.device, left.dtype, dtype):
        return torch.mm(left, right, out_dtype=dtype)
    return (left @ right).to(dtype)


@cache
def _writes_wide(device: torch.device, narrow: torch.dtype, wide: torch.dtype) -> bool:
    """Whether a product of `narrow` numbers can be written in `wide` ones: the operation is young, so it is tried."""
    if "dtype" not in torch.ops.aten.mm.overloads():
        return False
    if device.type == "meta":
        return True
    try:
        left = torch.linspace(-2, 3, 16 * 64, device=device).reshape(16, 64).to(narrow)
        found, expected = torch.mm(left.t(), left, out_dtype=wide), left.to(wide).t() @ left.to(wide)
        return found.dtype == wide and torch.allclose(found, expected, rtol=1e-2, atol=1e-2)
    except Exception:  # missing for this device or these dtypes
        return False


def _outputs(part: LinearPart) -> int:
    if part.b is not None:
        return part.b.shape[0]
    assert type(part.base) is nn.Linear, type(part.base)
    return part.base.out_features


def _kept_in(part: LinearPart) -> torch.dtype:
    assert part.a is not None
    return part.a.dtype
