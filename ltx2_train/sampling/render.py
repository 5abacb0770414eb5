"""Prompts to files: draw the latents of all of them, then decode them, one model on the device at a time.

The sound is decoded before the pictures, since a few megabytes of waveform can wait and minutes of frames cannot. An
image has no sound: one frame is drawn by the video side alone.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..caching.cache_file import CacheFile
from ..config import RunConfig, SampleSettings
from ..device import DTYPES
from ..errors import ConfigError, Stopped, TrainerError
from ..events import Events
from ..models.tiling import decode_frames
from ..models.transformer import LTXTransformer
from ..models.video_vae import VideoVAE
from ..weights.load import load_video_vae
from .denoise import Guidance, Pair, denoise
from .first_frames import FirstFrames
from .prompts import Prompt
from .schedule import ANCHOR_TOKENS, sampling_sigmas
from .sound import SoundParts, decode_mel, decode_wave, sound_shape
from .sound_file import write_sound
from .spectrogram import draw_spectrogram
from .video_file import write_image, write_video

logger = logging.getLogger(__name__)

DECODE_BYTES = 4 << 30  # on the card for the decoder of the video VAE at work on one tile

# the block whose self-attention the official pipelines skip for spatio-temporal guidance, of 48
STG_BLOCKS = {"2.0": 29, "2.3": 28}


def require_stg_block(settings: SampleSettings, blocks: int) -> None:
    """Raise ConfigError where sample.stg_block is none of the model's."""
    if settings.stg_block is not None and settings.stg_block >= blocks:
        raise ConfigError(
            f"sample.stg_block is {settings.stg_block}, but the blocks of this model are 0 to {blocks - 1}. Choose one "
            "of them, or leave it out: then the usual one is taken."
        )


@dataclass(frozen=True)
class SampleFile:
    """A sample on disk: an mp4, a png where it has one frame, or a wav or flac where it is sound alone.

    `latents` [128, F, H, W] and `audio_latents` [8, T, 16] are normalised; None where there is no such modality.
    `audio_path` is the file that holds the sound: `path` itself, or the one beside it.
    """

    path: Path
    prompt: Prompt
    latents: Tensor | None = field(repr=False)
    info: dict[str, Any]
    audio_latents: Tensor | None = field(default=None, repr=False)
    audio_path: Path | None = None


@dataclass(frozen=True)
class Sound:
    """A waveform [2, N] in [-1, 1] at `rate` Hz."""

    wave: Tensor
    rate: int


@dataclass(frozen=True)
class Drawn:
    """The latents of prompt number `index`, on the CPU."""

    index: int
    prompt: Prompt
    latents: Pair


def open_vae(config: RunConfig, checkpoint: Path, device: torch.device, encoder: bool, decoder: bool) -> VideoVAE:
    """The halves of the video VAE that are asked for, on the device, in the dtype of the settings."""
    dtype = DTYPES[config.cache.vae_dtype]
    return load_video_vae(checkpoint, encoder=encoder, decoder=decoder, dtype=dtype, device=device)


