"""What a LoRA file says against itself: layers that no LTX has (in a block beyond the last one, of another size than in
the other blocks, or of another model), and bytes that are not those that were written."""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from ..families import FAMILIES, name_of
from ..threads import heed
from ..weights.reader import TensorFile
from .file import LoraFile
from .foreign import family_of
from .known import known_layer
from .targets import block_of, layers_text

CHANGED = "Its bytes are not those that were written (its hash says): it is damaged, or was changed. Copy it again."
_BESIDE = ("a text encoder", "a language model or text encoder", "a vision model", "a VAE")  # as `family_of` has them
_SELF_ATTENTION = ("attn1.to_q", "attn1.to_k", "attn1.to_v")  # all read the width of their stream, the sound's as well


def doubts_of(file: LoraFile) -> list[str]:
    """Sentences on bytes of `file` that were changed, on metadata that deny its scale, and on its layers that are
    `misplaced` or of another model."""
    changed = CHANGED if is_changed(file.path, file.metadata) else ""
    return [*filter(None, (changed, file.denied)), *misplaced(file), *_of_others(file)]


def is_changed(path: Path, metadata: Mapping[str, str]) -> bool:
    """Whether the tensors of the LoRA at `path` are others than this program wrote, by the hash in its metadata; those
    of others have other rules for theirs."""
    said = metadata.get("sshs_model_hash")
    if not said or metadata.get("ss_network_module") != "ltx2_train.lora":
        return False
    stat = path.stat()
    return _hash_of(path, (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)) != said


@functools.lru_cache(maxsize=64)
def _hash_of(path: Path, _mark: tuple[int, ...]) -> str:
    # A press of Run looks at a LoRA and its copies from several sides; the bytes of each are gone through once.
    sha = hashlib.sha256()
    with TensorFile(path) as tensors:
        for name in sorted(tensors.tensors):
            heed()
            sha.update(tensors.read_bytes(name))
    return sha.hexdigest()


def misplaced(file: LoraFile) -> list[str]:
    """Sentences on layers of `file` that no checkpoint of its version has; those of names that are not known aside."""
    sizes = {layer: entry.size for name, entry in file.layers.items() if (layer := known_layer(name)) is not None}
    return [*_beyond(file.version, sizes), *_of_other_sizes(sizes)]


def _of_others(file: LoraFile) -> Iterator[str]:
    """On layers beside those of LTX, as LoRAs have them that were trained with a text encoder."""
    if others := layers_of_others(file):
        are = "is" if len(others) == 1 else "are"
        yield (
            f"{len(others)} of {layers_text(len(file.layers))} {are} of {family_of(others)}, {others[0]} first: "
            "nothing here draws with that or trains it."
        )


def layers_of_others(file: LoraFile) -> list[str]:
    """The layers of a text encoder or the like that stand in `file` beside those of LTX; none where it has no other."""
    others = [name for name in file.layers if known_layer(name) is None and family_of([name]) in _BESIDE]
    return others if len(others) < len(file.layers) else []


def _beyond(version: str, sizes: Mapping[str, tuple[int, int]]) -> Iterator[str]:
    blocks = FAMILIES[version].blocks if version in FAMILIES else max(family.blocks for family in FAMILIES.values())
    far = [layer for layer in sizes if block_of(layer) and int(block_of(layer)) >= blocks]
    if far:
        whose = f"{name_of(version)} has" if version in FAMILIES else "every LTX has at most"
        count = f"{len(far)} of {layers_text(len(sizes))}"
        yield f"{count} lie in blocks beyond the last, {far[0]} first: {whose} {blocks}."


def _of_other_sizes(sizes: Mapping[str, tuple[int, int]]) -> Iterator[str]:
    """Blocks are alike, so that a layer has one size in all of them."""
    counts: dict[str, Counter[tuple[int, ...]]] = {}
    for layer, size in sizes.items():
        for what, value in _alike(layer, size).items():
            counts.setdefault(what, Counter())[value] += 1
    for layer, size in sizes.items():
        for what, value in _alike(layer, size).items():
            usual = counts[what].most_common(1)[0][0]
            if value != usual:
                sizes_there = "x".join(map(str, usual))
                yield f"{layer} is {size[0]}x{size[1]}, where others have {what} {sizes_there}: no model has both."
                return


def _alike(layer: str, size: tuple[int, int]) -> dict[str, tuple[int, ...]]:
    """What of a layer's size is the same in the layers like it: what that is -> its value."""
    kind = layer.split(".", 2)[-1] if block_of(layer) else layer
    alike: dict[str, tuple[int, ...]] = {f"{kind} of": size}
    if kind.endswith(_SELF_ATTENTION):
        alike[f"{kind.rpartition('.')[0]} with inputs of"] = size[1:]
    return alike
