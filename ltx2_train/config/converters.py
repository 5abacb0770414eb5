"""Values of other programs that are no single value here: the functions that the column `by` of the tables names.

A function gets the value, the name it stands under and all that the file gives (name -> value). It returns settings
as (dotted path, value), and parts of the value that have rows of their own as `ValuePart`. What cannot be said here is
a `ValuePart` with a row that says so; a value that makes no sense raises ValueError.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

from . import lycoris, regularizer_flags
from .converted import Found, ReadWith, ValueConverter, ValuePart, pairs


def convert(by: str, value: Any, name: str, whole: Mapping[str, Any]) -> Found:
    """What the converter called `by` makes of `value`. Raises ValueError for a value that makes no sense."""
    return _CONVERTERS[by](value, name, whole)


def _kept_by_steps(value: Any, name: str, whole: Mapping[str, Any]) -> Found:
    """The community trainer counts steps, not files: what is older than so many steps goes."""
    every = int(whole.get("save_every_n_steps") or 250)
    setting = "train.keep_states" if name.endswith("_state") else "train.keep_loras"
    return [(setting, int(value) // every + 1)]


def _official_streams(value: Any, name: str, whole: Mapping[str, Any]) -> Found:
    """`training_strategy.video` and `.audio`: their parts, and once for both the mode."""
    if not isinstance(value, Mapping):
        raise ValueError("needs its settings below it")
    streams = [stream for stream in ("video", "audio") if whole.get(f"training_strategy.{stream}") is not None]
    mode = "av" if len(streams) == 2 else streams[0]
    return [("model.mode", mode), *(ValuePart(f"{name}.{key}", inner) for key, inner in value.items())]


def _official_strategy(value: Any, name: str, whole: Mapping[str, Any]) -> Found:
    """The older strategies say by their name what the newer one lists."""
    if value not in ("flexible", "text_to_video", "video_to_video"):
        raise ValueError("must be flexible, text_to_video or video_to_video")
    return [("video.conditions", [{"type": "reference"}])] if value == "video_to_video" else []


def _official_conditions(value: Any, name: str, whole: Mapping[str, Any]) -> Found:
    """Conditions of a stream, which are spelt the same here; the first frame has a setting of its own."""
    if not isinstance(value, Sequence) or not all(isinstance(one, Mapping) and "type" in one for one in value):
        raise ValueError("needs a list of conditions, each with a type")
    stream, conditions, settings = name.split(".")[1], [], []
    generated = dict(whole.get(f"training_strategy.{stream}") or {}).get("is_generated", True)
    # the n-th condition shows the n-th reference, whatever the order of theirs
    references = iter(sorted((one for one in value if one["type"] == "reference"), key=_numbered_folder))
    for given in value:
        one = next(references) if given["type"] == "reference" else given
        if one["type"] == "first_frame" and stream == "video" and generated:
            _require_known("first_frame", one, {"type", "probability"})
            settings.append(("train.first_frame_probability", one.get("probability", 1.0)))
            continue
        conditions.append({key: inner for key, inner in one.items() if key not in ("latents_dir", "mask_dir")})
        settings += [
            ValuePart(f"{name}.{one['type']}.{key}", one[key]) for key in ("latents_dir", "mask_dir") if key in one
        ]
    return [(f"{stream}.conditions", conditions), *settings] if conditions else settings


def _require_known(what: str, given: Mapping[str, Any], known: Collection[str]) -> None:
    """Raise ValueError for keys of `given` that nothing reads."""
    if strange := [str(key) for key, value in given.items() if key not in known and value is not None]:
        raise ValueError(f"{what} has {', '.join(strange)}; known are {', '.join(sorted(known))}")


def _numbered_folder(condition: Mapping[str, Any]) -> int:
    """Which reference of a sample a condition shows: that of reference_latents_2 is the second."""
    found = re.search(r"_(\d+)$", str(condition.get("latents_dir", "")))
    return int(found[1]) if found else 1


def _ic_lora(value: Any, name: str, whole: Mapping[str, Any]) -> Found:
    """In-context LoRAs: the preset names the layers, and by itself or by its strategy what is given as a reference.

    A strategy without a preset trains the layers of every other run there, and not those that go with a reference.
    """
    preset, strategy = whole.get("lora_target_preset"), whole.get("ic_lora_strategy", "auto")
    kind = strategy if strategy != "auto" else preset
    settings: Found = [("lora.target", value)] if name == "lora_target_preset" else []
    if preset is None and kind in ("v2v", "audio_ref_only_ic"):
        sound_alone = (whole.get("ltx2_mode") or whole.get("ltx_mode")) in ("a", "audio")
        settings = [("lora.target", "audio" if sound_alone else "t2v")]
    if kind == "v2v":
        return [*settings, ("video.conditions", [{"type": "reference"}])]
    if kind == "audio_ref_only_ic":
        switches = {
            "negative_positions": "audio_ref_use_negative_positions",
            "hide_from_video": "audio_ref_mask_cross_attention_to_reference",
            "hide_text": "audio_ref_mask_reference_from_text_attention",
        }
        on = {ours: True for ours, theirs in switches.items() if whole.get(theirs) in (True, "true", "True")}
        return [*settings, ("audio.conditions", [{"type": "reference", **on}])]
    if strategy not in ("auto", "none"):
        raise ValueError("must be auto, none, v2v or audio_ref_only_ic")
    return settings


def _simpletuner_conditions(value: Any, name: str, whole: Mapping[str, Any]) -> Found:
    conditions = [dict(one) for one in whole.get("ltx2_intrinsic_conditioning") or []]
    for kind in ("prefix", "suffix", "mask"):
        if chance := whole.get(f"ltx2_{kind}_conditioning_probability"):
            length = whole.get(f"ltx2_{kind}_conditioning_frames", 1)
            conditions.append(
                {"type": kind, "probability": chance, **({} if kind == "mask" else {"temporal_boundary": length})}
            )
    return [("video.conditions", conditions)] if conditions else []


def _official_schedule(value: Any, name: str, whole: Mapping[str, Any]) -> Found:
    """Its schedules have no warm-up, and ends and restarts of their own."""
    kind = whole.get("optimization.scheduler_type", "linear")
    rate = float(whole.get("optimization.learning_rate") or 5e-4)
    params = dict(whole.get("optimization.scheduler_params") or {})
    if name.endswith("scheduler_params"):
        known = {
            "linear": {"start_factor", "end_factor"},
            "cosine": {"eta_min"},
            "cosine_with_restarts": {"T_0", "T_mult", "eta_min"},
            "polynomial": {"power"},
            "step": {"step_size", "gamma"},
        }.get(str(kind), set())
        strange = set(params) - known
        if strange:
            raise ValueError(f"scheduler_type {kind} has no {', '.join(sorted(strange))}")
        if "optimization.scheduler_type" in whole:
            return [ReadWith("optimization.scheduler_type")]
    settings: Found = [("schedule.name", kind)]
    if kind == "linear":
        if params.get("start_factor", 1.0) != 1.0:
            raise ValueError("scheduler_params.start_factor is 1 here; schedule.warmup begins slowly")
        settings.append(("schedule.min_lr_ratio", params.get("end_factor", 0.1)))
    elif kind in ("cosine", "cosine_with_restarts"):
        lowest = params.get("eta_min", 5e-5 if kind == "cosine_with_restarts" else 0)
        settings.append(("schedule.min_lr_ratio", min(1.0, float(lowest) / rate)))
        if kind == "cosine_with_restarts":
            if params.get("T_mult", 1) != 1:
                raise ValueError("scheduler_params.T_mult is 1 here: all restarts are of one length")
            steps = int(whole.get("optimization.steps") or 3000)
            settings.append(("schedule.cycles", max(1, round(steps / int(params.get("T_0") or steps // 4 or 1)))))
    elif kind == "polynomial":
        settings += [("schedule.power", params.get("power", 1.0)), ("schedule.min_lr_ratio", 0.0)]
    elif kind == "step":
        size = params.get("step_size", int(whole.get("optimization.steps") or 3000) // 2)
        settings += [("schedule.step_size", size), ("schedule.gamma", params.get("gamma", 0.1))]
        settings.append(("schedule.min_lr_ratio", 0.0))
    return settings


def _official_timesteps(value: Any, name: str, whole: Mapping[str, Any]) -> Found:
    return [ValuePart(f"{name}.{key}", inner) for key, inner in dict(value or {}).items()]


def _thousands(value: Any, name: str, whole: Mapping[str, Any]) -> Found:
    """Noise levels of 0 to 1 as timesteps of 0 to 1000."""
    setting = "objective.min_timestep" if name.endswith("min_value") else "objective.max_timestep"
    return [(setting, 1000 * float(value))]


def _official_samples(value: Any, name: str, whole: Mapping[str, Any]) -> Found:
    """`validation.samples`, or the older `prompts` with `images` and `reference_videos`, as prompts.

    A line says all of most of them; one with other conditions than a first frame is a table.
    """
    if name not in ("validation.samples", "validation.prompts"):
        return _read_with_prompts(value, name, whole)
    if isinstance(value, str):
        raise ValueError("needs a list of prompts")
    prompts: list[Any] = []
    for number, sample in enumerate(value or []):
        sample = _older_sample(sample, number, whole) if isinstance(sample, str) else sample
        if not isinstance(sample, Mapping) or not isinstance(sample.get("prompt"), str):
            raise ValueError(f"number {number + 1} has no prompt")
        _require_known(f"number {number + 1}", sample, {"prompt", "conditions", "video_dims", "seed"})
        line = " ".join(sample["prompt"].split())
        if re.search(r"(?:^|\s)--[A-Za-z]", line):
            raise ValueError(f"number {number + 1}: a prompt must not hold two dashes before a letter")
        conditions = [dict(one) for one in sample.get("conditions") or []]
        options: dict[str, Any] = {}
        if sample.get("video_dims"):
            options = dict(zip(("width", "height", "frames"), sample["video_dims"], strict=True))
        if sample.get("seed") is not None:
            options["seed"] = sample["seed"]
        if all(one.get("type") == "first_frame" for one in conditions):
            for one in conditions:
                _require_known(f"first_frame of number {number + 1}", one, {"type", "image_or_video"})
            letters = {"width": "w", "height": "h", "frames": "f", "seed": "d"}
            line += "".join(f" --{letters[key]} {option}" for key, option in options.items())
            line += "".join(f" --i {one.get('image_or_video')}" for one in conditions)
            prompts.append(line)
        else:
            prompts.append({"prompt": line, **options, "conditions": conditions})
    return [("sample.prompts", prompts)] if prompts else []


def _read_with_prompts(value: Any, name: str, whole: Mapping[str, Any]) -> Found:
    """What stands beside `validation.prompts`: one medium for each prompt, and how references are shown."""
    prompts = whole.get("validation.prompts") or []
    if isinstance(value, list) and isinstance(prompts, list) and len(value) > len(prompts) > 0:
        raise ValueError(f"has {len(value)} entries, and there are {len(prompts)} validation.prompts")
    if name == "validation.reference_downscale_factor" and not whole.get("validation.reference_videos"):
        return []
    return [ReadWith("validation.prompts")]


def _older_sample(prompt: str, number: int, whole: Mapping[str, Any]) -> dict[str, Any]:
    """A prompt of `validation.prompts` with the image and the reference video of its number; none of a list that is
    longer than the prompts, of which nobody knows what belongs to which."""
    conditions: list[dict[str, Any]] = []
    many = len(whole.get("validation.prompts") or [])
    media = (list(whole.get(f"validation.{key}") or []) for key in ("images", "reference_videos"))
    images, videos = (of_prompts if len(of_prompts) <= many else [] for of_prompts in media)
    if number < len(images) and images[number] is not None:
        conditions.append({"type": "first_frame", "image_or_video": images[number]})
    if number < len(videos) and videos[number] is not None:
        factor = whole.get("validation.reference_downscale_factor", 1)
        conditions.append({"type": "reference", "video": videos[number], "downscale_factor": factor})
    return {"prompt": prompt, "conditions": conditions}


def _official_size(value: Any, name: str, whole: Mapping[str, Any]) -> Found:
    if not isinstance(value, Sequence) or len(value) != 3:
        raise ValueError("needs [width, height, frames]")
    width, height, frames = value
    return [("sample.width", width), ("sample.height", height), ("sample.frames", frames)]


def _official_stg_mode(value: Any, name: str, whole: Mapping[str, Any]) -> Found:
    """Whether the sound is guided as the picture is, or not at all."""
    if value not in ("stg_av", "stg_v"):
        raise ValueError("is stg_av or stg_v")
    return [("sample.audio_stg", 0.0)] if value == "stg_v" else []


def _official_stg_blocks(value: Any, name: str, whole: Mapping[str, Any]) -> Found:
    blocks = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    if None in blocks or not blocks:
        raise ValueError("name the blocks that are skipped, [29] for LTX-2 or [28] for LTX-2.3")
    return [("sample.stg_block", blocks[0])] if len(blocks) == 1 else [("sample.stg_blocks", blocks)]


def _run_folder(value: Any, name: str, whole: Mapping[str, Any]) -> Found:
    """The folder of a run: its last part is the run's name."""
    path = PureWindowsPath(str(value)) if "\\" in str(value) else Path(str(value))
    if not path.name:
        raise ValueError("needs a folder")
    return [("run.name", path.name), ("run.folder", str(path.parent))]


