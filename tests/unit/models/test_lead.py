"""Tokens in front that the other modality does not see, or that do not read the text."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from parity.oracles_transformer import adapt, build, inputs, loss_of

from ltx2_train.models.transformer import Modality, SkipLayers

LEAD = 3
ALONE = SkipLayers(audio_self="all", v2a="all")  # every token of the sound goes its own way


def without_lead(audio: Modality) -> Modality:
    assert audio.timesteps is not None
    return replace(
        audio,
        latent=audio.latent[:, LEAD:],
        timesteps=audio.timesteps[:, LEAD:],
        positions=audio.positions[:, :, LEAD:],
    )


@pytest.mark.parametrize("version", ["2.0", "2.3"])
@pytest.mark.parametrize("per_token", [False, True])
def test_unseen_tokens_are_as_if_they_were_not_there(version, per_token):
    model, batch = build(version), inputs(version, per_token=per_token)
    audio = replace(batch.audio, timesteps=batch.audio.sigma[:, None] * torch.rand(2, 7))
    hidden = model(batch.video, replace(audio, unseen=LEAD), skip=ALONE).video
    torch.testing.assert_close(hidden, model(batch.video, without_lead(audio), skip=ALONE).video)
    assert not torch.allclose(hidden, model(batch.video, audio, skip=ALONE).video)


@pytest.mark.parametrize("version", ["2.0", "2.3"])
def test_textless_tokens_do_not_read_the_text_and_the_others_read_it_as_before(version):
    model, batch = build(version), inputs(version, per_token=True)
    other = replace(batch.audio, context=-batch.audio.context, textless=LEAD)
    whole = model(None, batch.audio, skip=ALONE).audio
    one, two = (model(None, a, skip=ALONE).audio for a in (replace(batch.audio, textless=LEAD), other))
    torch.testing.assert_close(one[:, :LEAD], two[:, :LEAD])
    torch.testing.assert_close(one[:, LEAD:], whole[:, LEAD:])
    assert not torch.allclose(one[:, :LEAD], whole[:, :LEAD])
    assert not torch.allclose(one[:, LEAD:], two[:, LEAD:])


def test_recomputed_blocks_treat_them_alike_and_keep_the_text_for_them():
    grads = []
    for blocks, keep in ((0, False), (None, False), (None, True)):
        model = build("2.3", num_layers=3)
        layers = adapt(model, "attn")
        model.set_recompute(blocks)
        model.keep_text_kv = keep
        batch = inputs("2.3", per_token=True)
        loss_of(model(batch.video, replace(batch.audio, unseen=LEAD, textless=LEAD))).backward()
        grads.append([layer.lora_A.grad for layer in layers.values()])
    for other in grads[1:]:
        for a, b in zip(grads[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
