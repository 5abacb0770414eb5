"""A step of an optimizer that is queued before anybody knows whether its gradients are any good."""

from __future__ import annotations

from typing import cast

from torch import Tensor
from torch.optim import Optimizer


def can_be_guarded(optimizer: Optimizer) -> bool:
    """Whether `guarded_step` works: the fused kernels look at such a flag themselves."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


def guarded_step(optimizer: Optimizer, bad: Tensor) -> None:
    """Queue a step that changes neither weights nor state where `bad` is 1.0; 0.0 lets it be. Nobody waits for it.

    `bad` is one number in float32 on the device. It is handed over as PyTorch's own scaler of gradients does it.
    """
    flagged = cast("_Flagged", optimizer)
    flagged.grad_scale, flagged.found_inf = None, bad
    try:
        optimizer.step()
    finally:
        del flagged.grad_scale, flagged.found_inf


class _Flagged(Optimizer):
    grad_scale: Tensor | None
    found_inf: Tensor | None