def _local_file(value: Any, name: str, whole: Mapping[str, Any]) -> Found:
    """A file here; the name of a repository is none, and nothing is downloaded."""
    setting = {"init_lora": "lora.weights", "pretrained_gemma_model_name_or_path": "model.text_encoder"}
    text = str(value)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", text) or text.endswith(".safetensors") or Path(text).exists():
        return [(setting.get(name, "model.checkpoint"), text)]
    return [ValuePart(f"{name}.repository", text)]


def _found_from_here(value: Any, name: str, whole: Mapping[str, Any]) -> Found:
    return [("data.config", str(value))]


def _optimizer_config(value: Any, name: str, whole: Mapping[str, Any]) -> Found:
    """ "a=1,b=2" in one text."""
    return [("optimizer.args", [one.strip() for one in value.split(",")] if isinstance(value, str) else value)]


def _optimizer_betas(value: Any, name: str, whole: Mapping[str, Any]) -> Found:
    return [("optimizer.betas", [whole.get("optimizer_beta1", 0.9), whole.get("optimizer_beta2", 0.999)])]


def _ema(value: Any, name: str, whole: Mapping[str, Any]) -> Found:
    return [("ema.decay", whole.get("ema_decay", 0.995))] if whole.get("use_ema") in (True, "true") else []


