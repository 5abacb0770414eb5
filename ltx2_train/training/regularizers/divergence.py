"""A push away from the base, for LoRAs that stay too weak: it ends at a distance, so there is nothing to run after.

d = |LoRA - base|^2 / |base|^2          term = max(0, 1 - d / margin)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...models.transformer import Output
from ...objective.flow import masked_mean
from .base import Cost, CostSizes, Regularizer, Value, View, streams


class PriorDivergence(Regularizer):
    """The predictions of the LoRA at the captions of the clips differ from those of the base."""

    name = "prior_divergence"
    asks_the_base = True

    @classmethod
    def cost(cls, settings: Any, sizes: CostSizes) -> Cost:
        return Cost(forwards=1, bytes=2 * 4 * sizes.outputs)

    def prepare(self, view: View, options: Mapping[str, Any]) -> None:
        view.notes[self.name] = view.base(options)

    def terms(self, view: View, out: Output) -> dict[str, Value]:
        base = {name: predicted for name, _, predicted in streams(view.group, view.notes[self.name])}
        found = [
            short_of(predicted, base[name], stream.judged, self.settings.margin)
            for name, stream, predicted in streams(view.group, out)
        ]
        if not found:
            return {}
        return {self.name: Value(torch.stack(found).mean(dim=0), self.settings.weight)}


def short_of(predicted: Tensor, base: Tensor, judged: Tensor | None, margin: float) -> Tensor:
    """[B]: what is lacking of the distance `margin`, 1 at no distance and 0 from there on."""
    distance = masked_mean((predicted.float() - base.float()).square(), judged)
    size = masked_mean(base.float().square(), judged).clamp(min=1e-12)
    return (1.0 - distance / size / margin).clamp(min=0.0)
