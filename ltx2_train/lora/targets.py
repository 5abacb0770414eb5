"""Which linears of the transformer get a LoRA.

Candidates are the linears inside `transformer_blocks`, whatever way they store their weight; connectors and the
input and output layers are never among them. A preset is a list of endings of the dotted module path:

    t2v                 to_q to_k to_v to_out.0 of every attention that the model has (the official trainer's choice)
    v2v                 t2v and both linears of every feed-forward
    audio               audio self- and text attention, audio feed-forward, and the audio side of the exchange
    audio_ref_only_ic   audio, and the video side of the exchange
    full                every linear but `to_gate_logits`: the gates scale whole heads, and a small change to them
                        upsets the model; include_patterns can still name them

Patterns are regular expressions that must match the whole dotted path. include_patterns replace the preset;
exclude_patterns take away from it and from target_modules, but never what an include pattern names.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from torch import nn

from ..errors import ConfigError
from ..registry import nearest
from ..weights.keys import BLOCKS, GATES

_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_FEED_FORWARD = ("net.0.proj", "net.2")
_AUDIO = (
    *(f"{part}.{leaf}" for part in ("audio_attn1", "audio_attn2", "video_to_audio_attn") for leaf in _ATTENTION),
    *(f"audio_ff.{leaf}" for leaf in _FEED_FORWARD),
)

# Endings of the dotted path, at a dot; None takes all but the gates.
PRESETS: dict[str, tuple[str, ...] | None] = {
    "t2v": _ATTENTION,
    "v2v": (*_ATTENTION, *(f"{part}.{leaf}" for part in ("ff", "audio_ff") for leaf in _FEED_FORWARD)),
    "audio": _AUDIO,
    "audio_ref_only_ic": (*_AUDIO, *(f"audio_to_video_attn.{leaf}" for leaf in _ATTENTION)),
    "full": None,
}

BRANCHES = ("video", "audio", "a2v", "v2a", "other")
_BRANCH_OF = {
    "attn1": "video",
    "attn2": "video",
    "ff": "video",
    "audio_attn1": "audio",
    "audio_attn2": "audio",
    "audio_ff": "audio",
    "audio_to_video_attn": "a2v",
    "video_to_audio_attn": "v2a",
}


def branch_of(path: str) -> str:
    """The part of the model a module belongs to: one of BRANCHES; a2v is video that listens, v2a sound that looks."""
    parts = path.split(".")
    at = parts.index(BLOCKS) + 2 if BLOCKS in parts else 0
    return _BRANCH_OF.get(parts[at], "other") if at < len(parts) else "other"


def block_of(path: str) -> str:
    """The number of the transformer block a module stands in, or "" for one outside of them."""
    parts = path.split(".")
    at = parts.index(BLOCKS) + 1 if BLOCKS in parts else len(parts)
    return parts[at] if at < len(parts) and parts[at].isdigit() else ""


def dotted(name: str) -> str:
    """A name with underscores for dots, respelled as far as the branch can be told from it."""
    if "." in name:
        return name
    head, found, rest = name.partition("transformer_blocks_")
    block, _, layer = rest.partition("_")
    if not found or not block.isdigit():
        return name
    for part in _BRANCH_OF:
        if layer.startswith(f"{part}_"):
            return f"transformer_blocks.{block}.{part}.{layer[len(part) + 1 :]}"
    return name


def count_branches(paths: Iterable[str]) -> dict[str, int]:
    """How many of `paths` lie in each branch; branches without any are left out."""
    counts = Counter(branch_of(path) for path in paths)
    return {branch: counts[branch] for branch in BRANCHES if counts[branch]}


def layers_text(count: int) -> str:
    """ "1 layer", "2 layers"."""
    return f"{count} layer{'' if count == 1 else 's'}"


def linear_size(module: nn.Module) -> tuple[int, int] | None:
    """(out, in) of anything that maps in_features to out_features, quantized or not; None for other modules."""
    out, width = (getattr(module, name, None) for name in ("out_features", "in_features"))
    return (out, width) if isinstance(out, int) and isinstance(width, int) else None


def candidates(model: nn.Module) -> list[str]:
    """Dotted paths of the linears inside the transformer blocks, in the model's order."""
    return [path for path, module in model.named_modules() if BLOCKS in path.split(".") and linear_size(module)]


def resolve(target: str, paths: Sequence[str]) -> str:
    """The preset behind "auto": audio for a model that has no video branch, else t2v."""
    if target != "auto":
        return target
    return "audio" if paths and "video" not in count_branches(paths) else "t2v"


def select(
    paths: Sequence[str],
    target: str,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    modules: Sequence[str] = (),
) -> list[str]:
    """Those of `paths` that get a LoRA, in order.

    `modules` are endings such as "attn1.to_q", which replace the preset like `include` does. `exclude` takes away from
    either, and not from what `include` names. Raises ConfigError where an entry is no regular expression or matches
    nothing, and where nothing is left.
    """
    wanted: set[str] = set()
    for pattern in include:
        wanted.update(_matches("include_patterns", pattern, paths))
    named = set(wanted)
    for ending in modules:
        found = [path for path in paths if _ends(path, ending)]
        if not found:
            raise ConfigError(
                _nothing(f"lora.target_modules: {ending!r} is the end of no layer's name.", ending, paths)
            )
        wanted.update(found)
    if not include and not modules:
        endings = PRESETS[resolve(target, paths)]
        wanted = {
            path
            for path in paths
            if (not _ends(path, GATES) if endings is None else any(_ends(path, ending) for ending in endings))
        }
        if not wanted:
            raise ConfigError(_nothing(f"lora.target: {target} names no layer of this model.", "attn1.to_q", paths))
    for pattern in exclude:
        wanted.difference_update(set(_matches("exclude_patterns", pattern, paths)) - named)
    if not wanted:
        raise ConfigError("lora.exclude_patterns takes every layer away. Remove or narrow a pattern.")
    return [path for path in paths if path in wanted]


def _matches(setting: str, pattern: str, paths: Sequence[str]) -> list[str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"lora.{setting}: {pattern!r} is not a regular expression: {error}.") from None
    found = [path for path in paths if compiled.fullmatch(path)]
    if not found:
        text = f"lora.{setting}: {pattern!r} matches no layer; a pattern must match the whole name."
        raise ConfigError(_nothing(text, pattern, paths))
    return found


def _ends(path: str, ending: str) -> bool:
    return path == ending or path.endswith(f".{ending}")


def _nothing(reason: str, like: str, paths: Sequence[str]) -> str:
    """`reason` and the layer names that look most like what was asked for."""
    if not paths:
        return f"{reason} It has no linear layers inside {BLOCKS} at all."
    plain = re.sub(r"\\(.)", r"\1", like).replace(".*", "").strip("^$.")
    # names of one block stand for all
    first = paths[0].split(".")
    prefix = ".".join(first[: first.index(BLOCKS) + 2]) + "."
    names = [path.removeprefix(prefix) for path in paths if path.startswith(prefix)]
    inner = [name for name in names if plain and (plain in name or name in plain)] or nearest(plain, names) or names
    listed = ", ".join(inner[:8]) + (", ..." if len(inner) > 8 else "")
    return f"{reason} Layers of a block: {listed}; whole name: {paths[0]}."
