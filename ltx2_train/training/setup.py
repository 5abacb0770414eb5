"""From settings to a run that is ready for its first step.

The order is fixed. Everything that can be wrong is found from headers and small files before a big one is read; the
connectors run and leave before the transformer arrives; the LoRA is put round the linears last, and a saved state is
laid over it.

The file is long because the steps of this order stand beside each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.amp.grad_scaler import GradScaler

from ..conditions.trained import Trained
from ..config import DrawSettings, RunConfig
from ..device import DTYPES, release
from ..errors import RunError
from ..events import Events
from ..feed.batches import BatchOrder
from ..feed.loader import TrainingSet
from ..full.optimizer import WeightOptimizer
from ..full.parts import Parts
from ..full.weights import WEIGHT, TrainedSet, TrainedWeights
from ..lora.file import load_lora_state
from ..lora.inject import LoraSet, inject
from ..lora.loftq import apply_loftq, loftq_for
from ..models.audio_vae import AudioVAE
from ..models.transformer import LTXTransformer
from ..models.video_vae import VideoVAE
from ..optim import WeightMean, other_course, resume
from ..placement import Placed, load_placed, multiply_low, read_slowly
from ..sampling.given_media import GivenMedia
from ..sampling.prompts import Prompt
from ..sampling.render import Renderer, open_vae
from ..sampling.sample import given_media, prompt_folder
from ..sampling.sound import SoundParts
from ..threads import heeding
from ..weights.loftq import LOFTQ_FILE, Loftq
from ..weights.reader import TensorFile
from ..weights.stored import weight_shapes
from .awq import measured_activations
from .checks import Checked
from .contexts import ContextStore
from .effect import tell_unplanned
from .fit import Facts, MemoryPlan, make_plan, this_machine
from .fit.machine import EVERYTHING, hold_to, lift_limit
from .fit.work import largest_batch, of_batch
from .held_out import validation_clips
from .metrics import MetricsLog
from .optimizing import make_optimizer
from .peers import ALONE, Peers
from .regularizers import Kit, Regularizers
from .regularizers.checks import check_streamed
from .run_folder import RunFolder, is_undrawn
from .slider import Slider, SliderSet
from .sound import RunSound, open_sound
from .state import list_states, load_state, restore_random_state
from .texts import prepare_texts
from .watch import SoundWatch

ENCODER_BYTES = 3 << 30  # the video VAE's encoder at work on one frame


@dataclass
class Run:
    """A run that can take steps. `step` steps are done; `place` (epoch, batch) is where the data goes on."""

    config: RunConfig
    folder: RunFolder
    version: str
    device: torch.device
    model: LTXTransformer
    loras: TrainedSet
    optimizer: torch.optim.Optimizer
    schedule: Any
    scaler: GradScaler
    data: TrainingSet
    order: BatchOrder
    contexts: ContextStore
    renderer: Renderer
    prompts: list[Prompt]
    base: dict[str, str]
    total: int
    trigger: str
    checkpoint: Path
    checkpoint_shapes: Mapping[str, tuple[int, ...]]
    sound: RunSound | None
    watch: SoundWatch
    audio_group: int | None
    mean: WeightMean | None
    placed: Placed
    plan: MemoryPlan
    slider: Slider | None = None
    regularizers: Regularizers | None = None
    step: int = 0
    undrawn: bool = False  # the samples of this step are due, and not there yet
    saved_step: int = 0  # of the last save by this process that was whole: state, LoRA and their check
    place: tuple[int, int] = (0, 0)
    log: MetricsLog | None = None
    saved: tuple[int, Path] | None = None  # the last step whose LoRA (or checkpoint) is good and wherever it belongs
    unexported: bool = False  # its copy in run.export_folder was refused, which has been told
    trained: Trained = Trained()
    peers: Peers = ALONE

    @property
    def whole(self) -> bool:
        """Whether the weights themselves are trained."""
        return isinstance(self.loras, TrainedWeights)

    @property
    def product(self) -> str:
        """What its saves make, in words."""
        return "checkpoint" if self.whole else "LoRA"

    @property
    def parts(self) -> Parts:
        """Of what is trained, what is shared out over the processes."""
        return self.loras.parts if isinstance(self.loras, TrainedWeights) else {}

    def serve(self, key: tuple[Any, str]) -> None:
        """Give this process's part of a tensor of the state, which the first process asks for; see full/parts.py."""
        whose, name = key
        assert isinstance(self.loras, TrainedWeights)
        assert isinstance(self.optimizer, WeightOptimizer)
        part, here = self.loras.here(name) if whose == WEIGHT else self.optimizer.here(whose, name)
        part.whole(here.detach())

    def rates(self) -> dict[str, float | None]:
        """The rates of the step to come: of the first layer, and of the first audio layer where there is one."""
        rates = self.schedule.get_last_lr()
        return {"lr": rates[0], "lr_audio": None if self.audio_group is None else rates[self.audio_group]}

    def apply(self, plan: MemoryPlan) -> None:
        """Put another plan for the same base in force, between two steps."""
        memory = plan.memory_settings(self.config.memory)
        if (plan.blocks_to_swap, plan.swap_from) != (self.plan.blocks_to_swap, self.plan.swap_from):
            self.placed.stream(memory)
            self.placed.adapted()
        self.placed.work_as(memory)
        self.model.keep_text_kv = plan.keep_text_kv
        self.model.set_lean(plan.choice.lean)
        self.plan = plan
        try:
            if self.peers.first:
                plan.save(self.folder.path)
        except RunError as error:  # the run needs it only to go on
            self.renderer.events.message(str(error), "warning")
        self.renderer.events.holding(self.placed, self.placed.device_bytes, self.device)
        self.renderer.events.locked(self.placed.locked_bytes)

    def close(self) -> None:
        """Free files and memory; the folder can be opened by another run then."""
        if self.log is not None:
            self.log.close()
        self.contexts.close()
        self.folder.close()
        self.placed.close()
        self.renderer.events.holding(self.placed, 0, self.device)
        self.renderer.events.locked(0)
        lift_limit(self.device)
        release(self.device)


