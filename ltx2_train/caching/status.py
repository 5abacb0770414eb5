"""What lies in the cache folders of a plan: present, missing, stale with the reason, failed, and what nobody uses.

Headers alone are read. Orphans are files with the endings of caches that no sample of the plan would read; media and
anything else in the folders are never looked at.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..dataset.cache_names import (
    AUDIO_MASK_SUFFIX,
    AUDIO_SUFFIX,
    COMPACT_SUFFIX,
    LATENT_SUFFIX,
    MASK_SUFFIX,
    TEXT_SUFFIX,
    TextForm,
)
from ..dataset.plan import DatasetPlan
from ..dataset.scan import SHOWN_AT_MOST
from ..errors import CacheError
from ..shapes import Mode
from . import cache_file as caches
from .build import failed_before, text_settings
from .cache_file import CacheFile
from .dino import DINO_SUFFIX
from .encode import failure_name, latent_jobs, latents_state
from .encode_dino import DinoModel, dino_jobs, dino_state
from .encode_mask import mask_jobs, mask_state
from .encode_sound import sound_jobs, sound_state
from .settings import CacheSettings

SUFFIXES = (LATENT_SUFFIX, AUDIO_SUFFIX, MASK_SUFFIX, AUDIO_MASK_SUFFIX, DINO_SUFFIX, TEXT_SUFFIX, COMPACT_SUFFIX)
STATES = ("present", "missing", "stale", "failed", "orphaned")


@dataclass(frozen=True)
class CacheRow:
    """One file: its kind (latents, sound, masks, dino, text), one of STATES, why, and its size (0: not there)."""

    path: Path
    kind: str
    state: str
    why: str = ""
    bytes: int = 0


@dataclass(frozen=True)
class CacheStatus:
    """All files of a dataset's cache folders."""

    rows: tuple[CacheRow, ...]

    def of(self, state: str) -> list[CacheRow]:
        """The files in one of STATES."""
        return [row for row in self.rows if row.state == state]

    @property
    def complete(self) -> bool:
        """Whether training could start."""
        return not self.of("missing") and not self.of("stale")

    def to_json(self) -> dict[str, Any]:
        """Counts and bytes by state, and a row for every file that is not simply present."""
        rows = [row for row in self.rows if row.state != "present"]
        return {
            "complete": self.complete,
            "states": {s: {"files": len(self.of(s)), "bytes": sum(r.bytes for r in self.of(s))} for s in STATES},
            "files": [
                {"path": str(row.path), "kind": row.kind, "state": row.state, "why": row.why, "bytes": row.bytes}
                for row in rows
            ],
        }

    def text(self) -> str:
        """A line for each state that occurs, and some of the files."""
        lines = []
        for state in STATES:
            rows = self.of(state)
            if not rows:
                continue
            kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(row.kind for row in rows).items())
            size = sum(row.bytes for row in rows)
            lines.append(f"{state:9}{len(rows):6} files{f', {size / 1e6:.1f} MB' if size else ''} ({kinds})")
            if state == "present":
                continue
            lines += [f"  {row.path.name}{f': {row.why}' if row.why else ''}" for row in rows[:SHOWN_AT_MOST]]
            lines += [f"  and {len(rows) - SHOWN_AT_MOST} more"] if len(rows) > SHOWN_AT_MOST else []
        if not self.complete:
            lines.append(caches.MEND)
        return "\n".join(lines) or "There are no caches, and none are needed."


def cache_status(
    plan: DatasetPlan,
    settings: CacheSettings,
    mode: Mode,
    vae_fingerprint: str = "",
    audio_fingerprint: str = "",
    weights: caches.Fingerprints | None = None,
    dino: DinoModel | None = None,
) -> CacheStatus:
    """The state of every cache that `plan` needs in `mode`, then the orphans. Fingerprints "" are not compared.

    DINOv2 features are needed where `dino` is given; those of samples are no orphans without it either.
    """
    settings = settings.model_copy(update={"skip_existing": True})
    rows: dict[Path, CacheRow] = {}
    for row in _wanted(plan, settings, mode, vae_fingerprint, audio_fingerprint, weights or caches.Fingerprints()):
        rows.setdefault(row.path, row)
    if mode != "audio":
        rows |= {row.path: row for row in _features(plan, settings, dino)}
    orphans = [path for path in _files(plan) if path not in rows and not _of_other_form(path, rows)]
    found = [CacheRow(path, _kind(path), "orphaned", "no sample uses it", path.stat().st_size) for path in orphans]
    return CacheStatus((*rows.values(), *found))


