"""The gradients of the weights themselves, of each kind of weight: recomputed in pieces they are those of the plain
pass, and those are what a difference of losses says."""

from __future__ import annotations

import pytest
import torch

from ltx2_train.full.choose import chosen_weights
from ltx2_train.full.settings import FullSettings
from ltx2_train.full.weights import TrainedWeights
from ltx2_train.models.transformer import Modality
from ltx2_train.weights.load import load_transformer

KINDS = (
    "patchify_proj.weight", "adaln_single.linear.weight", "scale_shift_table", "proj_out.bias",
    "transformer_blocks.0.scale_shift_table", "transformer_blocks.0.attn1.to_q.weight",
    "transformer_blocks.0.attn1.q_norm.weight", "transformer_blocks.0.attn2.to_k.weight",
    "transformer_blocks.1.attn1.to_gate_logits.weight", "transformer_blocks.1.ff.net.0.proj.weight",
    "transformer_blocks.1.ff.net.2.weight", "transformer_blocks.1.ff.net.2.bias",
    "transformer_blocks.0.audio_to_video_attn.to_v.weight", "transformer_blocks.0.scale_shift_table_a2v_ca_audio",
    "audio_patchify_proj.bias", "transformer_blocks.0.audio_attn2.to_out.0.weight",
)  # fmt: skip


@pytest.fixture(scope="module")
def model(tiny):
    return load_transformer(tiny.checkpoint, "av", torch.float64)


def inputs(model):
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def one(tokens, axes, side):
        times = torch.arange(tokens).float()
        positions = torch.stack([times, times + 1], -1).expand(1, axes, tokens, 2)
        given = torch.zeros(2, tokens, dtype=torch.bool)
        given[:, :2] = True
        sigma = torch.tensor([0.3, 0.8])
        context = drawn(2, 5, side.context_width)
        return Modality(drawn(2, tokens, 128), sigma, None, positions, context, given=given, lead=2)

    return one(6, 3, model.config.video), one(4, 1, model.config.audio)


def loss(model):
    video, audio = inputs(model)
    model.train()
    out = model(video, audio)
    return out.video.square().mean() + out.audio.square().mean()


def test_every_weight_has_the_gradient_that_differences_say(model):
    trained = TrainedWeights(model, FullSettings())
    names = [name for name in KINDS if name in trained.weights]
    assert len(names) >= len(KINDS) - 1, set(KINDS) - set(names)
    model.set_recompute(0)
    plain = torch.autograd.grad(loss(model), list(trained.parameters()), allow_unused=True)
    model.set_recompute(None)
    model.set_ff_chunk(4)
    model.keep_text_kv = True
    again = torch.autograd.grad(loss(model), list(trained.parameters()), allow_unused=True)
    found = dict(zip(trained.weights, plain, strict=True))
    for name, a, b in zip(trained.weights, plain, again, strict=True):
        assert (a is None) == (b is None), name
        if a is not None:
            torch.testing.assert_close(a, b, msg=lambda text, name=name: f"{name}: {text}", rtol=1e-4, atol=1e-8)
    for name in names:
        weight, gradient = trained.weights[name], found[name]
        assert gradient is not None, name
        direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1), dtype=weight.dtype)
        step = 1e-4
        with torch.no_grad():
            weight.add_(direction, alpha=step)
            up = loss(model)
            weight.add_(direction, alpha=-2 * step)
            down = loss(model)
            weight.add_(direction, alpha=step)
        expected = float(up - down) / (2 * step)
        assert float((gradient * direction).sum()) == pytest.approx(expected, rel=2e-3, abs=1e-7), name


def test_patterns_choose(model):
    names = [name for name, _ in model.named_parameters()]
    assert chosen_weights(names, FullSettings()) == names
    some = FullSettings(include_patterns=[r"transformer_blocks\.0\..*"], exclude_patterns=[r".*bias"])
    chosen = chosen_weights(names, some)
    assert chosen
    assert all(name.startswith("transformer_blocks.0.") and not name.endswith("bias") for name in chosen)
