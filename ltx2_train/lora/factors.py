"""Changes of a weight that are put together from small matrices otherwise than as one product of two.

    LoKr    scale * w1 (x) w2, a Kronecker product: a small matrix whose every number is multiplied with a larger one
    LoHa    scale * (w1_a w1_b) * (w2_a w2_b), number by number: of rank r^2 for the numbers of rank 2 r

Both begin without any change, as LyCORIS begins them. A LoKr is multiplied factor by factor; a LoHa only as a whole
matrix, which is made for each product and made again for its gradient, so its products cost as much as the base's.

Yeh et al. 2023, "Navigating Text-To-Image Customization: From LyCORIS Fine-Tuning to Model Evaluation",
arXiv:2309.14859; Hyeon-Woo et al. 2021, "FedPara", arXiv:2108.06098.

Shape letters: N tokens, O = a c outputs, I = b d inputs, r rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from .adapter import AddedChange, base_weight, device_of, normal, uniform, zeros

Shapes = Mapping[str, tuple[int, int]]
"""Sizes of the factors by the ends of their keys in a file, which are their names in a saved state too."""


class FactoredChange(AddedChange):
    """A change with the factors `shapes`. `begin` gives them their first numbers."""

    def __init__(
        self,
        base: nn.Module,
        rank: int,
        alpha: float,
        shapes: Shapes,
        dropout: float = 0.0,
        dtype: torch.dtype = torch.float32,
        generator: torch.Generator | None = None,
        rank_dropout: float = 0.0,
        module_dropout: float = 0.0,
    ) -> None:
        super().__init__(base, rank, alpha, dropout, rank_dropout, module_dropout)
        self.names = tuple(shapes)
        for name, shape in shapes.items():
            self.register_parameter(name, zeros(base, shape, dtype))
        self.begin(generator)
        self._draw_seed(generator)

    @staticmethod
    def shapes(outputs: int, inputs: int, rank: int, factor: int) -> dict[str, tuple[int, int]]:
        """Sizes of the factors of a new layer."""
        raise NotImplementedError

    def begin(self, generator: torch.Generator | None) -> None:
        """Draw the first numbers; all parameters are zero."""
        raise NotImplementedError

    def trained(self) -> dict[str, nn.Parameter]:
        return {name: self.get_parameter(name) for name in self.names}

    def exported(self) -> dict[str, Tensor]:
        tensors = {name: parameter.detach().float() for name, parameter in self.trained().items()}
        tensors[self.names[0]] = tensors[self.names[0]] * self.own_scale
        return tensors

    def begin_with(self, parts: Mapping[str, Tensor], scale: float) -> None:
        """Take the factors from a file that multiplies their product with `scale`."""
        for number, (name, parameter) in enumerate(self.trained().items()):
            parameter.data.copy_(parts[name].float() * (1.0 if number else scale / self.own_scale))


class LoKrLinear(FactoredChange):
    """W + scale * w1 (x) w2 with w1 [a, b], and w2 [c, d] as it is or as w2_a [c, r] w2_b [r, d].

    `noise` is a share of the base: unlike else, the change then begins as normal numbers with the mean and deviation
    of the base's weight times `noise`, w1 being all ones. That needs a whole w2.
    """

    algo = "lokr"
    noise = 0.0

    @staticmethod
    def shapes(outputs: int, inputs: int, rank: int, factor: int) -> dict[str, tuple[int, int]]:
        """Sizes of the factors: w2 in two of them where that is smaller."""
        (a, c), (b, d) = split(outputs, factor), split(inputs, factor)
        if 2 * rank >= max(c, d):
            return {"lokr_w1": (a, b), "lokr_w2": (c, d)}
        return {"lokr_w1": (a, b), "lokr_w2_a": (c, rank), "lokr_w2_b": (rank, d)}

    @property
    def own_scale(self) -> float:
        # a whole w2 has no rank to divide by
        return 1.0 if "lokr_w2" in self.names else self.alpha / self.rank

    def begin(self, generator: torch.Generator | None) -> None:
        for name in self.names[:-1]:
            uniform(self.get_parameter(name), generator)

    @property
    def measures(self) -> bool:
        return bool(self.noise)

    @torch.no_grad()
    def measure(self, generator: torch.Generator | None = None) -> None:
        weight, w2 = base_weight(self.base).float(), self.get_parameter("lokr_w2")
        self.get_parameter("lokr_w1").fill_(1.0)
        drawn = torch.randn(w2.shape, generator=generator, device=device_of(generator)).to(w2.device)
        std, mean = torch.std_mean(weight)
        w2.copy_((drawn * std + mean) * self.noise)

    def product(self, x: Tensor) -> Tensor:
        parts = self.trained()
        w1, *w2 = (part.to(x.dtype) for part in parts.values())
        columns = w2[-1].shape[1]
        inner = x.reshape(-1, w1.shape[1], columns)  # [N, b, d]
        for factor in reversed(w2):
            inner = linear(inner, factor)  # [N, b, c] at the end
        return torch.matmul(w1, inner).reshape(*x.shape[:-1], self.out_features)  # [N, a, c]

    def squared_change(self) -> Tensor:
        w1, *w2 = (part.detach().float() for part in self.trained().values())
        whole = w2[0] if len(w2) == 1 else w2[0] @ w2[1]
        return w1.square().sum() * whole.square().sum() * self.own_scale**2

    def products(self) -> int:
        w1, *w2 = (part.shape for part in self.trained().values())
        return w1[1] * sum(rows * columns for rows, columns in w2) + w1[0] * w1[1] * w2[0][0]


class LoHaLinear(FactoredChange):
    """W + scale * (w1_a w1_b) * (w2_a w2_b), the last product number by number."""

    algo = "loha"

    @staticmethod
    def shapes(outputs: int, inputs: int, rank: int, factor: int) -> dict[str, tuple[int, int]]:
        """Sizes of the factors; `factor` has no meaning here."""
        halves = {"a": (outputs, rank), "b": (rank, inputs)}
        return {f"hada_w{one}_{half}": size for one in "12" for half, size in halves.items()}

    def begin(self, generator: torch.Generator | None) -> None:
        for name, std in (("hada_w1_b", 1.0), ("hada_w1_a", 0.1), ("hada_w2_b", 1.0)):
            normal(self.get_parameter(name), std, generator)

    def product(self, x: Tensor) -> Tensor:
        return _Hadamard.apply(x, *self.trained().values())

    def squared_change(self) -> Tensor:
        parts = [part.detach().float() for part in self.trained().values()]
        return hadamard(*parts).square().sum() * self.own_scale**2

    def products(self) -> int:
        return self.out_features * self.in_features


class _Hadamard(torch.autograd.Function):
    """x W^T for W = (a1 b1) * (a2 b2), keeping x and the factors."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, a1: Tensor, b1: Tensor, a2: Tensor, b2: Tensor) -> Tensor:
        ctx.save_for_backward(x, a1, b1, a2, b2)
        return linear(x, hadamard(a1, b1, a2, b2).to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, a1, b1, a2, b2 = ctx.saved_tensors
        grad, flat = grads[0].reshape(-1, grads[0].shape[-1]), x.reshape(-1, x.shape[-1])
        grad_x = (grad @ hadamard(a1, b1, a2, b2).to(x.dtype)).view(x.shape) if ctx.needs_input_grad[0] else None
        grad_w = (grad.t() @ flat).to(a1.dtype)  # [O, I]
        first, second = grad_w * (a2 @ b2), grad_w * (a1 @ b1)
        return grad_x, first @ b1.t(), a1.t() @ first, second @ b2.t(), a2.t() @ second


def hadamard(a1: Tensor, b1: Tensor, a2: Tensor, b2: Tensor) -> Tensor:
    """(a1 b1) * (a2 b2), number by number [O, I]."""
    return (a1 @ b1).mul_(a2 @ b2)


def split(size: int, factor: int) -> tuple[int, int]:
    """Two factors of `size`, the smaller one first: as near to each other as they come, the smaller at most `factor`.

    `factor` -1 sets no limit. A `factor` that divides `size` is taken as it is.
    """
    if factor > 0 and size % factor == 0:
        return min(factor, size // factor), max(factor, size // factor)
    limit = factor if factor > 0 else size
    small = max(one for one in range(1, int(size**0.5) + 1) if size % one == 0 and one <= limit)
    return small, size // small