def load(checked: Checked, events: Events) -> Run:
    """Load the model, put the LoRA round it, and lay the newest state over both where the run has one. Raises Stopped
    within whatever is read for it."""
    with heeding(events):
        return _load(checked, events)


def _load(checked: Checked, events: Events) -> Run:
    config, device, peers = checked.config, checked.device, checked.peers
    with peers.turn():  # what is encoded is kept in files, where the others find it
        contexts = prepare_texts(checked, events)
        media = _prepare_media(checked, events)
        sound = open_sound(config, checked.files.audio_vae, device)
    with peers.turn():
        plan = plan_run(checked, events)
    check_streamed(config, plan.streamed(), plan.total)
    peers.gather(None)  # all have looked how much RAM is free
    # what is measured or worked out of the weights is kept in the run folder
    with peers.turn() if config.quant.loftq or config.quant.awq else nullcontext():
        placed, loftq = _place_model(checked, plan, contexts, sound, events)
        loras = _adapt(checked, placed, loftq)
    _set_to_work(checked, placed, plan, events)
    run = _assemble(checked, contexts, media, sound, plan, placed, loras, events)
    if run.parts:  # each has room for one state that is read whole
        peers.serve = run.serve
        begun = peers.in_turns(lambda: _resume(run, events))
    else:
        begun = _resume(run, events)
    if begun and config.lora.weights is not None:
        name = config.lora.weights.name
        events.message(f"lora.weights ({name}) counts where a run begins; this one goes on from its own state.")
    if not begun and config.lora.weights is not None:
        assert isinstance(loras, LoraSet), "lora.weights counts with a LoRA alone"
        loras.load(load_lora_state(config.lora.weights))
        if run.mean is not None:
            run.mean.begin()
        if run.regularizers is not None:
            run.regularizers.begin()
        run.watch.begin()
        events.message(f"Starting from the LoRA {config.lora.weights.name}.")
    if peers.first:
        run.log = MetricsLog(run.folder.metrics, run.step, events)
    return run


def _prepare_media(checked: Checked, events: Events) -> GivenMedia:
    """The latents of what samples are given; an encoder comes only where something is not kept yet."""
    config, files, device = checked.config, checked.files, checked.device

    def open_encoder() -> VideoVAE:
        events.make_room(ENCODER_BYTES, device)
        return open_vae(config, files.video_vae, device, events, True, False)

    def open_ear() -> AudioVAE:
        return SoundParts(files.audio_vae, device, events).open_encoder(DTYPES[config.cache.audio_vae_dtype])

    media = given_media(config, files, prompt_folder(config), checked.trained)
    mode = config.model.mode
    media.fill(
        checked.prompts,
        None if mode == "audio" else open_encoder,
        None if mode == "video" else open_ear,
        events,
    )
    return media


def _place_model(
    checked: Checked, plan: MemoryPlan, contexts: ContextStore, sound: RunSound | None, events: Events
) -> tuple[Placed, Loftq | None]:
    """The frozen transformer, quantized on arrival as the plan says, each block in its place."""
    config, folder, device, checkpoint = checked.config, checked.folder, checked.device, checked.checkpoint
    memory, quant = plan.memory_settings(config.memory), plan.quant_settings(config.quant)
    stored = config.model_copy(update={"quant": quant})
    loftq = activations = None
    if quant.loftq:
        loftq = loftq_for(checkpoint, config.model.mode, config.settled_lora)
        if (begun := folder.path / LOFTQ_FILE).exists():
            loftq.load(begun)
    if quant.awq:
        activations = measured_activations(checked, stored, contexts, sound, events)
    events.make_room(int(plan.prediction.vram), device, int(plan.prediction.ram))
    events.stage("load the transformer")
    return load_placed(stored, memory, device, events, folder.path, loftq, activations), loftq


