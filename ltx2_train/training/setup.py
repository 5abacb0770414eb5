"""From settings to a run that is ready for its first step.

The order is fixed. Everything that can be wrong is found from headers and small files before a big one is read; the
connectors run and leave before the transformer arrives; the LoRA is put round the linears last, and a saved state is
laid over it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..caching.cache_file import MEND
from ..caching.notes import note_damage
from ..config import RunConfig
from ..device import DTYPES, release
from ..errors import CacheError, RunError
from ..events import Events
from ..feed.batches import BatchOrder
from ..feed.loader import FullText, TrainingSet
from ..lora.file import load_lora_state
from ..lora.inject import LoraSet, inject
from ..lora.loftq import apply_loftq, loftq_for
from ..models.text import TextConnectors, TextFeatures
from ..models.transformer import LTXTransformer
from ..models.video_vae import VideoVAE
from ..optim import resume
from ..placement import Placed, load_placed, multiply_low
from ..sampling.prompt_text import prompt_features
from ..sampling.prompts import Prompt
from ..sampling.render import Renderer
from ..sampling.sample import first_frames, prompt_folder
from ..sampling.sound import SoundParts
from ..version import VERSION
from ..weights.load import load_connectors, load_video_vae
from ..weights.reader import TensorFile
from ..weights.stored import weight_shapes
from .awq import measured_activations
from .checks import Checked, needed_texts
from .contexts import ContextStore, streams_of
from .fit import Facts, MemoryPlan, make_plan, this_machine
from .fit.work import largest_batch, of_batch
from .metrics import MetricsLog
from .optimizing import make_optimizer
from .run_folder import RunFolder
from .sound import Sound, open_sound
from .state import list_states, load_state, restore_random_state
from .watch import SoundWatch

ENCODER_BYTES = 3 << 30  # the video VAE's encoder at work on one frame
LOFTQ = "loftq.safetensors"  # in the run folder: what the quantized base lacks, taken out of every saved LoRA


@dataclass
class Run:
    """A run that can take steps. `step` steps are done; `place` (epoch, batch) is where the data goes on."""

    config: RunConfig
    folder: RunFolder
    version: str
    device: torch.device
    model: LTXTransformer
    loras: LoraSet
    optimizer: torch.optim.Optimizer
    schedule: Any
    scaler: torch.amp.GradScaler
    data: TrainingSet
    order: BatchOrder
    contexts: ContextStore
    renderer: Renderer
    prompts: list[Prompt]
    base: dict[str, str]
    total: int
    trigger: str
    checkpoint_shapes: Mapping[str, tuple[int, ...]]
    sound: Sound | None
    watch: SoundWatch
    audio_group: int | None
    placed: Placed
    plan: MemoryPlan
    step: int = 0
    place: tuple[int, int] = (0, 0)
    log: MetricsLog | None = None

    def rates(self) -> dict[str, float | None]:
        """The rates of the step to come: of the first layer, and of the first audio layer where there is one."""
        rates = self.schedule.get_last_lr()
        return {"lr": rates[0], "lr_audio": None if self.audio_group is None else rates[self.audio_group]}

    def apply(self, plan: MemoryPlan) -> None:
        """Put another plan for the same base in force, between two steps."""
        memory = plan.memory_settings(self.config.memory)
        if plan.blocks_to_swap != self.plan.blocks_to_swap:
            self.placed.stream(memory)
            self.placed.adapted()
        self.placed.work_as(memory)
        self.model.keep_text_kv = plan.keep_text_kv
        self.plan = plan
        try:
            plan.save(self.folder.path)
        except RunError as error:  # the run needs it only to go on
            self.renderer.events.message(str(error), "warning")
        self.renderer.events.holding(self.placed, self.placed.device_bytes, self.device)

    def close(self) -> None:
        """Free files and memory; the folder can be opened by another run then."""
        if self.log is not None:
            self.log.close()
        self.contexts.close()
        self.folder.close()
        self.placed.close()
        self.renderer.events.holding(self.placed, 0, self.device)
        release(self.device)


def load(checked: Checked, events: Events) -> Run:
    """Load the model, put the LoRA round it, and lay the newest state over both where the run has one."""
    config, folder, device, checkpoint = checked.config, checked.folder, checked.device, checked.checkpoint
    contexts = ContextStore(folder.path / "contexts.bin", int(config.memory.context_gb * 2**30))
    _fill_contexts(contexts, checked, events)

    def open_vae(encoder: bool, decoder: bool) -> VideoVAE:
        vae_dtype = DTYPES[config.cache.vae_dtype]
        return load_video_vae(checkpoint, encoder=encoder, decoder=decoder, dtype=vae_dtype, device=device)

    def open_encoder() -> VideoVAE:
        events.make_room(ENCODER_BYTES, device)
        return open_vae(True, False)

    frames = first_frames(config, checkpoint, prompt_folder(config))
    frames.fill(checked.prompts, open_encoder, events)
    sound = open_sound(config, checkpoint, device)
    with TensorFile(checkpoint) as file:
        shapes = weight_shapes(file)
    plan = plan_run(checked, events)
    memory, quant = plan.memory_settings(config.memory), plan.quant_settings(config.quant)
    stored = config.model_copy(update={"quant": quant})
    loftq = None
    if quant.loftq:
        loftq = loftq_for(checkpoint, config.model.mode, config.lora)
        if (begun := folder.path / LOFTQ).exists():
            loftq.load(begun)
    activations = None
    if quant.awq:
        activations = measured_activations(checked, stored, contexts, sound, events)
    events.make_room(int(plan.prediction.vram), device)
    events.stage("load the transformer")
    placed = load_placed(stored, memory, device, events, folder.path, loftq, activations)
    model = placed.model
    loras = inject(model, config.lora, torch.Generator().manual_seed(config.train.seed))
    if loftq is not None:
        apply_loftq(loras, loftq)
        loftq.save(folder.path / LOFTQ, {})
    placed.adapted()
    model.keep_text_kv = plan.keep_text_kv
    tokens = of_batch(largest_batch(checked.order), config).video_tokens or 1
    for text in (*placed.work_as(memory), multiply_low(model, quant.matmul, tokens, device)):
        if text:
            events.message(text)
    events.holding(placed, placed.device_bytes, device)
    optimizer, schedule, audio_group = make_optimizer(config, loras, device, checked.total, events)
    parts = SoundParts(checkpoint, device) if model.has_audio else None
    run = Run(
        config=config,
        folder=folder,
        version=checked.version,
        device=device,
        model=model,
        loras=loras,
        optimizer=optimizer,
        schedule=schedule,
        scaler=torch.amp.GradScaler(device.type, enabled=config.model.precision == "fp16" and device.type == "cuda"),
        data=checked.data,
        order=checked.order,
        contexts=contexts,
        renderer=Renderer(
            model, contexts.pair, open_vae, config.sample, checked.version, device, events, parts, placed, frames
        ),
        prompts=checked.prompts,
        base=checked.base,
        total=checked.total,
        trigger=checked.trigger,
        checkpoint_shapes=shapes,
        sound=sound,
        watch=SoundWatch(loras, config.model.mode if config.audio.generated else "video", events),
        audio_group=audio_group,
        placed=placed,
        plan=plan,
    )
    if not _resume(run, events) and config.lora.weights is not None:
        loras.load(load_lora_state(config.lora.weights))
        run.watch.begin()
        events.message(f"Starting from the LoRA {config.lora.weights.name}.")
    run.log = MetricsLog(folder.metrics, run.step, events)
    return run


def plan_run(checked: Checked, events: Events) -> MemoryPlan:
    """How the run uses memory; a run that goes on keeps the format of its base. Raises ConfigError if nothing fits."""
    config, folder, device = checked.config, checked.folder, checked.device
    captions = len({sample.text_path for sample in checked.data.samples})
    work = of_batch(largest_batch(checked.order), config, captions)
    events.make_room(1 << 50, device)  # everything: what is free decides
    machine = this_machine(device, folder.path)
    plan = make_plan(config, Facts.read(config, work, device.type), machine, MemoryPlan.load(folder.path))
    events.message(plan.describe())
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
        except RunError as error:
            problems.append(str(error))
            events.message(f"{error} An older state is taken.", "warning")
            continue
        run.loras.restore(state["lora"])
        if state.get("optimizer") is not None:
            run.scaler.load_state_dict(state["scaler"])
        else:
            events.message("The state holds no optimizer (train.state is minimal): it starts afresh.", "warning")
        for text in resume(run.optimizer, run.schedule, state.get("optimizer"), state["schedule"]):
            events.message(text)
        restore_random_state(state["random"])
        if run.sound is not None and state.get("sound") is not None:
            run.sound.load_state_dict(state["sound"])
            run.watch.load_state_dict(state["sound"]["watch"])
        run.step, run.place = step, (state["place"][0], state["place"][1])
        events.message(f"Continuing {run.folder.name} after step {step} of {run.total}.")
        return True
    if problems:
        raise RunError(
            f"{problems[0]} No other state can be read either. Put a state back, or choose another run.name."
        )
    return False


def _fill_contexts(contexts: ContextStore, checked: Checked, events: Events) -> None:
    """Run the connectors over every caption and prompt, once; Gemma only where a prompt is not cached yet."""
    config, device, data = checked.config, checked.device, checked.data
    dtype, streams = DTYPES[config.model.precision], streams_of(config.model.mode)
    texts = needed_texts(config, checked.prompts)
    folder = prompt_folder(config) if texts else checked.folder.path
    prompts = prompt_features(texts, folder, checked.encoder, checked.projection, device, events, config.gemma)
    samples = {sample.text_path: sample for sample in data.samples}
    total = len(samples) + len(prompts)
    events.stage("prepare captions", total)
    connectors = load_connectors(checked.projection, config.model.mode, dtype, device)

    for done, key in enumerate([*samples, *prompts]):
        events.check_stop()
        text = data.load_text(samples[key]) if isinstance(key, Path) else prompts[key]
        _check_width(text, connectors, key)
        if isinstance(text, FullText):
            found = {"video": text.video_context, "audio": text.audio_context}
        else:
            with torch.no_grad():
                pair = connectors([text.to(device, dtype)])
            found = {
                stream: None if one is None else one[0] for stream, one in zip(("video", "audio"), pair, strict=True)
            }
        for stream in streams:
            if found[stream] is None:
                raise CacheError(
                    f"{key} holds the caption for {' and '.join(name for name in found if found[name] is not None)} "
                    f"alone, and model.mode is {config.model.mode}. {MEND}",
                    key,
                )
            contexts.add(key, stream, found[stream].to(dtype))
        events.progress(done + 1, total)
    del connectors
    release(device)


def _check_width(text: TextFeatures | FullText, connectors: TextConnectors, key: Path | str) -> None:
    """Raises CacheError for text of another model version; the next build makes its cache again."""
    video, audio = (text.video_context, text.audio_context) if isinstance(text, FullText) else (text.video, text.audio)
    sides = ((video, connectors.video_embeddings_connector), (audio, connectors.audio_embeddings_connector))
    for given, connector in sides:
        if given is not None and connector is not None and given.shape[-1] != connector.width:
            reason = f"its text is {given.shape[-1]} wide and not {connector.width}, that of another model version"
            if isinstance(key, Path):
                note_damage(key, reason)
            raise CacheError(f"{key} does not fit the checkpoint: {reason}. {MEND}", key)


def lora_metadata(run: Run) -> dict[str, Any]:
    """What a saved LoRA says of itself: names and hashes, never a path."""
    return {
        "base": run.base,
        "settings": run.config,
        "step": run.step,
        "trigger": run.trigger,
        "name": run.folder.name,
        "program": f"ltx2_train {VERSION}",
    }
