"""Low-rank adaptation around any frozen linear layer.

    y = W x + b + strength * (alpha / rank) * B (A x),      A [rank, in], B [out, rank], B starts at zero

A and B are float32 whatever the base is stored in; with a low-precision base the two small products run in its
dtype and their gradients are added up in float32. The base may be any module with `in_features`, `out_features` and
a forward (a plain linear, a quantized one); it never gets a gradient of its own.

One autograd function does the whole layer. It keeps x once, and A x; the library's composition would keep more and
walk over y three times. Where the base is a plain linear the function also computes the base's product, so that both
paths of the gradient end in one buffer.

LoRA: Hu et al. 2021, arXiv:2106.09685.

Shape letters: N tokens, I in, O out, r rank.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from .targets import linear_size


class LoRALinear(nn.Module):
    """A linear layer `base` with a trainable low-rank term.

    `lora_A` is drawn from `generator`. `dropout` acts on the input of the low-rank term while the layer is in
    training mode; its mask depends on a seed drawn from `generator` and on `dropout_draws`, the number of backward
    passes so far, so a recomputed forward meets the same mask. Save `dropout_draws` to resume bit for bit.

    `initial` is set where the base is quantized so that it lacks a low-rank part of the original weight (LoftQ): A0
    [r0, in] and B0 [out, r0] with base + B0 A0 ~ original, which B A begins with. Strength then weighs what was learned
    since, alpha / rank * B A - B0 A0, so that 0 is the original model and not the base without its missing part.
    """

    def __init__(
        self,
        base: nn.Module,
        rank: int,
        alpha: float,
        dropout: float = 0.0,
        dtype: torch.dtype = torch.float32,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        assert rank > 0, rank
        assert 0.0 <= dropout < 1.0, dropout
        for parameter in base.parameters():
            parameter.requires_grad_(False)
        device = next((t.device for t in (*base.parameters(), *base.buffers())), torch.device("cpu"))
        self.base = base
        size = linear_size(base)
        assert size is not None, type(base)
        self.out_features, self.in_features = size
        self.rank, self.alpha, self.dropout = rank, float(alpha), float(dropout)
        self.strength = 1.0
        self.initial: tuple[Tensor, Tensor] | None = None
        # on the generator's device, so that a seed gives the same numbers wherever the model lies
        bound = 1.0 / math.sqrt(self.in_features)  # kaiming uniform with a = sqrt(5)
        a = torch.empty(rank, self.in_features, dtype=torch.float32, device=_device_of(generator))
        a.uniform_(-bound, bound, generator=generator)
        self.lora_A = nn.Parameter(a.to(device=device, dtype=dtype))
        self.lora_B = nn.Parameter(torch.zeros(self.out_features, rank, dtype=dtype, device=device))
        self.dropout_draws = 0
        self.dropout_seed = 0
        if dropout > 0:
            seed = torch.randint(1 << 40, (), generator=generator, device=_device_of(generator))
            self.dropout_seed = int(seed)

    @property
    def scale(self) -> float:
        """What B A is multiplied with."""
        return self.alpha / self.rank * self.strength

    def delta(self) -> Tensor:
        """The change of the original weight [O, I] in float32."""
        a, b = self.change()
        return self.strength * (b @ a)

    def change(self) -> tuple[Tensor, Tensor]:
        """Factors A [R, I], B [O, R] in float32 of the change of the original weight at strength 1.

        R is the rank, and where there is an `initial` its rank more: B A = alpha / rank * B A - B0 A0.
        """
        a, b = self.lora_A.detach().float(), self.lora_B.detach().float() * (self.alpha / self.rank)
        if self.initial is None:
            return a, b
        a0, b0 = (part.to(a.device, torch.float32) for part in self.initial)
        return torch.cat([a, a0]), torch.cat([b, -b0], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        if self.strength == 0.0:
            return self._original(x, self.base(x))
        return self._original(x, self._with_low_rank(x, value=True))

    def unread(self, x: Tensor) -> Tensor:
        """A stand-in for `self(x)` whose gradient is right and whose value nobody may read; saves both products."""
        return self.forward(x) if self.strength == 0.0 else self._original(x, self._with_low_rank(x, value=False))

    def _original(self, x: Tensor, y: Tensor) -> Tensor:
        """`y` and the share of the base's missing part that is not in B A."""
        if self.initial is None or self.strength == 1.0:
            return y
        a0, b0 = (part.to(x.device, x.dtype) for part in self.initial)
        return y + (1.0 - self.strength) * linear(linear(x, a0), b0)

    def _with_low_rank(self, x: Tensor, value: bool) -> Tensor:
        mask = self._mask(x) if self.dropout > 0 and self.training else None
        plain = type(self.base) is nn.Linear
        if plain:
            weight, bias, y = self.base.weight, self.base.bias, None
        else:
            weight = bias = None
            # a base of another kind is its own node of the graph
            y = self.base(x) if value else _unread_base(self.base, x)
        return _LowRank.apply(x, y, weight, bias, self.lora_A, self.lora_B, mask, self, value)

    def _mask(self, x: Tensor) -> Tensor:
        """Which inputs stay, already divided by the chance to stay; [.., I] in the dtype of `x`."""
        if x.device.type == "meta":  # has no generators
            return torch.empty_like(x)
        generator = torch.Generator(x.device).manual_seed(self.dropout_seed + self.dropout_draws)
        keep = 1.0 - self.dropout
        mask = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        return mask.bernoulli_(keep, generator=generator).div_(keep)

    def extra_repr(self) -> str:
        return f"rank={self.rank}, alpha={self.alpha:g}, dropout={self.dropout:g}, strength={self.strength:g}"