def _no_samples(value: Any, name: str, whole: Mapping[str, Any]) -> Found:
    return [("sample.every", 0), ("sample.at_start", False)] if value is True else []


def _one_prompt(value: Any, name: str, whole: Mapping[str, Any]) -> Found:
    return [("sample.prompts", [str(value)])]


def _size_text(value: Any, name: str, whole: Mapping[str, Any]) -> Found:
    """ "768x512", or one number for a square."""
    sides = re.fullmatch(r"\s*(\d+)\s*(?:[xX]\s*(\d+)\s*)?", str(value))
    if sides is None:
        raise ValueError("needs one size, WIDTHxHEIGHT")
    return [("sample.width", int(sides[1])), ("sample.height", int(sides[2] or sides[1]))]


def _gemma_4bit_type(value: Any, name: str, whole: Mapping[str, Any]) -> Found:
    """It says which 4 bits, not that there are 4."""
    if not whole.get("gemma_load_in_4bit"):
        return [ValuePart(f"{name}.alone", value)]
    return [(f"gemma.{name}", value)]


def _as_it_is(value: Any, name: str, whole: Mapping[str, Any]) -> Found:
    return []


def _hub_repo(value: Any, name: str, whole: Mapping[str, Any]) -> Found:
    return [("hub.push", True), ("hub.repo", str(value))]


