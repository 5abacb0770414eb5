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


def gated_sum(x: Tensor, y: Tensor, gate: Tensor, index: Tensor | None) -> Tensor:
    """x + gate * y in the dtype of `x` [B, T, D]; `gate` [R, D] and `index` as in `modulated_norm`."""
    return _GatedSum.apply(x, y, gate, index)


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
        for part in slices(x):
            normal, _ = _normalize(wide(x[:, part]), eps)
            out[:, part] = torch.addcmul(rows_of(shift, index, part), normal, rows_of(factor, index, part))
        ctx.save_for_backward(x, factor, index)
        ctx.eps = eps
        return out

    @staticmethod
    def backward(ctx, grad):
        x, factor, index = ctx.saved_tensors
        want_x, want_scale, want_shift = ctx.needs_input_grad[:3]
        grad_x = torch.empty_like(x) if want_x else None
        grad_scale = torch.zeros_like(factor) if want_scale else None
        grad_shift = torch.zeros_like(factor) if want_shift else None
        for part in slices(x):
            normal, r = _normalize(wide(x[:, part]), ctx.eps)
            g = wide(grad[:, part])
            if want_scale:
                _add_rows(grad_scale, g * normal, index, part)
            if want_shift:
                _add_rows(grad_shift, g, index, part)
            if want_x:
                grad_x[:, part] = _norm_gradient(g * rows_of(factor, index, part), normal, r)
        return grad_x, grad_scale, grad_shift, None, None


class _GatedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, y, gate, index):
        gate = gate.to(x.dtype)
        ctx.save_for_backward(y if ctx.needs_input_grad[2] else None, gate, index)
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
        return grad, grad_y, grad_gate, None


class _RotatedNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, rope, heads, eps):
        out = torch.empty_like(x)
        factor = wide(weight)
        for part in slices(x):
            normal = _normalize(wide(x[:, part]), eps)[0].mul_(factor)
            if rope is None:
                out[:, part] = normal
            elif out.dtype == normal.dtype:
                rotate(_heads(normal, heads), rope.part(part), out=_heads(out[:, part], heads))
            else:
                out[:, part] = rotate(_heads(normal, heads), rope.part(part)).flatten(2)
        ctx.save_for_backward(x, weight)
        ctx.rope, ctx.heads, ctx.eps = rope, heads, eps
        return out

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        want_x, want_weight = ctx.needs_input_grad[:2]
        factor = wide(weight)
        grad_x = torch.empty_like(x) if want_x else None
        grad_weight = torch.zeros_like(factor) if want_weight else None
        for part in slices(x):
            normal, r = _normalize(wide(x[:, part]), ctx.eps)
            g = wide(grad[:, part])
            if ctx.rope is not None:
                g = rotate(_heads(g, ctx.heads), ctx.rope.part(part), backward=True).flatten(2)
            if want_weight:
                grad_weight += (g * normal).sum((0, 1))
            if want_x:
                grad_x[:, part] = _norm_gradient(g * factor, normal, r)
        return grad_x, None if grad_weight is None else grad_weight.to(weight.dtype), None, None, None


def _normalize(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """n(x) and r [.., 1]; a fresh tensor the caller may overwrite."""
    size = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    r = (size * size).div_(x.shape[-1]).add_(eps).rsqrt_()
    return x * r, r


def _norm_gradient(g: Tensor, normal: Tensor, r: Tensor) -> Tensor:
    """dx for the gradient `g` of n(x). `normal` is overwritten; it is ours and nobody reads it afterwards."""
    dot = torch.linalg.vecdot(g, normal).unsqueeze(-1).div_(-g.shape[-1])
    return torch.addcmul(g, normal, dot, out=normal).mul_(r)


def _heads(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(2, (heads, x.shape[2] // heads))


def _add_rows(total: Tensor, values: Tensor, index: Tensor | None, part: slice) -> None:
    if index is None:
        total += values.sum(1)
    else:
        total.index_add_(0, index[:, part].flatten(), values.flatten(0, 1).to(total.dtype))
