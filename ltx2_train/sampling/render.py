"""Prompts to files: draw the latents of all of them, then decode them, one model on the device at a time.

The sound is decoded before the pictures, since a few megabytes of waveform can wait and minutes of frames cannot. An
image has no sound: one frame is drawn by the video side alone. The file is long because what a sample goes through,
from its noise to its files, is read in one place.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..conditions.trained import OF_AUDIO, OF_VIDEO
from ..config import DrawSettings, RunConfig
from ..device import DTYPES
from ..errors import Stopped, TrainerError
from ..events import Events
from ..families import FAMILIES
from ..files import with_ending
from ..models.polled import polled
from ..models.positions import slot_places
from ..models.tiling import decode_frames
from ..models.transformer import LTXTransformer
from ..models.video_vae import VideoVAE
from ..weights.load import load_video_vae
from .decoded import KERNEL_BYTES, decode_bytes, side_by_side, single_frames
from .denoise import GivenPair, Pair, denoise
from .given_media import GivenMedia, media_of
from .giving import given_pair
from .guidance import guidance_of, stg_blocks
from .prompts import Prompt
from .schedule import SECOND_STAGE, noise_levels
from .shown import Shown
from .sound import SoundParts, decode_mel, decode_wave, sound_shape
from .sound_file import write_sound
from .spectrogram import draw_spectrogram
from .two_stages import StepCount, enlarged, upsampling_bytes
from .video_file import write_image, write_video

logger = logging.getLogger(__name__)

Failed = list[type[Exception]]  # the classes of the errors of what was left out


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


def open_vae(
    config: RunConfig, checkpoint: Path, device: torch.device, events: Events, encoder: bool, decoder: bool
) -> VideoVAE:
    """The halves of the video VAE that are asked for, on the device, in the dtype of the settings. Raises Stopped."""
    return load_video_vae(checkpoint, encoder, decoder, DTYPES[config.cache.vae_dtype], device, events.check_stop)


@dataclass(frozen=True)
class Renderer:
    """Everything that stays the same from sample to sample.

    `open_vae(encoder, decoder)` loads the video VAE when it is needed, `sound` the models of the sound; it may be left
    out for a model without the audio side. `weights` has `aside(bytes, poll)`, a context in which the model leaves the
    device that much room; where it is not given, the model stays. `contexts(text)` gives the text contexts [S, D] of
    a prompt or negative prompt, for video and for audio; None for a side the model lacks. `media` keeps what the
    encoders made of what prompts are given. `slots` is how many keyframe slots a clip is drawn with.
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
        failed: Failed | None = None,
    ) -> list[SampleFile]:
        """Draw every prompt; `name(index, prompt)` is the path without its ending.

        With `failed`, a prompt that fails is reported and left out, and the class of its error put there (the error
        itself would hold its tensors), instead of ending the call; a stop always ends it.
        """
        with self.model.polled(self.events.check_stop):  # a stop ends a step between two blocks
            drawn = self._drawn(prompts, failed)
        return self._decode(drawn, name, dict(info or {}), failed) if drawn else []

    def _drawn(self, prompts: Sequence[Prompt], failed: Failed | None) -> list[Drawn]:
        """The latents of all that can be drawn: first stages, then what lies between, then second stages."""
        self._tell_slots(prompts)
        stages = [self._stages(prompt) for prompt in prompts]
        media = self._given([stage for of_one in stages for stage in of_one], failed)
        steps = StepCount(self.events, sum(self._steps(prompt) for prompt in prompts))
        self.events.stage("sample", steps.total)
        first: dict[int, Pair] = {}
        for index, (prompt, (stage, *_)) in enumerate(zip(prompts, stages, strict=True)):
            if all((one, shown) in media for one in stages[index] for shown in self._usable(one)):
                with self._failures(_named(prompt), failed):  # else something of it has failed already
                    first[index] = self._first(stage, media, steps)
            steps.done += stage.steps
        larger = self._enlarged({index: first[index].video for index in first if len(stages[index]) > 1}, prompts)
        drawn: list[Drawn] = []
        for index, latents in first.items():
            prompt = prompts[index]
            with self._failures(_named(prompt), failed):
                if index in larger:
                    latents = self._second(prompt, latents, larger[index], media, steps)
                drawn.append(Drawn(index, prompt, latents, self._beside(prompt, media)))
            steps.done += len(SECOND_STAGE) - 1 if index in larger else 0
        return drawn

    def _tell_slots(self, prompts: Sequence[Prompt]) -> None:
        """Say where slots that were asked for have no place."""
        asked = self.settings.keyframe_slots or 0
        fewer = [one for one in prompts if self.draws_video and len(slot_places(asked, one.shape.frames)) < asked]
        if fewer:
            self.events.message(
                f"sample.keyframe_slots is {asked}; {len(fewer)} of {len(prompts)} prompts have fewer, since their "
                "clips are too short for so many, or are single pictures, which have none.",
                "warning",
            )

    def _stages(self, prompt: Prompt) -> tuple[Prompt, ...]:
        """What is drawn for it in turn; of sound alone there is one stage."""
        return prompt.stages if self.draws_video else (prompt,)

    def _steps(self, prompt: Prompt) -> int:
        """Of all its stages."""
        return prompt.steps + (len(SECOND_STAGE) - 1 if len(self._stages(prompt)) > 1 else 0)

    def _beside(self, prompt: Prompt, media: Mapping[tuple[Prompt, Shown], Tensor]) -> tuple[tuple[Tensor, int], ...]:
        """The references that are shown beside the sample, each with the spacing of its frames."""
        return tuple(
            (media[prompt, one], one.form(self.media.trained).temporal_scale)
            for one in self._usable(prompt)
            if one.is_reference and one.stream == OF_VIDEO and (one.beside or self.settings.include_reference)
        )

    def _first(self, stage: Prompt, media: Mapping[tuple[Prompt, Shown], Tensor], steps: StepCount) -> Pair:
        """The latents of a sample, or of the first of its two stages, on the CPU."""
        given = self._given_pair(stage, media)
        noise, slots = self._noise(stage, torch.Generator().manual_seed(stage.seed))
        tokens = FAMILIES[self.version].schedule_tokens
        if tokens is None or self.settings.shift_tokens == "latent":
            tokens = sound_shape(stage.shape).steps if noise.video is None else stage.shape.latent().tokens
        drawn = denoise(
            self.model,
            self._start(noise, given),
            noise_levels(self.settings.sigmas, stage.steps, tokens),
            self._context(stage.text, noise),
            fps=stage.shape.fps,
            negative=self._context(stage.negative, noise) if stage.needs_negative else None,
            guidance=guidance_of(stage, self.settings),
            audio_guidance=guidance_of(stage, self.settings, of_sound=True),
            stg_blocks=stg_blocks(self.settings, self.version, len(self.model.transformer_blocks)),
            rescale_velocities=FAMILIES[self.version].rescales_velocities,
            given=given,
            slots=None if slots is None else slots.to(self.device),
            on_step=steps.on_step,
        )
        return drawn.of_one()

    def _second(
        self, prompt: Prompt, first: Pair, video: Tensor, media: Mapping[tuple[Prompt, Shown], Tensor], steps: StepCount
    ) -> Pair:
        """The latents of the second stage, which begins with `video` [128, F, H, W]; the sound is that of the first."""
        generator = torch.Generator().manual_seed(prompt.seed)
        self._noise(prompt.stages[0], generator)  # the first stage had these numbers
        (noise, _), level = self._noise(prompt, generator), SECOND_STAGE[0]  # slots are of the first stage alone
        begun = (
            None if fresh is None or there is None else (1 - level) * there[None] + level * fresh
            for fresh, there in zip(noise, (video, first.audio), strict=True)
        )
        given = self._given_pair(prompt, media)
        sigmas, context = torch.tensor(SECOND_STAGE), self._context(prompt.text, noise)
        start = self._start(Pair(*begun), given)
        fps = prompt.shape.fps
        drawn = denoise(self.model, start, sigmas, context, fps=fps, given=given, on_step=steps.on_step)
        return drawn.of_one()._replace(audio=first.audio)

    def _room(self, needed: int) -> contextlib.AbstractContextManager[None]:
        """A context in which `needed` bytes are free beside the model. A stop ends the making of it."""
        return contextlib.nullcontext() if self.weights is None else self.weights.aside(needed, self.events.check_stop)

    def _enlarged(self, latents: Mapping[int, Tensor | None], prompts: Sequence[Prompt]) -> dict[int, Tensor]:
        """Latents between the two stages; the upsampler comes once for all."""
        found = {index: one for index, one in latents.items() if one is not None}
        path = self.settings.upsampler
        if not found or path is None:
            return {}
        needed = max(upsampling_bytes(path, prompts[index].shape.latent()) for index in found)
        dtype = DTYPES[self.media.settings.vae_dtype]
        with self._room(needed):
            return enlarged(path, found, self.open_vae(False, False), dtype, self.device, self.events)

    def _given_pair(self, stage: Prompt, media: Mapping[tuple[Prompt, Shown], Tensor]) -> GivenPair:
        latents = [(one, media[stage, one]) for one in self._usable(stage)]
        return given_pair(stage.shape, latents, self.media.trained, self.device)

    def _start(self, noise: Pair, given: GivenPair) -> Pair:
        """Where a walk begins, on the device."""
        if given.audio is not None and given.audio.whole and noise.audio is not None:
            assert given.audio.latents is not None, "a stream that is given whole has its latents"
            noise = noise._replace(audio=given.audio.latents)  # a sound may be shorter than its picture
        return Pair(*(None if part is None else part.to(self.device) for part in noise))

    def _noise(self, prompt: Prompt, generator: torch.Generator) -> tuple[Pair, Tensor | None]:
        """The starting noise, on the CPU, and that of keyframe slots where there are any."""
        # the picture's comes first, so that a seed starts from the same picture with sound and without
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

    def _given(self, prompts: Sequence[Prompt], failed: Failed | None) -> dict[tuple[Prompt, Shown], Tensor]:
        """Latents, [128, F, H, W] or [8, T, 16], of everything that `prompts` are given; what failed is not there.

        An encoder is opened only where something was not encoded before.
        """
        if not self.draws_video and any(one.stream == OF_VIDEO for _, one in media_of(prompts)):
            self.events.message(
                "Sound alone is drawn: the first frames and references of the prompts (--i, --v) are left out.",
                "warning",
            )
        latents: dict[tuple[Prompt, Shown], Tensor] = {}
        missing: dict[str, list[tuple[Prompt, Shown]]] = {OF_VIDEO: [], OF_AUDIO: []}
        for prompt in prompts:
            for shown in self._usable(prompt):
                with self._failures(_named(prompt), failed):
                    encoded = self.media.read(prompt, shown)
                    if encoded is None:
                        missing[shown.stream].append((prompt, shown))
                    else:
                        latents[prompt, shown] = encoded
        for stream, todo in missing.items():
            vae: Any = None
            for prompt, shown in todo:
                with self._failures(_named(prompt), failed):
                    vae = self._open_encoder(stream) if vae is None else vae
                    latents[prompt, shown] = self.media.make(prompt, shown, vae, self.events)
            del vae
        return latents

    def _open_encoder(self, stream: str) -> Any:
        if stream == OF_VIDEO:
            return self.open_vae(True, False)
        assert self.sound is not None, "a model with sound has its parts"
        return self.sound.open_encoder(DTYPES[self.media.settings.audio_vae_dtype])

    def _decode(
        self,
        drawn: list[Drawn],
        name: Callable[[int, Prompt], Path],
        info: dict[str, Any],
        failed: Failed | None,
    ) -> list[SampleFile]:
        files: list[SampleFile] = []
        seen = [one.prompt.shape for one in drawn if one.latents.video is not None]
        needed = int(max((decode_bytes(self.settings.tiles, shape) for shape in seen), default=KERNEL_BYTES))
        with self._room(needed):
            sounds: dict[int, Waveform] = {}
            with self._failures("sound of the samples", failed):
                sounds = self._sounds(drawn, failed)
            vae = self.open_vae(False, True) if any(one.latents.video is not None for one in drawn) else None
            for count, one in enumerate(drawn):
                self.events.progress(count, len(drawn), "decoding")
                self.events.check_stop()
                stoppable = polled(vae, self.events.check_stop)
                with self._failures(_named(one.prompt), failed), torch.no_grad(), stoppable:
                    sound = sounds.get(one.index)
                    if vae is None and sound is None:
                        continue  # said already: its sound could not be decoded
                    path = name(one.index, one.prompt)
                    files.append(self._write(one, path, sound, vae, {**_about(one.prompt), **info}))
                    self.events.sample(files[-1].path, files[-1].info)
            del vae
        return files

    def _sounds(self, drawn: Sequence[Drawn], failed: Failed | None) -> dict[int, Waveform]:
        """The sounds of `drawn` by index: all through the audio VAE, then all through the vocoder."""
        wanted = [(one, one.latents.audio) for one in drawn if one.latents.audio is not None]
        if not wanted or self.sound is None or (self.settings.audio == "off" and self.draws_video):
            return {}
        mels: dict[int, Tensor] = {}
        sounds: dict[int, Waveform] = {}
        vae = self.sound.open_decoder()
        for one, latents in wanted:
            self.events.check_stop()
            with self._failures(_named(one.prompt, "sound"), failed), polled(vae, self.events.check_stop):
                mels[one.index] = decode_mel(vae, latents)
        del vae
        vocoder = self.sound.open_vocoder()
        for one, _ in wanted:
            self.events.progress(len(sounds), len(wanted), "decoding the sound")
            self.events.check_stop()
            if one.index in mels:
                with self._failures(_named(one.prompt, "sound"), failed), polled(vocoder, self.events.check_stop):
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
                audio_path = with_ending(stem, f".{self.settings.audio_format}")
                write_sound(audio_path, sound.wave, sound.rate, about)
            if self.settings.spectrogram:
                draw_spectrogram(with_ending(stem, ".sound.png"), sound.wave, sound.rate, one.prompt.text)
        if vae is None:
            path = audio_path
        else:
            assert video is not None, "pictures are decoded where pictures were drawn"
            weight = next(vae.parameters())
            frames = single_frames(decode_frames(vae, video[None].to(weight.device), self.settings.tiles))
            for latents, spacing in reversed(one.beside):
                reference = decode_frames(vae, latents[None].to(weight.device), self.settings.tiles)
                frames = side_by_side([*single_frames(reference)], frames, spacing, one.prompt.shape)
            frames = self.events.heeded(frames)
            if one.prompt.shape.frames == 1:
                path = write_image(with_ending(stem, ".png"), next(frames), about)
            elif sound is not None and merge:
                fps = one.prompt.shape.fps
                path = audio_path = write_video(with_ending(stem, ".mp4"), frames, fps, about, sound.wave, sound.rate)
            else:
                path = write_video(with_ending(stem, ".mp4"), frames, one.prompt.shape.fps, about)
        assert path is not None, "neither a picture nor sound"
        return SampleFile(path, one.prompt, video, about, one.latents.audio, audio_path)

    @contextlib.contextmanager
    def _failures(self, job: str, failed: Failed | None) -> Iterator[None]:
        try:
            yield
        except Stopped:
            raise
        except Exception as error:
            if failed is None:
                raise
            failed.append(type(error))
            logger.debug("sample failed", exc_info=True)
            self.events.message(f"The {job} failed and is left out: {error}", "warning")


def _about(prompt: Prompt) -> dict[str, Any]:
    """What a sample's file says of itself."""
    return {
        "prompt": prompt.text,
        "negative": prompt.negative,
        "seed": prompt.seed,
        "steps": prompt.steps,
        "guidance": prompt.guidance,
        **({"stages": 2} if prompt.upsampled else {}),
    }


def _named(prompt: Prompt, what: str = "sample") -> str:
    return f"{what} of {prompt.text[:60]!r}"