@dataclass(frozen=True)
class Renderer:
    """Everything that stays the same from sample to sample.

    `open_vae(encoder, decoder)` loads the video VAE when it is needed, `sound` the models of the sound; it may be left
    out for a model without the audio side. `weights` has `aside(bytes)`, a context in which the model leaves the device
    that much room; where it is not given, the model stays. `contexts(text)` gives the text contexts [S, D] of a prompt
    or negative prompt, for video and for audio; None for a side the model lacks. `frames` keeps what the encoder made
    of pictures.
    """

    model: LTXTransformer
    contexts: Callable[[str], tuple[Tensor | None, Tensor | None]]
    open_vae: Callable[[bool, bool], VideoVAE]
    settings: SampleSettings
    version: str
    device: torch.device
    events: Events
    sound: SoundParts | None = None
    weights: Any = None
    frames: FirstFrames = FirstFrames()

    def draw(
        self,
        prompts: Sequence[Prompt],
        name: Callable[[int, Prompt], Path],
        info: Mapping[str, Any] | None = None,
        tolerant: bool = False,
    ) -> list[SampleFile]:
        """Draw every prompt; `name(index, prompt)` is the path without its ending.

        `tolerant`: a prompt that fails is reported and left out instead of ending the call; a stop always ends it.
        """
        firsts = self._first_frames(prompts, tolerant)
        drawn: list[Drawn] = []
        self.events.stage("sample", sum(prompt.steps for prompt in prompts))
        done = 0
        for index, prompt in enumerate(prompts):
            given = self.model.has_video and (prompt.image is not None or prompt.clip is not None)
            if not given or prompt in firsts:  # else its first frame has failed already
                with self._failures(_named(prompt), tolerant):
                    drawn.append(Drawn(index, prompt, self._latents(prompt, firsts.get(prompt), done, prompts)))
            done += prompt.steps
        return self._decode(drawn, name, dict(info or {}), tolerant) if drawn else []

    def _latents(self, prompt: Prompt, first: Tensor | None, done: int, prompts: Sequence[Prompt]) -> Pair:
        total = sum(other.steps for other in prompts)
        noise = self._noise(prompt)
        tokens = ANCHOR_TOKENS
        if self.settings.shift_tokens == "latent":
            tokens = sound_shape(prompt.shape).steps if noise.video is None else prompt.shape.latent().tokens
        layers = len(self.model.transformer_blocks)
        block = self.settings.stg_block
        if block is None:
            # a model of other depth (a tiny one) gets the block at the same height
            block = STG_BLOCKS[self.version] if layers == 48 else round(STG_BLOCKS[self.version] / 48 * layers)
            block = min(block, layers - 1)
        require_stg_block(self.settings, layers)

        def on_step(step: int, steps: int) -> None:
            self.events.progress(done + step, total, f"denoising {step}/{steps}")
            self.events.check_stop()

        drawn = denoise(
            self.model,
            Pair(*(None if part is None else part.to(self.device) for part in noise)),
            sampling_sigmas(prompt.steps, tokens),
            self._context(prompt.text, noise),
            fps=prompt.shape.fps,
            negative=self._context(prompt.negative, noise) if prompt.guidance != 1 else None,
            guidance=Guidance(prompt.guidance, self.settings.stg, block, self.settings.rescale),
            first_frame=first,
            on_step=on_step,
        )
        return Pair(*(None if part is None else part[0].cpu() for part in drawn))

    def _noise(self, prompt: Prompt) -> Pair:
        """The starting noise, on the CPU."""
        # the picture's comes first, so that a seed starts from the same picture with sound and without
        generator = torch.Generator().manual_seed(prompt.seed)
        video = audio = None
        if self.model.has_video:
            shape = prompt.shape.latent()
            video = torch.randn(1, shape.channels, shape.frames, shape.height, shape.width, generator=generator)
        if self.model.has_audio and not (self.model.has_video and prompt.shape.frames == 1):
            shape = sound_shape(prompt.shape)
            audio = torch.randn(1, shape.channels, shape.steps, shape.bins, generator=generator)
        return Pair(video, audio)

    def _context(self, text: str, noise: Pair) -> Pair:
        """The contexts [1, S, D] of what is drawn."""
        found = self.contexts(text)
        wanted = (None if n is None else c for n, c in zip(noise, found, strict=True))
        return Pair(*(None if c is None else c[None].to(self.device) for c in wanted))

    def _first_frames(self, prompts: Sequence[Prompt], tolerant: bool) -> dict[Prompt, Tensor]:
        """Latents [1, 128, 1, H, W] of the frame that each of `prompts` begins with, for those that have one.

        The encoder is opened only where a picture was not encoded before.
        """
        firsts: dict[Prompt, Tensor] = {}
        pictures = [prompt for prompt in prompts if prompt.image is not None]
        if not pictures and not any(prompt.clip for prompt in prompts):
            return firsts
        if not self.model.has_video:
            self.events.message("Sound alone is drawn: the first frames of the prompts (--i) are left out.", "warning")
            return firsts
        for prompt in prompts:
            if prompt.clip is not None:
                with self._failures(_named(prompt), tolerant):
                    firsts[prompt] = CacheFile(prompt.clip).latents()[None, :, :1]
        vae: VideoVAE | None = None
        for prompt in pictures:
            with self._failures(_named(prompt), tolerant):
                kept = self.frames.read(prompt)
                if kept is None:
                    vae = vae or self.open_vae(True, False)
                    kept = self.frames.make(prompt, vae, self.events)
                firsts[prompt] = kept
        return firsts

    def _decode(
        self, drawn: list[Drawn], name: Callable[[int, Prompt], Path], info: dict[str, Any], tolerant: bool
    ) -> list[SampleFile]:
        files: list[SampleFile] = []
        with self.weights.aside(DECODE_BYTES) if self.weights is not None else contextlib.nullcontext():
            sounds: dict[int, Sound] = {}
            with self._failures("sound of the samples", tolerant):
                sounds = self._sounds(drawn, tolerant)
            vae = self.open_vae(False, True) if any(one.latents.video is not None for one in drawn) else None
            for count, one in enumerate(drawn):
                self.events.progress(count, len(drawn), "decoding")
                self.events.check_stop()
                with self._failures(_named(one.prompt), tolerant), torch.no_grad():
                    sound = sounds.get(one.index)
                    if vae is None and sound is None:
                        continue  # said already: its sound could not be decoded
                    path = name(one.index, one.prompt)
                    files.append(self._write(one, path, sound, vae, {**_about(one.prompt), **info}))
                    self.events.sample(files[-1].path, files[-1].info)
            del vae
        return files

    def _sounds(self, drawn: Sequence[Drawn], tolerant: bool) -> dict[int, Sound]:
        """The sounds of `drawn` by index: all through the audio VAE, then all through the vocoder."""
        wanted = [(one, one.latents.audio) for one in drawn if one.latents.audio is not None]
        if not wanted or self.sound is None or (self.settings.audio == "off" and self.model.has_video):
            return {}
        mels: dict[int, Tensor] = {}
        sounds: dict[int, Sound] = {}
        vae = self.sound.open_decoder()
        for one, latents in wanted:
            self.events.check_stop()
            with self._failures(_named(one.prompt, "sound"), tolerant):
                mels[one.index] = decode_mel(vae, latents)
        del vae
        vocoder = self.sound.open_vocoder()
        for one, _ in wanted:
            self.events.progress(len(sounds), len(wanted), "decoding the sound")
            self.events.check_stop()
            if one.index in mels:
                with self._failures(_named(one.prompt, "sound"), tolerant):
                    wave = decode_wave(vocoder, mels[one.index], one.prompt.shape.seconds)
                    sounds[one.index] = Sound(wave, vocoder.sample_rate)
        return sounds

    def _write(
        self, one: Drawn, stem: Path, sound: Sound | None, vae: VideoVAE | None, about: dict[str, Any]
    ) -> SampleFile:
        """Decode and write one sample, with its sound inside or beside it; `stem` is the path without its ending."""
        video, merge = one.latents.video, self.settings.audio == "merge"
        if video is not None and not bool(torch.isfinite(video).all()):
            raise TrainerError("the latents are not finite; the LoRA or the settings have diverged")
        path = audio_path = None
        if sound is not None:
            if vae is None or not merge:
                audio_path = _ending(stem, f".{self.settings.audio_format}")
                write_sound(audio_path, sound.wave, sound.rate, about)
            if self.settings.spectrogram:
                draw_spectrogram(_ending(stem, ".sound.png"), sound.wave, sound.rate, one.prompt.text)
        if vae is None:
            path = audio_path
        else:
            assert video is not None, "pictures are decoded where pictures were drawn"
            weight = next(vae.parameters())
            frames = _single(decode_frames(vae, video[None].to(weight.device), self.settings.tiles))
            if one.prompt.shape.frames == 1:
                path = write_image(_ending(stem, ".png"), next(frames), about)
            elif sound is not None and merge:
                fps = one.prompt.shape.fps
                path = audio_path = write_video(_ending(stem, ".mp4"), frames, fps, about, sound.wave, sound.rate)
            else:
                path = write_video(_ending(stem, ".mp4"), frames, one.prompt.shape.fps, about)
        assert path is not None, "neither a picture nor sound"
        return SampleFile(path, one.prompt, video, about, one.latents.audio, audio_path)

    @contextlib.contextmanager
    def _failures(self, what: str, tolerant: bool) -> Iterator[None]:
        try:
            yield
        except Stopped:
            raise
        except Exception as error:
            if not tolerant:
                raise
            logger.debug("sample failed", exc_info=True)
            self.events.message(f"The {what} failed and is left out: {error}", "warning")


def _about(prompt: Prompt) -> dict[str, Any]:
    """What a sample's file says of itself."""
    return {
        "prompt": prompt.text,
        "negative": prompt.negative,
        "seed": prompt.seed,
        "steps": prompt.steps,
        "guidance": prompt.guidance,
    }


def _named(prompt: Prompt, what: str = "sample") -> str:
    return f"{what} of {prompt.text[:60]!r}"


def _ending(stem: Path, ending: str) -> Path:
    # not with_suffix: a name may hold dots, as a strength of 0.5 does
    return stem.with_name(stem.name + ending)


def _single(chunks: Iterable[Any]) -> Iterator[Any]:
    """Frames [H, W, 3] as numpy arrays out of blocks [n, H, W, 3]."""
    for chunk in chunks:
        for frame in chunk:
            yield frame.numpy() if isinstance(frame, Tensor) else frame