def _lycoris_config(value: Any, name: str, whole: Mapping[str, Any]) -> Found:
    return [*lycoris.from_file(value, whole)]


def _lycoris_modules(value: Any, name: str, whole: Mapping[str, Any]) -> Found:
    table = value if isinstance(value, Mapping) else {}
    return [] if whole.get("lycoris_config") else [*lycoris.modules_of(table, whole)]  # the file has them too


def _lycoris_norm(value: Any, name: str, whole: Mapping[str, Any]) -> Found:
    table = value if isinstance(value, Mapping) and name == "network.init" else {}
    return [] if whole.get("lycoris_config") else [*lycoris.norm_of(table, whole)]


def _lycoris_json(value: Any, name: str, whole: Mapping[str, Any]) -> Found:
    return [*lycoris.from_json(value)]


_CONVERTERS: dict[str, ValueConverter] = {
    "pairs": pairs,
    "config_file": _as_it_is,
    **regularizer_flags.CONVERTERS,
    "gemma_4bit_type": _gemma_4bit_type,
    "kept_by_steps": _kept_by_steps,
    "official_streams": _official_streams,
    "official_strategy": _official_strategy,
    "official_conditions": _official_conditions,
    "ic_lora": _ic_lora,
    "simpletuner_conditions": _simpletuner_conditions,
    "official_schedule": _official_schedule,
    "official_timesteps": _official_timesteps,
    "thousands": _thousands,
    "official_samples": _official_samples,
    "official_size": _official_size,
    "official_stg_blocks": _official_stg_blocks,
    "official_stg_mode": _official_stg_mode,
    "run_folder": _run_folder,
    "local_file": _local_file,
    "found_from_here": _found_from_here,
    "optimizer_betas": _optimizer_betas,
    "optimizer_config": _optimizer_config,
    "ema": _ema,
    "no_samples": _no_samples,
    "one_prompt": _one_prompt,
    "size_text": _size_text,
    "hub_repo": _hub_repo,
    "lycoris_config": _lycoris_config,
    "lycoris_modules": _lycoris_modules,
    "lycoris_norm": _lycoris_norm,
    "lycoris_json": _lycoris_json,
}
