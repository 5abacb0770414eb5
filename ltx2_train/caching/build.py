"""What filling latent and text caches share: the report, opening a model for a while, failures.

Files that could not be encoded are remembered beside the caches, so that training leaves them out, as caching did,
instead of asking for their caches.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch

from ..dataset.cache_names import TextForm
from ..dataset.dataset_file import DatasetSettings
from ..dataset.plan import DatasetPlan, Item
from ..dataset.scan import Skipped
from ..dataset.sources import source_stat
from ..events import Events
from ..files import parse_json, write_json
from ..locks import alone
from .settings import CacheSettings

FAILURES = "ltx2_failed.json"
Model = TypeVar("Model")


@dataclass
class CacheReport:
    """What filling a kind of cache came to: "latents", "sound", "masks", "dino" or "text".

    `stale` of the `made` ones replaced an old file. `others` were made by another process in the meantime. `notes` are
    sentences on what was noticed and is no failure.
    """

    kind: str
    made: int = 0
    kept: int = 0
    stale: int = 0
    others: int = 0
    failed: list[Skipped] = field(default_factory=list)
    seconds: float = 0.0
    bytes: int = 0
    notes: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """A line for people, and one for each file that failed."""
        mended = f" ({self.stale} were stale)" if self.stale else ""
        others = f", {self.others} made by another process" if self.others else ""
        lines = [
            f"{self.kind}: {self.made} made{mended}, {self.kept} kept{others}, {len(self.failed)} failed; "
            f"{self.bytes / 1e6:.1f} MB written in {self.seconds:.1f} s"
        ]
        lines += [f"  {failure.path.name}: {failure.reason}" for failure in self.failed]
        lines += [f"  {note}" for note in self.notes]
        return "\n".join(lines)


def latent_settings(plan: DatasetPlan, item: Item, settings: CacheSettings) -> dict[str, Any]:
    """All that changes the latents of `item` besides its source and the VAE; by the names a user knows."""
    shape, entry = item.shape, plan.settings_of(item)
    made: dict[str, Any] = {
        "resolution": f"{item.width}x{item.height}",
        "vae_dtype": settings.vae_dtype,
        "latents_dtype": settings.latents_dtype,
    }
    if item.source.media.kind == "video":
        made |= {"window": item.window.token, "target_fps": entry.target_fps, "source_fps": entry.source_fps}
        made["crop"] = entry.crop
    made |= {"flip": item.flipped, "color_jitter": entry.color_jitter}
    return made | _tiled(settings) | {"latents": [shape.frames, shape.height, shape.width]}


def _tiled(settings: CacheSettings) -> dict[str, Any]:
    made: dict[str, Any] = {}
    tiles = settings.tiles
    # chunk_size is left out: the result does not depend on it.
    for axis in ("spatial", "temporal"):
        size = getattr(tiles, f"{axis}_tile")
        made[f"{axis}_tile"] = None if size is None else [size, getattr(tiles, f"{axis}_overlap")]
    return made


def picture_reference_settings(plan: DatasetPlan, item: Item, settings: CacheSettings) -> dict[str, Any]:
    """All that changes the latents of the reference of `item` besides its source and the VAE."""
    wanted, entry = item.reference, plan.settings_of(item)
    assert wanted is not None, item.key
    made = {
        "reference_file": wanted.path.name,
        "reference_frames": wanted.frames,
        "resolution": f"{wanted.width}x{wanted.height}",
        "vae_dtype": settings.vae_dtype,
        "latents_dtype": settings.latents_dtype,
        **_beside(item, entry),
    }
    shape = wanted.shape
    return made | _tiled(settings) | {"latents": [shape.frames, shape.height, shape.width]}


def _beside(item: Item, entry: DatasetSettings) -> dict[str, Any]:
    """What decides which part of a companion goes with `item`."""
    made: dict[str, Any] = {"target_fps": entry.target_fps, "flip": item.flipped}
    if item.source.media.kind == "video":
        made |= {"window": item.window.token, "source_fps": entry.source_fps, "crop": entry.crop}
    return made


def mask_settings(plan: DatasetPlan, item: Item) -> dict[str, Any]:
    """All that changes the mask of `item` besides its source."""
    shape = item.shape
    return {
        "mask_file": item.mask.name if item.mask else None,
        "resolution": f"{item.width}x{item.height}",
        **_beside(item, plan.settings_of(item)),
        "latents": [shape.frames, shape.height, shape.width],
    }


def audio_mask_settings(plan: DatasetPlan, item: Item) -> dict[str, Any]:
    """All that changes the mask of the sound of `item` besides its source."""
    sound = item.sound
    assert sound is not None, item.key
    return {
        "mask_file": item.audio_mask.name if item.audio_mask else None,
        "sound_window": [round(sound.start, 6), round(sound.seconds, 6)],
        "steps": sound.steps,
    }


def sound_settings(plan: DatasetPlan, item: Item, settings: CacheSettings) -> dict[str, Any]:
    """All that changes the sound of `item` besides its source and the audio VAE; by the names a user knows."""
    sound = item.sound
    assert sound is not None, item.key
    return {
        "sound_file": sound.path.name,
        "sound_window": [round(sound.start, 6), round(sound.seconds, 6)],
        "sound_length": round(sound.length, 6),
        "audio_normalize": plan.settings_of(item).audio_normalize,
        "audio_vae_dtype": settings.audio_vae_dtype,
        "audio_latents_dtype": settings.audio_latents_dtype,
    }


def reference_settings(plan: DatasetPlan, item: Item, settings: CacheSettings) -> dict[str, Any]:
    """All that changes the reference sound of `item` besides its source and the audio VAE."""
    entry = plan.settings_of(item)
    return {
        "reference_file": item.reference_audio.name if item.reference_audio else None,
        "reference_audio_max_seconds": entry.reference_audio_max_seconds,
        "audio_normalize": entry.audio_normalize,
        "audio_vae_dtype": settings.audio_vae_dtype,
        "audio_latents_dtype": settings.audio_latents_dtype,
    }


def text_settings(form: TextForm, settings: CacheSettings) -> dict[str, Any]:
    """All that changes a text cache besides caption and weights."""
    return {"text_form": form, "text_dtype": settings.text_dtype}


def with_model(opener: Callable[[], Model], work: Callable[[Model], None], device: torch.device | str | None) -> None:
    """Open a model, move it to `device` unless None, `work` with it, and let it go, however that ends."""
    model = opener()
    try:
        if device is not None and isinstance(model, torch.nn.Module):
            model.to(device)
        work(model)
    finally:
        close = getattr(model, "close", None)
        if close is not None:
            close()
        del model
        if torch.cuda.is_available():
            gc.collect()
            torch.cuda.empty_cache()


def note_failure(report: CacheReport, failure: Skipped, events: Events) -> None:
    if failure not in report.failed:
        report.failed.append(failure)
        events.message(f"{failure.path.name} is left out: {failure.reason}", "warning")


def _failures(folder: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        table = parse_json((folder / FAILURES).read_text(encoding="utf-8"))
        if isinstance(table, dict):
            return table
    return {}


def record_failure(item: Item, reason: str, name: str | None = None, source: Path | None = None) -> None:
    """Remember that the cache `name` of `item` (default: its latents) cannot be made from `source` as it is now."""
    with contextlib.suppress(OSError):
        size, mtime_ns = source_stat(source or item.source.path)
        with alone(item.source.folder):
            table = _failures(item.source.folder)
            table[name or item.latent_path.name] = {"reason": reason, "size": size, "mtime_ns": mtime_ns}
            write_json(item.source.folder / FAILURES, table)


def failed_before(item: Item, name: str | None = None, source: Path | None = None) -> str | None:
    """Why the cache `name` of `item` (default: its latents) could not be made last time, if `source` is the same."""
    known = _failures(item.source.folder).get(name or item.latent_path.name)
    if not isinstance(known, dict):
        return None
    try:
        size, mtime_ns = source_stat(source or item.source.path)
    except OSError:
        return None
    same = known.get("size") == size and known.get("mtime_ns") == mtime_ns
    return str(known.get("reason")) if same else None


def sound_failed_before(item: Item) -> str | None:
    """Why the sound of `item` could not be encoded the last time, if its file is still the same."""
    if item.sound is None or item.audio_path is None:
        return None
    return failed_before(item, item.audio_path.name, item.sound.path)
