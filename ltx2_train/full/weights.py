"""The weights of a model that are trained themselves, seen as the loop sees a LoRA: one set with a state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import RunError
from ..lora.adapter import Adapter
from ..lora.inject import LoraSet
from ..offload.shards import OwnPart, ShardedBlocks
from .choose import chosen_weights
from .parts import Ask, Gathered, Parts
from .settings import FullSettings

WEIGHT = "weight"  # of a key: a weight itself, by its name


class TrainedWeights:
    """The chosen parameters of `model`, an ordinary table by dotted name in the model's order; they want gradients.

    Of those that `shards` shares out over the processes it has what this process holds; `ask` as in parts.Ask.
    """

    def __init__(
        self,
        model: nn.Module,
        settings: FullSettings,
        shards: ShardedBlocks | None = None,
        ask: Ask = lambda key: None,
    ) -> None:
        parameters = dict(model.named_parameters())
        chosen = {name: parameters[name] for name in chosen_weights(list(parameters), settings)}
        self._parts: dict[str, OwnPart] = {} if shards is None else shards.take_parts(chosen)
        self.weights = {name: self._parts[name].own if name in self._parts else one for name, one in chosen.items()}
        self.parts: Parts = {part.own: part for part in self._parts.values()}
        self.ask = ask
        for weight in self.weights.values():
            weight.requires_grad_(True)

    @property
    def layers(self) -> dict[str, Adapter]:
        """Layers put round linears: none."""
        return {}

    def parameters(self) -> Iterator[nn.Parameter]:
        """What is trained, in order."""
        yield from self.weights.values()

    def named(self) -> list[tuple[Any, ...]]:
        """(dotted name, weight) each, as groups of learning rates take them."""
        return list(self.weights.items())

    def describe(self) -> str:
        """One sentence for the user."""
        whole = (self._parts[name] if name in self._parts else one for name, one in self.weights.items())
        number = sum(one.shape.numel() for one in whole)
        return f"Full fine-tuning of {len(self.weights)} weights, {number:,} numbers."

    def held(self, dtype: torch.dtype) -> AbstractContextManager[None]:
        """Products read the weights themselves."""
        return nullcontext()

    def norms(self) -> dict[str, float]:
        """Nothing: how far the weights moved could be told beside a copy of the base alone."""
        return {}

    def state(self) -> dict[str, dict[str, Any]]:
        """All of them as they are, by dotted name."""
        return {name: {"weight": weight} for name, weight in self.wholes().items()}

    def wholes(self) -> dict[str, Tensor | Gathered]:
        """All of them, those that are shared out to be gathered; see `here`."""
        return {
            name: Gathered(self._parts[name], weight, partial(self.ask, (WEIGHT, name)))
            if name in self._parts
            else weight.detach()
            for name, weight in self.weights.items()
        }

    def here(self, name: str) -> tuple[OwnPart, Tensor]:
        """The part of a weight that is shared out, and what it holds."""
        return self._parts[name], self.weights[name]

    @torch.no_grad()
    def restore(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Undo everything since `state`. Raises RunError where it is of other weights."""
        if set(state) != set(self.weights):
            raise RunError(
                f"The saved state has {len(state)} weights, this run trains {len(self.weights)}, and they are not the "
                "same. Resume with the settings in [full] that the run began with."
            )
        for name, weight in self.weights.items():
            whole = state[name]["weight"]
            weight.copy_(self._parts[name].of(whole) if name in self._parts else whole)


TrainedSet = LoraSet | TrainedWeights
