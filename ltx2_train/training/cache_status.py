"""The state of a run's caches against its checkpoint, text encoder, dataset and sample prompts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from ..caching.cache_file import CacheFile
from ..caching.status import CacheRow, CacheStatus, cache_status, missing_row, verify_caches
from ..config import DrawSettings, RunConfig
from ..config.base_files import BaseFiles
from ..dataset.dataset_file import DatasetConfig
from ..dataset.plan import DatasetPlan, plan_dataset
from ..errors import CacheError
from ..events import Events, shielded
from ..sampling.given_media import media_of
from ..sampling.prompt_text import ENCODER, prompt_path
from ..sampling.sample import given_media, prompts_of, trained_of
from .caches import drawn_prompts, needed_beside

_Kept = tuple[Path, str, str]  # a file, the entry of its metadata that says what made it, and what should have


def status_of_caches(run: RunConfig, events: Events | None = None, verify: bool = False) -> CacheStatus:
    """Compare every cache that `run` needs; reads headers only, with `verify` all of each file. Raises TrainerError."""
    events = shielded(events)
    base = BaseFiles.find(run, events)
    recipe, dataset = base.recipe(run), DatasetConfig.read(run.need("data.config"), run.foreign)
    plan = plan_dataset(dataset, events)
    if verify:
        verify_caches(plan, recipe, events)
    of_data = cache_status(plan, recipe)
    of_prompts = _rows(dict.fromkeys(_kept_for_prompts(run, base, dataset, plan)), verify, events)
    return CacheStatus((*of_data.rows, *of_prompts))


def _kept_for_prompts(run: RunConfig, base: BaseFiles, dataset: DatasetConfig, plan: DatasetPlan) -> Iterator[_Kept]:
    """What is encoded besides the clips and captions: texts, and the media that samples are given."""
    recipe, folder = base.recipe(run), prompts_of(dataset)
    drawn = DrawSettings.of(run.sample, base.version)
    prompts = drawn_prompts(run, drawn, dataset, plan, recipe, base.version)
    for text in needed_beside(run, dataset, plan, prompts):
        yield prompt_path(text, folder, recipe.text.encoder), ENCODER, recipe.text.encoder
    media = given_media(run, base, folder, trained_of(run, dataset))
    streams = {"av": ("video", "audio")}.get(run.model.mode, (run.model.mode,))
    for prompt, shown in media_of(prompts):
        path = media.path(prompt, shown) if shown.stream in streams else None
        if path is not None:
            yield path, "checkpoint", media.weights(shown)


def _rows(kept: Iterable[_Kept], verify: bool, events: Events) -> Iterator[CacheRow]:
    for path, key, weights in kept:
        events.check_stop()
        if not path.is_file():
            yield missing_row(path, "prompts")
            continue
        why = ""
        try:
            file = CacheFile(path)
            file.require_name()
            if verify:
                file.verify()
            if not file.made_by(key, weights):
                why = f"it was made with another {'text encoder' if key == ENCODER else 'VAE'}"
        except CacheError as error:
            why = str(error).split(". ")[0]
        yield CacheRow(path, "prompts", "stale" if why else "present", why, path.stat().st_size)
