"""RMS normalization fused with what follows it: AdaLN modulation, or a weight and a rotation.

    n(x) = x / sqrt(mean(x^2) + eps)          modulated:  n(x) * (1 + scale) + shift
                                              rotated:    R (n(x) * weight)

Written as autograd functions because the composition of library ops keeps four to six tensors of the size of x for
backward, these keep x alone (plus one number a token), and compute in float32 whatever x is stored in. With
g the gradient that reaches n:  dx = r * (g - n * mean(g * n)),  r = 1 / sqrt(mean(x^2) + eps).

The work goes over slices of tokens that fit a processor's cache, so the float32 temporaries stay small; on an
accelerator one slice is everything, since there launches cost more than memory traffic. Given a `Fused`, each function
is one compiled pass instead. The file is long because each forward stands beside the backward that it must agree with.

RMSNorm: Zhang and Sennrich 2019, arXiv:1910.07467. AdaLN: Peebles and Xie 2022, arXiv:2212.09748.

Shape letters: B batch, T tokens, D width, R distinct rows, H heads, K head width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from . import fused as bodies
from .fused import Fused
from .rope import Rope, rotate_heads

SLICE_ELEMENTS = 1 << 18

# what tensors on the meta device, which show what a step would need elsewhere, are handled like
_meta_is = "cuda"

_aten = torch.ops.aten


class RowIndex(NamedTuple):
    """Which row of modulation each token has: `rows` [B, T].

    Where `lead` is a number, the first so many tokens of every sample have row 0 and the others row 1 + b; then rows
    are spread over slices of tokens instead of being gathered for each.
    """

    rows: Tensor
    lead: int | None = None

    def part(self, tokens: slice) -> RowIndex:
        """That of some tokens."""
        start, stop, _ = tokens.indices(self.rows.shape[1])
        lead = None if self.lead is None else min(max(self.lead - start, 0), stop - start)
        return RowIndex(self.rows[:, tokens], lead)


def modulated_norm(
    x: Tensor, scale: Tensor, shift: Tensor, index: RowIndex | None, eps: float, fused: Fused | None = None
) -> Tensor:
    """n(x) * (1 + scale) + shift in the dtype of `x` [B, T, D].

    `scale` and `shift` are [R, D]: one row a sample where `index` is None (R = B), else the one it names for token t.
    """
    return _ModulatedNorm.apply(x, scale, shift, index, eps, fused)[0]


def branched_norm(
    x: Tensor, scale: Tensor, shift: Tensor, index: RowIndex | None, eps: float, fused: Fused | None = None
) -> tuple[Tensor, Tensor]:
    """`modulated_norm`, and `x` for those who read it besides: one pass makes the gradient of both."""
    return _ModulatedNorm.apply(x, scale, shift, index, eps, fused)


def plain_norm(x: Tensor, eps: float, fused: Fused | None = None) -> Tensor:
    """n(x) in the dtype of `x` [B, T, D]."""
    none = x.new_zeros(1, x.shape[2], dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)
    return _ModulatedNorm.apply(x, none, none, None, eps, fused)[0]


def gated_sum(
    x: Tensor, y: Tensor, gate: Tensor, index: RowIndex | None, unread: bool = False, fused: Fused | None = None
) -> Tensor:
    """x + gate * y in the dtype of `x` [B, T, D]; `gate` [R, D] and `index` as in `modulated_norm`.

    `unread` promises that nobody reads the value, only its gradient is wanted; nothing is computed then.
    """
    return _GatedSum.apply(x, y, gate, index, unread, fused)


def rotated_norm(
    x: Tensor,
    weight: Tensor,
    rope: Rope | None,
    heads: int,
    eps: float,
    fused: Fused | None = None,
    by_head: bool = False,
) -> Tensor:
    """The `heads` heads of n(x) * weight, rotated by `rope` where given: [B, T, D] -> [B, T, H, K].

    With `by_head` they lie one behind the other in the memory of a CPU, whose attention reads them faster so.
    """
    return _RotatedNorm.apply(x, weight, rope, heads, eps, fused, by_head)


def gated_heads(x: Tensor, logits: Tensor, fused: Fused | None = None) -> Tensor:
    """Heads x [B, T, H, K] times 2 sigmoid(logits), `logits` [B, T, H]: [B, T, D]."""
    return _GatedHeads.apply(x, logits, fused)


def modulated(x: Tensor, scale: Tensor, shift: Tensor, fused: Fused | None = None) -> Tensor:
    """x * (1 + scale) + shift for one row a sample: [B, S, D], [B, D], [B, D], computed in at least float32."""
    if fused is not None and not any(t.requires_grad for t in (x, scale, shift)):
        done = fused(bodies.modulated, x, scale, shift)
        if done is not None:
            return done
    return torch.addcmul(rows_of_tokens(shift, None), wide(x), rows_of_tokens(scale + 1, None)).to(x.dtype)


def wide(x: Tensor) -> Tensor:
    """`x` in at least float32."""
    return x if x.dtype == torch.float64 else x.float()


def rows_of_tokens(values: Tensor, index: RowIndex | None, tokens: slice = slice(None)) -> Tensor:
    """Rows [R, D] laid out for tokens: [B or 1, 1, D] to broadcast where one row serves them, else [B, T, D]."""
    if index is None:
        return values.unsqueeze(1)
    if index.lead is not None:
        start, stop, _ = tokens.indices(index.rows.shape[1])
        if stop <= index.lead:
            return values[:1].unsqueeze(1)
        if start >= index.lead:
            return values[1:].unsqueeze(1)
    return torch.nn.functional.embedding(index.rows[:, tokens], values)


@contextmanager
def meta_is(device_type: str) -> Iterator[None]:
    """While entered, tensors on the meta device are sliced as on a device of this type; "cuda" at first."""
    global _meta_is
    before, _meta_is = _meta_is, device_type
    try:
        yield
    finally:
        _meta_is = before


def device_type(x: Tensor) -> str:
    """The type of the device that `x` is on, or stands for."""
    return _meta_is if x.device.type == "meta" else x.device.type


def slices(x: Tensor, index: RowIndex | None = None) -> Iterator[slice]:
    """Slices along dim 1 of `x` [B, T, D] that are worth a pass of their own, none over both sides of a lead."""
    tokens = x.shape[1]
    step = tokens if device_type(x) != "cpu" else max(1, SLICE_ELEMENTS // max(1, x.shape[0] * x.shape[2]))
    lead = 0 if index is None or index.lead is None else index.lead
    for begin, end in ((0, lead), (lead, tokens)):
        for start in range(begin, end, max(1, step)):
            yield slice(start, min(start + step, end))


def native(x: Tensor) -> bool:
    """Whether PyTorch's own RMS norm, one kernel forward and one backward, serves `x`: on CUDA, where it works."""
    if device_type(x) != "cuda" or x.dtype == torch.float64 or not hasattr(_aten, "_fused_rms_norm_backward"):
        return False
    return x.is_meta or _native_works(x.device, x.dtype)


