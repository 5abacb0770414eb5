"""The terms of a loss: one table, from the step to the metrics and the chart.

A step gives `terms`, name -> Term. What is minimised is the mean over the samples of their weighted sum. What is
logged is the plain mean of each, as the column loss_<name> of metrics.jsonl and a line of the chart. A new term is one
more entry of that table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Factor = float | Sequence[float] | Tensor


@dataclass(frozen=True)
class Term:
    """One part of the loss: `values` [B] before any weight, with their gradient.

    `weight`: the factor on it, a number or one a sample; a tensor of them should lie where the values do. `rows`:
    places of the samples it is measured in, None for all. Those left out still learn as their weight says, but stay out
    of the record: silence that stands in for sound is one.
    """

    values: Tensor
    weight: Factor = 1.0
    rows: Tensor | None = None

    def weighted(self) -> Tensor:
        """[B]: its share of the loss of each sample."""
        if isinstance(self.weight, (int, float)):
            return self.values * self.weight
        return self.values * torch.as_tensor(self.weight, dtype=self.values.dtype, device=self.values.device)

    def measured(self) -> Tensor | None:
        """The values of the samples it is measured in, without gradient; None where there is no such sample."""
        values = self.values.detach()
        if self.rows is None:
            return values
        return values[self.rows] if self.rows.numel() else None


def total(terms: Mapping[str, Term]) -> Tensor:
    """The loss of each sample [B]: the weighted sum of its terms, in the order of the table."""
    assert terms, "a batch has neither picture nor sound"
    parts = [term.weighted() for term in terms.values()]
    loss = parts[0]
    for part in parts[1:]:
        loss = loss + part
    return loss
