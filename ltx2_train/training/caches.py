"""Build the caches of a dataset, one big model on the device at a time.

Latents of pictures and references, of the sound, masks, captions, the sample prompts, and the manifest of it all.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from ..caching.cache_file import Fingerprints
from ..caching.disk import CacheNeed, text_widths
from ..caching.encode import CacheReport, encode_latents, encode_text
from ..caching.encode_dino import DinoModel, encode_dino
from ..caching.encode_mask import encode_masks
from ..caching.encode_sound import encode_sound
from ..caching.locks import Claims, tidy
from ..caching.manifest import write_manifest
from ..caching.writable import require_writable
from ..config import RunConfig
from ..config.base_files import BaseFiles
from ..dataset.dataset_file import DatasetConfig
from ..dataset.manifest import MANIFEST_NAME
from ..dataset.plan import DatasetPlan, plan_dataset
from ..device import DTYPES, pick_device
from ..errors import CheckpointError, DataError, RunError
from ..events import Events, shielded
from ..feed.cached import dataset_captions
from ..feed.loader import TrainingSet
from ..locks import alone
from ..models.audio_vae import AudioVAE
from ..models.text import TextConnectors
from ..models.video_vae import VideoVAE
from ..sampling.ahead import CAPTIONS, prompts_ahead
from ..sampling.prompt_text import encoder_bytes, encoder_dtype, prompt_features, prompts_beside
from ..sampling.prompts import Prompt, read_prompts
from ..sampling.sample import first_frames, prompts_of
from ..weights.fingerprint import part_fingerprint
from ..weights.gemma_bnb import require_bitsandbytes
from ..weights.load import load_audio_vae, load_connectors, load_video_vae
from ..weights.text_encoder import TextEncoder
from .checks import needed_texts, text_fingerprints
from .sound import require_sound


@dataclass(frozen=True)
class CachesReport:
    """What was made of pictures, captions and sound (None where the mode has none), what was left out and why."""

    latents: CacheReport | None
    text: CacheReport
    left_out: list[str]
    sound: CacheReport | None = None
    masks: CacheReport | None = None
    dino: CacheReport | None = None
    manifest: Path | None = None

    def summary(self) -> str:
        """Some lines for people."""
        return "\n".join(
            [
                *(
                    report.summary()
                    for report in (self.latents, self.masks, self.sound, self.dino, self.text)
                    if report is not None
                ),
                *(f"left out: {line}" for line in self.left_out),
            ]
        )


def build_caches(run: RunConfig, events: Events | None = None) -> CachesReport:
    """Encode what is missing or stale of the dataset of `run`. Raises TrainerError; finished items are always kept."""
    events = shielded(events)
    events.stage("check")
    base = BaseFiles.find(run, events)
    checkpoint, encoder, projection, info = base.checkpoint, base.encoder, base.projection, base.info
    require_sound(info, run)
    require_bitsandbytes(run.gemma)  # before hours of pictures, not after
    if run.sample.wanted:
        read_prompts(run.sample)  # a prompt that is wrong, or whose image is gone, likewise
    mode = run.model.mode
    if mode != "audio" and "video_vae_encoder" not in info.parts:
        raise CheckpointError(f"{checkpoint.name} holds no video VAE (vae.encoder). Choose the full checkpoint file.")
    config = run.need("data.config")
    dino_model = None if mode == "audio" else DinoModel.find(run.cache.dino)
    dataset = DatasetConfig.read(config)
    device = pick_device(run.model.device)
    make_folders(dataset)
    plan = plan_dataset(dataset, events)

    def open_vae() -> VideoVAE:
        events.make_room(2 * sum(part.bytes for name, part in info.parts.items() if "video_vae" in name), device)
        return load_video_vae(checkpoint, decoder=False, dtype=DTYPES[run.cache.vae_dtype], device=device)

    def open_audio_vae() -> AudioVAE:
        events.make_room(info.parts["audio_vae"].bytes, device)
        return load_audio_vae(checkpoint, decoder=False, dtype=DTYPES[run.cache.audio_vae_dtype], device=device)

    def open_encoder() -> TextEncoder:
        events.make_room(encoder_bytes(encoder, run.gemma, device), device)
        return TextEncoder.load(encoder, projection, encoder_dtype(device), device, settings=run.gemma)

    def open_connectors() -> TextConnectors:
        return load_connectors(projection, "av", encoder_dtype(device), device)

    vae_print = part_fingerprint(checkpoint, "video_vae") if mode != "audio" else ""
    audio_print = part_fingerprint(checkpoint, "audio_vae") if mode != "video" else ""
    weights = text_fingerprints(encoder, projection, run.gemma)
    need = CacheNeed.of(plan, run.cache, mode, vae_print, audio_print, weights, text_widths(projection), dino_model)
    need.require_room(events)
    if need.sizes or need.text_sizes:
        require_writable(dataset)

    latents = sound = masks = dino = None
    if need.latents is not None:
        latents = encode_latents(plan, open_vae, vae_print, run.cache, events, device, need.latents)
    if need.sound is not None:
        sound = encode_sound(plan, open_audio_vae, audio_print, run.cache, events, device, need.sound)
    if need.masks is not None:
        masks = encode_masks(plan, run.cache, events, need.masks)
    if dino_model is not None:
        dino = encode_dino(plan, dino_model, run.cache, events, device, due=need.dino)
    folder = prompts_of(dataset)
    # most of the prompts are known by now, and Gemma need not come a second time for them
    beside = prompts_beside(_likely_texts(run, dataset, plan), folder, weights.encoder, device)
    text = encode_text(plan, open_encoder, weights, run.cache, events, open_connectors, device, need.text, beside)
    prompts = _prompts(run, dataset, plan, (vae_print, audio_print, weights))
    texts = list(dict.fromkeys([*needed_texts(run, prompts), *run.cache.preservation_prompts]))
    if prompts or texts:
        with Claims(events) as claims:  # one process at a time encodes prompts; the next finds them
            claims.take_or_wait(folder / "prompts", "the sample prompts")
            first_frames(run, checkpoint, folder).fill(prompts, open_vae, events, device)
            prompt_features(texts, folder, encoder, projection, device, events, run.gemma)
    manifest = run.cache.manifest or dataset.datasets[0].caches / MANIFEST_NAME
    with alone(manifest.parent):  # from what is there to the file without anybody in between
        write_manifest(plan, manifest, config.name)
    tidy([*cache_folders(dataset), folder])
    left_out = [f"{skipped.path.name}: {skipped.reason}" for skipped in plan.skipped]
    return CachesReport(latents, text, left_out, sound, masks, dino, manifest)


def _likely_texts(run: RunConfig, dataset: DatasetConfig, plan: DatasetPlan) -> list[str]:
    """What `_prompts` will name, as far as the plan tells."""
    prompts: list[Prompt] = []
    captions: list[str] = []
    if run.sample.wanted:
        with contextlib.suppress(DataError):
            prompts = read_prompts(run.sample, dataset_captions(dataset, plan=plan)[:CAPTIONS])
        held_out = [item.caption for item in plan.items if item.validation][: run.sample.validation_clips]
        captions = [*held_out, run.sample.negative_prompt] if held_out and run.sample.guidance != 1 else held_out
    return list(dict.fromkeys([*needed_texts(run, prompts), *captions, *run.cache.preservation_prompts]))


def _prompts(
    run: RunConfig, dataset: DatasetConfig, plan: DatasetPlan, prints: tuple[str, str, Fingerprints]
) -> list[Prompt]:
    """The prompts that training will draw, found as training finds them: it opens the caches that have been made.

    `prints` are the fingerprints of video VAE, audio VAE and text path.
    """
    if not run.sample.wanted:
        return []
    if run.sample.prompts is not None and not run.sample.validation_clips:
        return read_prompts(run.sample)  # what the dataset holds is of no concern
    vae, audio, weights = prints
    try:
        data = TrainingSet.open(
            dataset,
            vae,
            weights,
            run.cache,
            plan=plan,
            mode=run.model.mode,
            audio_fingerprint=audio,
            audio=run.audio,
        )
    except DataError:  # training will say what is wrong; until then the plan's captions are the best guess
        return read_prompts(run.sample, dataset_captions(dataset, plan=plan)[:CAPTIONS])
    return prompts_ahead(run.sample, data)


def cache_folders(dataset: DatasetConfig) -> list[Path]:
    """The folders that the caches of media are written to."""
    filled = [entry for _, entry in dataset.named() if not entry.from_caches]
    return [folder for one in filled for folder in (one.caches, one.reference_caches, one.reference_audio_caches)]


def make_folders(dataset: DatasetConfig) -> None:
    """Make the folders of the caches, so that one that cannot be written is told before hours of work."""
    for name, entry in dataset.named():
        try:
            if not entry.from_caches:
                entry.caches.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(
                f"{name}: the cache folder {entry.caches} cannot be made: {error.strerror or error}. "
                "Set cache_directory to one that can be written."
            ) from error