def _native_norm(x: Tensor, weight: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    """n(x), times `weight`, in the dtype of `x`, and r [B, T, 1]."""
    if x.is_meta:  # there PyTorch takes the kernel apart; to the memory plan it is one pass
        return x.clone(), x.new_empty(*x.shape[:-1], 1, dtype=torch.float32)
    return _aten._fused_rms_norm(x, [x.shape[-1]], weight, eps)


@cache
def _native_works(device: torch.device, dtype: torch.dtype) -> bool:
    """A trial of both kernels against the formulas of this file: they are young, and drivers differ."""
    try:
        x = torch.linspace(-2, 3, 128, device=device).reshape(2, 1, 64).to(dtype)
        grad = x.flip(2).contiguous()
        normal, r = _aten._fused_rms_norm(x, [64], None, 1e-6)
        own = _room_for_sizes(x)
        formula = _normalized(x, 1e-6, own)
        back = _aten._fused_rms_norm_backward(grad, x, [64], r, None, [True, False])[0]
        expected = torch.empty_like(back)
        _norm_gradient(wide(grad).clone(), wide(x), own, out=expected)
        pairs = ((r, own), (normal, formula), (back, expected))
        return all(torch.allclose(a.float(), b.float(), rtol=2e-2, atol=2e-2) for a, b in pairs)
    except Exception:  # the kernel is missing for this device or dtype
        return False


class _ModulatedNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scale, shift, index, eps, fused):
        ctx.set_materialize_grads(False)
        ctx.fused, ctx.index = fused, index
        rows = None if index is None else index.rows
        done = None if fused is None else fused(bodies.modulated_norm, x, scale, shift, rows, eps)
        ctx.compiled = done is not None
        if done is not None:
            ctx.save_for_backward(x, done[1], scale)
            return done[0], x.view_as(x)
        factor = scale + 1
        out = torch.empty_like(x)
        whole, size = None, None
        if native(x):
            whole, size = _native_norm(x, None, eps)
        else:
            size = _room_for_sizes(x)
        for part in slices(x, index):
            normal = _normalized(x[:, part], eps, size[:, part]) if whole is None else whole[:, part]
            moved, own, row = out[:, part], rows_of_tokens(shift, index, part), rows_of_tokens(factor, index, part)
            if _casts_in_place(moved, normal):
                torch.addcmul(own, normal, row, out=moved)
            else:
                moved.copy_(torch.addcmul(own, normal, row, out=normal))
        ctx.save_for_backward(x, size, factor)
        return out, x.view_as(x)

    @staticmethod
    def backward(ctx, grad, past):
        if grad is None:
            return past, None, None, None, None, None
        (x, size, kept), index = ctx.saved_tensors, ctx.index  # kept: the scale where compiled, else 1 more
        want_x, want_scale, want_shift = ctx.needs_input_grad[:3]
        grad_x = None
        if ctx.compiled and want_x:
            rows = None if index is None else index.rows
            grad_x = ctx.fused(bodies.modulated_norm_gradient, grad, x, size, kept, rows, past)
        factor = kept + 1 if ctx.compiled and want_x and grad_x is None else kept
        if grad_x is None and want_x and native(x):
            inner = torch.empty_like(x)
            for part in slices(x, index):
                torch.mul(grad[:, part], rows_of_tokens(factor, index, part), out=inner[:, part])
            grad_x = _aten._fused_rms_norm_backward(inner, x, [x.shape[-1]], size, None, [True, False])[0]
            grad_x = grad_x if past is None else grad_x.add_(past)
        if grad_x is not None:
            if not (want_scale or want_shift):
                return grad_x, None, None, None, None, None
            want_x = False  # is there already
        if want_x:
            grad_x = torch.empty_like(x)
        grad_scale = torch.zeros_like(factor) if want_scale else None
        grad_shift = torch.zeros_like(factor) if want_shift else None
        for part in slices(x, index):
            own, r = wide(x[:, part]), size[:, part]
            if grad_scale is not None:
                _add_rows(grad_scale, wide(grad[:, part]) * own * r, index, part)
            if grad_shift is not None:
                _add_rows(grad_shift, wide(grad[:, part]), index, part)
            if want_x:
                assert grad_x is not None
                inner, target = _product(grad[:, part], rows_of_tokens(factor, index, part)), grad_x[:, part]
                _norm_gradient(inner, own, r, out=target)
                if past is not None:
                    target.add_(past[:, part])
        return grad_x, grad_scale, grad_shift, None, None, None


