"""Keyframe slots of LTX-2.5 against the pipeline of diffusers that makes them: what is shown, and what is answered."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import LTX2DFRPipeline
from parity.oracles_transformer import (
    FPS,
    GRID,
    Diffusers,
    adapt,
    assert_close,
    assert_same_gradients,
    build,
    inputs,
    keyframes,
    older_rule,
)

from ltx2_train.models.patchify import video_grid
from ltx2_train.models.positions import slot_places, slot_positions
from ltx2_train.models.transformer import LTXTransformer, Output
from ltx2_train.sampling.denoise import GivenPair, GivenStream, Pair, denoise

FRAMES = GRID.video().frames


def pipeline(transformer=None) -> LTX2DFRPipeline:
    return LTX2DFRPipeline(*[None] * 6, transformer=transformer, vocoder=None)


@pytest.mark.parametrize(("count", "frames", "expected"), [
    (3, 17, (4, 8, 12)), (2, 9, (3, 5)), (1, 12, (6,)), (1, 10, (4,)), (9, 9, (1, 2, 3, 4, 5, 6, 7)), (5, 1, ()),
    (0, 9, ()),
])  # fmt: skip
def test_slots_lie_evenly_between_the_ends(count, frames, expected):
    assert slot_places(count, frames) == expected


class Shown:
    """Keeps what it is shown, and answers nothing."""

    def __call__(self, video, audio, *, skip=None):
        self.video = video
        return Output(torch.zeros_like(video.latent), None)


@pytest.mark.parametrize("given", [False, True], ids=["text", "image"])
def test_a_sample_is_begun_as_diffusers_begins_it(given):
    places = slot_places(2, FRAMES)
    transformer = Diffusers(build("2.5")).net
    first = torch.randn(1, 4, 1, GRID.height, GRID.width, generator=torch.Generator().manual_seed(1))
    latents, mask, _, coords, marked, where = pipeline(transformer).prepare_latents(
        condition_latents=[(0, first, 1.0, 1)] if given else [],
        slot_frame_indices=list(places),
        num_channels_latents=4,
        height=32 * GRID.height,
        width=32 * GRID.width,
        num_frames=FRAMES,
        frame_rate=FPS,
        dtype=torch.float32,
        device=torch.device("cpu"),
        generator=torch.Generator().manual_seed(0),
    )
    assert (where.start, where.stop) == (GRID.tokens, latents.shape[1])
    noise = Pair(video_grid(latents[:, : GRID.tokens], GRID))
    slots = video_grid(latents[:, GRID.tokens :], replace(GRID, frames=2))
    clean, tokens = torch.zeros_like(noise.video), torch.zeros(GRID.tokens, dtype=torch.bool)
    clean[:, :, :1], tokens[: GRID.frame_tokens] = first, True
    stream = GivenPair(GivenStream(clean, tokens)) if given else None
    shown = Shown()
    drawn = denoise(shown, noise, torch.tensor([1.0, 0.0]), Pair(torch.zeros(1, 2, 16)), fps=FPS, given=stream,
                    slots=slots)  # fmt: skip
    assert torch.equal(shown.video.latent, latents)
    assert torch.allclose(shown.video.positions, coords, rtol=0, atol=1e-6)
    assert torch.equal(keyframes(shown.video), marked)
    assert torch.equal(shown.video.token_timesteps.expand(mask.shape[:2]), 1.0 - mask[..., 0])
    assert drawn.video.shape == noise.video.shape  # the slots are let go of


@pytest.mark.parametrize("mode", ["video", "av"])
def test_outputs_and_gradients_with_slots_equal_those_of_diffusers(mode, monkeypatch):
    monkeypatch.setattr(LTXTransformer, "cross_levels", older_rule)  # theirs, as in test_transformer_oracles.py
    batch = inputs("2.5", per_token=True)
    generator = torch.Generator().manual_seed(9)
    places = slot_places(2, FRAMES)
    behind = torch.randn(2, 2 * GRID.frame_tokens, 4, generator=generator)
    positions = slot_positions(places, GRID, FPS).expand(2, -1, -1, -1)
    video = replace(
        batch.video,
        latent=torch.cat((batch.video.latent, behind), dim=1),
        timesteps=torch.cat((batch.video.timesteps, batch.video.sigma[:, None].expand(-1, behind.shape[1])), dim=1),
        positions=torch.cat((batch.video.positions, positions), dim=2),
        slots=behind.shape[1],
    )
    model = build("2.5", mode)
    layers = adapt(model, "")
    oracle = Diffusers(model, layers)
    audio = batch.audio if mode == "av" else None
    ours, theirs = model(video, audio), oracle(video, audio)
    assert_close(ours.video, theirs[0], 1e-5, "video")
    assert_close(ours.audio, theirs[1], 1e-5, "audio")
    weights = torch.randn(ours.video.shape, generator=generator)
    (ours.video * weights).sum().backward()
    (theirs[0] * weights).sum().backward()
    assert_same_gradients(layers, oracle, 1e-5)
    unmarked = model(replace(video, slots=0), audio).video
    assert (ours.video - unmarked).abs().max() > 1e-2
