"""What a saved LoRA says of the run that it comes from."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from ..conditions.trained import SLOTS, condition_tables, references_of
from ..feed.loader import Sample
from ..optim import warmup_steps
from ..version import VERSION
from .setup import Run


def lora_metadata(run: Run) -> dict[str, Any]:
    """What a saved LoRA says of itself: names and hashes, never a path."""
    return {
        "base": run.base,
        "settings": run.config,
        "step": run.step,
        "trigger": run.trigger,
        "name": run.folder.name,
        "program": f"ltx2_train {VERSION}",
        "warmup": warmup_steps(run.config.schedule, run.total),
        "datasets": _datasets(run.data.samples),
        "started": _seconds(run.folder.manifest.get("created")),
        "finished": round(time.time()),
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "ss_num_train_items": sum(sample.repeats for sample in run.data.samples),
        "ss_num_batches_per_epoch": len(run.order),
        "ss_epoch": run.place[0],
        **_given(run),
        **({} if run.slider is None else run.slider.about()),
    }


def _given(run: Run) -> dict[str, Any]:
    """What the LoRA was given besides its text; nothing of a plain one."""
    config = run.config
    streams = {"video": config.video.conditions, "audio": config.audio.conditions}
    whole = [stream for stream in streams if not getattr(config, stream).generated]
    about: dict[str, Any] = {}
    if conditions := condition_tables(streams):
        about["conditions"] = conditions
    if whole:
        about["given_whole"] = ", ".join(whole)
    if config.cache.keyframe_slots:
        about[SLOTS] = config.cache.keyframe_slots
    if references_of(config.video.conditions):
        about |= run.trained.metadata()
    return about


def _datasets(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """What each dataset of the run came to: clips, repeats, and how many of each size."""
    tables: dict[int, dict[str, Any]] = {}
    for sample in samples:
        first = {"kind": sample.kind, "clips": 0, "repeats": sample.repeats, "sizes": {}}
        about = tables.setdefault(sample.dataset, first)
        video = sample.shape.video()
        size = f"{video.width}x{video.height}x{video.frames}"
        about["clips"] += 1
        about["sizes"][size] = about["sizes"].get(size, 0) + 1
    return [tables[number] for number in sorted(tables)]


def _seconds(date: Any) -> int | None:
    """A date of a manifest in seconds since 1970; None where it has none, or one that cannot be read."""
    try:
        return round(datetime.strptime(str(date), "%Y-%m-%dT%H:%M:%S%z").timestamp())
    except ValueError:
        return None