def _adapt(checked: Checked, placed: Placed, loftq: Loftq | None) -> TrainedSet:
    """Put the LoRA round the linears of the model, or let its weights want gradients."""
    config = checked.config
    if config.train.what == "full":
        return TrainedWeights(placed.model, config.full, placed.shards, checked.peers.ask)
    loras = inject(placed.model, config.settled_lora, torch.Generator().manual_seed(config.train.seed))
    if loftq is not None:
        apply_loftq(loras, loftq)
        if checked.peers.first:
            loftq.save(checked.folder.path / LOFTQ_FILE, {})
    placed.adapted()
    loras.measure(placed.block_there, config.train.seed)
    return loras


def _set_to_work(checked: Checked, placed: Placed, plan: MemoryPlan, events: Events) -> None:
    """What is recomputed, split, kept and multiplied in 8 bits from here on."""
    config, device, model = checked.config, checked.device, placed.model
    memory, quant = plan.memory_settings(config.memory), plan.quant_settings(config.quant)
    model.keep_text_kv = plan.keep_text_kv
    model.set_lean(plan.choice.lean)
    tokens = of_batch(largest_batch(checked.order, config), config).video_tokens or 1
    notes = (multiply_low(model, quant.matmul, tokens, device), read_slowly(model, device))
    for text in (*placed.work_as(memory), *notes):
        if text:
            events.message(text)
    events.holding(placed, placed.device_bytes, device)
    events.locked(placed.locked_bytes)


def _renderer(checked: Checked, contexts: ContextStore, media: GivenMedia, placed: Placed, events: Events) -> Renderer:
    """What draws the samples of the run."""
    config, model, device = checked.config, placed.model, checked.device
    return Renderer(
        model=model,
        contexts=contexts.pair,
        open_vae=partial(open_vae, config, checked.files.video_vae, device, events),
        settings=DrawSettings.of(config.sample, checked.version),
        version=checked.version,
        device=device,
        events=events,
        sound=SoundParts(checked.files.audio_vae, device, events) if model.has_audio else None,
        weights=placed,
        media=media,
        slots=config.sample_slots,
    )


def _assemble(
    checked: Checked,
    contexts: ContextStore,
    media: GivenMedia,
    sound: RunSound | None,
    plan: MemoryPlan,
    placed: Placed,
    loras: TrainedSet,
    events: Events,
) -> Run:
    """Make what moves the LoRA and what draws samples, and put the run together."""
    config, device, model = checked.config, checked.device, placed.model
    regularizers = _regularize(checked, contexts, sound, placed, loras)
    more = () if regularizers is None else regularizers.groups()
    optimizer, schedule, audio_group = make_optimizer(config, loras, device, checked.total, events, more)
    with TensorFile(checked.checkpoint) as file:
        shapes = weight_shapes(file)
    renderer = _renderer(checked, contexts, media, placed, events)
    return Run(
        config=config,
        folder=checked.folder,
        version=checked.version,
        device=device,
        model=model,
        loras=loras,
        optimizer=optimizer,
        schedule=schedule,
        scaler=GradScaler(device.type, enabled=config.model.precision == "fp16" and device.type == "cuda"),
        data=checked.data,
        order=checked.order,
        contexts=contexts,
        renderer=renderer,
        prompts=checked.prompts,
        base=checked.base,
        total=checked.total,
        trigger=checked.trigger,
        checkpoint=checked.checkpoint,
        checkpoint_shapes=shapes,
        sound=sound,
        watch=SoundWatch(loras, config.model.mode if config.audio.generated else "video", events),
        audio_group=audio_group,
        mean=WeightMean(loras.parameters(), config.ema.decay) if config.ema.decay else None,
        placed=placed,
        plan=plan,
        trained=checked.trained,
        slider=Slider(config.slider, config, checked.data, contexts) if isinstance(checked.data, SliderSet) else None,
        regularizers=regularizers,
        peers=checked.peers,
    )


def _regularize(
    checked: Checked, contexts: ContextStore, sound: RunSound | None, placed: Placed, loras: TrainedSet
) -> Regularizers | None:
    """The regularizers of the run, None where it has none."""
    if not checked.config.regularizers.wanted:
        return None
    kit = Kit(
        run=checked.config,
        model=placed.model,
        loras=loras,
        contexts=contexts,
        data=checked.data,
        device=checked.device,
        total=checked.total,
        version=checked.version,
        triggers=checked.triggers,
        silence=None if sound is None else sound.known_silence,
    )
    return Regularizers(kit)


