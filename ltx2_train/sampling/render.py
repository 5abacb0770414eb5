"""Prompts to files: draw the latents of all of them, then decode them, one model on the device at a time."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import SampleSettings
from ..data.images import read_image
from ..errors import Stopped, TrainerError
from ..events import Events
from ..models.tiling import decode_frames
from ..models.transformer import LTXTransformer
from ..models.video_vae import VideoVAE
from .denoise import Guidance, denoise
from .prompts import Prompt
from .schedule import ANCHOR_TOKENS, sampling_sigmas
from .video_file import write_image, write_video

logger = logging.getLogger(__name__)

# the block whose self-attention the official pipelines skip for spatio-temporal guidance, of 48
STG_BLOCKS = {"2.0": 29, "2.3": 28}


@dataclass(frozen=True)
class SampleFile:
    """A sample on disk: an mp4, or a png where it has one frame. `latents` [128, F, H, W] are normalised."""

    path: Path
    prompt: Prompt
    latents: Tensor = field(repr=False)
    info: dict[str, Any]


@dataclass(frozen=True)
class Renderer:
    """Everything that stays the same from sample to sample.

    `open_vae(encoder, decoder)` loads the video VAE when it is needed. `contexts` has the text context [S, D] of every
    prompt and negative prompt that will be asked for.
    """

    model: LTXTransformer
    contexts: Mapping[str, Tensor]
    open_vae: Callable[[bool, bool], VideoVAE]
    settings: SampleSettings
    version: str
    device: torch.device
    events: Events

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
        firsts = self._first_frames(prompts)
        drawn: list[tuple[int, Prompt, Tensor]] = []
        self.events.stage("sample", sum(prompt.steps for prompt in prompts))
        done = 0
        for index, prompt in enumerate(prompts):
            with self._failures(prompt, tolerant):
                drawn.append((index, prompt, self._latents(prompt, firsts.get(prompt.image), done, prompts)))
            done += prompt.steps
        return self._decode(drawn, name, dict(info or {}), tolerant) if drawn else []

    def _latents(self, prompt: Prompt, first: Tensor | None, done: int, prompts: Sequence[Prompt]) -> Tensor:
        total = sum(other.steps for other in prompts)
        shape = prompt.shape.latent()
        generator = torch.Generator().manual_seed(prompt.seed)
        noise = torch.randn(1, shape.channels, shape.frames, shape.height, shape.width, generator=generator)
        tokens = shape.tokens if self.settings.shift_tokens == "latent" else ANCHOR_TOKENS
        layers = len(self.model.transformer_blocks)
        block = self.settings.stg_block
        if block is None:
            # a model of other depth (a tiny one) gets the block at the same height
            block = STG_BLOCKS[self.version] if layers == 48 else round(STG_BLOCKS[self.version] / 48 * layers)

        def on_step(step: int, steps: int) -> None:
            self.events.progress(done + step, total, f"denoising {step}/{steps}")
            self.events.check_stop()

        return denoise(
            self.model,
            noise.to(self.device),
            sampling_sigmas(prompt.steps, tokens),
            self.contexts[prompt.text][None].to(self.device),
            fps=prompt.shape.fps,
            negative=self.contexts[prompt.negative][None].to(self.device) if prompt.guidance != 1 else None,
            guidance=Guidance(prompt.guidance, self.settings.stg, min(block, layers - 1), self.settings.rescale),
            first_frame=first,
            on_step=on_step,
        )[0].cpu()

    def _first_frames(self, prompts: Sequence[Prompt]) -> dict[Path | None, Tensor]:
        wanted = {prompt.image: prompt.shape for prompt in prompts if prompt.image is not None}
        if not wanted:
            return {}
        vae = self.open_vae(True, False)
        firsts: dict[Path | None, Tensor] = {}
        with torch.no_grad():
            for path, shape in wanted.items():
                pixels = torch.from_numpy(read_image(path, (shape.width, shape.height)))
                frame = pixels.permute(2, 0, 1)[None, :, None].float() / 127.5 - 1  # [1, 3, 1, H, W]
                weight = next(vae.parameters())
                firsts[path] = vae.encode(frame.to(weight.device, weight.dtype)).float().cpu()
        return firsts

    def _decode(
        self, drawn: list[tuple[int, Prompt, Tensor]], name: Callable[[int, Prompt], Path], info: dict[str, Any],
        tolerant: bool,
    ) -> list[SampleFile]:  # fmt: skip
        files: list[SampleFile] = []
        with self._transformer_aside():
            vae = self.open_vae(False, True)
            weight = next(vae.parameters())
            for count, (index, prompt, latents) in enumerate(drawn):
                self.events.progress(count, len(drawn), "decoding")
                self.events.check_stop()
                with self._failures(prompt, tolerant), torch.no_grad():
                    if not bool(torch.isfinite(latents).all()):
                        raise TrainerError("the latents are not finite; the LoRA or the settings have diverged")
                    about = {
                        "prompt": prompt.text,
                        "negative": prompt.negative,
                        "seed": prompt.seed,
                        "steps": prompt.steps,
                        "guidance": prompt.guidance,
                        **info,
                    }
                    frames = decode_frames(vae, latents[None].to(weight.device), self.settings.tiles)
                    path = name(index, prompt)
                    if prompt.shape.frames == 1:
                        path = write_image(path.with_name(path.name + ".png"), next(_single(frames)), about)
                    else:
                        path = write_video(path.with_name(path.name + ".mp4"), _single(frames), prompt.shape.fps, about)
                    files.append(SampleFile(path, prompt, latents, about))
                    self.events.sample(path, about)
            del vae
        return files

    @contextlib.contextmanager
    def _transformer_aside(self) -> Iterator[None]:
        """Move the transformer to RAM while the VAE works, where the card could not hold both."""
        size = sum(parameter.nbytes for parameter in self.model.parameters())
        aside = self.device.type == "cuda" and torch.cuda.mem_get_info(self.device)[0] < 8 * 2**30
        if aside:
            logger.info("moving the transformer (%.1f GB) to RAM while the sample is decoded", size / 2**30)
            self.model.to("cpu")
            torch.cuda.empty_cache()
        try:
            yield
        finally:
            if aside:
                self.model.to(self.device)

    @contextlib.contextmanager
    def _failures(self, prompt: Prompt, tolerant: bool) -> Iterator[None]:
        try:
            yield
        except Stopped:
            raise
        except Exception as error:
            if not tolerant:
                raise
            logger.debug("sample failed", exc_info=True)
            self.events.message(f"The sample of {prompt.text[:60]!r} failed and is left out: {error}", "warning")


def _single(chunks: Any) -> Iterator[Any]:
    """Frames [H, W, 3] as numpy arrays out of blocks [n, H, W, 3]."""
    for chunk in chunks:
        for frame in chunk:
            yield frame.numpy() if isinstance(frame, Tensor) else frame
