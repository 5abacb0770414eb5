"""AdamW whose two running means are kept in bf16: 4 instead of 8 bytes for each trainable number.

The mean of the square moves by 1 - beta2 of its distance a step, a thousandth, where two neighbours in bf16 lie up to
a 128th apart. Rounded to the nearest it would stand still, so it is rounded up or down by chance: what is kept is right
on average. The chance is drawn from the number of the step, so a resumed run draws what an unbroken one would.

AdamW: Loshchilov and Hutter 2019, arXiv:1711.05101. Rounding by chance: Gupta et al. 2015, arXiv:1502.02551.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

CHUNK = 1 << 24  # numbers that are worked on at once: 64 MB in float32
_STATES = ("exp_avg", "exp_avg_sq")


class AdamWBf16(Optimizer):
    """AdamW for float32 parameters, its state in bf16. Arguments as those of `torch.optim.AdamW`."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "taken": 0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One step for every parameter that has a gradient."""
        assert closure is None, "the loss is not computed anew"
        for index, group in enumerate(self.param_groups):
            group["taken"] += 1
            for number, chunk in enumerate(_chunks(group["params"])):
                for parameter in chunk:
                    if not self.state[parameter]:
                        for name in _STATES:
                            self.state[parameter][name] = torch.zeros_like(parameter, dtype=torch.bfloat16)
                seed = ((group["taken"] << 20) + (index << 10) + number) & (2**63 - 1)
                self._advance(chunk, group, torch.Generator(chunk[0].device).manual_seed(seed))

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """As any optimizer's; the state stays in bf16, where torch would make it float32 as the parameters are."""
        super().load_state_dict(dict(state_dict))
        for state in self.state.values():
            state.update({name: state[name].to(torch.bfloat16) for name in _STATES if name in state})

    def _advance(self, chunk: list[Tensor], group: dict[str, Any], generator: torch.Generator) -> None:
        beta1, beta2 = group["betas"]
        gradient = _flat([parameter.grad for parameter in chunk if parameter.grad is not None]).float()
        mean, square = (_flat([self.state[parameter][name] for parameter in chunk]).float() for name in _STATES)
        mean.lerp_(gradient, 1 - beta1)
        square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        for name, values in zip(_STATES, (mean, square), strict=True):
            kept = [self.state[parameter][name] for parameter in chunk]
            torch._foreach_copy_(kept, _as(by_chance(values, generator), chunk))  # pyright: ignore[reportPrivateImportUsage]
        size = (square / (1 - beta2 ** group["taken"])).sqrt_().add_(group["eps"])
        update = mean.div_(size).mul_(-group["lr"] / (1 - beta1 ** group["taken"]))
        torch._foreach_mul_(chunk, 1 - group["lr"] * group["weight_decay"])  # pyright: ignore[reportPrivateImportUsage]
        torch._foreach_add_(chunk, _as(update, chunk))  # pyright: ignore[reportPrivateImportUsage]


def by_chance(values: Tensor, generator: torch.Generator) -> Tensor:
    """Float32 `values` in bf16: each one of its two neighbours, the nearer the likelier, so that the mean is kept.

    A bf16 is the upper half of a float32. What the lower half holds is the chance to go up.
    """
    chance = torch.randint(1 << 16, values.shape, generator=generator, dtype=torch.int32, device=values.device)
    return (values.view(torch.int32) + chance).bitwise_and_(-(1 << 16)).view(torch.float32).to(torch.bfloat16)


def _chunks(parameters: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Those that have a gradient, in their order, some at a time."""
    chunk: list[Tensor] = []
    for parameter in parameters:
        if parameter.grad is None:
            continue
        if chunk and sum(one.numel() for one in chunk) + parameter.numel() > CHUNK:
            yield chunk
            chunk = []
        chunk.append(parameter)
    if chunk:
        yield chunk


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def _as(flat: Tensor, like: list[Tensor]) -> list[Tensor]:
    """`flat` in pieces of the shapes of `like`."""
    pieces = flat.split([tensor.numel() for tensor in like])
    return [piece.view(tensor.shape) for piece, tensor in zip(pieces, like, strict=True)]
