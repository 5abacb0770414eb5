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

import numpy as np
import torch
from torch import Tensor

from ..conditions.trained import OF_AUDIO, OF_VIDEO
from ..config import DrawSettings, RunConfig
from ..device import DTYPES
from ..errors import Stopped, TrainerError
from ..events import Events
from ..families import FAMILIES
from ..media.images import fit_image
from ..models.positions import slot_places
from ..models.tiling import TileSettings, decode_frames
from ..models.transformer import LTXTransformer
from ..models.video_vae import VideoVAE
from ..shapes import VideoShape
from ..weights.load import load_video_vae
from .denoise import Pair, denoise
from .given_media import GivenMedia, media_of
from .giving import given_pair
from .guidance import guidance_of, stg_blocks
from .prompts import Prompt
from .schedule import noise_levels
from .shown import Shown
from .sound import SoundParts, decode_mel, decode_wave, sound_shape
from .sound_file import write_sound
from .spectrogram import draw_spectrogram
from .video_file import write_image, write_video

logger = logging.getLogger(__name__)

DECODER_BYTES = 0.82e9  # of the weights of the published decoder in 16 bits
DECODED_BYTES = 180  # on the card for each pixel of a frame of a tile, at the widest layer
KERNEL_BYTES = 0.7e9  # that the library of convolutions takes to work in


def decode_bytes(tiles: TileSettings, shape: VideoShape) -> float:
    """What the decoder of the video VAE needs on a card for one tile of a clip of `shape`, its weights included."""
    side = tiles.spatial_tile
    height, width = (length if side is None else min(length, side) for length in (shape.height, shape.width))
    frames = min(size for size in (shape.frames, tiles.chunk_size, tiles.temporal_tile) if size is not None)
    return DECODER_BYTES + KERNEL_BYTES + DECODED_BYTES * height * width * frames


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
class Waveform:
    """A waveform [2, N] in [-1, 1] at `rate` Hz."""

    wave: Tensor
    rate: int


