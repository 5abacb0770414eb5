"""The weights of a model that are trained themselves, seen as the loop sees a LoRA: one set with a state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from ..errors import RunError
from ..lora.adapter import Adapter
from ..lora.inject import LoraSet
from .choose import chosen_weights
from .settings import FullSettings


class TrainedWeights:
    """The chosen parameters of `model`, an ordinary table by dotted name in the model's order; they want gradients."""

    def __init__(self, model: nn.Module, settings: FullSettings) -> None:
        parameters = dict(model.named_parameters())
        self.weights = {name: parameters[name] for name in chosen_weights(list(parameters), settings)}
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
        number = sum(weight.numel() for weight in self.weights.values())
        return f"Full fine-tuning of {len(self.weights)} weights, {number:,} numbers."

    def held(self, dtype: torch.dtype) -> AbstractContextManager[None]:
        """Products read the weights themselves."""
        return nullcontext()

    def norms(self) -> dict[str, float]:
        """Nothing: how far the weights moved could be told beside a copy of the base alone."""
        return {}

    def state(self) -> dict[str, dict[str, Any]]:
        """All of them as they are, by dotted name."""
        return {name: {"weight": weight.detach()} for name, weight in self.weights.items()}

    @torch.no_grad()
    def restore(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Undo everything since `state`. Raises RunError where it is of other weights."""
        if set(state) != set(self.weights):
            raise RunError(
                f"The saved state has {len(state)} weights, this run trains {len(self.weights)}, and they are not the "
                "same. Resume with the settings in [full] that the run began with."
            )
        for name, weight in self.weights.items():
            weight.copy_(state[name]["weight"])


TrainedSet = LoraSet | TrainedWeights