class _GatedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, y, gate, index, unread, fused):
        ctx.fused, ctx.index = fused, index
        gate = gate if fused is not None else gate.to(x.dtype)
        ctx.save_for_backward(y if ctx.needs_input_grad[2] else None, gate)
        if unread:
            return x.new_empty(()).expand(x.shape)
        done = None if fused is None else fused(bodies.gated_sum, x, y, gate, None if index is None else index.rows)
        if done is not None:
            return done
        gate = gate.to(x.dtype)
        if index is None:
            return torch.addcmul(x, y, gate.unsqueeze(1))
        out = torch.empty_like(x)
        for part in slices(x, index):
            torch.addcmul(x[:, part], y[:, part], rows_of_tokens(gate, index, part), out=out[:, part])
        return out

    @staticmethod
    def backward(ctx, grad):
        (y, gate), index = ctx.saved_tensors, ctx.index
        grad_y = grad_gate = None
        if ctx.needs_input_grad[1]:
            if ctx.fused is not None:
                grad_y = ctx.fused(bodies.gated_gradient, grad, gate, None if index is None else index.rows)
            if grad_y is None:
                grad_y, narrow = torch.empty_like(grad), gate.to(grad.dtype)
                for part in slices(grad, index):
                    torch.mul(grad[:, part], rows_of_tokens(narrow, index, part), out=grad_y[:, part])
        if ctx.needs_input_grad[2]:
            grad_gate = torch.zeros_like(gate, dtype=wide(gate).dtype)
            for part in slices(grad, index):
                _add_rows(grad_gate, wide(grad[:, part]) * wide(y[:, part]), index, part)
        return grad, grad_y, grad_gate, None, None, None


