"""The state of a run's caches against its checkpoint, text encoder, dataset and sample prompts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from ..caching.cache_file import CacheFile
from ..caching.encode import Latents
from ..caching.recipe import CacheRecipe
from ..caching.status import CacheRow, CacheStatus, cache_status, kind_name, missing_row, verify_caches
from ..config import DrawSettings, RunConfig
from ..config.base_files import BaseFiles
from ..dataset.dataset_file import DatasetConfig
from ..dataset.plan import DatasetPlan, plan_dataset
from ..errors import CacheError, DataError
from ..events import Events, shielded
from ..feed.cached import CachedSamples
from ..feed.sample_check import SampleChecker
from ..feed.samples import Sample
from ..sampling.given_media import media_of
from ..sampling.prompt_text import ENCODER, prompt_path
from ..sampling.sample import given_media, prompts_of, trained_of
from .caches import drawn_prompts, needed_beside

_Kept = tuple[Path, str, str]  # a file, the entry of its metadata that says what made it, and what should have


def status_of_caches(run: RunConfig, events: Events | None = None, verify: bool = False) -> CacheStatus:
    """Compare every cache that `run` needs. Raises TrainerError.

    Headers alone are read; with `verify` all of each file, and of the media that they were made from.
    """
    events = shielded(events)
    base = BaseFiles.find(run, events)
    recipe, dataset = base.recipe(run), DatasetConfig.read(run.need("data.config"), run.foreign)
    plan = plan_dataset(dataset, events)
    if verify:
        verify_caches(plan, recipe, events)
    of_data = cache_status(plan, recipe)
    alone = _of_caches_alone(run, recipe, plan, verify)
    of_prompts = _rows(dict.fromkeys(_kept_for_prompts(run, base, dataset, plan)), verify, events)
    return CacheStatus((*of_data.rows, *alone, *of_prompts))


def _of_caches_alone(run: RunConfig, recipe: CacheRecipe, plan: DatasetPlan, verify: bool) -> Iterator[CacheRow]:
    """What training reads of datasets that are caches alone, and why it cannot read the rest of what lies there."""
    checker = SampleChecker(plan, recipe, Events(), run.audio)
    cached, samples = CachedSamples(checker), list[Sample]()
    for ref in plan.config.refs:
        try:
            samples += cached.of(ref) if ref.entry.from_caches else ()
        except DataError as error:  # the folder holds none, or too few that are of use
            yield CacheRow(ref.entry.caches, Latents.name, "missing", str(error))
    wrong = {**checker.left_out, **checker.problems}
    for path in dict.fromkeys(path for sample in samples for path in sample.paths):
        if path not in wrong and (why := _damage(path, verify)):
            wrong[path] = why
        elif path not in wrong:
            yield CacheRow(path, kind_name(path), "present", "", path.stat().st_size)
    for path, why in wrong.items():
        there = path.is_file()
        yield CacheRow(path, kind_name(path), "stale" if there else "missing", why, path.stat().st_size if there else 0)


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
        why = _damage(path, verify, (key, weights))
        yield CacheRow(path, "prompts", "stale" if why else "present", why, path.stat().st_size)


def _damage(path: Path, verify: bool, by_name: tuple[str, str] | None = None) -> str:
    """What is wrong with the file at `path`; "" for nothing.

    `by_name`: what it holds is known by its name alone; the entry of its metadata that says what made it, and what
    should have.
    """
    try:
        file = CacheFile(path)
        if by_name is not None:
            file.require_name()
        if verify:
            file.verify()
        if by_name is not None and not file.made_by(*by_name):
            return f"it was made with another {'text encoder' if by_name[0] == ENCODER else 'VAE'}"
    except CacheError as error:
        return str(error).split(". ")[0]
    return ""
