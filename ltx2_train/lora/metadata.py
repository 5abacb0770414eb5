"""What a LoRA file says of itself: strings only, names and hashes, never a path.

Three vocabularies, for three kinds of reader: plain names that this program reads back; the `ss_` names of the
community trainers, which LoRA browsers show; the few `modelspec` names that ComfyUI's and others' model lists know.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

from pydantic import BaseModel

from ..families import FAMILIES

METADATA_FORMAT = "1"
LONGEST_TEXT, LONGEST_LIST = 2000, 64  # of a setting

# "/home/...", "~/...", "C:\..." or "\\server\..."
_ABSOLUTE = re.compile(r"(~?/|[A-Za-z]:[\\/]|\\\\)\S")

# community name -> dotted path of the setting; what is absent from the settings is left out
SS_NAMES = {
    "ss_learning_rate": "train.learning_rate",
    "ss_max_train_steps": "train.steps",
    "ss_gradient_accumulation_steps": "train.accumulation",
    "ss_max_grad_norm": "train.clip_norm",
    "ss_seed": "train.seed",
    "ss_training_comment": "train.comment",
    "ss_gradient_checkpointing": "memory.gradient_checkpointing",
    "ss_mixed_precision": "model.precision",
    "ss_ltx2_mode": "model.mode",
    "ss_network_dropout": "lora.dropout",
    "ss_lora_target_preset": "lora.target",
    "ss_optimizer": "optimizer.name",
    "ss_lr_scheduler": "schedule.name",
    "ss_timestep_sampling": "objective.sampling",
    "ss_shifted_logit_mode": "objective.mode",
    "ss_shifted_logit_eps": "objective.eps",
    "ss_shifted_logit_uniform_prob": "objective.uniform_prob",
    "ss_logit_std": "objective.std",
    "ss_loss_type": "loss.type",
}

DATES = ("modelspec.date", "ss_training_started_at", "ss_training_finished_at")
# of the whole file, so that they hold no longer once a tensor of it is another
HASHES = ("sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256")
# how large or how fast a reference is beside the picture; who is told the wrong number puts it in the wrong place
REFERENCE = ("reference_downscale_factor", "reference_spatial_scale_factor", "reference_temporal_scale_factor")


def describe_run(about: Mapping[str, Any], rank: int, alpha: float, branches: Mapping[str, int]) -> dict[str, str]:
    """The metadata of a LoRA file of that rank and alpha; `branches` counts its layers per branch.

    `about` may hold: base {"file", "fingerprint", "version"}, settings (a tree of settings), step, name, program,
    trigger, date, warmup (steps), datasets (a list of tables), started and finished (seconds since 1970), hash (of the
    tensors). Any other entry is written under its own name, for example reference_downscale_factor.
    """
    about = dict(about)
    base = dict(about.pop("base", None) or {})
    settings = shortened(without_paths(about.pop("settings", None) or {}))
    version = str(base.get("version") or about.pop("version", "") or "")
    family = FAMILIES.get(version)
    name = str(about.pop("name", "") or _at(settings, "run.name") or "")
    digest = about.pop("hash", None)
    step, trigger, date = about.pop("step", None), shortened(about.pop("trigger", None)), about.pop("date", None)

    values = {
        "format_version": METADATA_FORMAT,
        "rank": str(rank),
        "alpha": f"{alpha:g}",
        "alpha_folded": "true",
        "base": file_name(base.get("file")),
        "base_fingerprint": base.get("fingerprint"),
        "version": version,
        "name": name,
        "step": step,
        "trigger": trigger,
        "program": about.pop("program", None),
        "layers": json.dumps(branches),
        "settings": json.dumps(settings, sort_keys=True, ensure_ascii=False) if settings else None,
        "ss_network_module": "ltx2_train.lora",
        "ss_network_dim": rank,
        "ss_network_alpha": f"{alpha:g}",
        "ss_base_model_version": family.base_word if family else "ltx2_v1",
        "ss_ltx_version": version,
        "ss_sd_model_name": file_name(base.get("file")),
        "ss_output_name": name,
        "ss_steps": step,
        "ss_network_args": "{}",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{family.slug if family else f'ltx-{version or 2}'}/lora",
        "modelspec.implementation": f"https://github.com/Lightricks/{family.repository if family else 'LTX-2'}",
        "modelspec.title": name,
        "modelspec.trigger_phrase": trigger,
        "modelspec.date": date,
        "modelspec.hash_sha256": f"0x{digest}" if digest else None,
        "sshs_model_hash": digest,
        "ss_lr_warmup_steps": about.pop("warmup", None),
        "ss_datasets": shortened(without_paths(about.pop("datasets", None))),
        "ss_training_started_at": about.pop("started", None),
        "ss_training_finished_at": about.pop("finished", None),
        **{key: _at(settings, dotted) for key, dotted in SS_NAMES.items()},
        **shortened(without_paths(about)),
    }
    return {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in values.items()
        if value not in (None, "")
    }


def without_paths(value: Any) -> Any:
    """`value` as plain data, with every path shortened to its last part."""
    if isinstance(value, BaseModel):
        value = {name: getattr(value, name) for name in type(value).model_fields}
    if isinstance(value, Mapping):
        return {str(key): without_paths(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, (list, tuple)):
        return [without_paths(inner) for inner in value]
    if isinstance(value, Path) or (isinstance(value, str) and _ABSOLUTE.match(value)):
        return file_name(value)
    return value if isinstance(value, (str, int, float, bool)) or value is None else str(value)


def shortened(value: Any) -> Any:
    """`value` as plain data, with long texts and lists cut: a page of prompts must not fill the head of a LoRA.

    Programs that list LoRAs read the head alone, many of them a megabyte at most; run.toml has the whole.
    """
    if isinstance(value, Mapping):
        return {key: shortened(inner) for key, inner in value.items()}
    if isinstance(value, list):
        more = [f"... {len(value) - LONGEST_LIST} more"] if len(value) > LONGEST_LIST else []
        return [shortened(inner) for inner in value[:LONGEST_LIST]] + more
    if isinstance(value, str) and len(value) > LONGEST_TEXT:
        return f"{value[:LONGEST_TEXT]}... ({len(value)} characters)"
    return value


def file_name(path: Any) -> str:
    """The last part of a path of any system; an empty string for nothing."""
    return PureWindowsPath(str(path)).name if path else ""


def _at(settings: Any, dotted: str) -> Any:
    for part in dotted.split("."):
        if not isinstance(settings, Mapping) or part not in settings:
            return None
        settings = settings[part]
    return settings
