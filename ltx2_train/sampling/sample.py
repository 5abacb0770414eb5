"""Draw samples with a LoRA file, outside a training run."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from ..conditions.settings import AudioReference
from ..conditions.trained import Trained, reference_sound_of
from ..config import RunConfig
from ..config.base_files import BaseFiles
from ..dataset.dataset_file import DatasetConfig
from ..dataset.outputs import refuse_among_media
from ..device import DTYPES, pick_device, release
from ..errors import ConfigError, DataError
from ..events import Events, shielded
from ..lora.apply import apply_file
from ..lora.file import LoraFile, load_lora_state
from ..lora.fit import fitting, linear_sizes, tell_left_out, tell_version
from ..placement import fit_for_sampling, load_placed
from ..weights.fingerprint import part_fingerprint
from ..weights.load import blueprint, load_connectors
from ..weights.reader import TensorFile
from .given_media import GivenMedia
from .prompt_text import prompt_features
from .prompts import prompt_texts, read_prompts, require_drawable
from .render import Renderer, SampleFile, open_vae, require_stg_block
from .sound import SoundParts


def sample(
    run: RunConfig,
    lora: Path | None,
    out: Path,
    events: Events | None = None,
    *,
    prompts: Sequence[str] | None = None,
    strengths: Sequence[float] = (1.0,),
) -> list[SampleFile]:
    """Draw the prompts of `run` (or `prompts`) once per strength of the LoRA into `out`.

    Without a LoRA the base alone is drawn. Strength 0 is exactly the base. Each strength gets the same seeds, so that
    the files beside each other differ by the LoRA alone. The run's mode decides what is drawn: video, av or audio.
    Where the run names no prompts, the first two captions of its dataset are taken. Raises TrainerError.
    """
    events = shielded(events)
    events.stage("check")
    base = BaseFiles.find(run, events)
    checkpoint, encoder, projection, version = base.checkpoint, base.encoder, base.projection, base.version
    own_folder = run.data.config is run.data.manifest is None
    if not own_folder:
        refuse_among_media(out, DatasetConfig.read(run.dataset_file()))
    settings = run.sample if prompts is None else run.sample.model_copy(update={"prompts": list(prompts)})
    wanted = read_prompts(settings, [] if settings.prompts is not None else _first_captions(run))
    if not wanted:
        raise ConfigError("There is no prompt to draw. Set sample.prompts, or pass --prompt.")
    device, dtype = pick_device(run.model.device), DTYPES[run.model.precision]
    require_stg_block(settings, base.info.blocks)
    state = None if lora is None else _checked(lora, base, run.model.mode, events)
    trained = None if state is None else Trained.read(state.metadata)
    if trained is None:
        trained = Trained() if own_folder else trained_of(run, DatasetConfig.read(run.dataset_file()))
    require_drawable(wanted, run.model.mode, trained)

    folder = out / "prompts" if own_folder else prompt_folder(run)
    features = prompt_features(prompt_texts(wanted), folder, encoder, projection, device, events, run.gemma)
    connectors = load_connectors(projection, run.model.mode, dtype, device)
    with torch.no_grad():
        contexts: dict[str, tuple[torch.Tensor | None, torch.Tensor | None]] = {}
        for text, one in features.items():
            video, audio = connectors([one.to(device, dtype)])
            contexts[text] = (
                None if video is None else video[0].cpu(),
                None if audio is None else audio[0].cpu(),
            )
    del connectors
    release(device)

    events.make_room(checkpoint.stat().st_size, device)
    events.stage("load the transformer")
    memory = fit_for_sampling(run, device)
    if memory.blocks_to_swap:
        events.message(f"{memory.blocks_to_swap} blocks of the transformer come from RAM when their turn comes.")
    # a LoRA is of the original weights, whatever helped the base along while it was trained
    plain = run.quant.model_copy(update={"loftq": False, "awq": False})
    placed = load_placed(run.model_copy(update={"quant": plain}), memory, device, events, out)
    model = placed.model
    for text in placed.work_as(memory):
        events.message(text)

    try:
        loras = None if state is None else apply_file(model, state)
        placed.adapted()
        events.holding(placed, placed.device_bytes, device)
        sound = SoundParts(checkpoint, device) if model.has_audio else None
        media = given_media(run, checkpoint, folder, trained)
        vae = partial(open_vae, run, checkpoint, device)
        renderer = Renderer(model, contexts.__getitem__, vae, settings, version, device, events, sound, placed, media)
        files: list[SampleFile] = []
        for strength in strengths:
            if loras is not None:
                loras.set_strength(strength)
            label = "base" if lora is None else f"{lora.stem}_x{strength:g}"
            files += renderer.draw(
                wanted,
                lambda index, prompt, label=label: out / f"{label}_p{index + 1:02d}_s{prompt.seed}",
                {"lora": None if lora is None else lora.name, "strength": strength},
            )
        return files
    finally:
        events.holding(placed, 0, device)
        placed.close()
        del model, placed
        release(device)


def _checked(lora: Path, base: BaseFiles, mode: str, events: Events) -> LoraFile:
    """The LoRA at `lora`, held against the header of the base before that is loaded; says what of it is not drawn."""
    file = load_lora_state(lora)
    with TensorFile(base.checkpoint) as checkpoint:
        _, left_out = fitting(file, linear_sizes(blueprint(checkpoint, mode)))
    tell_version(file, base.version, events)
    tell_left_out(file, left_out, mode, events)
    return file


def prompt_folder(run: RunConfig) -> Path:
    """Where features of prompts and media of samples are cached: in the cache folder of the first dataset, or beside
    the runs where there is none, as for a slider."""
    if run.data.config is run.data.manifest is None and run.run.folder is not None:
        return run.run.folder / "prompts"
    return prompts_of(DatasetConfig.read(run.dataset_file()))


def prompts_of(dataset: DatasetConfig) -> Path:
    """The same, of a dataset that has been read."""
    return dataset.datasets[0].caches / "prompts"


def given_media(run: RunConfig, checkpoint: Path, folder: Path, trained: Trained) -> GivenMedia:
    """What is kept in `folder` of the media that samples of `run` are given, references shown as `trained` says."""
    mode = run.model.mode
    return GivenMedia(
        folder,
        "" if mode == "audio" else part_fingerprint(checkpoint, "video_vae"),
        "" if mode == "video" else part_fingerprint(checkpoint, "audio_vae"),
        run.cache,
        trained,
        run.sample.image_crf,
    )


def trained_of(run: RunConfig, dataset: DatasetConfig) -> Trained:
    """How a LoRA of `run` on `dataset` is shown its references: as the first dataset that has any says."""
    having = [one for one in dataset.datasets if one.reference_directory or one.reference_cache_directory]
    hearing = [one for one in dataset.datasets if one.reference_audio_directory or one.reference_audio_cache_directory]
    sound = reference_sound_of(run.audio.conditions) or AudioReference()
    entry, heard = (having or dataset.datasets)[0], (hearing or dataset.datasets)[0]
    return Trained(
        entry.reference_downscale,
        entry.reference_temporal_scale,
        entry.reference_frames,
        heard.reference_audio_max_seconds,
        sound,
    )


def _first_captions(run: RunConfig) -> list[str]:
    from ..feed.cached import dataset_captions

    if run.data.config is run.data.manifest is None:
        return []
    try:
        return dataset_captions(DatasetConfig.read(run.dataset_file()), Events())[:2]
    except DataError as error:
        raise ConfigError(f"sample.prompts is not set and the dataset gives no captions: {error}") from None
