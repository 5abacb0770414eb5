"""Low-rank adaptation of directions, with the length of each column of the weight learned apart.

    W' = (W + alpha / rank * B A) diag(m / n),      n_i = ||column i of W + alpha / rank * B A||

m begins as the length of the columns of W, so that W' = W; what is trained is the difference to that beginning. As in
the paper, n counts as a constant in backward. A column belongs to an input, so the layer is a LoRA that reads
x * m / n. For n the weight is needed in a product of `rank` rows alone, B^T W.

The length of a column of W is measured once, when a run begins, and kept in its state. Files carry m as `dora_scale`
[1, in] in float32, which ComfyUI and LyCORIS divide by n alike. (A scale for each output they read differently.)

Liu et al. 2024, "DoRA: Weight-Decomposed Low-Rank Adaptation", arXiv:2402.09353.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .adapter import base_weight, zeros
from .layer import LoRALinear

SCALE = "dora_scale"


class DoRALinear(LoRALinear):
    """A LoRA whose columns have a length of their own: `magnitude` [1, in], the difference to that in the base."""

    algo = "dora"

    def __init__(self, base: nn.Module, *args: Any, **options: Any) -> None:
        super().__init__(base, *args, **options)
        self.magnitude = zeros(base, (1, self.in_features), self.lora_A.dtype)
        self._squares: Tensor | None = None  # of the columns of the base, float32 [I]
        self._lately: tuple[Tensor, Tensor, Tensor] | None = None  # see `_columns`

    @property
    def scale(self) -> float:
        return self.own_scale  # `strength` weighs the change as a whole

    def trained(self) -> dict[str, nn.Parameter]:
        return {"A": self.lora_A, "magnitude": self.magnitude, "B": self.lora_B}

    def kept(self) -> dict[str, Tensor]:
        return {"squares": self.squares}

    def exported(self) -> dict[str, Tensor]:
        return {**super().exported(), SCALE: self.squares.sqrt()[None] + self.magnitude.detach().float()}

    def begin_with(self, scale: Tensor) -> None:
        """Take the lengths of the columns from a file."""
        lengths = scale.to(self.magnitude.device, torch.float32).reshape(1, -1)
        self.magnitude.data.copy_(lengths - self.squares.sqrt().to(lengths.device))

    @property
    def squares(self) -> Tensor:
        """The squared length of each column of the base, float32 [I]; measured where that has not been done."""
        if self._squares is None:
            self.measure()
        assert self._squares is not None
        return self._squares

    @property
    def measures(self) -> bool:
        return True

    @torch.no_grad()
    def measure(self, generator: torch.Generator | None = None) -> None:
        self._squares = base_weight(self.base).float().square().sum(0).to(self.lora_A.device)

    def restore(self, state: Mapping[str, Any]) -> None:
        self._squares = state["squares"].to(self.lora_A.device, copy=True)
        super().restore(state)

    def squared_change(self) -> Tensor:
        if self._lately is None:
            return torch.zeros((), device=self.lora_A.device)
        factor, cross, low = self._lately
        columns = (factor - 1).square() * self.squares + 2 * factor * (factor - 1) * cross + factor.square() * low
        return columns.sum()

    def products(self) -> int:
        return self.lora_A.numel() + self.lora_B.numel()

    def forward(self, x: Tensor) -> Tensor:
        if self.strength == 0.0:
            return self.base(x)
        y = self._with_low_rank(_Scaled.apply(x, self._factor()), value=True)
        if self.strength == 1.0:
            return y
        original = self.base(x)
        return original + self.strength * (y - original)

    def unread(self, x: Tensor) -> Tensor:
        if self.strength != 1.0:
            return self.forward(x)
        return self._with_low_rank(_Scaled.apply(x, self._factor()), value=False)

    def _factor(self) -> Tensor:
        """m / n, float32 [I]."""
        squares = self._squares = self.squares.to(self.lora_A.device)
        with torch.no_grad():
            cross, low = self._columns()
            lengths = (squares + 2 * cross + low).clamp(min=torch.finfo(torch.float32).tiny).sqrt()
        factor = (squares.sqrt() + self.magnitude[0].float()) / lengths
        self._lately = factor.detach(), cross, low
        return factor

    def _columns(self) -> tuple[Tensor, Tensor]:
        """Of each column: its product with that of the base, and its square, for alpha / rank * B A; float32 [I]."""
        a, b = self.lora_A.float(), self.lora_B.float() * self.own_scale
        weight = base_weight(self.base)
        cross = (b.t().to(weight.dtype) @ weight).float()
        return (a * cross).sum(0), (a * ((b.t() @ b) @ a)).sum(0)


class _Scaled(torch.autograd.Function):
    """x [.., I] times a float32 factor [I], in the dtype of x; keeps both."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: Tensor) -> Tensor:
        ctx.save_for_backward(x, factor)
        return (x * factor).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, factor = ctx.saved_tensors
        grad_x = (grads[0] * factor).to(x.dtype) if ctx.needs_input_grad[0] else None
        grad_factor = None
        if ctx.needs_input_grad[1]:
            flat = x.reshape(-1, x.shape[-1])
            grad_factor = (grads[0].reshape(flat.shape).float() * flat).sum(0)
        return grad_x, grad_factor
