"""The table of every setting of a dataset file, as docs/dataset_file.md shows it; a test holds the two together.

python -c "from ltx2_train.dataset.option_table import markdown; print(markdown())"
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from ..idle import counts_with
from ..settings import inner_type
from .entry import DatasetSettings, SharedSettings

# What is in none of these is listed under "Other".
GROUPS: dict[str, tuple[str, ...]] = {
    "Media": (
        "image_directory", "image_jsonl_file", "video_directory", "video_jsonl_file", "audio_directory",
        "audio_jsonl_file", "dataset_file", "data_root", "video_column", "caption_column", "preprocessed_data_root",
        "recursive", "max_left_out",
    ),
    "Captions": ("caption_extension", "caption_lines", "trigger_word", "caption_prefix", "caption_replace"),
    "Size": ("resolution", "enable_bucket", "bucket_no_upscale", "resolution_buckets", "crop", "flip", "color_jitter"),
    "Length and frame rate": (
        "target_frames", "frame_extraction", "frame_stride", "frame_sample", "max_frames", "frame_interval",
        "min_frames", "min_seconds", "max_seconds", "pad_short", "source_fps", "target_fps",
    ),
    "Sound": (
        "audio_source", "audio_files_directory", "audio_extension", "audio_track", "audio_normalize",
        "separate_audio_buckets", "audio_bucket_strategy", "audio_bucket_interval", "speech_segments",
        "speech_min_seconds", "speech_max_seconds", "speech_pause_seconds", "audio_only_target_fps",
        "audio_only_sequence_resolution", "audio_only_target_resolution", "audio_video_latent_channels",
        "audio_video_latent_dtype",
    ),
    "References and masks": (
        "reference_directory", "reference_frames", "reference_downscale", "reference_temporal_scale",
        "more_reference_directories", "more_reference_frames", "reference_audio_directory",
        "more_reference_audio_directories", "reference_audio_max_seconds", "mask_directory", "audio_mask_directory",
    ),
    "Caches": (
        "cache_directory", "reference_cache_directory", "reference_audio_cache_directory", "cache_only", "cache_files",
    ),
    "Training": (
        "batch_size", "num_repeats", "video_loss_weight", "audio_loss_weight", "first_frame_probability",
    ),
}  # fmt: skip


def markdown() -> str:
    """All groups as Markdown tables: setting, type, default, meaning."""
    fields = DatasetSettings.model_fields
    known = {name for names in GROUPS.values() for name in names}
    groups = {**GROUPS, "Other": tuple(name for name in fields if name not in known)}
    parts = []
    for title, names in groups.items():
        if names:
            rows = [_row(name, fields[name]) for name in names]
            parts.append(
                "\n".join([f"### {title}", "", "| setting | type | default | meaning |", "|---|---|---|---|", *rows])
            )
    return "\n\n".join(parts)


def _row(name: str, field: FieldInfo) -> str:
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    notes = [field.description or ""]
    if beside := counts_with(field):
        notes.append(f"Counts only {beside}.")
    if extra.get("community", name) != name:
        notes.append(f"Also: `{extra['community']}`.")
    if name not in SharedSettings.model_fields:
        notes.append("Not in `[general]`.")
    kind = _type(field.annotation) + (f" ({extra['unit']})" if "unit" in extra else "")
    meaning = " ".join(notes).replace("|", "\\|")
    return f"| `{name}` | {kind} | {_default(field.default)} | {meaning} |"


def _type(annotation: Any) -> str:
    kind = inner_type(annotation)
    if get_origin(kind) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(kind))
    if get_origin(kind) is tuple:
        return f"list of {_type(get_args(kind)[0]).removesuffix('s')}s"
    return {bool: "true or false", int: "whole number", float: "number", Path: "path", str: "text"}[kind]


def _default(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return f"`{list(value)}`"
    return f'`"{value}"`' if isinstance(value, str) else f"`{value:g}`"
