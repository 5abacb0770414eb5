"""Weights that are shared out over the processes of a run, as whoever clips, saves or loads them sees them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..offload.meeting import meeting
from ..offload.shards import OwnPart

Parts = Mapping[Tensor, OwnPart]  # by what this process trains of them
Ask = Callable[[tuple[Any, str]], None]  # tells the other processes which tensor they are to give their parts of


class Gathered:
    """A tensor that the processes hold in parts, put together each time it is asked for (`detach`)."""

    def __init__(self, part: OwnPart, own: Tensor, ask: Callable[[], None]) -> None:
        self.shape, self.dtype = part.shape, own.dtype
        self._part, self._own, self._ask = part, own, ask

    def detach(self) -> Tensor:
        """All of it, in the process that asks."""
        self._ask()
        return self._part.whole(self._own.detach())


def clip_gradients(parameters: Sequence[nn.Parameter], limit: float, parts: Parts) -> Tensor:
    """Clip the gradients to a norm of `limit` together; returns the norm they had, the same in all processes."""
    if not parts:
        return torch.nn.utils.clip_grad_norm_(parameters, limit)
    norms: dict[bool, list[Tensor]] = {False: [], True: []}
    for parameter in parameters:
        if parameter.grad is not None:
            norms[parameter in parts].append(parameter.grad.float().norm())
    device = parameters[0].device
    shared, whole = (torch.stack([torch.zeros((), device=device), *norms[one]]).square().sum() for one in (True, False))
    with meeting():
        torch.distributed.all_reduce(shared, group=next(iter(parts.values())).group)
    norm = (shared + whole).sqrt()
    if not math.isinf(limit):
        torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)
    return norm
