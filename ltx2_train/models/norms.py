"""RMS normalization fused with what follows it: AdaLN modulation, or a weight and a rotation.

    n(x) = x / sqrt(mean(x^2) + eps)          modulated:  n(x) * (1 + scale) + shift
                                              rotated:    R (n(x) * weight)

Written as autograd functions because the composition of library ops keeps four to six tensors of the size of x for
backward, these keep x alone (plus one number a token), and compute in float32 whatever x is stored in. With
g the gradient that reaches n:  dx = r * (g - n * mean(g * n)),  r = 1 / sqrt(mean(x^2) + eps).

The work goes over slices of tokens that fit a processor's cache, so the float32 temporaries stay small; on an
accelerator one slice is everything, since there launches cost more than memory traffic.

RMSNorm: Zhang and Sennrich 2019, arXiv:1910.07467. AdaLN: Peebles and Xie 2022, arXiv:2212.09748.

Shape letters: B batch, T tokens, D width, R distinct rows, H heads, K head width.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .rope import Rope, rotate

SLICE_ELEMENTS = 1 << 18


def modulated_norm(x: Tensor, scale: Tensor, shift: Tensor, index: Tensor | None, eps: float) -> Tensor:
    """n(x) * (1 + scale) + shift in the dtype of `x` [B, T, D].

    `scale` and `shift` are [R, D]: one row a sample where `index` is None (R = B), else row `index[b, t]` for token t.
    """
    return _ModulatedNorm.apply(x, scale, shift, index, eps)


def plain_norm(x: Tensor, eps: float) -> Tensor:
    """n(x) in the dtype of `x` [B, T, D]."""
    none = x.new_zeros(1, x.shape[2], dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)
    return _ModulatedNorm.apply(x, none, none, None, eps)


def gated_sum(x: Tensor, y: Tensor, gate: Tensor, index: Tensor | None, unread: bool = False) -> Tensor:
    """x + gate * y in the dtype of `x` [B, T, D]; `gate` [R, D] and `index` as in `modulated_norm`.

    `unread` promises that nobody reads the value, only its gradient is wanted; nothing is computed then.
    """
    return _GatedSum.apply(x, y, gate, index, unread)


def rotated_norm(x: Tensor, weight: Tensor, rope: Rope | None, heads: int, eps: float) -> Tensor:
    """The `heads` heads of n(x) * weight, rotated by `rope` where given: [B, T, D] -> [B, T, D]."""
    return _RotatedNorm.apply(x, weight, rope, heads, eps)


def wide(x: Tensor) -> Tensor:
    """`x` in at least float32."""
    return x if x.dtype == torch.float64 else x.float()


def rows_of(values: Tensor, index: Tensor | None, tokens: slice = slice(None)) -> Tensor:
    """Rows [R, D] laid out for tokens: [B, 1, D] to broadcast where there is one row a sample, else [B, T, D]."""
    return values.unsqueeze(1) if index is None else torch.nn.functional.embedding(index[:, tokens], values)


def slices(x: Tensor) -> Iterator[slice]:
    """Slices along dim 1 of `x` [B, T, D] that are worth a pass of their own."""
    tokens = x.shape[1]
    step = tokens if x.device.type != "cpu" else max(1, SLICE_ELEMENTS // max(1, x.shape[0] * x.shape[2]))
    for start in range(0, tokens, max(1, step)):
        yield slice(start, min(start + step, tokens))


class _ModulatedNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scale, shift, index, eps):
        out = torch.empty_like(x)
        factor = scale + 1
        size = _inverse_size(x, eps)
        for part in slices(x):
            normal = wide(x[:, part]) * size[:, part]
            moved, own, rows = out[:, part], rows_of(shift, index, part), rows_of(factor, index, part)
            if moved.dtype == normal.dtype:
                torch.addcmul(own, normal, rows, out=moved)
            else:
                moved.copy_(torch.addcmul(own, normal, rows, out=normal))
        ctx.save_for_backward(x, size, factor, index)
        return out

    @staticmethod
    def backward(ctx, grad):
        x, size, factor, index = ctx.saved_tensors
        want_x, want_scale, want_shift = ctx.needs_input_grad[:3]
        grad_x = torch.empty_like(x) if want_x else None
        grad_scale = torch.zeros_like(factor) if want_scale else None
        grad_shift = torch.zeros_like(factor) if want_shift else None
        for part in slices(x):
            own, r, g = wide(x[:, part]), size[:, part], wide(grad[:, part])
            if want_scale:
                _add_rows(grad_scale, g * own * r, index, part)
            if want_shift:
                _add_rows(grad_shift, g, index, part)
            if want_x:
                _norm_gradient(g * rows_of(factor, index, part), own, r, out=grad_x[:, part])
        return grad_x, grad_scale, grad_shift, None, None


class _GatedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, y, gate, index, unread):
        gate = gate.to(x.dtype)
        ctx.save_for_backward(y if ctx.needs_input_grad[2] else None, gate, index)
        if unread:
            return x.new_empty(()).expand(x.shape)
        if index is None:
            return torch.addcmul(x, y, gate.unsqueeze(1))
        out = torch.empty_like(x)
        for part in slices(x):
            torch.addcmul(x[:, part], y[:, part], rows_of(gate, index, part), out=out[:, part])
        return out

    @staticmethod
    def backward(ctx, grad):
        y, gate, index = ctx.saved_tensors
        grad_y = grad_gate = None
        if ctx.needs_input_grad[1]:
            grad_y = torch.empty_like(grad)
            for part in slices(grad):
                torch.mul(grad[:, part], rows_of(gate, index, part), out=grad_y[:, part])
        if ctx.needs_input_grad[2]:
            grad_gate = torch.zeros_like(gate, dtype=wide(gate).dtype)
            for part in slices(grad):
                _add_rows(grad_gate, wide(grad[:, part]) * wide(y[:, part]), index, part)
        return grad, grad_y, grad_gate, None, None


class _RotatedNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, rope, heads, eps):
        out = torch.empty_like(x)
        factor = wide(weight)
        size = _inverse_size(x, eps)
        for part in slices(x):
            normal = (wide(x[:, part]) * size[:, part]).mul_(factor)
            if rope is None:
                out[:, part] = normal
            elif out.dtype == normal.dtype:
                rotate(_heads(normal, heads), rope.part(part), out=_heads(out[:, part], heads))
            else:
                out[:, part] = rotate(_heads(normal, heads), rope.part(part)).flatten(2)
        ctx.save_for_backward(x, size, weight)
        ctx.rope, ctx.heads = rope, heads
        return out

    @staticmethod
    def backward(ctx, grad):
        x, size, weight = ctx.saved_tensors
        want_x, want_weight = ctx.needs_input_grad[:2]
        factor = wide(weight)
        grad_x = torch.empty_like(x) if want_x else None
        grad_weight = torch.zeros_like(factor) if want_weight else None
        for part in slices(x):
            own, r, g = wide(x[:, part]), size[:, part], wide(grad[:, part])
            if ctx.rope is not None:
                g = rotate(_heads(g, ctx.heads), ctx.rope.part(part), backward=True).flatten(2)
            if want_weight:
                grad_weight += (g * own * r).sum((0, 1))
            if want_x:
                _norm_gradient(g * factor, own, r, out=grad_x[:, part])
        return grad_x, None if grad_weight is None else grad_weight.to(weight.dtype), None, None, None


def _inverse_size(x: Tensor, eps: float) -> Tensor:
    """r [B, T, 1] in at least float32."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    size = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=dtype)
    return size.square_().div_(x.shape[-1]).add_(eps).rsqrt_()


def _norm_gradient(g: Tensor, x: Tensor, r: Tensor, out: Tensor) -> None:
    """r * g - x * r^3 * mean(g * x), for the gradient `g` of n(x), into `out`. `g` is overwritten; it is ours."""
    share = torch.linalg.vecdot(g, x).unsqueeze(-1).mul_(r).mul_(r).mul_(r).div_(-x.shape[-1])
    g.mul_(r)
    if out.dtype == g.dtype:
        torch.addcmul(g, x, share, out=out)
    else:
        out.copy_(g.addcmul_(x, share))


def _heads(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(2, (heads, x.shape[2] // heads))


def _add_rows(total: Tensor, values: Tensor, index: Tensor | None, part: slice) -> None:
    if index is None:
        total += values.sum(1)
    else:
        total.index_add_(0, index[:, part].flatten(), values.flatten(0, 1).to(total.dtype))
