"""What must be right before a big file is read, found from headers and small files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..caching.cache_file import Fingerprints
from ..config import RunConfig
from ..config.base_files import BaseFiles
from ..dataset.dataset_file import DatasetConfig
from ..device import pick_device
from ..errors import ConfigError
from ..events import Events
from ..feed.batches import BatchOrder
from ..feed.loader import TrainingSet
from ..files import digest
from ..lora.inject import chosen_layers
from ..offload.blocks import spread
from ..sampling.ahead import training_prompts
from ..sampling.prompts import Prompt, prompt_texts
from ..weights.fingerprint import part_fingerprint
from ..weights.gemma_settings import GemmaSettings
from ..weights.load import blueprint
from ..weights.quantize import check_quant
from ..weights.reader import TensorFile
from ..weights.text_encoder import text_fingerprint
from .contexts import EMPTY_PROMPT
from .fit.choose import fixed_settings
from .run_folder import RunFolder, open_run, save_text
from .sound import require_sound
from .watch import describe_mix, require_heard, warn_of_captions


@dataclass
class Checked:
    """A run whose inputs have been found good, from headers and small files; its folder is open."""

    config: RunConfig
    folder: RunFolder
    checkpoint: Path
    encoder: Path
    projection: Path
    version: str
    device: torch.device
    data: TrainingSet
    order: BatchOrder
    prompts: list[Prompt]
    base: dict[str, str]
    trigger: str
    total: int

    def finished_lora(self) -> Path | None:
        """The LoRA of a run that has taken all its steps already, so that nothing need be loaded."""
        manifest = self.folder.manifest
        lora = self.folder.loras / str(manifest.get("lora") or "-")
        done = manifest.get("status") == "finished" and manifest.get("step", 0) >= self.total
        return lora if done and lora.exists() else None


def check(config: RunConfig, events: Events) -> Checked:
    """Find everything that can be wrong before a big file is read, and open the run folder."""
    events.stage("check")
    files, _ = check_base(config, events, config.lora.rank)
    checkpoint, encoder, projection, version = files.checkpoint, files.encoder, files.projection, files.version
    device = pick_device(config.model.device)
    _check_layers(config, checkpoint)
    dataset = DatasetConfig.read(config.dataset_file())
    mode = config.model.mode
    data = TrainingSet.open(
        dataset,
        part_fingerprint(checkpoint, "video_vae") if mode != "audio" else "",
        text_fingerprints(encoder, projection, config.gemma),
        config.cache,
        events,
        mode=mode,
        audio_fingerprint=part_fingerprint(checkpoint, "audio_vae") if mode != "video" else "",
        audio=config.audio,
    )
    prompts = training_prompts(config.sample, data)
    warn_of_captions(data.samples, events)
    require_heard(data.samples, mode)
    order = BatchOrder(
        data.samples, data.batch_sizes, config.train.seed, data.buckets, config.audio, config.train.accumulation
    )
    describe_mix(order, mode, config.audio.silence_regularizer, events)
    total = config.train.steps
    if config.train.epochs is not None:
        total = config.train.epochs * -(-len(order) // config.train.accumulation)
    base = {"file": checkpoint.name, "fingerprint": part_fingerprint(checkpoint, "transformer"), "version": version}
    trigger = ", ".join(dict.fromkeys(entry.trigger_word for entry in dataset.datasets if entry.trigger_word))
    folder = open_run(config.run, _identity(config, base, data))
    try:
        save_text(folder, "run.toml", config.to_toml())
        save_text(folder, "dataset.toml", dataset.to_toml())
    except BaseException:
        folder.close()
        raise
    return Checked(
        config, folder, checkpoint, encoder, projection, version, device, data, order, prompts, base, trigger, total
    )


def check_base(config: RunConfig, events: Events, rank: int | None = None) -> tuple[BaseFiles, str]:
    """The files of the base, and how its blocks will be stored: a format, "none", or the words of what is kept.

    `rank` is that of the LoRA, where it is known. Raises ConfigError and CheckpointError where they do not go together
    or lack what the mode needs.
    """
    files = BaseFiles.find(config, events)
    require_sound(files.info, config)
    return files, check_quant(files.checkpoint, config.quant, rank)


def _check_layers(config: RunConfig, checkpoint: Path) -> None:
    """Layers and blocks that the settings count on must be in the model, as its header describes it."""
    with TensorFile(checkpoint) as file:
        model = blueprint(file, config.model.mode)
    chosen_layers(model, config.lora)
    total, memory = len(model.transformer_blocks), config.memory
    if memory.fit == "custom":  # nothing is planned, and settings may contradict each other
        spread(total, memory.blocks_to_swap or 0)
    else:
        fixed_settings(config, total)


def needed_texts(config: RunConfig, prompts: Sequence[Prompt]) -> list[str]:
    """What has to be encoded besides the captions: sample prompts, and the stand-in for dropped captions."""
    texts = prompt_texts(prompts)
    if config.train.caption_dropout > 0 and config.train.caption_dropout_with == "empty":
        texts.append(EMPTY_PROMPT)
    return list(dict.fromkeys(texts))


def _identity(config: RunConfig, base: Mapping[str, str], data: TrainingSet) -> dict[str, str]:
    """What must agree for a saved state to make sense, in the words of the settings."""
    samples = [f"{sample.key} {sample.shape} {sample.repeats} {sample.fps:g}" for sample in data.samples]
    more: dict[str, str] = {}
    if config.model.mode != "video":
        samples = [f"{text} {sample.audio_steps}" for text, sample in zip(samples, data.samples, strict=True)]
        more = {
            "audio.independent_timestep": str(config.audio.independent_timestep),
            "loss.balance.mode": config.loss.balance.mode,
            "batches of sound": digest(
                str(data.buckets), str(config.audio.min_batches), str(config.audio.batch_probability)
            )[:8],
        }
    quant = config.quant
    if quant.loftq or quant.awq or quant.block_size != 32:
        made = (quant.block_size, quant.loftq, quant.loftq_iters, quant.awq, quant.awq_alpha, quant.awq_batches)
        more["quant: nf4"] = digest(str(made))[:8]
    rates = (config.train.audio_learning_rate, config.train.lr_args, config.train.loraplus_ratio)
    if any(rates):
        more["train: rates of parts"] = digest(str(rates))[:8]
    return {
        "model.checkpoint": f"{base['file']} ({base['fingerprint'][:8]})",
        "model.mode": config.model.mode,
        "model.precision": config.model.precision,
        "dataset": f"{len(samples)} clips ({digest(*samples, str(data.batch_sizes))[:8]})",
        "lora.rank": str(config.lora.rank),
        "lora.alpha": f"{config.lora.effective_alpha:g}",
        "lora targets": digest(
            config.lora.target,
            *("-", *config.lora.include_patterns),
            *("-", *config.lora.exclude_patterns),
            *("-", *config.lora.target_modules),
        )[:8],
        "train.learning_rate": str(config.train.learning_rate),
        "train.accumulation": str(config.train.accumulation),
        "train.seed": str(config.train.seed),
        "optimizer.name": config.optimizer.name,
        "schedule.name": config.schedule.name,
        **more,
    }


def text_fingerprints(encoder: Path, projection: Path, gemma: GemmaSettings | None = None) -> Fingerprints:
    """What text caches are made from: the projection's checkpoint part and the text encoder."""
    return Fingerprints(part_fingerprint(projection, "text"), text_fingerprint(encoder, projection, gemma))


def check_settings(config: RunConfig) -> None:
    """Cross-checks between groups that need no file. Raises ConfigError."""
    if config.quant.loftq and config.lora.dropout:
        raise ConfigError(
            f"lora.dropout is {config.lora.dropout:g} and quant.loftq is on: the LoRA then holds a part of the base, "
            "which must not be dropped. Set lora.dropout to 0, or switch quant.loftq off."
        )
    if not config.sample.every_epochs and config.sample.every > config.train.steps and not config.sample.at_start:
        raise ConfigError(
            f"sample.every is {config.sample.every} but the run has {config.train.steps} steps and sample.at_start is "
            "off, so no sample would be drawn. Lower sample.every or set it to 0."
        )
