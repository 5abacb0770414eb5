"""What every kind of change round a frozen linear layer has in common: the base, the scale, dropout, the file's names.

A kind is a subclass with `algo`, the setting that asks for it, `trained` and `exported`. `kinds.py` has the table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .targets import linear_size


class Adapter(nn.Module):
    """A frozen linear layer `base`, which may be any module with `in_features` and `out_features`, and a change of it.

    While the layer is in training mode, `dropout` drops inputs of the change, `rank_dropout` its ranks, or its outputs
    where it has no ranks, and `module_dropout` the whole of it; what is left of inputs and ranks is scaled up. The
    masks depend on a seed drawn from a generator and on `dropout_draws`, the number of backward passes so far, so a
    recomputed forward meets the same ones. Save `dropout_draws` to resume bit for bit.
    """

    algo: ClassVar[str]

    def __init__(
        self, base: nn.Module, rank: int, alpha: float, dropout: float, rank_dropout: float, module_dropout: float
    ) -> None:
        super().__init__()
        assert rank > 0, rank
        for share in (dropout, rank_dropout, module_dropout):
            assert 0.0 <= share < 1.0, share
        for parameter in base.parameters():
            parameter.requires_grad_(False)
        self.base = base
        size = linear_size(base)
        assert size is not None, type(base)
        self.out_features, self.in_features = size
        self.rank, self.alpha, self.dropout = rank, float(alpha), float(dropout)
        self.rank_dropout, self.module_dropout = float(rank_dropout), float(module_dropout)
        self.strength = 1.0
        self.dropout_draws = 0
        self.dropout_seed = 0

    @property
    def own_scale(self) -> float:
        """What the product of the factors is multiplied with at strength 1."""
        return self.alpha / self.rank

    @property
    def scale(self) -> float:
        """What the product of the factors is multiplied with."""
        return self.own_scale * self.strength

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters by the names they have in a saved state; LoRA+ has a rate of its own for the last of them."""
        raise NotImplementedError

    def kept(self) -> dict[str, Tensor]:
        """What a saved state holds besides the parameters."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Undo everything since `state`, which has the tensors of `trained` and `kept` and `dropout_draws`."""
        for name, parameter in (*self.trained().items(), *self.kept().items()):
            parameter.data.copy_(state[name])
        self.dropout_draws = int(state["dropout_draws"])

    def exported(self) -> dict[str, Tensor]:
        """Ends of keys -> float32 tensors of a LoRA file, the scale at strength 1 multiplied in."""
        raise NotImplementedError

    def squared_change(self) -> Tensor:
        """The square of the Frobenius norm of the change of the weight at strength 1, float32 []."""
        raise NotImplementedError

    def products(self) -> int:
        """Numbers that a token is multiplied with besides those of the base."""
        return sum(parameter.numel() for parameter in self.trained().values())

    @property
    def measures(self) -> bool:
        """Whether `measure` does anything."""
        return False

    def measure(self, generator: torch.Generator | None = None) -> None:
        """Look at the base's weight, which is there now; called once, when a run begins to use the layer."""

    def _draw_seed(self, generator: torch.Generator | None) -> None:
        """Draw the seed of the masks, once everything else is drawn."""
        if self.dropout or self.rank_dropout or self.module_dropout:
            seed = torch.randint(1 << 40, (), generator=generator, device=device_of(generator))
            self.dropout_seed = int(seed)

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

    def _kept_rows(self, count: int, device: torch.device) -> Tensor:
        """The factor on each of `count` ranks or outputs, float32: 0 where dropped, else one over the chance of it."""
        # far from the seeds of the inputs' mask, so that the two kinds fall apart from each other
        generator = torch.Generator(device).manual_seed(self.dropout_seed + self.dropout_draws + (1 << 50))
        chances = torch.rand(count + 1, generator=generator, device=device)
        keep = 1.0 - self.rank_dropout
        return (chances[1:] < keep).float() / keep * (chances[0] >= self.module_dropout)

    def extra_repr(self) -> str:
        return f"rank={self.rank}, alpha={self.alpha:g}, dropout={self.dropout:g}, strength={self.strength:g}"


class AddedChange(Adapter):
    """A change that is a product of its own, added to the base's: y = base(x) + scale * product(x)."""

    def product(self, x: Tensor) -> Tensor:
        """[.., O] at scale 1 for x [.., I], with gradients to x and to the parameters."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        return y if self.strength == 0.0 else y + self._change(x)

    def unread(self, x: Tensor) -> Tensor:
        """A stand-in for `self(x)` whose gradient is right and whose value nobody may read; the base saves its own."""
        y = unread_base(self.base, x)
        return y if self.strength == 0.0 else y + self._change(x)

    def _change(self, x: Tensor) -> Tensor:
        if not self._drops:
            return self.product(x) * self.scale if self.scale != 1.0 else self.product(x)
        change = self.product(x * self._mask(x) if self.dropout else x)
        if x.device.type != "meta" and (self.rank_dropout or self.module_dropout):
            change = change * self._kept_rows(self.out_features, x.device).to(x.dtype)
        return _Counted.apply(change * self.scale, self._drawn)


class _Counted(torch.autograd.Function):
    """The same tensor; `used` is called once backward has passed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, used: Callable[[], None]) -> Tensor:
        ctx.used = used
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        ctx.used()
        return grads[0], None


def zeros(base: nn.Module, shape: Sequence[int], dtype: torch.dtype) -> nn.Parameter:
    """A parameter of zeros where `base` lies."""
    device = next((t.device for t in (*base.parameters(), *base.buffers())), torch.device("cpu"))
    return nn.Parameter(torch.zeros(*shape, dtype=dtype, device=device))


def uniform(parameter: Tensor, generator: torch.Generator | None) -> None:
    """Fill [r, inputs] as layers usually begin: uniform within one over the root of the inputs."""
    # on the generator's device, so that a seed gives the same numbers wherever the model lies
    bound = 1.0 / math.sqrt(parameter.shape[1])  # kaiming uniform with a = sqrt(5)
    drawn = torch.empty(parameter.shape, dtype=torch.float32, device=device_of(generator))
    parameter.data.copy_(drawn.uniform_(-bound, bound, generator=generator))


def normal(parameter: Tensor, std: float, generator: torch.Generator | None) -> None:
    """Fill with normal numbers of that deviation."""
    drawn = torch.empty(parameter.shape, dtype=torch.float32, device=device_of(generator))
    parameter.data.copy_(drawn.normal_(0.0, std, generator=generator))


def base_weight(base: nn.Module) -> Tensor:
    """The weight [O, I] of a plain or a quantized linear, in the dtype it multiplies in."""
    dequantize: Any = getattr(base, "dequantize", None)
    weight: Any = base.weight if dequantize is None else dequantize()
    return weight.detach()


def unread_base(base: nn.Module, x: Tensor) -> Tensor:
    """A stand-in for `base(x)` with its gradient, which costs less where the base offers that."""
    method = getattr(base, "unread", None)
    return base(x) if method is None else method(x)


def device_of(generator: torch.Generator | None) -> torch.device:
    """Where `generator` draws."""
    return torch.device("cpu") if generator is None else generator.device
