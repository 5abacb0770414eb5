"""What must be right before a big file is read, found from headers and small files.

The file is long because the checks stand in the order in which a run makes them.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..conditions.trained import Trained
from ..config import DrawSettings, RunConfig, TrainSettings
from ..config.base_files import BaseFiles, require_mode
from ..dataset.dataset_file import DatasetConfig
from ..device import pick_device
from ..errors import ConfigError, RunError
from ..events import Events, Passing
from ..families import FAMILIES, VERSIONS
from ..feed.batches import BatchOrder
from ..feed.cached import are_unsaid
from ..feed.loader import TrainingSet
from ..files import remove
from ..full.choose import chosen_weights
from ..lora.effect import why_idle
from ..lora.file import load_lora_header
from ..lora.fit import Sizes, fitting_start, linear_sizes, tell_changed, tell_start, tell_version
from ..lora.inject import chosen_layers
from ..lora.kinds import check_kinds, idle_alphas
from ..lora.loftq import loftq_for
from ..models.transformer import LTXTransformer
from ..offload.blocks import spread
from ..optim import choose_optimizer, find_optimizer, why_not
from ..sampling.ahead import CAPTIONS, training_prompts, unsaid_captions
from ..sampling.guidance import require_stg_block
from ..sampling.idle_options import rounded_sizes, unused_options
from ..sampling.prompts import Prompt, prompt_texts, read_prompts, require_drawable
from ..sampling.sample import trained_of
from ..sampling.told_prompts import describe_prompts, lacking_trigger
from ..sampling.two_stages import require_upsampler
from ..threads import heeding
from ..weights.awq import AWQ_FILE
from ..weights.fingerprint import part_fingerprint
from ..weights.load import blueprint, published_blueprint
from ..weights.loftq import LOFTQ_FILE
from ..weights.probe import model_family, probe, require_version
from ..weights.quantize import check_quant
from ..weights.reader import TensorFile
from .check_full import check_full, require_plain
from .check_given import as_cached, check_samples, check_streams, check_supplied, tell_start_references, tell_ungiven
from .contexts import EMPTY_PROMPT
from .data_record import DATA_RECORD, changed_data, data_record, lost_words
from .effect import (
    require_learning,
    require_taught,
    tell_batches,
    tell_grouping,
    tell_lengths,
    tell_levels,
    tell_other_stream,
    tell_overridden,
    tell_sounds,
)
from .finished import finished_record, used_settings
from .fit import Facts, MemoryPlan, this_machine
from .fit.choose import LEANER, fixed_settings, make_plan, require_format
from .fit.machine import EVERYTHING
from .fit.memory_plan import PLAN_FILE
from .fit.work import largest_batch, of_batch
from .held_out import require_apart, require_validation, tell_drawn_apart, tell_fewer, validation_clips
from .identity import Identity, recorded_optimizer, require_same
from .lora_files import is_whole, list_loras, lora_name
from .optimizing import check_optimizer
from .peers import ALONE, Peers, check_sharded_batches, require_processes
from .regularizers.checks import check_blocks, check_regularized, check_samples_of, regularizer_texts
from .run_data import open_data
from .run_folder import RunFolder, is_undrawn, open_run, recorded_run, require_usable, save_text
from .sound import require_sound
from .state import list_states, read_tree, state_name
from .trackers import check_trackers
from .unused import require_samples_used, require_used
from .watch import describe_mix, require_heard, sample_captions, warn_of_captions

# what is told where it is looked at: the LoRA that a run begins with in _check_start, the rates where they are resumed
TOLD = (
    "lora.weights",
    "train.learning_rate",
    "train.audio_learning_rate",
    "train.lr_args",
    "train.loraplus_ratio",
    "train.changed_rate",
)


@dataclass
class Checked:
    """A run whose inputs have been found good, from headers and small files; its folder is open."""

    config: RunConfig
    folder: RunFolder
    files: BaseFiles
    device: torch.device
    data: TrainingSet
    order: BatchOrder
    prompts: list[Prompt]
    base: dict[str, str]
    trigger: str
    total: int
    trained: Trained = Trained()
    facts: Facts | None = None  # of its memory, where the check had to know them
    texts: tuple[str, ...] = ()  # prompts that are needed besides those of the samples
    peers: Peers = ALONE
    triggers: tuple[str, ...] = ()  # trigger words of the dataset
    unused: Sequence[str] = ()  # of a finished run, the settings that were changed since its last step

    @property
    def checkpoint(self) -> Path:
        return self.files.checkpoint

    @property
    def version(self) -> str:
        return self.files.version

    @property
    def finished(self) -> bool:
        """Whether the run has taken all its steps already."""
        manifest = self.folder.manifest
        return manifest.get("status") == "finished" and manifest.get("step", 0) >= self.total

    def finished_lora(self) -> Path | None:
        """The LoRA of a run that is finished, so that nothing need be loaded.

        None where it is damaged or gone and a state is there to write it from.
        """
        folder, manifest = self.folder, self.folder.manifest
        if not self.finished:
            return None
        saved = list_loras(folder.loras, folder.name)
        newest = [
            folder.loras / str(manifest.get("lora") or "-"),
            *(path for step, path in saved if step == manifest.get("step")),
        ]
        whole = next((path for path in newest if is_whole(path, manifest.get("step"))), None)
        if not self._mean_is_whole() and any(step == manifest.get("step") for step, _ in list_states(folder.states)):
            return None
        if whole is None and not list_states(folder.states):
            whole = next(filter(is_whole, (path for _, path in reversed(saved))), None)
        return whole

    @property
    def undrawn(self) -> bool:
        """Whether the run was ended before the samples of its last step, which are still wanted."""
        if not self.prompts:
            return False
        last = self.folder.states / state_name(int(self.folder.manifest.get("step", 0)))
        with contextlib.suppress(RunError):
            return is_undrawn(read_tree(last), self.folder.manifest)
        return False

    def _mean_is_whole(self) -> bool:
        """Whether the LoRA of the running mean is there as well, where the run has kept one."""
        folder, step = self.folder, self.folder.manifest.get("step")
        used = used_settings(folder.path, self.config)
        if not used.ema.decay or used.train.what == "full":
            return True
        name = f"{folder.name}_ema"
        saved = [path for made, path in list_loras(folder.loras, name) if made == step]
        return is_whole(folder.loras / lora_name(name), step) and any(is_whole(path, step) for path in saved)


def check(config: RunConfig, events: Events, peers: Peers = ALONE) -> Checked:
    """Find everything that can be wrong before a big file is read, and open the run folder.

    Of several processes the first opens it before the others look into it.
    """
    with heeding(events):
        checked = peers.lead(lambda: _check(config, events, peers))
    opened = peers.told(checked and checked.folder.path)
    if checked is None:
        assert opened is not None
        place = {"folder": opened.parent, "name": opened.name, "if_exists": "continue"}
        follower = config.model_copy(update={"run": config.run.model_copy(update=place)})
        checked = _check(follower, events, peers)
    return checked


def _check(config: RunConfig, events: Events, peers: Peers) -> Checked:
    events.stage("check")
    _tell_settings(config, events)
    config, files, layers, device = check_model(config, events, peers)
    _require_same_run(config, files, layers)
    asked = DrawSettings.of(config.sample, files.version)
    if asked.wanted:
        read_prompts(asked)  # what is wrong with them is told before what is wrong with the caches
    dataset = DatasetConfig.read(config.dataset_file(), config.foreign)
    require_used(config, dataset)
    check_supplied(config, dataset)
    require_learning(config, dataset)
    require_validation(config, dataset)
    data = _open_data(config, dataset, files, events)
    prompts = training_prompts(config, data, files.version)
    trained = as_cached(config, data.samples, trained_of(config, dataset))
    require_drawable(prompts, config.model.mode, trained)
    tell_ungiven(config, prompts, events)
    if not list_states(recorded_run(config.run)[0] / "states"):
        tell_start_references(config, trained, events)
    drawn = DrawSettings.of(config.sample, files.version)
    tell_unused_options(config, drawn, prompts, events)
    require_taught(config, data.samples, events)
    check_sharded_batches(config, data.batch_sizes)
    order = _order_batches(config, data, events)
    tell_overridden(config, dataset, data.samples, events)
    tell_grouping(config, dataset, data.samples, events)
    tell_other_stream(config, dataset, events)
    tell_batches(order, [f"datasets[{number}]" for number in range(len(dataset.datasets))], events)
    triggers = dataset_triggers(dataset)
    if text := lacking_trigger(prompts, triggers):
        events.message(text)
    check_samples_of(config, data, events)
    captions = [text for sample in data.samples for text in sample.captions]
    texts = regularizer_texts(config.regularizers, captions, triggers)
    model, written = (config, files, layers, device), {"dataset.toml": dataset.to_toml()}
    return open_checked(model, data, order, prompts, events, triggers, written, texts, trained, peers)


def _tell_settings(config: RunConfig, events: Events) -> None:
    """Say how settings were read, and which change nothing as the others are."""
    for note in config.notes:
        events.message(note)
    for one in (one for one in config.without_effect if one.harmless):
        drawn = config.sample.wanted or not one.setting.startswith("sample.")
        events.message(str(one), "warning" if drawn else "info")


def tell_unused_options(config: RunConfig, drawn: DrawSettings, prompts: Sequence[Prompt], events: Events) -> None:
    """Say what `prompts` come to, which settings of samples none of them makes use of, and what is rounded; where none
    is drawn nothing is the matter with them."""
    if prompts:
        events.message(describe_prompts(prompts, config.model.mode, drawn.prompts))
    told = tuple(f"{one.setting} " for one in config.without_effect)
    for text in rounded_sizes(prompts, config.model.mode):
        events.message(text, "warning")
    for text in unused_options(config.sample, drawn, prompts, config.model.mode):
        if not text.startswith(told):
            events.message(text, "warning" if drawn.wanted else "info")


def open_checked(
    model: tuple[RunConfig, BaseFiles, list[str], torch.device],
    data: TrainingSet,
    order: BatchOrder,
    prompts: list[Prompt],
    events: Events,
    triggers: Sequence[str] = (),
    written: Mapping[str, str] | None = None,
    texts: Sequence[str] = (),
    trained: Trained | None = None,
    peers: Peers = ALONE,
) -> Checked:
    """Hold the run against its folder, and open that. `model` is what `check_model` returned.

    `written`: texts that go into the folder beside run.toml, by name; `texts`: prompts besides those of the samples.
    """
    config, files, layers, device = model
    path, before = recorded_run(config.run)
    total = _total_steps(config, order, events)
    facts = None
    if config.optimizer.name == "auto":
        config, facts = _plan_optimizer(config, data, order, device, path, events)
    base = _base_record(files)
    identity = Identity.of(config, base, data, layers)
    _require_continued(path, before, identity, config, data)
    checked = Checked(
        config=config,
        folder=_open_folder(config, identity, events, peers),
        files=files,
        device=device,
        data=data,
        order=order,
        prompts=prompts,
        base=base,
        trigger=", ".join(triggers),
        triggers=tuple(triggers),
        total=total,
        trained=trained or Trained(),
        facts=facts,
        texts=tuple(texts),
        peers=peers,
    )
    folder = checked.folder
    try:
        record = {"run.toml": config.to_toml(), **(written or {})}
        if checked.finished_lora() is None:
            folder.require_state()
        if checked.finished:
            record, unused = finished_record(folder.path, config, written or {})
            checked.unused = [*unused, *changed_data(folder.path, data)]
            checked.config = used_settings(folder.path, config)
        else:
            record[DATA_RECORD] = json.dumps(data_record(data), indent=1, sort_keys=True)
            _tell_changed(folder, config, written or {}, data, events)
        for name, text in record.items():
            save_text(folder, name, text)
    except BaseException:
        folder.close("failed")
        raise
    return checked


def _open_folder(config: RunConfig, identity: Identity, events: Events, peers: Peers) -> RunFolder:
    """Open the folder of the run. What a start that took no step has planned and measured in it is deleted, for it
    holds nobody to its settings."""
    folder = open_run(config.run, identity.record(), events, peers.first)
    if folder.begins:
        names = (PLAN_FILE, LOFTQ_FILE, AWQ_FILE, folder.metrics.name)
        if stays := remove([folder.path / name for name in names]):
            folder.close("failed")
            raise RunError(f"{stays} Delete it, since the run begins anew, or choose another run.name.")
    return folder


def _require_continued(
    path: Path, before: Mapping[str, Any] | None, now: Identity, config: RunConfig, data: TrainingSet
) -> None:
    """Raise TrainerError where the run in the folder `path` cannot be gone on with as it is `now`."""
    if before is not None:
        require_same(path, before, now, config, data)
        require_format(config, MemoryPlan.load(path))


def _tell_changed(
    folder: RunFolder, config: RunConfig, written: Mapping[str, str], data: TrainingSet, events: Events
) -> None:
    """Name the settings, and the data, of a run that goes on which are others than when it was last started."""
    if not (folder.manifest.get("step") or list_states(folder.states)):  # a killed one may know of its states alone
        return
    if lost := lost_words(folder.path, ["run.toml", *(name for name in written if name.endswith(".toml"))]):
        events.message(lost, "warning")
    names = finished_record(folder.path, config, written)[1]
    if changed := [*(name for name in names if not name.startswith(TOLD)), *changed_data(folder.path, data)]:
        text = f"Changed since the run was last started, and used from its next step on: {', '.join(changed)}."
        events.message(text, "warning")


def _tell_epochs(config: RunConfig, events: Events, comes_to: str = "") -> None:
    """Say that train.epochs, which `comes_to` so many steps, counts in place of train.steps, where both are set."""
    train = config.train
    if train.epochs is not None and train.steps != TrainSettings().steps:
        events.message(f"train.epochs = {train.epochs} counts{comes_to}; train.steps = {train.steps} does not.")


def _total_steps(config: RunConfig, order: BatchOrder, events: Events) -> int:
    """The steps of the run; says what of its settings does not fit into them."""
    total = config.train.steps
    if config.train.epochs is not None:
        total = -(-config.train.epochs * len(order) // config.train.batches_a_step)
        _tell_epochs(config, events, f", which is {total} steps")
    tell_lengths(config, total, events, len(order))
    return total


def foresee(config: RunConfig, events: Events | None = None) -> None:
    """Raise what training would raise whatever its dataset comes to, so that nothing is encoded for nothing.

    That is: settings that are wrong or contradict each other, data that no condition uses and conditions that find no
    data, prompts of samples, a base that cannot be used, and a run of this name that has other settings.
    """
    quiet = Passing(events or Events(), tells=())
    check_settings(config)
    asked = DrawSettings.of(config.sample, VERSIONS[-1])  # whichever it is: the base has not been looked at
    if asked.wanted and asked.prompts is not None:
        require_drawable(read_prompts(asked), config.model.mode, Trained())
    config, files, layers, _ = check_model(config, quiet)
    if config.data.config is not None or config.data.manifest is not None:
        dataset = DatasetConfig.read(config.dataset_file(), config.foreign)
        require_used(config, dataset)
        check_supplied(config, dataset)
        require_learning(config, dataset)
        require_validation(config, dataset)
    require_usable(config.run)
    _require_same_run(config, files, layers)


def _require_same_run(config: RunConfig, files: BaseFiles, layers: list[str]) -> None:
    """Raise RunError where a run of this name has other settings; its data are held against it once they are open."""
    path, before = recorded_run(config.run)
    if before is not None:
        require_same(path, before, Identity.of(config, _base_record(files), None, layers), config, None)


def check_model(
    config: RunConfig, events: Events, peers: Peers = ALONE
) -> tuple[RunConfig, BaseFiles, list[str], torch.device]:
    """What can be checked before the dataset is looked at.

    Returns the settings with an optimizer chosen (see _with_optimizer), the files of the base, the layers that get a
    LoRA, and the device.
    """
    check_streams(config)
    files, stored = check_base(config, events, config.lora.rank)
    require_plain(config, files.checkpoint.name, stored)
    tell_levels(config, files.version, events)
    device = peers.place(pick_device(config.model.device))
    sizes = _check_layers(config, files.checkpoint)
    layers = list(sizes)
    if config.train.what != "full":
        for text in idle_alphas(config.settled_lora, sizes):
            events.message(text, "warning")
    path, before = recorded_run(config.run)
    if config.lora.weights is not None and not list_states(path / "states"):
        _check_start(config, files.checkpoint, files.version, sizes, events)
    config = _with_optimizer(config, path, before, device, events)
    check_optimizer(config, layers)
    return config, files, layers, device


def dataset_triggers(dataset: DatasetConfig) -> list[str]:
    """The trigger words of the datasets, each once."""
    return list(dict.fromkeys(entry.trigger_word for entry in dataset.datasets if entry.trigger_word))


def _base_record(files: BaseFiles) -> dict[str, str]:
    fingerprint = part_fingerprint(files.checkpoint, "transformer")
    return {"file": files.checkpoint.name, "fingerprint": fingerprint, "version": files.version}


def check_base(config: RunConfig, events: Events, rank: int | None = None) -> tuple[BaseFiles, str]:
    """The files of the base, and how its blocks will be stored: a format, "none", or the words of what is kept.

    `rank` is that of the LoRA, where it is known. Raises ConfigError and CheckpointError where they do not go together
    or lack what the mode needs.
    """
    files = BaseFiles.find(config, events)
    require_sound(files.info, config)
    if config.sample.wanted:
        files.require_decoder(config.model.mode)
    require_upsampler(config.sample)
    return files, check_quant(files.checkpoint, config.quant, rank)


def check_planned(
    config: RunConfig, published: str | None = None, data: bool = True, events: Events | None = None
) -> None:
    """Raise what training would raise of settings, layers, optimizer, prompts, the run folder and the LoRA that the
    run begins with, for a look ahead that needs no encoder.

    `events` are told what has no effect and what the prompts come to.
    `published` is the version of a published model that stands for the checkpoint. With `data` the dataset file is
    held against the settings too.
    """
    events = events or Events()
    _tell_settings(config, events)
    _tell_epochs(config, events)
    check_groups(config)
    check_streams(config)
    require_upsampler(config.sample)
    if published is None:
        path = config.need("model.checkpoint")
        require_version(probe(path), config.model.version, config.model.version_check, events)
        with TensorFile(path) as file:
            require_mode(config, model_family(file), path.name)
            version = model_family(file).version
            sizes = _layers_of(config, blueprint(file, config.model.mode))
        require_usable(config.run)
        if config.lora.weights is not None and not list_states(recorded_run(config.run)[0] / "states"):
            _check_start(config, path, version, sizes, events)
    else:
        version = published
        require_mode(config, FAMILIES[published], FAMILIES[published].checkpoint)
        sizes = _layers_of(config, published_blueprint(published, config.model.mode))
    layers = list(sizes)
    name = "adamw" if config.optimizer.name == "auto" else config.optimizer.name
    if not find_optimizer(name).missing():  # the machine that trains may have what this one lacks
        optimizer = config.optimizer.model_copy(update={"name": name})
        check_optimizer(config.model_copy(update={"optimizer": optimizer}), layers)
        if advice := find_optimizer(name).advice(config.train.learning_rate, config.schedule.name):
            events.message(advice, "warning")
    triggers: list[str] = []
    if data:
        dataset = DatasetConfig.read(config.dataset_file(), config.foreign)
        require_used(config, dataset)
        check_supplied(config, dataset)
        require_learning(config, dataset)
        require_validation(config, dataset)
        tell_other_stream(config, dataset, events)
        triggers = dataset_triggers(dataset)
        if config.sample.wanted and config.sample.prompts is None and are_unsaid(dataset):
            raise unsaid_captions()
    drawn = DrawSettings.of(config.sample, version)
    if drawn.wanted and (data or drawn.prompts is not None):
        _plan_prompts(config, drawn, triggers, events)


def _plan_prompts(config: RunConfig, drawn: DrawSettings, triggers: Sequence[str], events: Events) -> None:
    """Raise ConfigError for prompts of a run that cannot be drawn, and say what they come to."""
    if drawn.prompts is None:
        events.message(f"sample.prompts is not set, so the first {CAPTIONS} captions of the dataset are drawn.")
        return
    prompts = read_prompts(drawn)
    require_drawable(prompts, config.model.mode, Trained())
    tell_unused_options(config, drawn, prompts, events)
    if text := lacking_trigger(prompts, triggers):
        events.message(text)


def _check_layers(config: RunConfig, checkpoint: Path) -> dict[str, tuple[int, int]]:
    """The layers that get a LoRA, with their sizes, or the weights that are trained. They and the blocks that the
    settings count on must be in the model, as its header describes it."""
    with TensorFile(checkpoint) as file:
        return _layers_of(config, blueprint(file, config.model.mode))


def _layers_of(config: RunConfig, model: LTXTransformer) -> dict[str, tuple[int, int]]:
    """The same of `model`, which may lie on the meta device."""
    full = config.train.what == "full"
    weights = {name: tuple(one.shape) for name, one in model.named_parameters()} if full else {}
    layers = chosen_weights(list(weights), config.full) if full else chosen_layers(model, config.settled_lora)
    total, memory = len(model.transformer_blocks), config.memory
    require_stg_block(config.sample, total)
    if memory.fit == "custom":  # nothing is planned, and settings may contradict each other
        spread(total, memory.blocks_to_swap or 0)
    else:
        fixed_settings(config, total)
    check_blocks(config, total, layers)
    if full:
        return {name: (weights[name][0], math.prod(weights[name][1:])) for name in layers}
    sizes = linear_sizes(model)
    sizes = {layer: sizes[layer] for layer in layers}
    check_kinds(config.settled_lora, sizes)
    return sizes


def _check_start(config: RunConfig, checkpoint: Path, version: str, sizes: Sizes, events: Events) -> None:
    """Hold the LoRA that the run starts from against the layers that are trained. A run that goes on needs it no more:
    its state has all that came of it."""
    if config.quant.loftq:
        loftq_for(checkpoint, config.model.mode, config.settled_lora)  # refuses the one or the other
    start = load_lora_header(config.need("lora.weights"))
    fitting_start(start, sizes, config.settled_lora)
    if idle := why_idle(start.path, events):
        events.message(
            f"{start.path.name}, of lora.weights, does nothing: {idle}. Training begins as it would without what the "
            "file was to bring.",
            "warning",
        )
    tell_changed(start, events)
    tell_version(start, version, events)
    tell_start(start, list(sizes), events)


def _with_optimizer(
    config: RunConfig, path: Path, before: Mapping[str, Any] | None, device: torch.device, events: Events
) -> RunConfig:
    """The settings with an optimizer chosen: where they leave it open, that of the record `before` of the run. On a
    card it stays open in a new run."""
    settings, began_with = config.optimizer, None
    if settings.name == "auto" and config.train.what == "full" and config.memory.shard:
        settings = settings.model_copy(update={"name": "adamw"})  # any other auto may take looks at whole weights
    if settings.name == "auto" and before is not None:
        began_with = recorded_optimizer(before, path / "states")
    if began_with is None:
        if settings.name == "auto" and device.type == "cuda" and before is None:
            return config  # the plan of memory decides, which needs the dataset
        name, note = choose_optimizer(settings, device)
        if settings.name != "auto" and (fails := why_not(name, settings, device)):
            raise ConfigError(
                f"optimizer.name = {name} does not work on {device}: it {fails}. Update what has it, or choose adamw."
            )
    else:
        try:
            name, _ = choose_optimizer(settings.model_copy(update={"name": began_with}), device)
        except ConfigError as error:
            raise RunError(
                f"The run {path.name} began with {began_with}, and its state is of no other. {error}"
            ) from None
        note = f"Optimizer {name} (auto: the run began with it)."
    events.message(note)
    return config.model_copy(update={"optimizer": settings.model_copy(update={"name": name})})


def _plan_optimizer(
    config: RunConfig, data: TrainingSet, order: BatchOrder, device: torch.device, folder: Path, events: Events
) -> tuple[RunConfig, Facts]:
    """The settings with the optimizer that the plan of a new run asks for, and what that was planned from."""
    captions = len({path for sample in data.samples for path in sample.text_paths})
    work = of_batch(largest_batch(order, config), config, captions, held_out=validation_clips(config, data))
    facts = Facts.read(config, work, device.type)
    name, note = choose_optimizer(config.optimizer, device)
    fails = why_not(LEANER, config.optimizer, device)
    if fails:
        note = f"Optimizer {name} (auto: bitsandbytes {fails})."
    else:
        events.make_room(EVERYTHING, device, EVERYTHING)  # what is free decides
        with heeding(events):
            plan = make_plan(config, facts, this_machine(device, folder, events).shared(config.train.processes))
        if plan.optimizer != name:
            name, note = plan.optimizer, plan.reasons[-1]
    events.message(note)
    settings = config.optimizer.model_copy(update={"name": name})
    return config.model_copy(update={"optimizer": settings}), facts


def _open_data(config: RunConfig, dataset: DatasetConfig, files: BaseFiles, events: Events) -> TrainingSet:
    """The samples of the run, their caches all there and made for this base."""
    data = open_data(config, files.recipe(config, dino=False), events, dataset)
    require_samples_used(config, data)
    require_apart(config, data)
    tell_drawn_apart(config, data, events)
    tell_fewer(config, len(data.validation), events)
    check_samples(config, data.samples, events)
    check_samples(config, validation_clips(config, data), events, held_out=True)
    if captions := sample_captions([*data.samples, *data.validation]):
        events.message(captions.text())
    warn_of_captions(data.samples, events)
    require_heard(data.samples, config.model.mode)
    return data


def _order_batches(config: RunConfig, data: TrainingSet, events: Events) -> BatchOrder:
    """The batches of every epoch; tells how many of them carry sound."""
    order = BatchOrder(data.samples, data.batch_sizes, config.train.seed, config.audio, config.train.batches_a_step)
    describe_mix(order, config.model.mode, config.audio.silence_regularizer, events)
    tell_sounds(config, order, events)
    return order


def needed_texts(config: RunConfig, prompts: Sequence[Prompt]) -> list[str]:
    """What has to be encoded besides the captions: sample prompts, and the stand-in for dropped captions."""
    texts = prompt_texts(prompts)
    if config.train.caption_dropout > 0 and config.train.caption_dropout_with == "empty":
        texts.append(EMPTY_PROMPT)
    return list(dict.fromkeys(texts))


def check_settings(config: RunConfig, peers: Peers = ALONE) -> None:
    """Cross-checks between groups that need no file. Raises ConfigError."""
    require_processes(config, peers)
    check_groups(config)


def check_groups(config: RunConfig) -> None:
    """The same, wherever and in however many processes the run is trained."""
    config.require_effect()
    check_trackers(config)
    check_regularized(config)
    check_full(config)
    if config.train.loraplus_ratio not in (None, 1) and not config.lora.has_halves:
        raise ConfigError(
            f"train.loraplus_ratio is {config.train.loraplus_ratio:g}, and lora.algo = {config.lora.algo} has no B "
            "matrix that it could speed up. Leave it out, or set lora.algo to lora or dora."
        )
    if config.quant.loftq and not config.lora.plain:
        raise ConfigError(
            f"quant.loftq is on and lora.algo is {config.lora.algo}"
            f"{' with lora.modules' if config.lora.modules else ''}: it begins with a plain LoRA of one rank. Switch "
            "quant.loftq off, or train such a LoRA."
        )
    for name, share in config.lora.drops.items() if config.quant.loftq else ():
        raise ConfigError(
            f"{name} is {share:g} and quant.loftq is on: the LoRA then holds a part of the base, which must not be "
            f"dropped. Set {name} to 0, or switch quant.loftq off."
        )
