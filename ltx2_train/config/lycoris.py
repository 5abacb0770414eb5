"""Networks of LyCORIS in the words of other trainers: a TOML file, `key=value`, or the JSON of SimpleTuner.

    [network]  base_algo, base_factor, base_dim, base_alpha     what counts for all layers
    [network.modules."*audio*"]  algo, dim, alpha, factor       what counts for layers by the pattern of their names
    [network.init]  lokr_norm                                   noise that a LoKr begins with

`modules.<pattern>.<key>=value` and `init.<key>=value` among the network arguments override the file.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..text_files import read_text
from ..toml import read_toml

_KEYS = {
    "algo": "algo",
    "dim": "rank",
    "linear_dim": "rank",
    "alpha": "alpha",
    "linear_alpha": "alpha",
    "factor": "factor",
}
# SimpleTuner names the classes of diffusers; here are the layers inside
_CLASSES = {"Attention": "*attn*", "FeedForward": "*ff*"}
_TARGETS = {("Attention",): "t2v", ("Attention", "FeedForward"): "v2v"}
_NEUTRAL = {"multiplier": 1, "use_scalar": False}
_WHOLE = 1024  # a rank at which no factor is split: larger ones mean no more


def from_file(value: Any, whole: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The settings that the TOML file `value` comes to, without those that network arguments override.

    Raises ValueError where it cannot be read or has something unknown.
    """
    network = _table(_read(value), "network")
    given = _arguments(whole.get("network_args"))
    found: dict[str, Any] = {}
    for key, inner in network.items():
        if key.startswith("base_"):
            found[f"lora.{_known(key.removeprefix('base_'), key)}"] = inner
        elif key not in ("modules", "init"):
            raise ValueError(f"network.{key} is not known; known are base_algo, base_factor, modules and init")
    settings = [(name, inner) for name, inner in found.items() if name.rpartition(".")[2] not in given]
    modules = modules_of(_table(network, "modules"), whole)
    norm = norm_of(_table(network, "init"), whole)
    return [*settings, *modules, *norm]


def modules_of(table: Mapping[str, Any], whole: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """`lora.modules` of a table by patterns, with what the network arguments say of them."""
    modules = {pattern: _settings(_table(table, pattern)) for pattern in table}
    for key, value in _arguments(whole.get("network_args")).items():
        if key.startswith("modules."):
            pattern, _, name = key.removeprefix("modules.").rpartition(".")
            modules.setdefault(pattern, {})[_known(name, key)] = value
    return [("lora.modules", modules)] if modules else []


def norm_of(table: Mapping[str, Any], whole: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """`lora.lokr_norm`, of a table or of the network arguments."""
    given = {key: value for key, value in _arguments(whole.get("network_args")).items() if key.startswith("init.")}
    merged = {**{f"init.{key}": value for key, value in table.items()}, **given}
    if unknown := [key for key in merged if key != "init.lokr_norm"]:
        raise ValueError(f"{unknown[0]} is not known; init.lokr_norm is")
    return [("lora.lokr_norm", value) for value in merged.values()]


def from_json(value: Any) -> list[tuple[str, Any]]:
    """The settings that SimpleTuner's JSON file `value` comes to. Raises ValueError as `from_file`."""
    table, settings, modules = dict(_read(value)), [], {}
    preset = _table(table, "apply_preset")
    for key in ("algo", "linear_dim", "linear_alpha", "factor"):
        if key in table:
            inner = table.pop(key)
            settings.append((f"lora.{_KEYS[key]}", min(int(inner), _WHOLE) if key == "linear_dim" else inner))
    for name in ("apply_preset", "bypass_mode"):  # the latter is how a product is made, not what comes out
        table.pop(name, None)
    for name, neutral in _NEUTRAL.items():
        if (inner := table.pop(name, neutral)) != neutral:
            raise ValueError(f"{name} = {inner} is not possible here, only {neutral}; take it out of the file")
    if table.pop("full_matrix", False):  # no factor is split, whatever the rank
        settings = [*(one for one in settings if one[0] != "lora.rank"), ("lora.rank", _WHOLE)]
    if table:
        raise ValueError(
            f"{next(iter(table))} is not known; known are algo, linear_dim, linear_alpha, factor, apply_preset"
        )
    targets = tuple(sorted(preset.get("target_module", ())))
    if targets and targets not in _TARGETS:
        raise ValueError(f"target_module {list(targets)} is not known; Attention and FeedForward are")
    if targets:
        settings.append(("lora.target", _TARGETS[targets]))
    for name, inner in _table(preset, "module_algo_map").items():
        modules[_CLASSES.get(name, f"*{name}*")] = _settings(inner)
    return [*settings, *([("lora.modules", modules)] if modules else [])]


def literal(text: str) -> Any:
    """The value that `text` writes in Python's or in TOML's way; itself where it is neither."""
    try:
        return ast.literal_eval({"true": "True", "false": "False", "none": "None"}.get(text.lower(), text))
    except (ValueError, SyntaxError):
        return text


def _settings(table: Mapping[str, Any]) -> dict[str, Any]:
    return {_known(key, key): value for key, value in table.items()}


def _known(key: str, shown: str) -> str:
    if key not in _KEYS:
        raise ValueError(f"{shown} is not known; known are {', '.join(_KEYS)}")
    return _KEYS[key]


def _arguments(given: Any) -> dict[str, Any]:
    """Network arguments by name."""
    if isinstance(given, Mapping):
        return dict(given)
    texts: Sequence[str] = [given] if isinstance(given, str) else given or []
    pairs = (str(text).partition("=") for text in texts)
    return {key.strip(): literal(raw.strip()) for key, _, raw in pairs}


def _read(value: Any) -> Mapping[str, Any]:
    path = Path(str(value)).expanduser()
    if not path.is_file():
        raise ValueError(f"{path} is no file; give its whole path")
    if path.suffix.lower() == ".json":
        try:
            table = json.loads(read_text(path))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    else:
        table = read_toml(path)
    if not isinstance(table, Mapping):
        raise ValueError(f"{path.name} holds no table of settings")
    return table


def _table(table: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    inner = table.get(key, {})
    if not isinstance(inner, Mapping):
        raise ValueError(f"{key} must be a table of settings")
    return inner
