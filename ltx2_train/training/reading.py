"""The numbers of a step, read from its device all at once.

Reading one waits until the device has done all that it was asked for. So the numbers of a step are left where they are
until its optimizer has been asked too, and then come in a single copy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

Columns = dict[str, list[Tensor | float]]  # of each column of the metrics, one number a micro-batch that has it


def not_finite(columns: Mapping[str, Sequence[Tensor | float]], *names: str) -> Tensor:
    """1.0 where a number of the columns `names` is not finite, else 0.0; on the device, unread."""
    values = [torch.as_tensor(value) for name in names for value in columns[name]]
    return 1.0 - torch.stack([value.detach().float() for value in values]).isfinite().all().float()


def read(columns: Mapping[str, Sequence[Tensor | float]]) -> dict[str, list[float]]:
    """The columns as plain numbers. This waits for the device, once."""
    held = [value.detach().float() for values in columns.values() for value in values if isinstance(value, Tensor)]
    numbers = iter(torch.stack(held).cpu().tolist() if held else [])
    return {
        name: [next(numbers) if isinstance(value, Tensor) else float(value) for value in values]
        for name, values in columns.items()
    }
