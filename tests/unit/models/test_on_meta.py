"""A training step on the meta device, which shows what one would need without doing it."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from parity.oracles_transformer import adapt, build, inputs
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ltx2_train.models.norms import meta_is, slices
from ltx2_train.models.positions import video_positions
from ltx2_train.models.recompute import Remade
from ltx2_train.models.transformer import LTXTransformer, Modality, TransformerConfig
from ltx2_train.shapes import LatentShape
from ltx2_train.training.fit.tracker import LiveBytes


class Shapes(TorchDispatchMode):
    """Every shape that is made, and how many operations ran."""

    def __init__(self):
        super().__init__()
        self.made, self.count = set(), 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.count += 1
        self.made |= {tuple(t.shape) for t in tree_leaves(out) if isinstance(t, torch.Tensor)}
        return out


def on_meta(modality):
    tensors = {f.name: getattr(modality, f.name) for f in fields(modality)}
    return replace(modality, **{n: t.to("meta") for n, t in tensors.items() if isinstance(t, torch.Tensor)})


def step(device, per_token, masked=True, dropout=0.0, recompute=None):
    model = build("2.3", num_layers=3)
    layers = adapt(model)
    for layer in layers.values():
        layer.dropout = dropout
    model.to(device)
    model.set_recompute(recompute)
    batch = inputs("2.3", per_token=per_token)
    video, audio = batch.video, batch.audio
    if not per_token:
        video, audio = (replace(m, timesteps=None) for m in (video, audio))
    if masked:
        keep = torch.ones(video.context.shape[:2])
        keep[:, -1] = 0
        video = replace(video, context_mask=keep)
    if device == "meta":
        video, audio = on_meta(video), on_meta(audio)
    out = model(video, audio)
    (out.video.sum() + out.audio.sum()).backward()
    return out, {f"{p}.{n}": getattr(x, n).grad for p, x in layers.items() for n in ("lora_A", "lora_B")}


@pytest.mark.parametrize("recompute", [0, None])
@pytest.mark.parametrize("per_token", [False, True], ids=["one-timestep", "first-frame"])
def test_a_step_on_meta_has_the_shapes_of_a_real_one(per_token, recompute):
    real, expected = step("cpu", per_token, recompute=recompute)
    found, gradients = step("meta", per_token, recompute=recompute)
    assert found.video.is_meta
    assert (found.video.shape, found.audio.shape) == (real.video.shape, real.audio.shape)
    assert {n for n, g in gradients.items() if g is not None} == {n for n, g in expected.items() if g is not None}
    for name, gradient in gradients.items():
        assert gradient is None or (gradient.is_meta and gradient.shape == expected[name].shape)


def test_dropout_runs_on_meta():
    assert any(g is not None for g in step("meta", False, dropout=0.5)[1].values())


@pytest.mark.parametrize("masked", [False, True])
def test_no_scores_are_made_on_meta(masked):
    batch = inputs("2.3")
    lengths = [batch.video.latent.shape[1], batch.audio.latent.shape[1], batch.video.context.shape[1]]
    assert len(set(lengths)) == 3
    with Shapes() as shapes:
        step("meta", True, masked)
    tokens = set(lengths)
    scores = [s for s in shapes.made if len(s) >= 3 and s[-1] in tokens and s[-2] in tokens]
    assert scores == []


def test_recipes_are_told_apart_on_meta(monkeypatch):
    # everything lies at address 0 there; what is kept as a recipe must be the same as elsewhere
    kept, pack = [], Remade._pack

    def noted(self, tensor):
        packed = pack(self, tensor)
        kept.append((tuple(tensor.shape), None if packed is tensor else packed[0].make.__name__))
        return packed

    monkeypatch.setattr(Remade, "_pack", noted)
    step("meta", False, masked=False, recompute=0)
    on_meta = sorted(kept, key=str)
    kept.clear()
    step("cpu", False, masked=False, recompute=0)
    assert {name for _, name in kept} >= {None, "modulated_norm", "rotated_norm"}
    assert on_meta == sorted(kept, key=str)


def test_meta_is_sliced_like_a_card_or_like_a_processor():
    x = torch.empty(1, 4096, 1024, device="meta")
    assert len(list(slices(x))) == 1
    with meta_is("cpu"):
        assert len(list(slices(x))) == len(list(slices(torch.empty(1, 4096, 1024)))) == 16
    assert len(list(slices(x))) == 1


def test_feed_forwards_on_meta_are_sliced_like_those_of_the_device_it_stands_for(monkeypatch):
    model, seen = build("2.3", "video", num_layers=1).to("meta"), []
    plain = model.transformer_blocks[0].ff.forward
    monkeypatch.setattr(
        model.transformer_blocks[0].ff, "forward", lambda x, unread=False: seen.append(x.shape[1]) or plain(x, unread)
    )
    video = on_meta(replace(inputs("2.3").video, timesteps=None))
    tokens = 300
    video = replace(
        video,
        latent=video.latent.new_empty(1, tokens, video.latent.shape[2]),
        positions=video.positions.new_empty(1, 3, tokens, 2),
        sigma=video.sigma[:1],
        context=video.context[:1],
    )
    with torch.no_grad():
        model(video, None)
        with meta_is("cpu"):
            model(video, None)
    assert seen == [300, 256, 44]


@pytest.mark.parametrize(("wide", "most"), [(256, 14.1), (1024, 13.9)])
def test_a_step_on_a_processor_holds_this_many_streams(wide, most):
    """Live at most, in tensors of the size of the picture's stream; with every block recomputed, rank 8."""
    config = TransformerConfig(
        num_layers=2, num_attention_heads=4, attention_head_dim=wide // 4, cross_attention_dim=wide
    )
    with torch.device("meta"):
        model = LTXTransformer(config, "video").requires_grad_(False)
    adapt(model, "attn")
    shape = LatentShape(8, 16, 16)
    latent, context = torch.empty(1, shape.tokens, 128, device="meta"), torch.empty(1, 256, wide, device="meta")
    sigma, places = torch.empty(1, device="meta"), video_positions(shape, 24.0).to("meta")
    with meta_is("cpu"), LiveBytes("meta") as live:
        model(Modality(latent, sigma, None, places, context), None).video.sum().backward()
    assert live.peak / (4 * wide * shape.tokens) <= most