class _RotatedNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, rope, heads, eps, fused, by_head):
        ctx.rope, ctx.fused = rope, fused
        if fused is not None:
            done = (
                fused(bodies.weighted_norm, x, weight, eps)
                if rope is None
                else fused(bodies.rotated_norm, x, weight, *rope.spread()[:3], eps)
            )
            if done is not None:
                ctx.save_for_backward(x, done[1], weight)
                return _heads(done[0], heads)
        if native(x) and (weight.dtype == x.dtype):
            normal, size = _native_norm(x, weight, eps)
            ctx.save_for_backward(x, size, weight)
            return _heads(normal, heads) if rope is None else rotate_heads(_heads(normal, heads), rope)
        out = _room_for_heads(x, heads, by_head)
        factor = wide(weight)
        size = _room_for_sizes(x)
        for part in slices(x):
            normal = _heads(_normalized(x[:, part], eps, size[:, part]).mul_(factor), heads)
            if rope is None:
                out[:, part] = normal
            elif out.dtype == normal.dtype:
                rotate_heads(normal, rope.part(part), out=out[:, part])
            else:
                out[:, part] = rotate_heads(normal, rope.part(part))
        ctx.save_for_backward(x, size, weight)
        return out

    @staticmethod
    def backward(ctx, grad):
        x, size, weight = ctx.saved_tensors
        want_x, want_weight = ctx.needs_input_grad[:2]
        rope, fused = ctx.rope, ctx.fused
        if fused is not None and want_x and not want_weight:
            done = (
                fused(bodies.weighted_norm_gradient, grad.flatten(2), x, size, weight)
                if rope is None
                else fused(bodies.rotated_norm_gradient, grad.flatten(2), x, size, weight, *rope.spread()[:3])
            )
            if done is not None:
                return done, None, None, None, None, None, None
        if native(x) and weight.dtype == x.dtype:
            inner = (grad if rope is None else rotate_heads(grad, rope, backward=True)).flatten(2)
            grads = _aten._fused_rms_norm_backward(inner, x, [x.shape[-1]], size, weight, [want_x, want_weight])
            return grads[0] if want_x else None, grads[1] if want_weight else None, None, None, None, None, None
        factor = wide(weight)
        grad_x = torch.empty_like(x) if want_x else None
        grad_weight = torch.zeros_like(factor) if want_weight else None
        for part in slices(x):
            own, r, g = wide(x[:, part]), size[:, part], wide(grad[:, part])
            g = (g if rope is None else rotate_heads(g, rope.part(part), backward=True)).flatten(2)
            if grad_weight is not None:
                grad_weight += (g * own * r).sum((0, 1))
            if grad_x is not None:
                ours = rope is not None or g.dtype != grad.dtype
                _norm_gradient(g.mul_(factor) if ours else g * factor, own, r, out=grad_x[:, part])
        return grad_x, None if grad_weight is None else grad_weight.to(weight.dtype), None, None, None, None, None