def _tell_disk(folder: RunFolder, plan: MemoryPlan, free: float, events: Events) -> None:
    """Warn before work begins where what the run leaves will not find room in the `free` bytes of its disk."""
    there = sum(file.stat().st_size for place in (folder.states, folder.loras) for file in place.glob("*"))
    if plan.prediction.disk - there > free:
        keep = "full.keep" if folder.loras.name == "checkpoints" else "train.keep_loras"
        events.message(
            f"The run leaves about {plan.prediction.disk / 1e9:.3g} GB of states, samples and "
            f"{folder.loras.name}, and {free / 1e9:.3g} GB are free in {folder.path}. Free some space, or lower "
            f"train.keep_states or set {keep}, else a save may find no room.",
            "warning",
        )


def plan_run(checked: Checked, events: Events) -> MemoryPlan:
    """How the run uses memory; a run that goes on keeps the format of its base. Raises ConfigError if nothing fits."""
    config, folder, device = checked.config, checked.folder, checked.device
    held_out = validation_clips(config, checked.data)
    samples = (*checked.data.samples, *held_out)
    captions = len({path for sample in samples for path in sample.text_paths})
    work = of_batch(largest_batch(checked.order, config), config, captions, held_out=held_out)
    events.make_room(EVERYTHING, device, EVERYTHING)  # what is free decides
    machine = this_machine(device, folder.path, events).shared(config.train.processes)
    hold_to(machine, device)
    known = checked.facts
    facts = Facts.read(config, work, device.type) if known is None else replace(known, run=config)
    plan = make_plan(config, facts, machine, MemoryPlan.load(folder.path))
    events.message(f"{plan.describe()}{' This is of each process.' if checked.peers.several else ''}")
    tell_unplanned(config, plan, events)
    if checked.peers.first:
        _tell_disk(folder, plan, machine.disk, events)
        plan.save(folder.path)
    return plan


def _resume(run: Run, events: Events) -> bool:
    """Lay the newest readable state over the run; a damaged one is passed over with a warning. False: there is none.

    Raises RunError where there are states and none can be read: the run would start over.
    """
    problems = []
    for step, path in reversed(list_states(run.folder.states)):
        try:
            state = load_state(path)
            if None not in (whose := (state.get("id"), run.folder.id)) and whose[0] != whose[1]:
                raise RunError(f"The state {path} is of another run. Take it out of {path.parent}.")
        except RunError as error:
            problems.append(str(error))
            events.message(f"{error} An older state is taken.", "warning")
            continue
        run.loras.restore(state["lora"])
        if isinstance(run.optimizer, WeightOptimizer):
            run.optimizer.begin()
        if state.get("optimizer") is not None:
            run.scaler.load_state_dict(state["scaler"])
        else:
            events.message("The state holds no optimizer (train.state is minimal): it starts afresh.", "warning")
        keep = run.config.train.changed_rate == "keep"
        for text in resume(run.optimizer, run.schedule, state.get("optimizer"), state["schedule"], keep):
            events.message(text, "warning")
        if step < run.total and (text := other_course(state["schedule"], run.schedule)):
            events.message(text)
        _resume_mean(run, state.get("mean"), events)
        if run.regularizers is not None:
            run.regularizers.load_state_dict(state.get("regularizers"), events)
        restore_random_state(state["random"])
        if run.sound is not None and state.get("sound") is not None:
            run.sound.load_state_dict(state["sound"])
            run.watch.load_state_dict(state["sound"]["watch"])
        run.step, run.place = step, (state["place"][0], state["place"][1])
        run.undrawn = bool(run.prompts) and is_undrawn(state, run.folder.manifest)
        if step > run.total:
            events.message(f"{run.folder.name} is at step {step}, and was to end with {run.total}: no step is taken.")
        else:
            events.message(f"Continuing {run.folder.name} after step {step} of {run.total}.")
        return True
    if problems:
        raise RunError(
            f"{problems[0]} No other state can be read either. Put a state back, or choose another run.name."
        )
    return False


def _resume_mean(run: Run, saved: Mapping[str, Any] | None, events: Events) -> None:
    """Go on with the running mean of the state; say where there is none, or where it has ended."""
    if run.mean is None:
        if saved is not None:
            events.message("ema.decay is 0 from here on: the running mean of the state is given up.", "warning")
    elif saved is None:
        run.mean.begin()
        events.message("The state holds no running mean (EMA): it begins with the LoRA of the state.", "warning")
    else:
        run.mean.load_state_dict(saved)
