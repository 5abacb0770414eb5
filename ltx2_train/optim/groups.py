"""Learning rates by layer: which of a LoRA's matrices learns how fast.

The rate of a layer is that of the first pattern found in its name, else the audio rate where "audio_" is in the name
(both exchanges between picture and sound have it: audio_to_video_attn, video_to_audio_attn), else the common one.
LoRA+ (Hayou et al. 2024, arXiv:2402.12354) multiplies the rate of the B matrices, since A and B of a wide layer need
steps of different size. A schedule scales every group alike.

The order of the groups, and of the matrices within one, follows from the settings and the order of the layers, so a
state of the optimizer fits the groups of a resumed run.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from ..errors import ConfigError

AUDIO_MARK = "audio_"


def flat_name(path: str) -> str:
    """The name that other trainers give the LoRA of the layer at `path`; patterns may be written for it."""
    return "lora_unet_" + path.replace(".", "_")


def parameter_groups(
    layers: Iterable[tuple[Any, ...]],
    lr: float,
    audio_lr: float | None = None,
    patterns: Mapping[str, float] | None = None,
    loraplus_ratio: float | None = None,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Groups for `build_optimizer` from (dotted path, A, B) of each layer, and sentences on what came of it.

    Layers of other kinds than LoRA may have more or other parameters. A group is {"params", "lr", "name"}; layers of
    one rule share it, and with LoRA+ the last parameters of each, their B matrices, have their own.
    `patterns` (pattern -> rate) are searched in the dotted and in the flat name. Raises ConfigError where one is no
    regular expression, or is found in no layer.
    """
    layers, rules = list(layers), _compile(patterns or {})
    layers_of = {pattern: 0 for pattern in rules}  # layers whose name has it, taken by an earlier one or not
    groups: dict[str, dict[str, Any]] = {}
    counts: dict[str, int] = {}

    def add(name: str, rate: float, parameter: nn.Parameter) -> None:
        groups.setdefault(name, {"params": [], "lr": rate, "name": name})["params"].append(parameter)

    for path, *parameters in layers:
        hits = [pattern for pattern, rule in rules.items() if rule.search(path) or rule.search(flat_name(path))]
        for pattern in hits:
            layers_of[pattern] += 1
        if hits:
            name, rate = hits[0], (patterns or {})[hits[0]]
        elif audio_lr is not None and AUDIO_MARK in path:
            name, rate = "audio", audio_lr
        else:
            name, rate = "main", lr
        counts[name] = counts.get(name, 0) + 1
        for parameter in parameters[:-1]:
            add(name, rate, parameter)
        if loraplus_ratio is None or loraplus_ratio == 1:
            add(name, rate, parameters[-1])
        else:
            add(f"{name} B", rate * loraplus_ratio, parameters[-1])

    for pattern, number in layers_of.items():
        if not number:
            raise ConfigError(
                f"train.lr_args: {pattern!r} is found in no layer that is trained. Layers are called "
                f"{', '.join(path for path, *_ in layers[:3])}, ... Correct or remove it."
            )
    notes = [
        f"train.lr_args: {pattern!r} has no effect, since earlier patterns take all {number} layers that it names. "
        "Put it first."
        for pattern, number in layers_of.items()
        if pattern not in counts
    ]
    if audio_lr is not None and "audio" not in counts:
        notes.append("train.audio_learning_rate has no effect: no layer with sound is left for it.")
    return list(groups.values()), notes


def describe_groups(groups: Iterable[Mapping[str, Any]]) -> str:
    """One sentence for the user: the rate of each group."""
    return "Learning rates: " + ", ".join(f"{group['name']} {group['lr']:g}" for group in groups) + "."


def _compile(patterns: Mapping[str, float]) -> dict[str, re.Pattern[str]]:
    rules = {}
    for pattern in patterns:
        try:
            rules[pattern] = re.compile(pattern)
        except re.error as error:
            raise ConfigError(f"train.lr_args: {pattern!r} is not a regular expression: {error}.") from None
    return rules