@dataclass(frozen=True)
class Drawn:
    """The latents of prompt number `index`, on the CPU."""

    index: int
    prompt: Prompt
    latents: Pair
    # latents [128, F, H, W] of each reference that is shown beside it, and the spacing of its frames
    beside: tuple[tuple[Tensor, int], ...] = ()


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
    or negative prompt, for video and for audio; None for a side the model lacks. `media` keeps what the encoders made
    of what prompts are given. `slots` is how many keyframe slots a clip is drawn with.
    """

    model: LTXTransformer
    contexts: Callable[[str], tuple[Tensor | None, Tensor | None]]
    open_vae: Callable[[bool, bool], VideoVAE]
    settings: DrawSettings
    version: str
    device: torch.device
    events: Events
    sound: SoundParts | None = None
    weights: Any = None
    media: GivenMedia = GivenMedia()
    slots: int = 0

    @property
    def draws_video(self) -> bool:
        """Whether pictures are drawn; else the sound alone."""
        return self.model.has_video and self.settings.streams == "all"

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
        latents = self._given(prompts, tolerant)
        drawn: list[Drawn] = []
        self.events.stage("sample", sum(prompt.steps for prompt in prompts))
        done = 0
        for index, prompt in enumerate(prompts):
            shown = self._usable(prompt)
            if all((prompt, one) in latents for one in shown):  # else something of it has failed already
                with self._failures(_named(prompt), tolerant):
                    given = [(one, latents[prompt, one]) for one in shown]
                    drawn.append(self._drawn(index, prompt, given, done, prompts))
            done += prompt.steps
        return self._decode(drawn, name, dict(info or {}), tolerant) if drawn else []

    def _drawn(
        self, index: int, prompt: Prompt, latents: Sequence[tuple[Shown, Tensor]], done: int, prompts: Sequence[Prompt]
    ) -> Drawn:
        beside = tuple(
            (piece, one.form(self.media.trained).temporal_scale)
            for one, piece in latents
            if one.is_reference and one.stream == OF_VIDEO and (one.beside or self.settings.include_reference)
        )
        return Drawn(index, prompt, self._latents(prompt, latents, done, prompts), beside)

    def _latents(
        self, prompt: Prompt, latents: Sequence[tuple[Shown, Tensor]], done: int, prompts: Sequence[Prompt]
    ) -> Pair:
        total = sum(other.steps for other in prompts)
        given = given_pair(prompt.shape, latents, self.media.trained, self.device)
        noise, slots = self._noise(prompt)
        if given.audio is not None and given.audio.whole and noise.audio is not None:
            assert given.audio.latents is not None, "a stream that is given whole has its latents"
            noise = noise._replace(audio=given.audio.latents)  # a sound may be shorter than its picture
        tokens = FAMILIES[self.version].schedule_tokens
        if tokens is None or self.settings.shift_tokens == "latent":
            tokens = sound_shape(prompt.shape).steps if noise.video is None else prompt.shape.latent().tokens

        def on_step(step: int, steps: int) -> None:
            self.events.progress(done + step, total, f"denoising {step}/{steps}")
            self.events.check_stop()

        with self.model.polled(self.events.check_stop):
            drawn = denoise(
                self.model,
                Pair(*(None if part is None else part.to(self.device) for part in noise)),
                noise_levels(self.settings.sigmas, prompt.steps, tokens),
                self._context(prompt.text, noise),
                fps=prompt.shape.fps,
                negative=self._context(prompt.negative, noise) if prompt.needs_negative else None,
                guidance=guidance_of(prompt, self.settings),
                audio_guidance=guidance_of(prompt, self.settings, of_sound=True),
                stg_blocks=stg_blocks(self.settings, self.version, len(self.model.transformer_blocks)),
                given=given,
                slots=None if slots is None else slots.to(self.device),
                on_step=on_step,
            )
        return Pair(*(None if part is None else part[0].cpu() for part in drawn))

    def _noise(self, prompt: Prompt) -> tuple[Pair, Tensor | None]:
        """The starting noise, on the CPU, and that of keyframe slots where there are any."""
        # the picture's comes first, so that a seed starts from the same picture with sound and without
        generator = torch.Generator().manual_seed(prompt.seed)
        video = audio = slots = None
        if self.draws_video:
            shape = prompt.shape.latent()
            video = torch.randn(1, shape.channels, shape.frames, shape.height, shape.width, generator=generator)
        if self.model.has_audio and not (self.draws_video and prompt.shape.frames == 1):
            shape = sound_shape(prompt.shape)
            audio = torch.randn(1, shape.channels, shape.steps, shape.bins, generator=generator)
        count = len(slot_places(self.slots, prompt.shape.frames))
        if video is not None and count:
            slots = torch.randn(1, video.shape[1], count, *video.shape[3:], generator=generator)
        return Pair(video, audio), slots

    def _context(self, text: str, noise: Pair) -> Pair:
        """The contexts [1, S, D] of what is drawn."""
        found = self.contexts(text)
        wanted = (None if n is None else c for n, c in zip(noise, found, strict=True))
        return Pair(*(None if c is None else c[None].to(self.device) for c in wanted))

    def _usable(self, prompt: Prompt) -> list[Shown]:
        """What of the media of `prompt` the model has a stream for."""
        has = {OF_VIDEO: self.draws_video, OF_AUDIO: self.model.has_audio}
        return [one for one in prompt.given if has[one.stream]]

    def _given(self, prompts: Sequence[Prompt], tolerant: bool) -> dict[tuple[Prompt, Shown], Tensor]:
        """Latents, [128, F, H, W] or [8, T, 16], of everything that `prompts` are given; what failed is not there.

        An encoder is opened only where something was not encoded before.
        """
        if not self.draws_video and any(one.stream == OF_VIDEO for _, one in media_of(prompts)):
            self.events.message(
                "Sound alone is drawn: the first frames and references of the prompts (--i, --v) are left out.",
                "warning",
            )
        found: dict[tuple[Prompt, Shown], Tensor] = {}
        missing: dict[str, list[tuple[Prompt, Shown]]] = {OF_VIDEO: [], OF_AUDIO: []}
        for prompt in prompts:
            for shown in self._usable(prompt):
                with self._failures(_named(prompt), tolerant):
                    kept = self.media.read(prompt, shown)
                    if kept is None:
                        missing[shown.stream].append((prompt, shown))
                    else:
                        found[prompt, shown] = kept
        for stream, todo in missing.items():
            vae: Any = None
            for prompt, shown in todo:
                with self._failures(_named(prompt), tolerant):
                    vae = self._open_encoder(stream) if vae is None else vae
                    found[prompt, shown] = self.media.make(prompt, shown, vae, self.events)
            del vae
        return found

    def _open_encoder(self, stream: str) -> Any:
        if stream == OF_VIDEO:
            return self.open_vae(True, False)
        assert self.sound is not None, "a model with sound has its parts"
        return self.sound.open_encoder(DTYPES[self.media.settings.audio_vae_dtype])

    def _decode(
        self, drawn: list[Drawn], name: Callable[[int, Prompt], Path], info: dict[str, Any], tolerant: bool
    ) -> list[SampleFile]:
        files: list[SampleFile] = []
        seen = [one.prompt.shape for one in drawn if one.latents.video is not None]
        needed = int(max((decode_bytes(self.settings.tiles, shape) for shape in seen), default=KERNEL_BYTES))
        with self.weights.aside(needed) if self.weights is not None else contextlib.nullcontext():
            sounds: dict[int, Waveform] = {}
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

    def _sounds(self, drawn: Sequence[Drawn], tolerant: bool) -> dict[int, Waveform]:
        """The sounds of `drawn` by index: all through the audio VAE, then all through the vocoder."""
        wanted = [(one, one.latents.audio) for one in drawn if one.latents.audio is not None]
        if not wanted or self.sound is None or (self.settings.audio == "off" and self.draws_video):
            return {}
        mels: dict[int, Tensor] = {}
        sounds: dict[int, Waveform] = {}
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
                    sounds[one.index] = Waveform(wave, vocoder.sample_rate)
        return sounds

    def _write(
        self, one: Drawn, stem: Path, sound: Waveform | None, vae: VideoVAE | None, about: dict[str, Any]
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
            for latents, spacing in reversed(one.beside):
                reference = decode_frames(vae, latents[None].to(weight.device), self.settings.tiles)
                frames = side_by_side([*_single(reference)], frames, spacing, one.prompt.shape)
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


def side_by_side(
    reference: Sequence[np.ndarray], frames: Iterable[np.ndarray], spacing: int, shape: VideoShape
) -> Iterator[np.ndarray]:
    """`frames` [H, W', 3] of a sample of `shape`, each with the frame of the reference of its time, as large as the
    sample, to the left of it.

    The reference has `spacing` times fewer frames a second; one of another length is spread over the whole.
    """
    last = len(reference) - 1
    for index, frame in enumerate(frames):
        if spacing > 1:
            place = min(last, 1 + (index - 1) // spacing if index else 0)
        else:
            place = index if last + 1 >= shape.frames else round(index * last / max(1, shape.frames - 1))
        shown = fit_image(reference[place], (shape.width, shape.height))
        yield np.concatenate((shown, frame), axis=1)


def _single(chunks: Iterable[Any]) -> Iterator[Any]:
    """Frames [H, W, 3] as numpy arrays out of blocks [n, H, W, 3]."""
    for chunk in chunks:
        for frame in chunk:
            yield frame.numpy() if isinstance(frame, Tensor) else frame
