"""What moves the LoRA of a run: its rates by layer, its optimizer, and their course over the steps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..config import RunConfig, TrainSettings
from ..errors import ConfigError
from ..events import Events
from ..full.optimizer import WeightOptimizer
from ..full.weights import TrainedSet, TrainedWeights
from ..lora.targets import branch_of
from ..optim import build_optimizer, build_schedule, describe_groups, find_optimizer, parameter_groups, rehearse

Halves = tuple[Any, ...]  # of a layer: its dotted path, then its parameters


def rates_of(layers: Iterable[Halves], train: TrainSettings) -> tuple[list[dict[str, Any]], list[str]]:
    """The optimizer's groups of `layers` as the settings ask for, and warnings. Raises ConfigError as they do."""
    return parameter_groups(layers, train.learning_rate, train.audio_learning_rate, train.lr_args, train.loraplus_ratio)


def check_optimizer(config: RunConfig, layers: Iterable[str]) -> None:
    """Raise ConfigError for what does not go with the optimizer: rates, arguments, an EMA. `layers` get stand-ins.

    Where the weights are trained themselves, `layers` are their names.
    """
    layers = list(layers)
    if config.train.what == "full":
        # weights of one and of two dimensions, each by an optimizer of its own
        groups = rates_of([(name, nn.Parameter(torch.zeros(1))) for name in layers], config.train)[0]
        for shape in ((1,), (1, 1)):
            one = [{"params": [nn.Parameter(torch.zeros(shape))], "lr": groups[0]["lr"]}]
            rehearse(one, config.optimizer, config.train.learning_rate, config.lora.rank)
        return
    if config.ema.decay and find_optimizer(config.optimizer.name).averages:
        raise ConfigError(
            f"ema.decay is {config.ema.decay:g}, and what optimizer.name = {config.optimizer.name} saves is a mean "
            "already. Set ema.decay to 0, or choose another optimizer."
        )
    halves = [(path, nn.Parameter(torch.zeros(1, 1)), nn.Parameter(torch.zeros(1, 1))) for path in layers]
    rehearse(rates_of(halves, config.train)[0], config.optimizer, config.train.learning_rate, config.lora.rank)


def make_optimizer(
    config: RunConfig,
    loras: TrainedSet,
    device: torch.device,
    total: int,
    events: Events,
    more: Sequence[Mapping[str, Any]] = (),
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR, int | None]:
    """Optimizer, schedule over `total` steps, and which group holds the first audio layer, None where there is none.

    `more` are groups of what is trained beside the LoRA.
    """
    halves = loras.named()
    groups, notes = rates_of(halves, config.train)
    if not more and (idle := idle_rate(config.train, groups)):
        notes.append(idle)
    groups += [dict(group) for group in more]
    for text in notes:
        events.message(text, "warning")
    if len(groups) > 1:
        events.message(describe_groups(groups))
    if advice := find_optimizer(config.optimizer.name).advice(config.train.learning_rate, config.schedule.name):
        events.message(advice, "warning")
    optimizer = _build(config, groups, loras, device)
    return optimizer, build_schedule(optimizer, config.schedule, total), _audio_group(halves, groups)


def idle_rate(train: TrainSettings, groups: Iterable[Mapping[str, Any]]) -> str:
    """A sentence where train.learning_rate was set and none of the `groups` of layers has it; "" elsewhere."""
    if train.learning_rate == TrainSettings().learning_rate or any(one["name"] == "main" for one in groups):
        return ""
    return "train.learning_rate has no effect: audio_learning_rate or lr_args have a rate for every layer."


def _build(
    config: RunConfig, groups: list[dict[str, Any]], loras: TrainedSet, device: torch.device
) -> torch.optim.Optimizer:
    if not isinstance(loras, TrainedWeights):
        return build_optimizer(groups, config.optimizer, config.train.learning_rate, device)[0]

    def build(weight: nn.Parameter, rate: float) -> torch.optim.Optimizer:
        return build_optimizer([{"params": [weight], "lr": rate}], config.optimizer, rate, device)[0]

    master = config.full.master_weights
    return WeightOptimizer(groups, build, config.train.seed, master, loras.parts, loras.ask)


def _audio_group(halves: Sequence[Halves], groups: Sequence[Mapping[str, Any]]) -> int | None:
    first = next((parameters[0] for path, *parameters in halves if branch_of(path) == "audio"), None)
    held = (index for index, group in enumerate(groups) if any(one is first for one in group["params"]))
    return next(held, None) if first is not None else None
