"""Weights that a file has under two of the names that stand for them: which of both counts is nowhere said.

Two that are equal do no harm. Large ones are compared by their size and by bytes of their beginning, middle and end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from . import keys
from .reader import TensorFile

_BYTES = 1 << 16
_KERNEL = "encoder.conv_in.conv.weight"  # that of a sound's has two axes
_ROOT = ("encoder.", "decoder.", "per_channel_statistics.")  # of a video VAE without its prefix

Place = tuple[TensorFile, str]


def told_twice(file: TensorFile) -> str:
    """Words that follow the name of `file`, a checkpoint, on a weight that it has twice and not alike; or ""."""
    places = {name: (file, name) for name in file.tensors}
    told = unlike(places, keys.TRANSFORMER_PREFIXES)
    if not told and (kernel := file.tensors.get(_KERNEL)) is not None and len(kernel.shape) == 5:
        vae = {name: place for name, place in places.items() if name.startswith((keys.VIDEO_VAE, *_ROOT))}
        told = unlike(vae, (keys.VIDEO_VAE, ""))
    return told


def unlike(places: Mapping[str, Place], prefixes: Sequence[str]) -> str:
    """The same of the weights at `places`, which may stand behind any of `prefixes`."""
    pairs = [(one, other) for one, other in _pairs(places, prefixes) if not _alike(places[one], places[other])]
    if not pairs:
        return ""
    more = f", and {len(pairs) - 1} more so" if len(pairs) > 1 else ""
    return (
        f"has one weight twice, with other numbers: {pairs[0][0]} and {pairs[0][1]}{more}. Which of both counts cannot "
        "be told: take the one out that does not belong there, or use the original file."
    )


def _pairs(places: Mapping[str, Place], prefixes: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The names of those that are there under two prefixes."""
    for number, prefix in enumerate(prefixes):
        for name in places:
            if name.startswith(prefix):
                others = (other + name[len(prefix) :] for other in prefixes[number + 1 :])
                yield from ((name, other) for other in others if other in places and other != name)


def _alike(one: Place, other: Place) -> bool:
    (first, name), (second, again) = one, other
    a, b = first.tensors[name], second.tensors[again]
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    starts = {0, max(0, a.nbytes // 2), max(0, a.nbytes - _BYTES)}
    return all(first.read_bytes(name, at, _BYTES) == second.read_bytes(again, at, _BYTES) for at in starts)