class _LowRank(torch.autograd.Function):
    """Either `y` is the base's value, or `weight` and `bias` are the base."""

    @staticmethod
    def forward(ctx: Any, x, y, weight, bias, a, b, mask, layer, value):
        inner = x if mask is None else x * mask
        ctx.layer, ctx.scale, ctx.plain = layer, layer.scale, weight is not None
        small = linear(inner, a.to(x.dtype))  # [.., r]
        ctx.save_for_backward(x, small, weight, a, b, mask)
        if not value:
            return x.new_empty(()).expand(*x.shape[:-1], b.shape[0])
        small2, b2 = small.reshape(-1, b.shape[1]), b.to(small.dtype).t()
        if weight is not None:
            out = linear(x, weight, bias)  # ours, so the sum may go into it
            flat = out.reshape(-1, out.shape[-1]).addmm_(small2, b2, alpha=ctx.scale)
        else:
            out = y
            flat = torch.addmm(y.reshape(-1, y.shape[-1]), small2.to(y.dtype), b2.to(y.dtype), alpha=ctx.scale)
        return flat.view(out.shape)

    @staticmethod
    def backward(ctx: Any, *grads):
        (grad,) = grads
        x, small, weight, a, b, mask = ctx.saved_tensors
        want_x, _, _, _, want_a, want_b = ctx.needs_input_grad[:6]
        g = grad.reshape(-1, grad.shape[-1])
        x2, dtype = x.reshape(-1, x.shape[-1]), x.dtype
        g_low = g.to(dtype)
        g_small = (g_low @ b.to(dtype)).mul_(ctx.scale)  # [N, r]
        grad_a = grad_b = grad_x = None
        if want_a:
            inner = x2 if mask is None else x2 * mask.reshape(x2.shape)
            grad_a = (g_small.t() @ inner).to(a.dtype)
        if want_b:
            grad_b = (g_low.t() @ small.reshape(-1, small.shape[-1])).to(b.dtype).mul_(ctx.scale)
        if want_x:
            if mask is not None:
                grad_x = (g_small @ a.to(dtype)).mul_(mask.reshape(x2.shape))
                if ctx.plain:
                    grad_x.addmm_(g_low, weight.to(dtype))
            elif ctx.plain:
                grad_x = (g_low @ weight).addmm_(g_small, a.to(dtype))
            else:
                grad_x = g_small @ a.to(dtype)
            grad_x = grad_x.view(x.shape)
        if mask is not None:
            ctx.layer.dropout_draws += 1
        return grad_x, None if ctx.plain else grad, None, None, grad_a, grad_b, None, None, None


def _unread_base(base: nn.Module, x: Tensor) -> Tensor:
    method = getattr(base, "unread", None)
    return base(x) if method is None else method(x)


def _device_of(generator: torch.Generator | None) -> torch.device:
    return torch.device("cpu") if generator is None else generator.device
