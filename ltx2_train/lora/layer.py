"""Low-rank adaptation around any frozen linear layer.

    y = W x + b + strength * (alpha / rank) * B (A x),      A [rank, in], B [out, rank], B starts at zero

A and B are float32 whatever the base is stored in; with a low-precision base the two small products run in its
dtype and their gradients are added up in float32. The base may be any module with `in_features`, `out_features` and
a forward (a plain linear, a quantized one); it never gets a gradient of its own.

One autograd function (products.py) does the whole layer, or all layers that read one input.

LoRA: Hu et al. 2021, arXiv:2106.09685.

Shape letters: N tokens, I in, O out, r rank.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from .adapter import Adapter, uniform, unread_base, zeros
from .low_rank import squared_norm
from .products import LinearPart, low_rank_products, owns_product


class LoRALinear(Adapter):
    """A linear layer `base` with a trainable low-rank term.

    `lora_A` is drawn from `generator`.

    `initial` is set where the base is quantized so that it lacks a low-rank part of the original weight (LoftQ): A0
    [r0, in] and B0 [out, r0] with base + B0 A0 ~ original, which B A begins with. Strength then weighs what was learned
    since, alpha / rank * B A - B0 A0, so that 0 is the original model and not the base without its missing part.
    """

    algo = "lora"

    def __init__(
        self,
        base: nn.Module,
        rank: int,
        alpha: float,
        dropout: float = 0.0,
        dtype: torch.dtype = torch.float32,
        generator: torch.Generator | None = None,
        rank_dropout: float = 0.0,
        module_dropout: float = 0.0,
    ) -> None:
        super().__init__(base, rank, alpha, dropout, rank_dropout, module_dropout)
        self.held: tuple[Tensor, Tensor] | None = None  # A and B in the dtype of the products, see held.py
        self.initial: tuple[Tensor, Tensor] | None = None
        self.lora_A = zeros(base, (rank, self.in_features), dtype)
        self.lora_B = zeros(base, (self.out_features, rank), dtype)
        uniform(self.lora_A, generator)
        self._draw_seed(generator)

    def trained(self) -> dict[str, nn.Parameter]:
        return {"A": self.lora_A, "B": self.lora_B}

    def exported(self) -> dict[str, Tensor]:
        a, b = self.change()
        return {"lora_A.weight": a, "lora_B.weight": b}

    def squared_change(self) -> Tensor:
        return squared_norm(*self.change())

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

    @staticmethod
    def together(linears: Sequence[nn.Module], x: Tensor) -> list[Tensor]:
        """The values of `linears`, of which one at least is of this class, at `x`: all A in one product."""
        if not all(_joins(one) for one in linears):
            return [one(x) for one in linears]
        parts = [one._part() if isinstance(one, LoRALinear) else LinearPart(one) for one in linears]
        return list(low_rank_products(x, parts))

    def _with_low_rank(self, x: Tensor, value: bool) -> Tensor:
        y = None
        if not owns_product(self.base):  # then it is its own node of the graph
            y = self.base(x) if value else unread_base(self.base, x)
        if self._drops:
            mask = self._mask(x) if self.dropout else None
            return low_rank_products(x, [self._dropped(y, x.device)], value, mask, self._drawn)[0]
        return low_rank_products(x, [self._part(y)], value)[0]

    def _part(self, y: Tensor | None = None) -> LinearPart:
        return LinearPart(self.base, y, self.lora_A, self.lora_B, self.held, self.scale)

    def _dropped(self, y: Tensor | None, device: torch.device) -> LinearPart:
        """The part without the ranks that are dropped this time."""
        if device.type == "meta" or not (self.rank_dropout or self.module_dropout):
            return self._part(y)
        return LinearPart(self.base, y, self.lora_A, self.lora_B * self._kept_ranks(device), None, self.scale)

    def _kept_ranks(self, device: torch.device) -> Tensor:
        """The factor on each rank, float32 [r]."""
        return self._kept_rows(self.rank, device)


def _joins(linear: nn.Module) -> bool:
    """Whether the products of `linear` may be made together with those of others."""
    if type(linear) is not LoRALinear:
        return type(linear) is nn.Linear and not linear.weight.requires_grad
    whole = linear.initial is None or linear.strength == 1.0
    return owns_product(linear.base) and linear.strength != 0.0 and whole and not linear._drops
