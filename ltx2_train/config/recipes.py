"""Recipes: what is given, and what the dataset brings, for each task beside a plain LoRA.

A recipe is data: conditions with the numbers to begin with. `config --recipe` writes it as a run file, and the node
Conditions Recipe shows its numbers. Where to start: the official trainer's configurations of these tasks, and for
voices ID-LoRA.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError
from ..registry import nearest
from ..shapes import StreamName
from .describe import compact


@dataclass(frozen=True)
class TaskRecipe:
    """One task. `modes` are those of model.mode that it works in, the usual one first; `needs` says what the dataset
    brings, `dataset` is an entry of it. `given` is a stream that is given whole."""

    title: str
    about: str
    modes: tuple[str, ...]
    needs: str
    dataset: Mapping[str, Any]
    video: Sequence[Mapping[str, Any]] = ()
    audio: Sequence[Mapping[str, Any]] = ()
    given: StreamName | None = None

    def streams(self) -> dict[str, Any]:
        """The groups `video` and `audio` of a run."""
        named: dict[StreamName, Sequence[Mapping[str, Any]]] = {"video": self.video, "audio": self.audio}
        tables: dict[str, Any] = {}
        for stream, conditions in named.items():
            if conditions:
                tables[stream] = {"conditions": [dict(one) for one in conditions]}
            elif self.given == stream:
                tables[stream] = {"generated": False}
        return tables


def recipe_text(name: str) -> str:
    """A run file for the recipe `name`, with what its dataset file says as comments. Raises ConfigError."""
    if name not in RECIPES:
        near = f" Did you mean {' or '.join(hints)}?" if (hints := nearest(name, RECIPES)) else ""
        raise ConfigError(f"--recipe {name}: there is no such recipe.{near} There are {', '.join(RECIPES)}.")
    return "\n".join(_lines(name, RECIPES[name])) + "\n"


def _lines(name: str, recipe: TaskRecipe) -> Iterator[str]:
    yield f"# {recipe.title[0].upper()}{recipe.title[1:]}: {recipe.about}."
    yield f"# The dataset brings {recipe.needs}. In dataset.toml, besides sizes and captions:"
    yield "#   [[datasets]]"
    yield from (f"#   {line}" for line in _toml(recipe.dataset))
    yield from ("", "[run]", *_toml({"name": name}), "", "[data]", 'config = "dataset.toml"', "", "[model]")
    others = " and ".join(recipe.modes[1:])
    yield f'mode = "{recipe.modes[0]}"' + (f"  # {others} as well" if others else "")
    yield from ("checkpoint = 'ltx-2.3-22b-dev.safetensors'", "text_encoder = 'gemma_3_12B_it.safetensors'")
    for stream, table in recipe.streams().items():
        for condition in table.get("conditions", ()):
            yield from ("", f"[[{stream}.conditions]]", *_toml(condition))
        if "generated" in table:
            yield from ("", f"[{stream}]", *_toml(table))


def _toml(table: Mapping[str, Any]) -> list[str]:
    import tomli_w

    return compact(tomli_w.dumps(table)).strip().splitlines()


_PAIRS = {"video_directory": "after", "reference_directory": "before", "reference_frames": 0}

RECIPES: dict[str, TaskRecipe] = {
    "ic_lora": TaskRecipe(
        "IC-LoRA from pairs",
        "learns to make each clip from its reference: an edit, a style, a control picture or a subject",
        ("video", "av"),
        "a reference image or video of the same name for each clip",
        _PAIRS,
        video=[{"type": "reference", "probability": 1.0}, {"type": "first_frame", "probability": 0.2}],
    ),
    "image_to_video": TaskRecipe(
        "image to video",
        "learns to go on from a first frame",
        ("video", "av"),
        "clips, nothing else",
        {"video_directory": "clips"},
        video=[{"type": "first_frame", "probability": 0.9}],
    ),
    "extend": TaskRecipe(
        "extend",
        "learns to go on from the beginning of a clip",
        ("video", "av"),
        "clips that are longer than what is given of them",
        {"video_directory": "clips", "target_frames": [97]},
        video=[{"type": "prefix", "temporal_boundary": [2, 4], "probability": 1.0}],
    ),
    "inpaint": TaskRecipe(
        "inpaint",
        "learns to fill in what a mask leaves open",
        ("video", "av"),
        "a mask of the same name for each clip: white is given, black is made",
        {"video_directory": "clips", "mask_directory": "masks"},
        video=[{"type": "mask", "probability": 1.0}],
    ),
    "voice_reference": TaskRecipe(
        "voice reference",
        "learns to speak with the voice of a recording that is given",
        ("av", "audio"),
        "a recording of the same voice, of the same name, for each clip or sound",
        {"video_directory": "clips", "reference_audio_directory": "voices"},
        audio=[
            {
                "type": "reference",
                "probability": 1.0,
                "negative_positions": True,
                "hide_from_video": True,
                "hide_text": True,
            }
        ],
    ),
    "lip_sync": TaskRecipe(
        "lip-sync (sound to picture)",
        "learns the picture that belongs to a given sound",
        ("av",),
        "clips with their sound",
        {"video_directory": "clips"},
        given="audio",
    ),
    "foley": TaskRecipe(
        "foley (picture to sound)",
        "learns the sound that belongs to a given picture",
        ("av",),
        "clips with their sound",
        {"video_directory": "clips"},
        given="video",
    ),
}
