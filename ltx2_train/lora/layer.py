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

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from .products import Part, low_rank_products, owns_product
from .targets import linear_size


class LoRALinear(nn.Module):
    """A linear layer `base` with a trainable low-rank term.

    `lora_A` is drawn from `generator`. While the layer is in training mode, `dropout` drops inputs of the low-rank
    term, `rank_dropout` ranks and `module_dropout` the whole of it; what is left of inputs and ranks is scaled up. The
    masks depend on a seed drawn from `generator` and on `dropout_draws`, the number of backward passes so far, so a
    recomputed forward meets the same ones. Save `dropout_draws` to resume bit for bit.

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
        rank_dropout: float = 0.0,
        module_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        assert rank > 0, rank
        for share in (dropout, rank_dropout, module_dropout):
            assert 0.0 <= share < 1.0, share
        for parameter in base.parameters():
            parameter.requires_grad_(False)
        device = next((t.device for t in (*base.parameters(), *base.buffers())), torch.device("cpu"))
        self.base = base
        size = linear_size(base)
        assert size is not None, type(base)
        self.out_features, self.in_features = size
        self.rank, self.alpha, self.dropout = rank, float(alpha), float(dropout)
        self.rank_dropout, self.module_dropout = float(rank_dropout), float(module_dropout)
        self.strength = 1.0
        self.held: tuple[Tensor, Tensor] | None = None  # A and B in the dtype of the products, see held.py
        self.initial: tuple[Tensor, Tensor] | None = None
        # on the generator's device, so that a seed gives the same numbers wherever the model lies
        bound = 1.0 / math.sqrt(self.in_features)  # kaiming uniform with a = sqrt(5)
        a = torch.empty(rank, self.in_features, dtype=torch.float32, device=_device_of(generator))
        a.uniform_(-bound, bound, generator=generator)
        self.lora_A = nn.Parameter(a.to(device=device, dtype=dtype))
        self.lora_B = nn.Parameter(torch.zeros(self.out_features, rank, dtype=dtype, device=device))
        self.dropout_draws = 0
        self.dropout_seed = 0
        if dropout or rank_dropout or module_dropout:
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

    @staticmethod
    def together(linears: Sequence[nn.Module], x: Tensor) -> list[Tensor]:
        """The values of `linears`, of which one at least is of this class, at `x`: all A in one product."""
        if not all(_joins(one) for one in linears):
            return [one(x) for one in linears]
        parts = [one._part() if isinstance(one, LoRALinear) else Part(one) for one in linears]
        return list(low_rank_products(x, parts))

    def _with_low_rank(self, x: Tensor, value: bool) -> Tensor:
        y = None
        if not owns_product(self.base):  # then it is its own node of the graph
            y = self.base(x) if value else _unread_base(self.base, x)
        if self._drops:
            mask = self._mask(x) if self.dropout else None
            return low_rank_products(x, [self._dropped(y, x.device)], value, mask, self._drawn)[0]
        return low_rank_products(x, [self._part(y)], value)[0]

    def _part(self, y: Tensor | None = None) -> Part:
        return Part(self.base, y, self.lora_A, self.lora_B, self.held, self.scale)

    def _dropped(self, y: Tensor | None, device: torch.device) -> Part:
        """The part without the ranks that are dropped this time."""
        if device.type == "meta" or not (self.rank_dropout or self.module_dropout):
            return self._part(y)
        return Part(self.base, y, self.lora_A, self.lora_B * self._kept_ranks(device), None, self.scale)

    def _kept_ranks(self, device: torch.device) -> Tensor:
        """The factor on each rank, float32 [r]: 0 where it is dropped, else one over the chance to stay."""
        # far from the seeds of the inputs' mask, so that the two kinds fall apart from each other
        generator = torch.Generator(device).manual_seed(self.dropout_seed + self.dropout_draws + (1 << 50))
        chances = torch.rand(self.rank + 1, generator=generator, device=device)
        keep = 1.0 - self.rank_dropout
        return (chances[1:] < keep).float() / keep * (chances[0] >= self.module_dropout)

    @property
    def _drops(self) -> bool:
        return self.training and bool(self.dropout or self.rank_dropout or self.module_dropout)

    def _drawn(self) -> None:
        self.dropout_draws += 1

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


def _joins(linear: nn.Module) -> bool:
    """Whether the products of `linear` may be made together with those of others."""
    if not isinstance(linear, LoRALinear):
        return type(linear) is nn.Linear and not linear.weight.requires_grad
    whole = linear.initial is None or linear.strength == 1.0
    return owns_product(linear.base) and linear.strength != 0.0 and whole and not linear._drops


def _unread_base(base: nn.Module, x: Tensor) -> Tensor:
    method = getattr(base, "unread", None)
    return base(x) if method is None else method(x)


def _device_of(generator: torch.Generator | None) -> torch.device:
    return torch.device("cpu") if generator is None else generator.device
