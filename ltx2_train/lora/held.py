"""Copies of all factors of a LoRA in the dtype that products run in, made together once a step.

A layer would cast its factors for each product: forward, again where a block is run a second time, and for the
gradient. The copies lie in one buffer, all A in the order of the layers, then all B; so layers that read one input
find their A one below the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from .layer import LoRALinear


class Held:
    """The buffer for `layers`, which are held inside `with held.fresh():` and must not change there."""

    def __init__(self, layers: Sequence[LoRALinear], dtype: torch.dtype) -> None:
        self.layers, self.dtype = list(layers), dtype
        self.factors: list[Tensor] = [layer.lora_A for layer in self.layers]
        self.factors += [layer.lora_B for layer in self.layers]
        buffer = torch.empty(sum(one.numel() for one in self.factors), dtype=dtype, device=self.factors[0].device)
        parts = buffer.split([one.numel() for one in self.factors])
        self.copies = [part.view(one.shape) for part, one in zip(parts, self.factors, strict=True)]

    def fits(self, layers: Sequence[LoRALinear], dtype: torch.dtype) -> bool:
        """Whether the buffer serves these layers, where their factors lie now."""
        factors = [layer.lora_A for layer in layers] + [layer.lora_B for layer in layers]
        same = len(factors) == len(self.factors) and all(a is b for a, b in zip(factors, self.factors, strict=True))
        return same and dtype == self.dtype and factors[0].device == self.copies[0].device

    @contextmanager
    def fresh(self) -> Iterator[None]:
        """The layers use copies of what their factors are now."""
        with torch.no_grad():
            torch._foreach_copy_(self.copies, self.factors)  # pyright: ignore[reportPrivateImportUsage]  # no public name
        count = len(self.layers)
        pairs: Iterator[tuple[Tensor, Tensor]] = zip(self.copies[:count], self.copies[count:], strict=True)
        for layer, pair in zip(self.layers, pairs, strict=True):
            layer.held = pair
        try:
            yield
        finally:
            for layer in self.layers:
                layer.held = None
