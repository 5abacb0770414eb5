"""Recipes: what is given, and what the dataset brings, for each task beside a plain LoRA.

A recipe is data: conditions with the numbers to begin with. `config --recipe` writes it as a run file, and the node
Conditions Recipe shows its numbers. Where to start: the official trainer's configurations of these tasks, and for
voices ID-LoRA. Recipes of a model hold the settings that its community trains plain LoRAs with.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import ConfigError
from ..registry import nearest
from ..shapes import StreamName
from .beginnings import TRAINING_RECIPES
from .describe import compact

_FILES = ("ltx-2.3-22b-dev.safetensors", "gemma_3_12B_it.safetensors")


@dataclass(frozen=True)
class TaskRecipe:
    """One task. `modes` are those of model.mode that it works in, the usual one first; `needs` says what the dataset
    brings, `dataset` is an entry of it. `given` is a stream that is given whole. `settings` are other groups of the
    run, `files` the checkpoint and the text encoder."""

    title: str
    about: str
    modes: tuple[str, ...]
    needs: str
    dataset: Mapping[str, Any]
    video: Sequence[Mapping[str, Any]] = ()
    audio: Sequence[Mapping[str, Any]] = ()
    given: StreamName | None = None
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    files: tuple[str, str] = _FILES

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
    known = {**RECIPES, **MODEL_RECIPES, **TRAINING_RECIPES}
    if name not in known:
        near = f" Did you mean {' or '.join(hints)}?" if (hints := nearest(name, known)) else ""
        raise ConfigError(f"--recipe {name}: there is no such recipe.{near} There are {', '.join(known)}.")
    task = {**RECIPES, **MODEL_RECIPES}.get(name)
    begins = TRAINING_RECIPES.get(name)
    lines = [] if task is None else [*_lines(name, task)]
    if begins is not None:
        numbers = begins.tables()
        if task is None:
            lines = [f"# {begins.about[0].upper()}{begins.about[1:]}.", *_run_lines(name, begins.modes, _FILES)]
        else:  # its conditions say it
            numbers["train"].pop("first_frame_probability", None)
        lines += ["", *_toml(numbers)]
    return "\n".join(lines) + "\n"


def recipe_list() -> str:
    """The recipes of `recipe_text`, one a line."""
    told = {name: f"{recipe.title}: {recipe.about}" for name, recipe in {**RECIPES, **MODEL_RECIPES}.items()}
    told |= {name: begins.about for name, begins in TRAINING_RECIPES.items() if name not in told}
    return "\n".join(f"{name:18} {text}" for name, text in told.items())


def _lines(name: str, recipe: TaskRecipe) -> Iterator[str]:
    yield f"# {recipe.title[0].upper()}{recipe.title[1:]}: {recipe.about}."
    yield f"# The dataset brings {recipe.needs}. In dataset.toml, besides sizes and captions:"
    yield "#   [[datasets]]"
    yield from (f"#   {line}" for line in _toml(recipe.dataset))
    yield from _run_lines(name, recipe.modes, recipe.files)
    for stream, table in recipe.streams().items():
        for condition in table.get("conditions", ()):
            yield from ("", f"[[{stream}.conditions]]", *_toml(condition))
        if "generated" in table:
            yield from ("", f"[{stream}]", *_toml(table))
    for group, values in recipe.settings.items():
        yield from ("", f"[{group}]", *_toml(values))


def _run_lines(name: str, modes: Sequence[str], files: tuple[str, str]) -> Iterator[str]:
    yield from ("", "[run]", *_toml({"name": name}), "", "[data]", 'config = "dataset.toml"', "", "[model]")
    others = " and ".join(modes[1:])
    yield f'mode = "{modes[0]}"' + (f"  # {others} as well" if others else "")
    yield from (f"{key} = '{file}'" for key, file in zip(("checkpoint", "text_encoder"), files, strict=True))


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


def _ltx_video(rank: int, **groups: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The groups of a run on LTX-Video; what `groups` say wins."""
    tables: dict[str, dict[str, Any]] = {
        "lora": {"rank": rank, "alpha": rank, "target": "t2v"},
        "optimizer": {},
        "schedule": {"name": "linear", "warmup": 100},
        "train": {
            "learning_rate": 2e-4,
            "steps": 1500,
            "caption_dropout": 0.05,
            "save_every": 200,
            "keep_states": 10,
        },
        "sample": {
            "every": 200,
            "negative_prompt": "worst quality, inconsistent motion, blurry, jittery, distorted",
            "frames": 97,
            "steps": 40,
            "guidance": 3.0,
        },
    }
    return {name: {**tables.get(name, {}), **groups.get(name, {})} for name in dict.fromkeys((*tables, *groups))}


_CLIPS = {"video_directory": "clips", "target_frames": [49], "target_fps": 24.0}
# what people train LTX-Video with, on a card of 16 and of 24 GB
MODEL_RECIPES: dict[str, TaskRecipe] = {
    "ltxv_2b": TaskRecipe(
        "LTX-Video 2B (0.9.6 dev)",
        "a plain LoRA on a card of 16 GB",
        ("video",),
        "clips, nothing else",
        _CLIPS,
        settings=_ltx_video(
            32,
            optimizer={"name": "adamw8bit"},
            train={"first_frame_probability": 0.1},
            quant={"format": "fp8"},
            gemma={"precision": "8bit"},
        ),
        files=("ltxv-2b-0.9.6-dev-04-25.safetensors", "t5xxl_fp16.safetensors"),
    ),
    "ltxv_13b": TaskRecipe(
        "LTX-Video 13B (0.9.7 dev)",
        "a plain LoRA on a card of 24 GB or more",
        ("video",),
        "clips, nothing else",
        _CLIPS,
        settings=_ltx_video(
            128,
            optimizer={"name": "adamw", "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.001},
            train={"accumulation": 4, "first_frame_probability": 0.5},
            sample={"steps": 30, "guidance": 3.5},
        ),
        files=("ltxv-13b-0.9.7-dev.safetensors", "t5xxl_fp16.safetensors"),
    ),
}
