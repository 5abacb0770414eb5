"""A running mean of the weights (EMA) beside those that are trained.

    mean <- d * mean + (1 - d) * weights        after every step that moved them
    d = min(decay, (1 + n) / (10 + n))          n steps taken: the first weights are forgotten soon; or decay itself

Averaging along the way of an optimizer: Polyak and Juditsky 1992; the warm-up of d is that of TensorFlow's
ExponentialMovingAverage.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from ..errors import RunError
from ..settings import Settings


class MeanSettings(Settings):
    """A running mean of the LoRA, saved and sampled beside it."""

    decay: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Share of the mean that stays at each step, for example 0.999; 0 keeps no mean.",
        json_schema_extra={"counts_with": "train.what = lora", "advanced": True},
    )
    sample: bool = Field(
        default=True,
        description="Draw samples with the mean too, at the same prompts and seeds.",
        json_schema_extra={
            "counts_with": [".decay", "sample.wanted -- with sample.every or sample.every_epochs"],
            "advanced": True,
        },
    )


class WeightMean:
    """The mean of `parameters`, in float32 beside them or on `device`. It begins with what they are now.

    `warm`: the share that stays grows to `decay` with the steps.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        decay: float,
        device: torch.device | None = None,
        warm: bool = True,
    ) -> None:
        assert 0 <= decay < 1, decay
        self.decay, self.taken, self.warm = decay, 0, warm
        self._parameters: list[Tensor] = list(parameters)
        self._mean = [parameter.detach().clone().to(device or parameter.device) for parameter in self._parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after a step."""
        decay = min(self.decay, (1 + self.taken) / (10 + self.taken)) if self.warm else self.decay
        self.taken += 1
        for mean, parameter in zip(self._mean, self._parameters, strict=True):
            mean.lerp_(parameter.to(mean.device), 1 - decay)

    def begin(self) -> None:
        """Forget what was, and begin with the weights as they are."""
        self.taken = 0
        self._show(self._mean, self._parameters)

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """The mean in place of the weights, which come back as they were to the bit."""
        trained = [parameter.detach().clone() for parameter in self._parameters]
        self._show(self._parameters, self._mean)
        try:
            yield
        finally:
            self._show(self._parameters, trained)

    def state_dict(self) -> dict[str, Any]:
        """For a resume equal to an unbroken run."""
        return {"taken": self.taken, "mean": list(self._mean)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`. Raises RunError where it is of other weights."""
        saved = list(state["mean"])
        if [tuple(one.shape) for one in saved] != [tuple(one.shape) for one in self._mean]:
            raise RunError("The running mean (EMA) in the state is of another LoRA. Choose another run.name.")
        self._show(self._mean, saved)
        self.taken = int(state["taken"])

    @staticmethod
    def _show(into: list[Tensor], values: list[Tensor]) -> None:
        with torch.no_grad():
            for target, value in zip(into, values, strict=True):
                target.data.copy_(value)  # autograd may hold the weights, which come back before it reads them
