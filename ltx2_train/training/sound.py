"""What a run keeps about sound: the balance of its loss, the count of batches that had it, the latents of silence.

All of it is part of a saved state, as it was after the last whole step: a stop between two batches of a step must not
leave the first of them counted twice.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..config import RunConfig
from ..device import DTYPES, release
from ..errors import CheckpointError
from ..feed.batches import Batch
from ..models.audio_vae import AudioVAE
from ..objective.audio import audio_steps, silence_batch
from ..objective.audio_balance import AudioBalance
from ..objective.supervision import SupervisionMonitor
from ..shapes import LatentShape
from ..weights.load import load_audio_vae

if TYPE_CHECKING:
    from ..weights.info import CheckpointInfo

log = logging.getLogger(__name__)

SILENCE_SECONDS = 4.0  # beyond it the encoder's answer to silence does not change any more


class RunSound:
    """The sound of a run. `silence` [8, T, 16] is what the audio VAE makes of silence, and stands in for sound that is
    missing; None: not asked for. `known` is the same where something else wants it."""

    def __init__(self, run: RunConfig, silence: Tensor | None = None, known: Tensor | None = None) -> None:
        self._run = run
        self.known_silence = silence if known is None else known
        self._silence = silence
        self.balance = AudioBalance(run.loss.balance)
        self.monitor = SupervisionMonitor(run.audio)
        self._kept = self._now()

    @property
    def silence_weight(self) -> float:
        """Factor on the loss of silence that stands in for sound."""
        return self._run.audio.silence_weight

    def latents(self, batch: Batch) -> tuple[Tensor | None, list[int], list[bool]]:
        """Latents [B, 8, T, 16] of the batch, how many steps of each sample count, and which samples have real sound.

        Silence fills in for samples that have a picture and no sound, where the run asks for it.
        """
        count = len(batch.samples)
        latents, lengths = None, [0] * count
        if batch.audio is not None:
            assert batch.audio_mask is not None, "a batch with sound says where it is"
            latents = batch.audio.float()
            lengths = batch.audio_mask.sum(dim=1).tolist()
        real = [length > 0 for length in lengths]
        if self._silence is None or batch.latents is None or all(real):
            return latents, lengths, real
        shape = LatentShape(*batch.latents.shape[2:])
        steps = audio_steps(shape.video().frames, batch.fps)
        longest = max(steps, 0 if latents is None else latents.shape[2])
        filled = silence_batch(self._silence, count, longest)
        if latents is not None:
            for index in (index for index, has in enumerate(real) if has):
                filled[index, :, : latents.shape[2]] = latents[index]
        return filled, [length if has else steps for length, has in zip(lengths, real, strict=True)], real

    def weight(self, batch: Batch, video_loss: Tensor | None, audio_loss: Tensor | None) -> float:
        """Take in the losses of a batch ([B] each, unweighted; None where absent) and give the weight of its sound."""
        own = batch.samples[0].audio_loss_weight  # a batch is of one dataset
        base = self._run.loss.audio_weight if own is None else own
        mode, losses = self._run.loss.balance.mode, []
        if mode == "ema_mag" and video_loss is not None and audio_loss is not None:
            # reading them waits for the device: once, and only where the weight follows them
            losses = torch.stack([video_loss.mean(), audio_loss.mean()]).cpu().tolist()
        if mode != "none":
            self.balance.observe(audio_loss is not None, *losses)
        return self.balance.weight(base)

    def watch(self, real: bool) -> str | None:
        """Count a batch of an audio-video run, which has `real` sound or none; a sentence to warn with, or None.

        Raises DataError as settings say.
        """
        if self._run.model.mode != "av":
            return None
        return self.monitor.observe(real, regularized=not real and self._silence is not None)

    def keep(self) -> None:
        """A whole step is done: what has been counted becomes part of the state."""
        self._kept = self._now()

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers as of the last `keep`."""
        return self._kept

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`. Raises RunError where the state is of another kind."""
        self.balance.load_state_dict(state["balance"])
        self.monitor.load_state_dict(state["monitor"])
        self.keep()

    def _now(self) -> dict[str, Any]:
        return {"balance": self.balance.state_dict(), "monitor": self.monitor.state_dict()}


def open_sound(run: RunConfig, checkpoint: Path, device: torch.device) -> RunSound | None:
    """What a run of this mode keeps about sound; None in mode video. Encodes silence where the run asks for it."""
    if run.model.mode == "video":
        return None
    silence = None
    fills = run.audio.silence_regularizer and run.model.mode == "av"
    if fills or run.regularizers.audio_dop.weight:
        vae = load_audio_vae(checkpoint, decoder=False, dtype=DTYPES[run.cache.audio_vae_dtype], device=device)
        silence = encode_silence(vae)
        del vae
        release(device)
        log.info("encoded %d steps of silence", silence.shape[1])
    return RunSound(run, silence if fills else None, silence)


@torch.no_grad()
def encode_silence(vae: AudioVAE, seconds: float = SILENCE_SECONDS) -> Tensor:
    """Latents [8, T, 16] of `seconds` of silence, float32 on the CPU."""
    weight = next(vae.parameters())
    rate = vae.config.sample_rate
    mel = vae.waveform_to_mel(torch.zeros(1, 2, round(seconds * rate), device=weight.device), rate)
    return vae.encode(mel.to(weight.dtype))[0].float().cpu()


def require_sound(info: CheckpointInfo, run: RunConfig) -> None:
    """Raise CheckpointError where the checkpoint lacks what the mode needs to encode or to draw sound."""
    mode = run.model.mode
    if mode == "video":
        return
    heard = mode == "audio" or (run.sample.wanted and run.sample.audio != "off")
    needed = {"audio_vae": "audio VAE", "vocoder": "vocoder"} if heard else {"audio_vae": "audio VAE"}
    missing = [name for part, name in needed.items() if part not in info.parts]
    if missing:
        raise CheckpointError(
            f"{info.path.name} holds no {' and no '.join(missing)}, which model.mode = {mode} needs for its sound. "
            "Choose the full single-file checkpoint, name the file that has them as model.audio_vae, or set model.mode "
            "to video."
        )
