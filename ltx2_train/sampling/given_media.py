"""Latents of the media that samples are given (--i, --v, --ra, conditions), kept by what they were made from.

A file is known by its content, never by its name or place: one that was changed is encoded again, and a prompt file
may be reordered or moved. Building the caches of a dataset makes them, so that training never loads an encoder.

    prompts/image_{digest}.safetensors    a picture: latents_1x{H}x{W}_float32 [128, 1, H, W]
    prompts/video_{digest}.safetensors    frames of a video, [128, F, H, W]
    prompts/sound_{digest}.safetensors    a sound: audio_latents_{T}x16x8_fp32 [8, T, 16]

A picture that a sample begins with passes through H.264 first, as in the pipelines of the model, which was trained on
frames of compressed videos and takes a picture without their traces for one that stands still.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..caching.build import with_model
from ..caching.cache_file import ARCHITECTURE, CACHE_FORMAT, KEPT_AS, CacheFile, audio_key, latent_key, write_cache
from ..caching.encode import encode_clip, no_numbers
from ..caching.encode_sound import encode
from ..caching.settings import CacheSettings
from ..conditions.settings import FirstFrame, Prefix, Suffix
from ..conditions.trained import OF_VIDEO, Trained
from ..config.drawn import OfModel
from ..dataset.reference import reference_frames
from ..dataset.sources import content_hash, source_stat
from ..device import card_is_full
from ..errors import CacheError, DataError, OutOfMemory, RunError
from ..events import Events
from ..files import digest
from ..media.sound import prepare, prepare_file, rms_db
from ..media.sound_media import read_sound
from ..media.video import read_frames
from ..models.audio_vae import AudioVAE
from ..models.video_vae import VideoVAE
from ..shapes import TEMPORAL_FACTOR, AudioLatentShape, LatentShape, VideoShape
from ..weights.fingerprint import plain_print
from .prompts import Prompt
from .recompress import recompressed
from .shown import Shown, picks, probed_picture, sound_seconds


@dataclass(frozen=True)
class _Piece:
    """The frames of a file that are encoded, as `size`; `drop` latents at the start are only there for the others."""

    picks: tuple[int, ...]
    size: tuple[int, int]
    crf: int = 0
    drop: int = 0

    @property
    def shape(self) -> LatentShape:
        """Of all latents, those that are dropped among them."""
        return VideoShape(len(self.picks), self.size[1], self.size[0]).latent()


@dataclass(frozen=True)
class _Span:
    """The `seconds` of a sound from `start` on; None: to its end."""

    start: float = 0.0
    seconds: float | None = None


@dataclass(frozen=True)
class GivenMedia:
    """Reads and makes them in `folder`; None keeps nothing. `video_vae` and `audio_vae` are fingerprints.

    `trained` says how references are shown, `crf` how strongly first pictures are compressed; 0: not at all.
    """

    folder: Path | None = None
    video_vae: str = ""
    audio_vae: str = ""
    settings: CacheSettings = field(default_factory=CacheSettings)
    trained: Trained = Trained()
    crf: int = OfModel().image_crf

    def read(self, prompt: Prompt, shown: Shown) -> Tensor | None:
        """Latents in float32, [128, F, H, W] or [8, T, 16], of what `prompt` is shown; None where they have yet to be
        made. Raises DataError where the medium is gone, and CacheError where the caches of a clip are."""
        if shown.cached:
            return self._cached(shown)
        path = self.path(prompt, shown)
        if path is None or not path.is_file():
            return None
        try:
            file = CacheFile(path)
            file.require_name()
            if not file.made_by("checkpoint", self.weights(shown)):
                return None  # of another VAE: made again
            return file.latents() if shown.stream == OF_VIDEO else file.audio_latents()
        except CacheError:
            return None  # damaged: made again

    def weights(self, shown: Shown) -> str:
        """The fingerprint of what encodes `shown`."""
        return self.video_vae if shown.stream == OF_VIDEO else self.audio_vae

    def make(self, prompt: Prompt, shown: Shown, vae: Any, events: Events) -> Tensor:
        """The same, encoded by `vae` on the device it is on, and kept. Raises DataError."""
        seen = shown.stream == OF_VIDEO
        latents = self._seen(prompt, shown, vae) if seen else self._heard(prompt, shown, vae)
        if not bool(torch.isfinite(latents).all()):
            name, model = ("vae_dtype", "video VAE") if seen else ("audio_vae_dtype", "audio VAE")
            why = no_numbers(model, getattr(self.settings, name), "fp32", name)
            raise DataError(f"{shown.path}: {why}", shown.path)
        path = self.path(prompt, shown)
        if path is not None:
            if seen:
                key, weights = latent_key(LatentShape(*latents.shape[1:]), torch.float32), self.video_vae
            else:
                size = AudioLatentShape(latents.shape[1], latents.shape[0], latents.shape[2])
                key, weights = audio_key(size, torch.float32), self.audio_vae
            metadata = {"format_version": CACHE_FORMAT, "architecture": ARCHITECTURE, "checkpoint": weights}
            metadata[KEPT_AS] = path.name
            try:
                write_cache(path, {key: latents}, metadata)
            except RunError as error:  # a sample is worth more than its cache
                events.message(f"What a sample is given of {shown.path.name} is not kept. {error}", "warning")
        return latents

    def fill(
        self,
        prompts: Sequence[Prompt],
        open_vae: Callable[[], VideoVAE] | None,
        open_audio_vae: Callable[[], AudioVAE] | None,
        events: Events,
        device: torch.device | str | None = None,
    ) -> int:
        """Make what is missing for `prompts`; returns how many. A VAE is opened only if there is something for it.

        Without a folder there is nothing to do. Raises DataError for the first medium that cannot be used, when all
        others have been kept.
        """
        if self.folder is None:
            return 0
        missing: dict[str, dict[Path | None, tuple[Prompt, Shown]]] = {"video": {}, "audio": {}}
        failed: list[DataError] = []
        for prompt, shown in media_of(prompts):
            try:
                if not shown.cached and self.read(prompt, shown) is None:
                    missing[shown.stream][self.path(prompt, shown)] = (prompt, shown)
            except DataError as error:
                failed.append(error)
        for stream, opened in (("video", open_vae), ("audio", open_audio_vae)):
            todo = list(missing[stream].values())
            if todo and opened is not None:
                words = "pictures" if stream == "video" else "sounds"
                events.stage(f"encode {words} that samples are given", len(todo))
                with_model(opened, lambda vae, todo=todo: self._make_all(todo, vae, failed, events), device)
        if failed:
            raise failed[0]
        return sum(len(found) for found in missing.values())

    def _make_all(
        self,
        todo: Sequence[tuple[Prompt, Shown]],
        vae: Any,
        failed: list[DataError],
        events: Events,
    ) -> None:
        for done, (prompt, shown) in enumerate(todo, 1):
            events.check_stop()
            try:
                self.make(prompt, shown, vae, events)
            except DataError as error:
                failed.append(error)
            except RuntimeError as error:
                if not card_is_full(error):
                    raise
                shape = prompt.shape
                raise OutOfMemory(
                    f"The device ran out of memory while the VAE encoded {shown.path} at {shape.width}x"
                    f"{shape.height}. Lower sample.width and sample.height, or --w and --h of the prompt."
                ) from error
            events.progress(done, len(todo), shown.path.name)

    def _cached(self, shown: Shown) -> Tensor:
        file = CacheFile(shown.path)
        return file.latents() if shown.stream == OF_VIDEO else file.audio_latents()[:, : file.audio_steps()]

    def path(self, prompt: Prompt, shown: Shown) -> Path | None:
        """Where the latents of what `prompt` is shown are kept; None where they are not. Raises DataError where the
        medium is gone."""
        if self.folder is None or shown.cached:
            return None
        try:
            content = content_hash(shown.path, *source_stat(shown.path))
        except OSError as error:
            raise DataError(
                f"{shown.path} cannot be read: {error.strerror or error}. Put it back, or correct {shown.name}.",
                shown.path,
            ) from error
        if shown.stream != OF_VIDEO:
            span = self._span(prompt, shown)
            mark = digest(
                content, str(span.start), str(span.seconds), plain_print(self.audio_vae), self.settings.audio_vae_dtype
            )
            return self.folder / f"sound_{mark}.safetensors"
        piece, dtype = self._piece(prompt, shown), self.settings.vae_dtype
        size = f"{piece.size[0]}x{piece.size[1]}"
        if len(piece.picks) == 1 and piece.picks[0] == 0:
            how = (f"crf {piece.crf}",) if piece.crf else ()
            return self.folder / f"image_{digest(content, size, plain_print(self.video_vae), dtype, *how)}.safetensors"
        frames = digest(*map(str, piece.picks))
        mark = digest(content, size, frames, str(piece.drop), plain_print(self.video_vae), dtype)
        return self.folder / f"video_{mark}.safetensors"

    def _piece(self, prompt: Prompt, shown: Shown) -> _Piece:
        shape, condition = prompt.shape, shown.condition
        media = probed_picture(shown.path, shape.fps)
        line, still = picks(media, shape.fps), media.kind == "image"
        size, drop, crf = (shape.width, shape.height), 0, 0
        if isinstance(condition, FirstFrame):
            frames, crf = [0], self.crf if still else 0
        elif shown.is_reference:
            form = shown.form(self.trained)
            size = (shape.width // form.downscale, shape.height // form.downscale)
            frames = reference_frames(form.count(shape.frames, still, shown.number), form.temporal_scale)
        elif isinstance(condition, Prefix):
            frames = list(range(1 + TEMPORAL_FACTOR * (_length(condition) - 1)))
        elif isinstance(condition, Suffix):
            count = 1 + TEMPORAL_FACTOR * _length(condition)
            frames, drop = list(range(len(line) - count, len(line))), 1
        else:
            frames = list(range(shape.frames))
        return _Piece(tuple(line[min(frame, len(line) - 1)] for frame in frames), size, crf, drop)

    def _seen(self, prompt: Prompt, shown: Shown, vae: VideoVAE) -> Tensor:
        """[128, F, H, W]."""
        piece = self._piece(prompt, shown)
        media, weight = probed_picture(shown.path, prompt.shape.fps), next(vae.parameters())
        if piece.crf:
            # compressed at its own size, since the traces are scaled with it in the pipelines too
            clip = recompressed(shown.path, piece.size, piece.crf)
        else:
            clip = read_frames(media, piece.picks, piece.size)
        with torch.no_grad():
            if len(piece.picks) == 1:
                pixels = torch.from_numpy(np.ascontiguousarray(clip[0])).permute(2, 0, 1)[None, :, None]
                pixels = (pixels.float() / 127.5 - 1).to(weight.device, weight.dtype)
                latents = vae.encode(pixels)
            else:
                latents = encode_clip(clip, vae, self.settings, weight.device)
        return latents[0, :, piece.drop :].float().cpu()

    def _span(self, prompt: Prompt, shown: Shown) -> _Span:
        condition = shown.condition
        if shown.is_reference:
            return _Span(seconds=shown.form(self.trained).seconds)
        if isinstance(condition, (Prefix, Suffix)):
            assert condition.seconds is not None, "a part of a sound is told in seconds"
            length = condition.seconds[1]
            start = sound_seconds(shown.path, shown.name) - length if isinstance(condition, Suffix) else 0.0
            return _Span(max(0.0, start), length)
        return _Span(seconds=min(prompt.shape.seconds, sound_seconds(shown.path, shown.name)))

    def _heard(self, prompt: Prompt, shown: Shown, vae: AudioVAE) -> Tensor:
        """[8, T, 16]."""
        span, rate = self._span(prompt, shown), vae.config.sample_rate
        if span.start or span.seconds is not None and not shown.is_reference:
            sound = read_sound(shown.path, span.start, span.seconds)
            ready = prepare(sound, sound.samples.shape[1] / sound.rate, rate)
        else:
            ready = prepare_file(shown.path, span.seconds, rate)
        if shown.is_reference and rms_db(ready.samples) == -np.inf:
            raise DataError(f"{shown.path} is silent from its beginning to its end. Choose another for {shown.name}.")
        device = next(vae.parameters()).device
        return encode(ready, vae, device).float().cpu()


def media_of(prompts: Sequence[Prompt]) -> Iterator[tuple[Prompt, Shown]]:
    """Everything that the stages of `prompts` are given, each with the stage that it belongs to."""
    return ((stage, shown) for prompt in prompts for stage in prompt.stages for shown in stage.given)


def _length(condition: Prefix | Suffix) -> int:
    assert condition.temporal_boundary is not None, "a part of a video is told in latents"
    return condition.temporal_boundary[1]
