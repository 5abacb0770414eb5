"""The table of all kinds of cache. A new kind is a class and its line here."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from ..dataset.plan import DatasetPlan
from .due import Due
from .encode import Latents, References
from .encode_dino import DinoFeatures
from .encode_keyframes import Keyframes
from .encode_mask import Masks, SoundMasks
from .encode_sound import ReferenceSound, SoundLatents
from .encode_text import Text
from .kind import CacheKind
from .recipe import CacheRecipe

# In the order in which they are filled; those of one name together.
CACHE_KINDS: tuple[type[CacheKind[Any]], ...] = (
    Latents,
    References,
    Keyframes,
    SoundLatents,
    ReferenceSound,
    Masks,
    SoundMasks,
    DinoFeatures,
    Text,
)


def all_kinds(plan: DatasetPlan, recipe: CacheRecipe) -> list[CacheKind[Any]]:
    """Every kind, also those that the mode has no use for."""
    return [one for kind in CACHE_KINDS for one in kind.each(plan, recipe)]


def needed_kinds(plan: DatasetPlan, recipe: CacheRecipe) -> list[CacheKind[Any]]:
    """The kinds that a run of this mode reads."""
    return [kind for kind in all_kinds(plan, recipe) if recipe.mode in kind.modes]


def caches_due(plan: DatasetPlan, recipe: CacheRecipe) -> dict[str, Due]:
    """What is missing or no longer fits, by the name of its kinds; a name is absent where none of it is needed."""
    kinds = [kind for kind in needed_kinds(plan, recipe) if kind.buildable]
    named = {name: Due.find(list(group), recipe.settings.skip_existing) for name, group in groupby(kinds, _name)}
    return {name: due for name, due in named.items() if due.jobs or due.kept}


def _name(kind: CacheKind[Any]) -> str:
    return kind.name
