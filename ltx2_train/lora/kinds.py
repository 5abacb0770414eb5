"""The kinds of change that can be trained, by the names of `lora.algo`; and what of the settings they need."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase

import torch
from torch import nn

from ..errors import ConfigError
from .adapter import Adapter
from .dora import DoRALinear
from .factors import FactoredChange, LoHaLinear, LoKrLinear
from .layer import LoRALinear
from .settings import LayerSettings, LoraSettings
from .targets import linear_size

# LoCon is LoRA that reaches convolutions too, of which the transformer has none
LORA_KINDS: Mapping[str, type[Adapter]] = {
    "lora": LoRALinear,
    "lokr": LoKrLinear,
    "loha": LoHaLinear,
    "locon": LoRALinear,
    "dora": DoRALinear,
}
KIND_NAMES = {"lora": "LoRA", "lokr": "LoKr", "loha": "LoHa", "dora": "DoRA"}  # of a class, by its `algo`


def make_layer(
    base: nn.Module, one: LayerSettings, settings: LoraSettings, dtype: torch.dtype, generator: torch.Generator | None
) -> Adapter:
    """The layer that `one` describes round `base`."""
    kind = LORA_KINDS[one.algo]
    drops = settings.dropout, dtype, generator, settings.rank_dropout, settings.module_dropout
    if issubclass(kind, LoRALinear):
        return kind(base, one.rank, one.scaled_alpha, *drops)
    assert issubclass(kind, FactoredChange), kind
    size = linear_size(base)
    assert size is not None, type(base)
    layer = kind(base, one.rank, one.scaled_alpha, factor_shapes(one, size), *drops)
    if isinstance(layer, LoKrLinear):
        layer.noise = settings.lokr_norm
    return layer


def factor_shapes(one: LayerSettings, size: tuple[int, int]) -> dict[str, tuple[int, int]]:
    """Sizes of the factors of a layer with `size` (out, in) by the ends of their keys; empty for a LoRA or a DoRA."""
    kind = LORA_KINDS[one.algo]
    return kind.shapes(*size, one.rank, one.factor) if issubclass(kind, FactoredChange) else {}


def idle_alphas(settings: LoraSettings, sizes: Mapping[str, tuple[int, int]]) -> list[str]:
    """A sentence on each alpha that counts for none of the layers that are trained, `sizes`: a whole LoKr has none."""
    whole: dict[str, bool] = {}  # by the setting that gives a layer its alpha
    given = {"lora.alpha": settings.alpha, "lora.rslora": float(settings.rslora)}
    for path, size in sizes.items():
        one, name = settings.layer(path), "lora.alpha"
        for pattern, module in settings.modules.items():
            if fnmatchcase(path, pattern):
                name = "lora.alpha" if module.alpha is None else f"lora.modules.{pattern!r}.alpha"
                given[name] = settings.alpha if module.alpha is None else module.alpha
        is_whole = one.algo == "lokr" and "lokr_w2" in factor_shapes(one, size)
        for setting in (name, "lora.rslora"):
            whole[setting] = whole.get(setting, True) and is_whole
    return [
        f"{setting} ({'on' if setting == 'lora.rslora' else format(given[setting], 'g')}) does not count: every layer "
        f"that it is for is a LoKr with a whole second factor, which has no rank to divide by. Take it out, or set "
        "lora.rank so low that the factor is a product of two."
        for setting, idle in whole.items()
        if idle and given[setting]
    ]


def _check_modules(settings: LoraSettings, sizes: Mapping[str, tuple[int, int]]) -> None:
    """Raise ConfigError for a pattern that decides nothing, and for a number that none of its layers has."""
    decided: dict[str, list[str]] = {pattern: [] for pattern in settings.modules}
    for path in sizes:
        if fitting := [pattern for pattern in settings.modules if fnmatchcase(path, pattern)]:
            decided[fitting[-1]].append(path)
    for pattern, module in settings.modules.items():
        paths, where = decided[pattern], f"lora.modules: {pattern!r}"
        if not paths:
            raise ConfigError(
                f"{where} decides nothing: patterns behind it name all of its layers, and the last that fits counts. "
                "Put it behind them, or leave it out."
            )
        algo = settings.layer(paths[0]).algo
        if module.factor is not None and algo != "lokr":
            raise ConfigError(
                f"{where} has factor = {module.factor}, which LoKr alone has, and the algo of its layers is {algo}. "
                "Leave it out, or add algo = 'lokr'."
            )


def check_kinds(settings: LoraSettings, sizes: Mapping[str, tuple[int, int]]) -> None:
    """Raise ConfigError for what does not go with the kind of change of the layers that are trained, `sizes`."""
    layers = {path: settings.layer(path) for path in sizes}
    for pattern in settings.modules:
        if not any(fnmatchcase(path, pattern) for path in sizes):
            raise ConfigError(
                f"lora.modules: {pattern!r} names none of the {len(sizes)} layers that are trained, which are called "
                f"{next(iter(sizes))} and so on. Write it for such names, with * for any part."
            )
    _check_modules(settings, sizes)
    algos = {one.algo for one in layers.values()}
    if settings.factor != -1 and "lokr" not in algos:
        raise ConfigError(
            f"lora.factor is {settings.factor}, which LoKr alone has, and lora.algo is {settings.algo}. Leave it at "
            "-1, or set lora.algo to lokr."
        )
    if not settings.lokr_norm:
        return
    if "lokr" not in algos:
        raise ConfigError(
            f"lora.lokr_norm is {settings.lokr_norm:g}, and lora.algo is {settings.algo}. Set it to 0, or lora.algo to "
            "lokr."
        )
    for path, one in layers.items():
        if one.algo == "lokr" and "lokr_w2" not in (shapes := factor_shapes(one, sizes[path])):
            needed = max(shapes["lokr_w2_a"][0], shapes["lokr_w2_b"][1]) // 2 + 1
            raise ConfigError(
                f"lora.lokr_norm needs a whole second factor, and at lora.rank {one.rank} that of {path} is a product "
                f"of two. Set lora.rank to {needed} or more, raise lora.factor, or set lora.lokr_norm to 0."
            )
