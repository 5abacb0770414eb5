"""Regularizers as other programs ask for them: a switch with arguments, where here a weight switches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .converted import Found, ValueConverter, ValuePart, pairs

# switches of regularizers: where their weight stands among their arguments, and what it is without
_SWITCHED = {
    "blank_preservation": ("blank", "multiplier", 1.0),
    "dop": ("dop", "multiplier", 1.0),
    "prior_divergence": ("prior_divergence", "multiplier", 0.1),
    "audio_dop": ("audio_dop", "multiplier", 1.0),
    "crepa": ("crepa", "lambda_crepa", 0.1),
    "self_flow": ("self_flow", "lambda_self_flow", 0.1),
}


def _switched(value: Any, name: str, whole: Mapping[str, Any]) -> Found:
    """A regularizer is on by a switch there, and by its weight here."""
    ours, weight, default = _SWITCHED[name]
    if value not in (True, "true", "True"):
        return []
    given = {part.name: part.value for part in _arguments(f"{name}_args", whole)}
    return [(f"regularizers.{ours}.weight", given.get(f"{name}_args.{weight}", default))]


def _switched_args(value: Any, name: str, whole: Mapping[str, Any]) -> Found:
    """Arguments of a regularizer, which count where it is switched on."""
    on = whole.get(name.removesuffix("_args")) in (True, "true", "True")
    return list(_arguments(name, whole)) if on else []


def _arguments(name: str, whole: Mapping[str, Any]) -> list[ValuePart]:
    return [one for one in pairs(whole.get(name) or {}, name, whole) if isinstance(one, ValuePart)]


def _simpletuner_crepa(value: Any, name: str, whole: Mapping[str, Any]) -> Found:
    """Its CREPA compares with DINOv2."""
    if whole.get("crepa_enabled") not in (True, "true", "True"):
        return []
    weight = ("regularizers.crepa.weight", float(whole.get("crepa_lambda") or 0.5))
    return [weight, ("regularizers.crepa.mode", "dino")] if name == "crepa_enabled" else [weight]


def _simpletuner_tread(value: Any, name: str, whole: Mapping[str, Any]) -> Found:
    """Routes say there how many tokens go around, here how many go through."""
    routes = value.get("routes") if isinstance(value, Mapping) else None
    if not routes:
        raise ValueError("needs routes, each with selection_ratio, start_layer_idx and end_layer_idx")
    written = [
        f"{route['start_layer_idx']}:{route['end_layer_idx']}:{round(1 - float(route['selection_ratio']), 4):g}"
        for route in routes
    ]
    return [("regularizers.tread.weight", 1.0), ("regularizers.tread.routes", written)]


def _simpletuner_rollout(value: Any, name: str, whole: Mapping[str, Any]) -> Found:
    steps, chance = (float(whole.get(f"scheduled_sampling_{key}") or 0) for key in ("max_step_offset", "probability"))
    if not steps or not chance:
        return []
    weight = ("regularizers.rollout.weight", chance)
    return [weight] if name.endswith("probability") else [weight, ("regularizers.rollout.steps", int(steps))]


CONVERTERS: dict[str, ValueConverter] = {
    "switched": _switched,
    "switched_args": _switched_args,
    "simpletuner_crepa": _simpletuner_crepa,
    "simpletuner_tread": _simpletuner_tread,
    "simpletuner_rollout": _simpletuner_rollout,
}
