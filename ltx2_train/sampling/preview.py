"""What the trainer sees, for the eyes and ears of a person.

All samples of a dataset as contact sheets; one sample as the very clip that is encoded - its window, crop, rate and
sound - and, with a run, as the caches give it back through the decoder.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..caching.cache_file import MEND, CacheFile
from ..caching.encode import Latents
from ..caching.encode_sound import SoundLatents
from ..caching.recipe import CacheRecipe
from ..config import RunConfig
from ..config.base_files import BaseFiles
from ..dataset.augment import read_clip
from ..dataset.dataset_file import DatasetConfig
from ..dataset.outputs import no_folder, refuse_among_media
from ..dataset.plan import DatasetPlan, Item, plan_dataset
from ..device import pick_device, release
from ..errors import CacheError, ConfigError, DataError
from ..events import Events, shielded
from ..feed.batches import sound_key
from ..feed.samples import SoundBuckets
from ..files import why_closed, with_ending, write_text
from ..media.sound import prepare
from ..media.sound_media import read_sound
from ..models.tiling import decode_frames
from ..shapes import AUDIO_LATENTS_PER_SECOND
from ..threads import heeding
from ..workshop.check import check_dataset
from ..workshop.check_report import CheckReport
from ..workshop.sheet import contact_sheets
from .render import open_vae
from .sound import SoundParts, decode_mel, decode_wave
from .sound_file import write_sound
from .video_file import write_image, write_video

SOUND_RATE = 16000  # what the audio VAE of every published base hears
SHOWN_NAMES = 8


@dataclass(frozen=True)
class PreviewFiles:
    """What was written: contact sheets, or the clip, its caption and what the caches hold of it."""

    sheets: tuple[Path, ...] = ()
    clip: Path | None = None
    caption: Path | None = None
    decoded: Path | None = None
    report: CheckReport | None = None

    @property
    def files(self) -> list[Path]:
        return [*self.sheets, *(path for path in (self.clip, self.decoded, self.caption) if path is not None)]


def preview_dataset(
    source: Path | str | DatasetConfig,
    out: Path,
    item: str | None = None,
    run: RunConfig | None = None,
    events: Events | None = None,
    goal: str | None = None,
) -> PreviewFiles:
    """Write what the trainer sees of a dataset into `out`.

    `item` is the name of one sample: its file, with or without ending, or its cache. `run` has its caches decoded too,
    which takes the VAE of the base. `goal` is that of `check_dataset`. Raises TrainerError.
    """
    events = shielded(events)
    config = source if isinstance(source, DatasetConfig) else DatasetConfig.read(source)
    if why := no_folder(Path(out)) or why_closed(Path(out)):
        raise ConfigError(f"--out: {out} {why}. Name a folder for the pictures.")
    refuse_among_media(Path(out), config)
    if item is None:
        if run is not None:
            raise ConfigError("Decoding needs --item: name the sample whose caches are to be decoded.")
        report = check_dataset(config, goal, events)
        return PreviewFiles(tuple(contact_sheets(_usable(config), config, report, Path(out), events)), report=report)
    events.stage("read the dataset")
    found = find_item(_usable(config), item)
    stem = Path(out) / found.latent_path.stem
    with heeding(events):
        clip = _write_item(found, stem, events)
    caption = stem.with_name(stem.name + ".txt")
    write_text(caption, found.caption + "\n")
    decoded = None if run is None else _decode_back(found, stem, run, events)
    return PreviewFiles((), clip, caption, decoded)


def find_item(items: Sequence[Item], name: str) -> Item:
    """The sample called `name`; of a file with several windows the first.

    With a folder before it, it is the file in that folder. Raises DataError that lists what there is, or what `name`
    could mean.
    """
    if not items:
        raise DataError("The dataset has no samples: every file is left out. `data check` (Check Dataset) says why.")
    if not name.strip():
        return items[0]
    for as_written in (lambda text: text, str.casefold, lambda text: text.strip().casefold()):
        wanted = tuple(map(as_written, Path(name).parts))
        for names in (_cache_names, _file_names):
            found = {}
            for item in items:
                if any(tuple(map(as_written, one.parts[-len(wanted) :])) == wanted for one in names(item)):
                    found.setdefault(item.source.path, item)
            if len(found) > 1:
                raise DataError(
                    f"{name} could be any of {_listed(found)}. Name one with its folder, as it stands here."
                )
            if found:
                return next(iter(found.values()))
    raise DataError(f"No sample is called {name}. There are: {_listed(item.source.path for item in items)}")


def _cache_names(item: Item) -> tuple[Path, ...]:
    return item.latent_path, item.latent_path.with_suffix(""), Path(item.key)


def _file_names(item: Item) -> tuple[Path, ...]:
    path = item.source.path
    return path, path.with_suffix(""), Path(item.source.stem)


def _listed(paths: Iterable[Path]) -> str:
    """The names of files; those that have one name have as many folders before it as tell them apart."""
    ends = list(dict.fromkeys(path.parts for path in paths))
    shown = []
    for parts in ends[:SHOWN_NAMES]:
        alike = [other for other in ends if other != parts]
        depth = next((n for n in range(1, len(parts)) if all(one[-n:] != parts[-n:] for one in alike)), len(parts))
        shown.append("/".join(parts[-depth:]))
    return ", ".join(shown) + (" ..." if len(ends) > SHOWN_NAMES else "")


def _usable(config: DatasetConfig) -> list[Item]:
    """All samples, dataset by dataset, since one that cannot be used must not hide the others."""
    items: list[Item] = []
    for ref in config.refs:
        one = config.model_copy(update={"datasets": (ref.entry,), "validation_datasets": ()})
        try:
            found = plan_dataset(one).items
        except DataError:
            continue  # the check says why
        items += [dataclasses.replace(item, dataset=ref) for item in found]
    return items


def _write_item(item: Item, stem: Path, events: Events) -> Path:
    sound = _sound_of(item)
    info = {"caption": item.caption, "source": item.source.path.name}
    if item.kind == "audio":
        assert sound is not None
        return write_sound(with_ending(stem, ".wav"), sound, SOUND_RATE, info)
    frames = read_clip(item, item.dataset.entry)
    return _write_frames(events.heeded(frames), item, stem, sound, SOUND_RATE, info)


def _write_frames(
    frames: Iterable[np.ndarray], item: Item, stem: Path, sound: Tensor | None, rate: int, info: dict[str, str]
) -> Path:
    if item.window.count == 1:
        return write_image(with_ending(stem, ".png"), next(iter(frames)), info)
    return write_video(with_ending(stem, ".mp4"), frames, item.fps, info, sound, rate)


def _sound_of(item: Item) -> Tensor | None:
    """The sound as training hears it: its length there, stereo, normalised and cut where the dataset says so."""
    if item.sound is None:
        return None
    part = item.sound
    sound = read_sound(part.path, part.start, part.seconds, part.of_clip, part.tracks)
    whole = torch.from_numpy(prepare(sound, part.length, SOUND_RATE, item.dataset.entry.audio_normalize).samples)
    entry = item.dataset.entry
    if item.kind != "audio" or entry.audio_bucket_strategy != "truncate":
        return whole
    buckets = SoundBuckets(entry.audio_bucket_strategy, entry.audio_bucket_interval)
    kept = min(part.steps, sound_key(part.steps, buckets)) / AUDIO_LATENTS_PER_SECOND
    return whole[:, : round(kept * SOUND_RATE)]


def _tell_stale(item: Item, recipe: CacheRecipe, events: Events) -> None:
    """Warn of caches that no longer are what a run with `recipe` would train on."""
    plan = DatasetPlan(DatasetConfig(datasets=(item.dataset.entry,)), (item,))
    for kind in (Latents(plan, recipe), SoundLatents(plan, recipe)):
        job = kind.of(item) if recipe.mode in kind.modes else None
        state = None if job is None else kind.state(job)
        if job is not None and state is not None and state.stale:
            events.message(
                f"{job.path.name} is stale, and what it decodes to is not what a run would see: {state.stale}. {MEND}",
                "warning",
            )


def _decode_back(item: Item, stem: Path, run: RunConfig, events: Events) -> Path:
    """Decode the caches of a sample and write the result beside its clip."""
    events.stage("decode the caches")
    base, device = BaseFiles.find(run, events), pick_device(run.model.device)
    if item.kind != "audio":
        base.require_decoder(run.model.mode)
    for path in (item.latent_path,) if item.kind != "audio" else (item.audio_path,):
        if path is None or not path.is_file():
            raise CacheError(f"{path} is not there. Make the caches first: ltx2-train cache build RUN.toml.", path)
    _tell_stale(item, base.recipe(run, dino=False), events)
    sound, rate = None, SOUND_RATE
    if item.audio_path is not None and item.audio_path.is_file():
        file, parts = CacheFile(item.audio_path), SoundParts(base.audio_vae, device, events)
        latents = file.audio_latents()[:, : file.audio_steps()]
        decoder = parts.open_decoder()
        mel = decode_mel(decoder, latents)
        del decoder
        vocoder = parts.open_vocoder()
        assert item.sound is not None
        sound, rate = decode_wave(vocoder, mel, item.sound.length), vocoder.sample_rate
        del vocoder
        release(device)
    info = {"caption": item.caption, "source": f"the caches of {item.source.path.name}"}
    stem = with_ending(stem, "_decoded")
    if item.kind == "audio":
        assert sound is not None
        return write_sound(with_ending(stem, ".wav"), sound, rate, info)
    vae = open_vae(run, base.video_vae, device, events, encoder=False, decoder=True)
    weight = next(vae.parameters())
    latents = CacheFile(item.latent_path).latents()[None].to(weight.device, weight.dtype)
    with torch.no_grad():
        chunks = decode_frames(vae, latents, run.sample.tiles)
        frames = events.heeded(frame for chunk in chunks for frame in chunk.numpy())
        path = _write_frames(frames, item, stem, sound, rate, info)
    del vae
    release(device)
    return path
