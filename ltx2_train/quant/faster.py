"""Whether to multiply in 8 bits: switched for many layers at once, or measured for one.

Quantizing x and g for each product costs time too, and so does writing out a wide integer result; on small batches or
old cards the ordinary product of the dequantized weight is faster. Only the whole counts, forward and the gradient to
the input, so that is what is timed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import nn

from ..device import wait
from .base import QuantLinear

_ROUNDS = 5


def set_matmul(module: nn.Module, on: bool) -> int:
    """Switch every quantized linear inside `module`; the number of those whose format can multiply in 8 bits.

    Where shapes or the device do not allow it, a layer goes on with its dequantized weight.
    """
    count = 0
    for layer in module.modules():
        if isinstance(layer, QuantLinear) and has_matmul(layer):
            layer.matmul = on
            count += 1
    return count


def has_matmul(layer: QuantLinear) -> bool:
    """Whether the format of `layer` has a product in 8 bits at all."""
    return type(layer).multiply is not QuantLinear.multiply


def faster_matmul(linear: QuantLinear, tokens: int, device: torch.device | str) -> bool:
    """Whether `linear` takes less time on `tokens` rows by its 8-bit product on `device`, forward and gradient.

    Works on a copy that lies on `device`; False where the 8-bit product is not possible there.
    """
    if not has_matmul(linear):
        return False
    stored = {name: None for name in linear.stored_names} | linear.stored()
    moved = {name: None if tensor is None else tensor.to(device) for name, tensor in stored.items()}
    arguments: dict[str, Any] = {**moved, "compute_dtype": linear.compute_dtype}
    trial = type(linear)(**arguments)
    if not trial.can_multiply(tokens):
        return False
    x = torch.randn(tokens, linear.in_features, device=device, dtype=linear.compute_dtype).requires_grad_()
    grad = torch.randn(tokens, linear.out_features, device=device, dtype=linear.compute_dtype)

    def step(matmul: bool) -> None:
        trial.matmul = matmul
        with torch.inference_mode(False), torch.enable_grad():
            torch.autograd.grad(trial(x), x, grad)

    try:
        return _seconds(lambda: step(True), x.device) < _seconds(lambda: step(False), x.device)
    except RuntimeError:  # the library has no such product on this card
        return False


def _seconds(run: Callable[[], None], device: torch.device) -> float:
    times = []
    for _ in range(_ROUNDS + 2):
        wait(device)
        start = time.perf_counter()
        run()
        wait(device)
        times.append(time.perf_counter() - start)
    return median(times[2:])  # the first ones load kernels
