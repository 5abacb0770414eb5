"""Several LoRAs as one file, layer by layer, with no weight change ever formed in full.

concat        A = [A1; A2 ..], B = [m1 B1, m2 B2 ..]: exactly the sum, with the sum of the ranks. Any number of files,
              any ranks; a layer that only some of them have is taken from these.
orthogonal    two files. Of each change the directions of its input that the other uses most are taken away, then both
              are added and cut to a rank:

                  W1' = W1 - W1 V2 V2^T,    W2' = W2 - W2 V1 V1^T,    W = W1' + W2' ~ B A

              V1 and V2 are the first right singular vectors of W1 and W2, a share of those that are not zero. Taken as
              a share of all directions of the layer, as other programs do, nothing would be left of either.

Shape letters: I in, O out, r rank.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..device import pick_device
from ..errors import ConfigError
from ..events import Events, shielded
from ..families import name_of
from ..weights.writer import TensorEntry
from .low_rank import halved, singular, squared_norm
from .merge_recipe import MergeRecipe, merge_recipe, merged_metadata
from .new_file import (
    LoraMade,
    Losses,
    check_target,
    in_dtype,
    lora_keys,
    pick_dtype,
    require_each_once,
    require_no_zero,
    rounded,
    square_sum,
    tell_lost,
    write_lora,
)
from .source import LoraSource, joint_dtype, tell_doubts
from .targets import branch_of, count_branches

TOOL = "Merging"
_ZERO = 1e-5  # of the largest singular value: what float32 leaves of one that is zero


def merge_loras(
    paths: Sequence[Path | str],
    out: Path | str,
    multipliers: Sequence[float] = (1.0,),
    method: str = "concat",
    k_fraction: float = 0.5,
    rank_mode: str = "sum",
    dtype: str = "auto",
    emit_alpha: bool = False,
    replace: bool = False,
    device: str = "auto",
    events: Events | None = None,
) -> LoraMade:
    """Write the LoRAs at `paths`, each times its multiplier, to `out` as one; one multiplier counts for all.

    Raises ConfigError where the recipe makes no sense or a file cannot be merged, CheckpointError where one is damaged,
    Stopped when the user stopped; then nothing has been written.
    """
    recipe = merge_recipe(len(paths), multipliers, method, k_fraction, rank_mode, dtype, emit_alpha)
    out, events = Path(out), shielded(events)
    check_target(out, [Path(path) for path in paths])
    require_each_once(paths)
    with contextlib.ExitStack() as stack:
        sources = [stack.enter_context(LoraSource(path, TOOL, events)) for path in paths]
        if not any(one.works and factor for one, factor in zip(sources, recipe.multipliers, strict=True)):
            idle = ", ".join(f"{one.path.name} ({one.idle or 'its multiplier is 0'})" for one in sources)
            raise ConfigError(f"The merged LoRA would do nothing, as each of these does: {idle}. Choose others.")
        if recipe.method == "concat":  # orthogonal takes the directions of one out of the other, whatever it counts
            require_no_zero(paths, recipe.multipliers, "multiplier")
        notes = tell_doubts(sources, events)
        if clash := _of_versions(sources):
            notes.append(clash)
            events.message(clash, "warning")
        work = _Merge(sources, recipe, pick_device(device), events)
        metadata = merged_metadata(sources, recipe, out.stem, work.ranks)
        write_lora(out, work.entries, metadata, work.tensors(), replace, events.check_stop)
        notes += tell_lost(work.losses, "Choose rank_mode sum, or dtype fp32.", events)
    return LoraMade(out, count_branches(work.ranks), sorted(set(work.ranks.values())), notes, work.losses.shares())


class _Merge:
    """The work on `sources`: `entries` are known from their headers, `tensors` come one layer at a time."""

    def __init__(self, sources: list[LoraSource], recipe: MergeRecipe, device: torch.device, events: Events) -> None:
        self.sources, self.recipe, self.device, self.events = sources, recipe, device, events
        self.dtype = pick_dtype(recipe.dtype, joint_dtype([source.dtype() for source in sources]))
        self.owners = _layers(sources)
        self.ranks = {layer: self._rank(layer) for layer in self.owners}
        self.losses = Losses()
        self.entries: dict[str, TensorEntry] = {}
        zero = torch.empty((), dtype=self.dtype)
        for layer, rank in self.ranks.items():
            rows, columns = sources[self.owners[layer][0]].layers[layer].size
            kind = TensorEntry.of(zero).dtype
            for key, shape in zip(lora_keys(layer), ((rank, columns), (rows, rank)), strict=True):
                self.entries[key] = TensorEntry(kind, shape)
            if recipe.emit_alpha:
                self.entries[_alpha_key(layer)] = TensorEntry("F32", ())

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """(key, tensor) of the new file."""
        self.events.stage("merge LoRAs", len(self.owners))
        for done, (layer, owners) in enumerate(self.owners.items(), 1):
            self.events.check_stop()
            yield from zip(lora_keys(layer), self._merged(layer, owners), strict=True)
            if self.recipe.emit_alpha:
                yield _alpha_key(layer), torch.tensor(float(self.ranks[layer]))
            self.events.progress(done, len(self.owners), layer)

    def _rank(self, layer: str) -> int:
        ranks = [self.sources[number].layers[layer].rank for number in self.owners[layer]]
        if self.recipe.method == "concat" or len(ranks) == 1:
            return sum(ranks)
        size = min(self.sources[self.owners[layer][0]].layers[layer].size)
        return min({"sum": sum, "max": max, "min": min}[self.recipe.rank_mode](ranks), size)

    def _merged(self, layer: str, owners: list[int]) -> tuple[Tensor, Tensor]:
        if self.recipe.method == "concat" or len(owners) == 1:
            parts = [self._concat_part(number, layer) for number in owners]
            a, b = torch.cat([a for a, _ in parts]), torch.cat([b for _, b in parts], dim=1)
            small_a, small_b, lost = rounded(a, b, self.dtype, layer)
            self.losses.add(branch_of(layer), lost, float(squared_norm(a, b)))
            return small_a, small_b
        (a1, b1), (a2, b2) = (self.sources[number].factors(layer, self.device) for number in owners)
        first, second = (self.recipe.multipliers[number] for number in owners)
        u, s, v = _orthogonal((a1, b1 * first), (a2, b2 * second), self.recipe.k_fraction)
        rank = self.ranks[layer]
        a, b, lost = rounded(*halved(u[:, :rank], s[:rank], v[:rank]), self.dtype, layer)
        self.losses.add(branch_of(layer), square_sum(s[rank:]) + lost, square_sum(s))
        return a, b

    def _concat_part(self, number: int, layer: str) -> tuple[Tensor, Tensor]:
        source, multiplier = self.sources[number], self.recipe.multipliers[number]
        a, b = source.stored(layer)
        if (factor := multiplier * source.layers[layer].scale) != 1.0:
            b = b.float() * factor
        for half in (a, b):  # beside the other files, one that becomes all zero would not be seen
            in_dtype(half, self.dtype, f"{layer} of {source.path.name}")
        return a.float(), b.float()


def _orthogonal(
    first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor], fraction: float
) -> tuple[Tensor, Tensor, Tensor]:
    """U, S, V of the sum of both changes, each without the main directions of the other."""
    directions = [_main_directions(a, b, fraction) for a, b in (first, second)]
    (a1, b1), (a2, b2) = first, second
    a1 = a1 - (a1 @ directions[1].T) @ directions[1]
    a2 = a2 - (a2 @ directions[0].T) @ directions[0]
    return singular(torch.cat([a1, a2]), torch.cat([b1, b2], dim=1))


def _main_directions(a: Tensor, b: Tensor, fraction: float) -> Tensor:
    """V [k, I]: the first right singular vectors of the product, k being `fraction` of those that are not zero."""
    _, s, v = singular(a, b)
    effective = int((s > _ZERO * s[0]).sum())
    return v[: round(fraction * effective)]


def _layers(sources: Sequence[LoraSource]) -> dict[str, list[int]]:
    """Layer -> numbers of the sources that have it. Raises ConfigError where two have it in different sizes."""
    owners: dict[str, list[int]] = {}
    for number, source in enumerate(sources):
        for layer, entry in source.layers.items():
            others = owners.setdefault(layer, [])
            if others and (size := sources[others[0]].layers[layer].size) != entry.size:
                raise ConfigError(
                    f"{source.path.name} is for another model than {sources[others[0]].path.name}: {layer} is "
                    f"{entry.size[0]}x{entry.size[1]} in one and {size[0]}x{size[1]} in the other. Merge LoRAs of one "
                    "model."
                )
            others.append(number)
    return owners


def _of_versions(sources: Sequence[LoraSource]) -> str:
    """What the user has to know of files of several versions; or ""."""
    versions = {source.version for source in sources} - {""}
    if len(versions) < 2:
        return ""
    named = ", ".join(f"{one.path.name} ({name_of(one.version) if one.version else 'not known'})" for one in sources)
    return (
        f"These LoRAs are of different versions: {named}. Layers of the same sizes mean something else in each, so on "
        "either base a part of the merged file will do harm or nothing. Merge LoRAs of one version."
    )


def _alpha_key(layer: str) -> str:
    return lora_keys(layer)[0].removesuffix(".lora_A.weight") + ".alpha"
