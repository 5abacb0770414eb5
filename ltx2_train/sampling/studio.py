"""The base with all that draws samples around it: texts are encoded once, the base is read once, LoRAs change."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from ..config import DrawSettings, RunConfig
from ..config.base_files import BaseFiles
from ..dataset.outputs import no_folder
from ..device import DTYPES, pick_device, release
from ..errors import ConfigError
from ..events import Events
from ..files import why_closed
from ..lora.apply import AppliedLora, apply_file
from ..lora.effect import why_idle
from ..lora.file import LoraFile, load_lora_header, load_lora_state
from ..lora.fit import fitting, linear_sizes, tell_changed, tell_left_out, tell_version
from ..lora.new_file import HIGHEST_STRENGTH, require_each_once
from ..lora.others import OtherEntry
from ..placement import Placed, fit_for_sampling, load_placed
from ..weights.load import blueprint, load_connectors
from ..weights.reader import TensorFile
from .given_media import GivenMedia
from .prompt_text import prompt_features
from .prompts import Prompt, prompt_texts
from .render import Renderer, open_vae
from .sound import SoundParts


@dataclass(frozen=True)
class Studio:
    """A base in its place, and what draws with it."""

    renderer: Renderer
    placed: Placed
    device: torch.device

    @contextlib.contextmanager
    def wearing(
        self, state: LoraFile | None, others: Sequence[tuple[LoraFile, float]] = ()
    ) -> Iterator[AppliedLora | None]:
        """A context in which the base has the LoRA `state`, whose layers it gives; None is the base alone.

        `others` lie over it at strengths of their own, whatever strength it has.
        """
        with contextlib.ExitStack() as worn:
            loras = None if state is None else worn.enter_context(self._wearing(state))
            for other, strength in others:  # over it, since a DoRA has to lie next to the weights
                worn.enter_context(self._wearing(other)).set_strength(strength)
            yield loras

    @contextlib.contextmanager
    def _wearing(self, state: LoraFile) -> Iterator[AppliedLora]:
        loras = apply_file(self.placed.model, state, self.placed.block_there)
        try:
            self.placed.adapted()
            self.renderer.events.holding(self.placed, self.placed.device_bytes, self.device)
            yield loras
        finally:
            loras.remove(self.placed.model)


def require_possible(out: Path, strengths: Sequence[float], worn: Sequence[Path] = ()) -> None:
    """Raise ConfigError where samples cannot lie in `out`, a LoRA cannot be worn at one of `strengths`, or one of those
    that are `worn` together is named twice."""
    if why := no_folder(out) or why_closed(out):
        raise ConfigError(f"--out: {out} {why}. Name another folder.")
    for strength in strengths:
        if not abs(strength) <= HIGHEST_STRENGTH:
            most = HIGHEST_STRENGTH
            raise ConfigError(f"The strength of a LoRA is {strength:g}; it is a number from -{most} to {most}.")
    require_each_once(worn)


def checked_lora(lora: Path, base: BaseFiles, mode: str, events: Events, weights: bool = True) -> LoraFile:
    """The LoRA at `lora`, held against the header of the base before that is loaded; says what of it is not drawn.

    Without `weights` those are looked at and not kept.
    """
    file = load_lora_state(lora) if weights else load_lora_header(lora)
    with TensorFile(base.checkpoint) as checkpoint:
        _, left_out = fitting(file, linear_sizes(blueprint(checkpoint, mode)))
    if idle := why_idle(lora, events):
        events.message(f"{lora.name} does nothing: {idle}, so what is drawn is the base.", "warning")
    tell_changed(file, events)
    tell_version(file, base.version, events)
    tell_left_out(file, left_out, mode, events)
    return file


def _contexts(
    run: RunConfig, base: BaseFiles, texts: Sequence[str], folder: Path, device: torch.device, events: Events
) -> dict[str, tuple[torch.Tensor | None, torch.Tensor | None]]:
    """What the model reads of each text, in RAM: of the picture and of the sound, None of what it has not."""
    dtype = DTYPES[run.model.precision]
    features = prompt_features(texts, folder, base.encoder, base.projection, device, events, run.gemma)
    connectors = load_connectors(base.connectors, run.model.mode, dtype, device, events.check_stop)
    contexts: dict[str, tuple[torch.Tensor | None, torch.Tensor | None]] = {}
    with torch.no_grad():
        for text, one in features.items():
            video, audio = connectors([one.to(device, dtype)])
            contexts[text] = (None if video is None else video[0].cpu(), None if audio is None else audio[0].cpu())
    return contexts


def outer_lora(lora: Path, base: BaseFiles, mode: str, events: Events) -> LoraFile:
    """As `checked_lora`, of one that is worn over others. Raises ConfigError where it cannot be."""
    file = checked_lora(lora, base, mode, events)
    if any(isinstance(entry, OtherEntry) and entry.algo == "dora" for entry in file.layers.values()):
        raise ConfigError(
            f"{lora.name} is a DoRA, which scales the weights themselves and cannot lie over another LoRA. Draw with "
            "it as the one LoRA, or merge it into the base by `ltx2-train lora bake`."
        )
    return file


@contextlib.contextmanager
def open_studio(
    run: RunConfig,
    base: BaseFiles,
    settings: DrawSettings,
    prompts: Sequence[Prompt],
    folder: Path,
    scratch: Path,
    media: GivenMedia,
    events: Events,
) -> Iterator[Studio]:
    """Encode all texts of `prompts`, then load the base of `run`; both are let go of at the end.

    Features of prompts are kept in `folder`; `scratch` is for what cannot wait in the checkpoint.
    """
    device = pick_device(run.model.device)
    contexts = _contexts(run, base, prompt_texts(prompts), folder, device, events)
    release(device)
    events.make_room(base.checkpoint.stat().st_size, device)
    events.stage("load the transformer")
    memory = fit_for_sampling(run, device)
    if memory.blocks_to_swap:
        events.message(f"{memory.blocks_to_swap} blocks of the transformer come from RAM when their turn comes.")
    # a LoRA is of the original weights, whatever helped the base along while it was trained
    plain = run.quant.model_copy(update={"loftq": False, "awq": False})
    placed = load_placed(run.model_copy(update={"quant": plain}), memory, device, events, scratch)
    for text in placed.work_as(memory):
        events.message(text)
    try:
        events.holding(placed, placed.device_bytes, device)
        sound = SoundParts(base.audio_vae, device, events) if placed.model.has_audio else None
        vae = partial(open_vae, run, base.video_vae, device, events)
        text = contexts.__getitem__
        renderer = Renderer(
            placed.model, text, vae, settings, base.version, device, events, sound, placed, media, run.sample_slots
        )
        yield Studio(renderer, placed, device)
    finally:
        events.holding(placed, 0, device)
        placed.close()
        del placed
        release(device)
