"""Build the caches of a dataset, one big model on the device at a time.

Latents of pictures and references, of the sound, masks, captions, the sample prompts, and the manifest of it all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..caching.build import CacheReport, Encoder, Openers, make_due
from ..caching.cache_file import CacheFile
from ..caching.disk import CacheNeed
from ..caching.due import Due
from ..caching.encode import Latents
from ..caching.encode_mask import Masks
from ..caching.encode_sound import ReferenceSound, SoundLatents
from ..caching.encode_text import Text, encode_text
from ..caching.locks import Claims, tidy
from ..caching.manifest import write_manifest
from ..caching.notes import DAMAGED
from ..caching.recipe import CacheRecipe
from ..caching.status import verify_kept
from ..caching.writable import require_writable, written_folders
from ..config import DrawSettings, RunConfig
from ..config.base_files import BaseFiles
from ..dataset.dataset_file import DatasetConfig
from ..dataset.manifest import MANIFEST_NAME
from ..dataset.outputs import require_cache_folders
from ..dataset.plan import DatasetPlan, plan_dataset
from ..device import DTYPES, pick_device
from ..errors import CheckpointError, ConfigError, DataError, RunError
from ..events import Events, shielded
from ..feed.cached import are_unsaid, dataset_captions
from ..feed.captions_in_use import captions_in_use
from ..files import require_there
from ..locks import alone
from ..models.audio_vae import AudioVAE
from ..models.plain_text import PlainText
from ..models.text import TextConnectors
from ..models.video_vae import VideoVAE
from ..sampling.ahead import CAPTIONS, prompts_ahead
from ..sampling.given_media import GivenMedia
from ..sampling.idle_options import only_words
from ..sampling.prompt_text import encoder_bytes, encoder_dtype, prompt_features, prompts_beside
from ..sampling.prompts import Prompt, read_prompts, require_drawable
from ..sampling.render import open_vae
from ..sampling.sample import given_media, prompts_of, trained_of
from ..sampling.sound import SoundParts
from ..sampling.told_prompts import describe_prompts
from ..sampling.two_stages import require_upsampler
from ..shapes import Mode
from ..weights.gemma_bnb import require_bitsandbytes
from ..weights.load import load_connectors
from ..weights.text_encoder import TextEncoder
from .check_given import check_made
from .check_plan import idle_in_mode, require_dataset, require_media_of_mode, require_plan
from .checks import dataset_triggers, needed_texts
from .effect import tell_other_stream
from .regularizers.checks import regularizer_texts
from .run_data import open_data
from .sound import require_sound
from .watch import all_silent

# what costs little comes first, and shows early what cannot be trained on
_FIRST = {Masks.name: -2, SoundLatents.name: -1}


@dataclass(frozen=True)
class CachesReport:
    """What was made, by the name of the kind (absent where there was nothing of it), what was left out and why."""

    kinds: dict[str, CacheReport]
    left_out: list[str]
    manifest: Path
    pairs: tuple[str, ...] = ()  # what does not fit of references and masks
    files: tuple[Path, ...] = ()  # the caches that are there now, and the notes on damage that a run may leave

    def summary(self) -> str:
        """Some lines for people."""
        lines = [report.summary() for report in self.kinds.values()]
        lines += self.pairs
        return "\n".join([*lines, *(f"left out: {line}" for line in self.left_out)])


def build_caches(
    run: RunConfig, events: Events | None = None, trained_by: Sequence[RunConfig] | None = None
) -> CachesReport:
    """Encode what is missing or stale of the dataset of `run`. Raises TrainerError; finished items are always kept.

    `trained_by` are the runs that will train on the caches; None: `run` itself. What they could not train on, and what
    the dataset gives and they would not use, is refused before it is encoded.
    """
    trained_by = [run] if trained_by is None else trained_by
    events = shielded(events)
    events.stage("check")
    base, drawn, asked = _checked(run, events)
    config, recipe = run.need("data.config"), base.recipe(run)
    device = pick_device(run.model.device)
    dataset, plan = _planned(run, config, asked, trained_by, events)
    if (
        run not in trained_by and drawn.prompts is None and are_unsaid(dataset)
    ):  # those runs may have prompts of their own
        drawn = drawn.model_copy(update={"every": 0, "every_epochs": 0})
    need = _needed(plan, recipe, events)
    need.require_place()
    need.require_room(events)
    if need.sizes or need.upper_sizes:
        require_writable(dataset)
    openers = openers_of(run, base, recipe, events, device)
    folder = prompts_of(dataset)
    reports: dict[str, CacheReport] = {}
    for name, due in sorted(need.dues.items(), key=lambda named: _FIRST.get(named[0], 0)):
        if name == Text.name:
            # most of the prompts are known by now, and Gemma need not come a second time for them
            beside = prompts_beside(_likely_texts(run, drawn, dataset, plan), folder, recipe.text.encoder, device)
            reports[name] = encode_text(due, openers, events, device, beside)
        else:
            reports[name] = make_due(due, openers, events, device)
        if name == Latents.name:
            plan.require_enough({failure.path: failure.reason for failure in reports[name].failed})
        if name == SoundLatents.name and not plan.from_caches:
            _require_no_mute(due, run.model.mode)
        failed = {failure.path for failure in reports[name].failed}
        for one in trained_by:
            check_made(one, [*due.kept, *due.jobs], failed)
    reports = {name: reports[name] for name in need.dues}
    prompts = drawn_prompts(run, drawn, dataset, plan, recipe, base.version)
    texts = needed_beside(run, dataset, plan, prompts)
    if prompts or texts:
        with Claims(events) as claims:  # one process at a time encodes prompts; the next finds them
            claims.take_or_wait(folder / "prompts", "the sample prompts")
            media = given_media(run, base, folder, trained_of(run, dataset))
            _encode_media(prompts, media, openers, run.model.mode, events, device)
            prompt_features(texts, folder, base.encoder, base.projection, device, events, run.gemma)
    _require_made(need.dues, reports)
    manifest = run.cache.manifest or dataset.datasets[0].caches / MANIFEST_NAME
    with alone(manifest.parent):  # from what is there to the file without anybody in between
        write_manifest(plan, manifest, config.name)
    tidy([*written_folders(dataset), folder])
    left_out = [f"{skipped.path.name}: {skipped.reason}" for skipped in plan.skipped]
    caches = {job.path for due in need.dues.values() for job in (*due.kept, *due.jobs) if job.path.is_file()}
    notes = {path.parent / DAMAGED.file for path in caches}
    return CachesReport(reports, left_out, manifest, plan.pairs, tuple(sorted(caches | notes)))


def _checked(run: RunConfig, events: Events) -> tuple[BaseFiles, DrawSettings, list[Prompt]]:
    """The files of the base, how samples are drawn, and the prompts that the run names.

    Raises TrainerError for what can be known of them before hours of pictures.
    """
    run.require_effect()
    for note in (*run.notes, *(str(one) for one in run.without_effect if one.harmless)):
        events.message(note)
    base = BaseFiles.find(run, events)
    require_sound(base.info, run)
    require_bitsandbytes(run.gemma)
    drawn = DrawSettings.of(run.sample, base.version)
    asked = read_prompts(drawn) if drawn.wanted else []
    if asked:
        events.message(describe_prompts(asked, run.model.mode, drawn.prompts))
    for text in only_words(asked):
        events.message(text, "warning")
    require_upsampler(drawn)
    if run.model.mode != "audio" and "video_vae_encoder" not in base.info.parts:
        raise CheckpointError(
            f"{base.video_vae.name} holds no video VAE (vae.encoder). Choose the full checkpoint file."
        )
    return base, drawn, asked


def _planned(
    run: RunConfig, config: Path, asked: list[Prompt], trained_by: Sequence[RunConfig], events: Events
) -> tuple[DatasetConfig, DatasetPlan]:
    """The dataset file `config` and what it comes to. Raises TrainerError where `trained_by` could not train on it."""
    dataset = DatasetConfig.read(config, run.foreign)
    for one in trained_by:
        require_dataset(one, dataset)
    require_drawable(asked, run.model.mode, trained_of(run, dataset))
    require_cache_folders(dataset)
    tell_other_stream(run, dataset, events)
    make_folders(dataset)
    plan = plan_dataset(dataset, events)
    for one in trained_by:
        require_plan(one, plan)
    require_media_of_mode(run, plan)
    plan.require_enough()
    if idle := idle_in_mode(run, plan):
        events.message(idle, "warning")
    kept = CacheRecipe(run.cache, run.model.mode) if run.cache.skip_existing else None
    captions_in_use(dataset, plan.items, kept).tell(events)
    return dataset, plan


def _encode_media(
    prompts: list[Prompt], media: GivenMedia, openers: Openers, mode: Mode, events: Events, device: torch.device
) -> None:
    """The pictures and sounds that the sample prompts name."""
    assert openers.video_vae is not None, "a run has one"
    media.fill(
        prompts,
        None if mode == "audio" else openers.video_vae,
        None if mode == "video" else openers.audio_vae,
        events,
        device,
    )


def _needed(plan: DatasetPlan, recipe: CacheRecipe, events: Events) -> CacheNeed:
    """What is to be made. Where a cache is damaged all others are read as well: what broke one may have broken them."""
    need = CacheNeed.of(plan, recipe)
    if need.damaged and verify_kept(need.dues.values(), events):
        need = CacheNeed.of(plan, recipe)
    return need


def _require_made(dues: Mapping[str, Due], reports: Mapping[str, CacheReport]) -> None:
    """Raise RunError where a cache that is counted as made or kept is not there: its folder went meanwhile."""
    there: list[Path] = []
    for name, due in dues.items():
        failed = {failure.path for failure in reports[name].failed}
        lost = {job.path for job in due.jobs if job.source in failed or job.kind.needless(job)}
        for job in (*due.kept, *due.jobs):
            if job.path not in lost:
                beside = job.kind.beside(job)
                there += [job.path] if beside is None else [job.path, beside]
    mend = "Look for the folder, or mount it again, and build again: what is missing is made then."
    require_there(there, "while the caches were built", mend)


def _require_no_mute(due: Due, mode: Mode) -> None:
    """Raise DataError where the sound of the plan is there and all of it is silence, before more is encoded."""
    jobs = [job for job in (*due.kept, *due.jobs) if isinstance(job.kind, SoundLatents)]
    jobs = [job for job in jobs if not isinstance(job.kind, ReferenceSound) and job.path.is_file()]
    if jobs and all(CacheFile(job.path).silent for job in jobs):
        raise all_silent([job.source.name for job in jobs], mode)


def openers_of(run: RunConfig, base: BaseFiles, recipe: CacheRecipe, events: Events, device: torch.device) -> Openers:
    """How the models that caches are made with are opened; the host makes room for each first."""
    parts, gemma = base.info.parts, run.gemma

    def video_vae() -> VideoVAE:
        events.make_room(2 * sum(part.bytes for name, part in parts.items() if "video_vae" in name), device)
        return open_vae(run, base.video_vae, device, events, True, False)

    def audio_vae() -> AudioVAE:
        events.make_room(parts["audio_vae"].bytes, device)
        return SoundParts(base.audio_vae, device, events).open_encoder(DTYPES[run.cache.audio_vae_dtype])

    def dino() -> Any:
        assert recipe.dino is not None
        events.make_room(recipe.dino.folder.nbytes, device)
        return recipe.dino.open(device)

    def text_encoder() -> Encoder:
        events.make_room(encoder_bytes(base.encoder, gemma, device), device)
        dtype = encoder_dtype(device)
        return TextEncoder.load(base.encoder, base.projection, dtype, device, events.check_stop, settings=gemma)

    def connectors() -> TextConnectors | PlainText:
        return load_connectors(base.connectors, "av", encoder_dtype(device), device, events.check_stop)

    return Openers(video_vae, audio_vae, dino, text_encoder, connectors)


def _likely_texts(run: RunConfig, drawn: DrawSettings, dataset: DatasetConfig, plan: DatasetPlan) -> list[str]:
    """What `drawn_prompts` will name, as far as the plan tells."""
    prompts: list[Prompt] = []
    captions: list[str] = []
    if drawn.wanted:
        with contextlib.suppress(DataError):
            prompts = read_prompts(drawn, dataset_captions(dataset, plan=plan)[:CAPTIONS])
        held_out = [item.caption for item in plan.items if item.validation][: drawn.validation_clips]
        guided = drawn.guidance != 1 or drawn.audio_guidance not in (None, 1)
        captions = [*held_out, drawn.negative_prompt] if held_out and guided else held_out
    return list(dict.fromkeys([*needed_beside(run, dataset, plan, prompts), *captions]))


def needed_beside(run: RunConfig, dataset: DatasetConfig, plan: DatasetPlan, prompts: list[Prompt]) -> list[str]:
    """What is encoded besides the captions, as far as the plan tells."""
    beside: list[str] = []
    captions = [one.caption for item in plan.items if not item.validation for one in item.source.each]
    with contextlib.suppress(ConfigError):  # there may be captions in caches alone; training will say what is wrong
        beside = regularizer_texts(run.regularizers, captions, dataset_triggers(dataset))
    return list(dict.fromkeys([*needed_texts(run, prompts), *beside, *run.cache.preservation_prompts]))


def drawn_prompts(
    run: RunConfig, drawn: DrawSettings, dataset: DatasetConfig, plan: DatasetPlan, recipe: CacheRecipe, version: str
) -> list[Prompt]:
    """The prompts that training will draw, found as training finds them: it opens the caches that have been made."""
    if not drawn.wanted:
        return []
    if drawn.prompts is not None and not drawn.validation_clips:
        return read_prompts(drawn)  # what the dataset holds is of no concern
    try:
        data = open_data(run, recipe, dataset=dataset, plan=plan)
    except DataError:  # training will say what is wrong; until then the plan's captions are the best guess
        return read_prompts(drawn, dataset_captions(dataset, plan=plan)[:CAPTIONS])
    return prompts_ahead(run, data, version)


def make_folders(dataset: DatasetConfig) -> None:
    """Make the folders of the caches, so that one that cannot be written is told before hours of work."""
    for ref in dataset.refs:
        entry = ref.entry
        try:
            # caches may lie among the media; a folder of media that is not there is not made, but told
            if not entry.from_caches and (entry.cache_directory is not None or entry.source.exists()):
                entry.caches.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(
                f"{ref.name}: the cache folder {entry.caches} cannot be made: {error.strerror or error}. "
                "Set cache_directory to one that can be written."
            ) from error