class _GatedHeads(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, logits, fused):
        ctx.fused = fused
        done = None if fused is None else fused(bodies.gated_heads, x, logits)
        ctx.compiled = done is not None
        if done is not None:
            ctx.save_for_backward(x, logits)
            return done
        gates = torch.sigmoid(logits) * 2
        ctx.save_for_backward(x, gates)
        out = x.new_empty(x.shape)  # token by token, however the heads of x lie
        return torch.mul(x, gates.unsqueeze(-1), out=out).flatten(2)

    @staticmethod
    def backward(ctx, grad):
        x, gates = ctx.saved_tensors
        if ctx.compiled:
            logits = gates
            done = ctx.fused(bodies.gated_heads_gradient, grad, x, logits)
            if done is not None:
                return *done, None
            gates = torch.sigmoid(logits) * 2
        g = _heads(grad, gates.shape[2])
        want_x, want_logits = ctx.needs_input_grad[:2]
        grad_logits = _aten.sigmoid_backward((g * x).sum(-1) * 2, gates / 2) if want_logits else None
        return g * gates.unsqueeze(-1) if want_x else None, grad_logits, None


def _room_for_sizes(x: Tensor) -> Tensor:
    """For r [B, T, 1], in at least float32."""
    return x.new_empty(*x.shape[:-1], 1, dtype=torch.promote_types(x.dtype, torch.float32))


def _normalized(x: Tensor, eps: float, size: Tensor) -> Tensor:
    """n(x) in at least float32, in memory of its own; r is written to `size`."""
    own = wide(x) if device_type(x) == "cpu" else x  # an accelerator casts as it reads
    torch.linalg.vector_norm(own, dim=-1, keepdim=True, dtype=size.dtype, out=size)
    size.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return own * size if own.dtype == x.dtype else own.mul_(size)


def _norm_gradient(g: Tensor, x: Tensor, r: Tensor, out: Tensor) -> None:
    """r * g - x * r^3 * mean(g * x), for the gradient `g` of n(x), into `out`. `g` is overwritten; it is ours."""
    share = torch.linalg.vecdot(g, x).unsqueeze(-1).mul_(r).mul_(r).mul_(r).div_(-x.shape[-1])
    g.mul_(r)
    if _casts_in_place(out, g):
        torch.addcmul(g, x, share, out=out)
    else:
        out.copy_(g.addcmul_(x, share))


def _product(x: Tensor, factor: Tensor) -> Tensor:
    """x * factor in at least float32, in memory of its own; `factor` is in at least float32."""
    if x.dtype in (torch.float32, torch.float64) or device_type(x) != "cpu":
        return x * factor  # an accelerator casts as it reads
    return x.float().mul_(factor)


def _casts_in_place(out: Tensor, value: Tensor) -> bool:
    """Whether an operation on `value` may write to `out` directly: an accelerator casts as it writes."""
    return out.dtype == value.dtype or device_type(out) != "cpu"


def _room_for_heads(x: Tensor, heads: int, by_head: bool) -> Tensor:
    """[B, T, H, K] for the heads of `x` [B, T, D]; `by_head` on a CPU, where rows of one head that lie far apart cost
    attention 7 to 20 % of its time."""
    batch, tokens, width = x.shape
    if x.device.type != "cpu" or not by_head:
        return x.new_empty(batch, tokens, heads, width // heads)
    return x.new_empty(batch, heads, tokens, width // heads).transpose(1, 2)


def _heads(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(2, (heads, x.shape[2] // heads))


def _add_rows(total: Tensor, values: Tensor, index: RowIndex | None, part: slice) -> None:
    if index is None:
        total += values.sum(1)
    else:
        total.index_add_(0, index.rows[:, part].flatten(), values.flatten(0, 1).to(total.dtype))
