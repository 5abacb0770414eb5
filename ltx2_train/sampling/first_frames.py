"""Latents of the pictures that samples begin with (--i), kept by what they were made from.

A picture is known by its content, never by its name or place: one that was changed is encoded again, and a prompt file
may be reordered or moved. Building the caches of a dataset makes them, so that training never loads the encoder of the
video VAE.

    prompts/image_{digest of content, size, VAE and precision}.safetensors      latents_1x{H}x{W}_float32 [128, 1, H, W]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..caching.build import with_model
from ..caching.cache_file import ARCHITECTURE, FORMAT_VERSION, CacheFile, latent_key
from ..dataset.sources import content_hash, source_stat
from ..device import card_is_full
from ..errors import CacheError, DataError, OutOfMemory, RunError
from ..events import Events
from ..files import digest, write_tensors
from ..media.images import read_image
from ..models.video_vae import VideoVAE
from ..shapes import LatentShape, VideoShape
from .prompts import Prompt


@dataclass(frozen=True)
class FirstFrames:
    """Reads and makes them in `folder`; None keeps nothing. `vae` is the fingerprint of the video VAE."""

    folder: Path | None = None
    vae: str = ""
    vae_dtype: str = "bf16"

    def read(self, prompt: Prompt) -> Tensor | None:
        """Latents [1, 128, 1, H, W] in float32 of the picture of `prompt`; None where they have yet to be made.

        Raises DataError where the picture is gone, since what it held cannot be known then.
        """
        path = self._path(prompt)
        if path is None or not path.is_file():
            return None
        shape = _one(prompt)
        try:
            latents = CacheFile(path).latents()
        except CacheError:
            return None  # damaged: made again
        return latents[None] if tuple(latents.shape[1:]) == (shape.frames, shape.height, shape.width) else None

    def make(self, prompt: Prompt, vae: VideoVAE, events: Events) -> Tensor:
        """The same, encoded by `vae` on the device it is on, and kept. Raises DataError."""
        assert prompt.image is not None, prompt.text
        pixels = torch.from_numpy(read_image(prompt.image, (prompt.shape.width, prompt.shape.height)))
        frame = pixels.permute(2, 0, 1)[None, :, None].float() / 127.5 - 1  # [1, 3, 1, H, W]
        weight = next(vae.parameters())
        with torch.no_grad():
            latents = vae.encode(frame.to(weight.device, weight.dtype)).float().cpu()
        if not bool(torch.isfinite(latents).all()):
            raise DataError(
                f"{prompt.image}: the VAE gave numbers that are not finite in {self.vae_dtype}. "
                'Set cache.vae_dtype = "fp32".',
                prompt.image,
            )
        path = self._path(prompt)
        if path is not None:
            metadata = {"format_version": FORMAT_VERSION, "architecture": ARCHITECTURE, "checkpoint": self.vae}
            try:
                write_tensors(path, {latent_key(_one(prompt), torch.float32): latents[0]}, metadata)
            except RunError as error:  # a sample is worth more than its cache
                events.message(f"The first frame {prompt.image.name} is not kept. {error}", "warning")
        return latents

    def fill(
        self,
        prompts: Sequence[Prompt],
        open_vae: Callable[[], VideoVAE],
        events: Events,
        device: torch.device | str | None = None,
    ) -> int:
        """Make what is missing for `prompts`; returns how many. `open_vae` is called only if there is something to do.

        Without a folder there is nothing to do. Raises DataError for the first picture that cannot be used, when all
        others have been kept.
        """
        if self.folder is None:
            return 0
        missing: dict[Path | None, Prompt] = {}
        failed: list[DataError] = []
        for prompt in prompts:
            try:
                if prompt.image is not None and self.read(prompt) is None:
                    missing[self._path(prompt)] = prompt
            except DataError as error:
                failed.append(error)

        def work(vae: VideoVAE) -> None:
            for done, prompt in enumerate(missing.values(), 1):
                events.check_stop()
                try:
                    self.make(prompt, vae, events)
                except DataError as error:
                    failed.append(error)
                except RuntimeError as error:
                    if not card_is_full(error):
                        raise
                    shape = prompt.shape
                    raise OutOfMemory(
                        f"The device ran out of memory while the VAE encoded {prompt.image} at {shape.width}x"
                        f"{shape.height}. Lower sample.width and sample.height, or --w and --h of the prompt."
                    ) from error
                events.progress(done, len(missing), prompt.image.name if prompt.image else "")

        if missing:
            events.stage("encode first frames of samples", len(missing))
            with_model(open_vae, work, device)
        if failed:
            raise failed[0]
        return len(missing)

    def _path(self, prompt: Prompt) -> Path | None:
        if self.folder is None or prompt.image is None:
            return None
        try:
            content = content_hash(prompt.image, *source_stat(prompt.image))
        except OSError as error:
            raise DataError(
                f"{prompt.image} cannot be read: {error.strerror or error}. Put the picture back, or correct --i.",
                prompt.image,
            ) from error
        size = f"{prompt.shape.width}x{prompt.shape.height}"
        return self.folder / f"image_{digest(content, size, self.vae, self.vae_dtype)}.safetensors"


def _one(prompt: Prompt) -> LatentShape:
    """The shape of the latents of the picture alone."""
    return VideoShape(1, prompt.shape.height, prompt.shape.width).latent()