def _wanted(
    plan: DatasetPlan, settings: CacheSettings, mode: Mode, vae: str, audio: str, weights: caches.Fingerprints
) -> Iterator[CacheRow]:
    if mode != "audio":
        for job in latent_jobs(plan, settings):
            missing, reason = latents_state(job, vae, settings)
            failure = failed_before(job.item, failure_name(job), job.source) if missing else None
            yield _row(job.path, "latents", missing, reason, failure)
        for job in mask_jobs(plan):
            missing, reason = mask_state(job, settings)
            failure = failed_before(job.item, job.path.name, job.source) if missing else None
            yield _row(job.path, "masks", missing, reason, failure)
    if mode != "video":
        for job in sound_jobs(plan, settings):
            missing, reason = sound_state(job, audio, settings)
            failure = failed_before(job.item, job.path.name, job.source) if missing else None
            yield _row(job.path, "sound", missing, reason, failure)
            if job.item.kind == "audio" and not job.reference:
                yield _row(job.item.latent_path, "latents", not job.item.latent_path.is_file(), None, failure)
    for source in plan.sources:
        forms: list[TextForm] = [settings.text_form, "full" if settings.text_form == "compact" else "compact"]
        form = next((form for form in forms if source.text_path(form).is_file()), forms[0])
        path = source.text_path(form)
        if not path.is_file():
            yield _row(path, "text", True, None, None)
            continue
        try:
            reason = caches.stale_text(CacheFile(path), source.caption, text_settings(form, settings), weights)
        except CacheError:
            reason = "damaged"
        yield _row(path, "text", False, reason, None)


def _features(plan: DatasetPlan, settings: CacheSettings, model: DinoModel | None) -> Iterator[CacheRow]:
    for job in dino_jobs(plan, settings):
        missing, reason = dino_state(job, model, settings)
        if missing and (model is None or failed_before(job.item)):
            continue
        failure = failed_before(job.item, job.path.name) if missing else None
        yield _row(job.path, "dino", missing, reason, failure)


def _row(path: Path, kind: str, missing: bool, reason: str | None, failure: str | None) -> CacheRow:
    if missing:
        return CacheRow(path, kind, "failed" if failure else "missing", failure or "")
    return CacheRow(path, kind, "stale" if reason else "present", reason or "", path.stat().st_size)


def _files(plan: DatasetPlan) -> list[Path]:
    """All caches in the folders of the datasets that have media."""
    folders = {
        folder
        for _, entry in plan.config.named()
        if not entry.from_caches
        for folder in (entry.caches, entry.reference_caches, entry.reference_audio_caches)
    }
    files = (path for folder in sorted(folders) if folder.is_dir() for path in sorted(folder.iterdir()))
    return [path for path in files if path.name.endswith(SUFFIXES) and path.is_file()]


def _of_other_form(path: Path, rows: dict[Path, CacheRow]) -> bool:
    """Whether it is the text of a sample in the form that is not read now."""
    if path.name.endswith(COMPACT_SUFFIX):
        return path.with_name(path.name.removesuffix(COMPACT_SUFFIX) + TEXT_SUFFIX) in rows
    return path.with_name(path.name.removesuffix(TEXT_SUFFIX) + COMPACT_SUFFIX) in rows


def _kind(path: Path) -> str:
    if path.name.endswith((MASK_SUFFIX, AUDIO_MASK_SUFFIX)):
        return "masks"
    if path.name.endswith(AUDIO_SUFFIX):
        return "sound"
    if path.name.endswith(DINO_SUFFIX):
        return "dino"
    return "latents" if path.name.endswith(LATENT_SUFFIX) else "text"


def remove(rows: list[CacheRow]) -> int:
    """Delete the files of `rows`; returns the bytes that became free. A file that is gone already is passed over."""
    freed = 0
    for row in rows:
        assert row.path.name.endswith(SUFFIXES), row.path
        with contextlib.suppress(FileNotFoundError):
            row.path.unlink()
            freed += row.bytes
    return freed
