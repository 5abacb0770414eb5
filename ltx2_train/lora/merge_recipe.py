"""How LoRAs are merged, and what the merged one says of itself: what its parts agree on, and a line for each."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ..errors import ConfigError
from ..weights.fingerprint import same_weights
from .choices import MERGE_METHODS, MERGED_RANKS
from .metadata import REFERENCE, describe_run, file_name
from .new_file import HIGHEST_STRENGTH, pick_dtype
from .source import LoraSource
from .targets import count_branches


@dataclass(frozen=True)
class MergeRecipe:
    """How files are merged. `multipliers` are one a file; `k_fraction` and `rank_mode` are for orthogonal alone.

    `dtype` is "auto" (one that holds all files), "bf16", "fp16" or "fp32". `emit_alpha` writes `.alpha` keys, each the
    rank of its layer, for programs that take a missing one for something else than the rank.
    """

    multipliers: tuple[float, ...]
    method: str = "concat"
    k_fraction: float = 0.5
    rank_mode: str = "sum"
    dtype: str = "auto"
    emit_alpha: bool = False


def merge_recipe(
    count: int,
    multipliers: Sequence[float],
    method: str,
    k_fraction: float,
    rank_mode: str,
    dtype: str,
    emit_alpha: bool,
) -> MergeRecipe:
    """The recipe for `count` files. Raises ConfigError where it makes no sense."""
    if method not in MERGE_METHODS:
        raise ConfigError(f"method is {method!r}. Choose {' or '.join(MERGE_METHODS)}.")
    if rank_mode not in MERGED_RANKS:
        raise ConfigError(f"rank_mode is {rank_mode!r}. Choose {', '.join(MERGED_RANKS)}.")
    if count < 2:
        raise ConfigError(f"Merging takes two LoRAs or more, and {count} was named. Name another one.")
    if method == "orthogonal" and count != 2:
        raise ConfigError(
            f"The orthogonal merge takes two LoRAs, and {count} were named. Merge two of them and then the next, or "
            "choose the method concat."
        )
    if len(multipliers) not in (1, count):
        raise ConfigError(
            f"{len(multipliers)} multipliers were given for {count} LoRAs. Give one for all, or one for each in order."
        )
    if not all(abs(value) <= HIGHEST_STRENGTH for value in multipliers):
        raise ConfigError(f"A multiplier is no number from -{HIGHEST_STRENGTH} to {HIGHEST_STRENGTH}.")
    if not any(multipliers):
        raise ConfigError("Every multiplier is 0, so the merged LoRA would do nothing. Give one that is not.")
    if not 0.0 <= k_fraction <= 1.0:
        raise ConfigError(f"k_fraction is {k_fraction:g}. It is a share, from 0 (a plain sum) to 1.")
    if method == "concat" and (k_fraction != MergeRecipe.k_fraction or rank_mode != MergeRecipe.rank_mode):
        raise ConfigError(
            f"k_fraction ({k_fraction:g}) and rank_mode ({rank_mode}) count for the method orthogonal alone, and the "
            "method is concat. Choose orthogonal, or leave them at 0.5 and sum."
        )
    pick_dtype(dtype, torch.bfloat16)
    each = tuple(float(value) for value in multipliers)
    return MergeRecipe(
        each * count if len(each) == 1 else each, method, float(k_fraction), rank_mode, dtype, emit_alpha
    )


def merged_metadata(
    sources: Sequence[LoraSource], recipe: MergeRecipe, name: str, ranks: Mapping[str, int]
) -> dict[str, str]:
    """The metadata of the merged file called `name`, whose layers have `ranks`.

    Raises ConfigError where the files were trained with references of different sizes.
    """
    rank = max(ranks.values())
    base = {
        "file": _agreed([file_name(one.about.base) for one in sources]),
        "fingerprint": _agreed_weights([one.metadata.get("base_fingerprint", "") for one in sources]),
        "version": _agreed([one.version for one in sources]),
    }
    triggers = dict.fromkeys(one.about.trigger for one in sources)
    orthogonal = recipe.method == "orthogonal"
    about = {
        "base": base,
        "name": name,
        "trigger": ", ".join(trigger for trigger in triggers if trigger),
        "merged_with": "ltx2_train",
        "merge_method": recipe.method,
        "merge_sources": json.dumps([one.path.name for one in sources], ensure_ascii=False),
        "merge_multipliers": json.dumps(list(recipe.multipliers)),
        "merge_parts": json.dumps([_part(one) for one in sources], ensure_ascii=False),
        "orthogonal_k_fraction": f"{recipe.k_fraction:g}" if orthogonal else None,
        "orthogonal_rank_mode": recipe.rank_mode if orthogonal else None,
        **{key: _reference(sources, key) for key in REFERENCE},
    }
    return describe_run(about, rank, rank, count_branches(ranks))


def _part(source: LoraSource) -> dict[str, object]:
    """What is worth knowing of a file that went into the merged one."""
    about = source.about
    facts = {
        "file": source.path.name,
        "ranks": about.ranks if len(about.ranks) <= 4 else [about.ranks[0], about.ranks[-1]],
        "alpha": about.alpha,
        "version": source.version,
        "base": file_name(about.base),
        "trigger": about.trigger,
        "step": about.step,
    }
    return {key: value for key, value in facts.items() if value not in ("", None)}


def _agreed(values: Sequence[str]) -> str:
    """What all say that say anything; "" where they differ."""
    said = set(values) - {""}
    return said.pop() if len(said) == 1 else ""


def _agreed_weights(fingerprints: Sequence[str]) -> str:
    """As `_agreed`, of fingerprints of which those of older versions are shorter."""
    longest = max(fingerprints, key=len)
    return longest if all(same_weights(one, longest) for one in fingerprints if one) else ""


def _reference(sources: Sequence[LoraSource], key: str) -> str | None:
    factors = {one.path.name: one.about.reference_factor(key) for one in sources}
    factors = {file: value for file, value in factors.items() if value}
    if len(set(factors.values())) > 1:
        listed = ", ".join(f"{value} in {file}" for file, value in factors.items())
        raise ConfigError(
            f"{key} differs: {listed}. A file has one, so that references of one of them would be put in the wrong "
            "place. Merge LoRAs that were trained with references of one size."
        )
    return next(iter(factors.values()), None)
