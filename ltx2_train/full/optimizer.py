"""One optimizer for each weight, so that a step needs float32 copies of one weight at a time.

Weights in bf16 are too coarse for the steps of an optimizer: most of them are smaller than half a digit. So the
optimizer works on float32, which is

    a copy that is made for the step and then rounded into the weight by chance, right on average; or
    a copy that stays (master_weights), rounded into the weight to the nearest; or
    the weight itself, where it is float32.

As each weight has an optimizer of its own, it can be moved while the others still wait for their gradients, and the
gradient let go of (`releasing`): Lv et al. 2023, arXiv:2306.09782. Rounding by chance: Gupta et al. 2015,
arXiv:1502.02551; drawn from the number of the step, so a resumed run draws what an unbroken one would.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..offload.shards import OwnPart
from ..optim.adamw_bf16 import by_chance
from ..optim.resume import given_numbers
from .parts import Ask, Gathered, Parts

Build = Callable[[nn.Parameter, float], Optimizer]
MASTER = "master"  # of a state: the float32 copy that stays
_SHOWN = ("betas", "eps", "weight_decay")  # numbers that a resume compares with those of the state


@dataclass
class _Own:
    """What moves one weight: its optimizer works on `float32`, which is `weight` where `itself`."""

    weight: nn.Parameter
    float32: nn.Parameter
    inner: Optimizer
    group: dict[str, Any]
    number: int
    part: OwnPart | None  # where `weight` is what this process holds of one that is shared out

    @property
    def itself(self) -> bool:
        return self.float32 is self.weight


class WeightOptimizer(Optimizer):
    """Moves the weights of `groups` by optimizers that `build(weight, rate)` makes, one a weight.

    `master`: float32 copies stay. `seed` decides the rounding by chance. `parts` are those of `groups` of which this
    process holds a part: its state is of the whole weights, gathered after `ask` (see parts.py).
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        build: Build,
        seed: int,
        master: bool,
        parts: Parts | None = None,
        ask: Ask = lambda key: None,
    ) -> None:
        super().__init__(groups, {"taken": 0})
        self.seed, self.master = seed, master
        self._ask = ask
        self.moved = False  # whether a weight has been moved by the step that is under way
        self._squares: list[Tensor] = []
        self._own: dict[Tensor, _Own] = {}
        for group in self.param_groups:
            for weight in group["params"]:
                float32 = weight if weight.dtype in (torch.float32, torch.float64) else self._copy(weight)
                inner = build(float32, group["lr"])
                self._own[weight] = _Own(weight, float32, inner, group, len(self._own), (parts or {}).get(weight))
        self._show_numbers()

    def inner(self) -> Iterator[Optimizer]:
        """The optimizers of the weights."""
        for own in self._own.values():
            yield own.inner

    @torch.no_grad()
    def begin(self) -> None:
        """The weights were replaced from outside: float32 copies that stay follow them."""
        for own in self._own.values():
            if self.master and not own.itself:
                own.float32.copy_(own.weight)

    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Move every weight that has a gradient, and end the step."""
        assert closure is None, "the loss is not computed anew"
        for own in self._own.values():
            if own.weight.grad is not None:
                self._take(own)
        for group in self.param_groups:
            group["taken"] += 1
        self.moved = False

    @contextlib.contextmanager
    def releasing(self) -> Iterator[None]:
        """While entered, a weight is moved as soon as a backward pass has all of its gradient, which is let go of."""
        self.moved, self._squares = False, []
        handles = [weight.register_post_accumulate_grad_hook(self._released) for weight in self._own]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def released_norm(self) -> Tensor:
        """The norm of all gradients that were let go of since `releasing`, float32 []."""
        device = next(iter(self._own)).device
        squares = self._squares or [torch.zeros((), device=device)]
        return torch.stack([square.to(device) for square in squares]).sum().sqrt()

    def prepare(self, prepare: Callable[[Any], None]) -> None:
        """Let `prepare(optimizer)` take the memory of the state of each weight at once."""
        for own in self._own.values():
            prepare(own.inner)
            self.state[own.weight] = own.inner.state[own.float32]

    def state_dict(self) -> dict[str, Any]:
        """For a resume equal to an unbroken run."""
        kept = {}
        for own in self._own.values():
            kept[own.number] = {"inner": self._put_together(own, own.inner.state_dict())}
            if self.master and not own.itself:
                kept[own.number][MASTER] = self._whole(own, MASTER, own.float32.detach())
        return {"state": kept, "param_groups": super().state_dict()["param_groups"]}

    @torch.no_grad()
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Go on from `state_dict`, with the numbers of today. Raises ValueError where it is of other weights."""
        groups, kept = state_dict["param_groups"], state_dict["state"]
        if [len(group["params"]) for group in groups] != [len(group["params"]) for group in self.param_groups]:
            raise ValueError("the state is of other weights")
        for group, saved in zip(self.param_groups, groups, strict=True):
            group.update({name: value for name, value in saved.items() if name != "params"})
        for own in self._own.values():
            saved = kept[own.number]
            (built,), (before,) = own.inner.param_groups, saved["inner"]["param_groups"]
            numbers = {**before, **given_numbers(own.inner, built), "params": before["params"]}
            own.inner.load_state_dict({"state": _parted(own, saved["inner"]["state"]), "param_groups": [numbers]})
            if self.master and not own.itself:
                own.float32.copy_(_parted(own, saved[MASTER]))
            self._own_state(own)
        self._show_numbers()

    def here(self, number: int, name: str) -> tuple[OwnPart, Tensor]:
        """The part of weight `number`, which is shared out, and what this process holds of its `name`: MASTER, or a
        tensor of its state."""
        own = next(one for one in self._own.values() if one.number == number)
        assert own.part is not None
        return own.part, own.float32.detach() if name == MASTER else own.inner.state[own.float32][name]

    def _put_together(self, own: _Own, inner: dict[str, Any]) -> dict[str, Any]:
        """The state of one weight; of one that is shared out, with what is as large as the weight whole."""
        state = {
            index: {
                name: self._whole(own, name, one) if isinstance(one, Tensor) and one.shape == own.weight.shape else one
                for name, one in values.items()
            }
            for index, values in inner["state"].items()
        }
        return {**inner, "state": state}

    def _whole(self, own: _Own, name: str, here: Tensor) -> Tensor | Gathered:
        return here if own.part is None else Gathered(own.part, here, partial(self._ask, (own.number, name)))

    def _released(self, weight: Tensor) -> None:
        assert weight.grad is not None
        square = weight.grad.float().square().sum()
        self._squares.append(square)
        # a gradient that is not finite counts as none; nobody waits for the answer
        weight.grad = torch.where(torch.isfinite(square), weight.grad, torch.zeros_like(weight.grad))
        self.moved = True
        self._take(self._own[weight])

    @torch.no_grad()
    def _take(self, own: _Own) -> None:
        weight, float32 = own.weight, own.float32
        assert weight.grad is not None
        own.inner.param_groups[0]["lr"] = own.group["lr"]
        if own.itself:
            own.inner.step()
        else:
            float32.data = float32.data if self.master else weight.detach().float()
            float32.grad = weight.grad.float()
            own.inner.step()
            float32.grad = None
            if self.master:
                weight.copy_(float32)
            else:
                weight.copy_(self._rounded(own))
                float32.data = _placeholder(weight)
        weight.grad = None
        self._own_state(own)

    def _rounded(self, own: _Own) -> Tensor:
        values = own.float32.detach()
        if own.weight.dtype != torch.bfloat16:
            return values
        seed = ((self.seed << 40) + (own.group["taken"] << 20) + own.number) & (2**63 - 1)
        return by_chance(values, torch.Generator(values.device).manual_seed(seed))

    def _copy(self, weight: nn.Parameter) -> nn.Parameter:
        return nn.Parameter(weight.detach().float() if self.master else _placeholder(weight))

    def _own_state(self, own: _Own) -> None:
        """Show what the inner optimizer keeps as the state of this one, for whoever moves it to RAM and back."""
        self.state[own.weight] = own.inner.state[own.float32]

    def _show_numbers(self) -> None:
        for own in self._own.values():
            own.group.update({name: v for name, v in own.inner.param_groups[0].items() if name in _SHOWN})


def _parted(own: _Own, saved: Any) -> Any:
    """`saved` with what this process holds in the place of each tensor as large as the whole weight."""
    if own.part is None:
        return saved
    if isinstance(saved, Mapping):
        return {name: _parted(own, one) for name, one in saved.items()}
    return own.part.of(saved) if isinstance(saved, Tensor) and saved.shape == own.part.shape else saved


def _placeholder(weight: Tensor) -> Tensor:
    """Float32 zeros of the shape of `weight` that take no memory."""
    return torch.zeros((), dtype=torch.float32, device=weight.device).expand(weight.shape)
