"""Our own timestep rule and our own gradients, against a second, slow derivation and against finite differences."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from parity.oracles_transformer import (
    ALPHA,
    RANK,
    adapt,
    assert_close,
    build,
    inputs,
    loss_of,
    older_rule,
    section,
)
from parity.reference_block import velocities

from ltx2_train.models.transformer import LTXTransformer


def plain(modality):
    if modality is None:
        return None
    return {name: getattr(modality, name) for name in ("latent", "sigma", "timesteps", "positions", "context")}


def reference_state(model, layers):
    """The weights of a float64 state dict with W + scale * B A in place, and the leaves A and B."""
    state = {k.replace(".base.", "."): v.double() for k, v in model.state_dict().items() if ".lora_" not in k}
    leaves = {}
    for path, layer in layers.items():
        a, b = (t.detach().double().requires_grad_() for t in (layer.lora_A, layer.lora_B))
        leaves[path] = (a, b)
        state[f"{path}.weight"] = state[f"{path}.weight"] + ALPHA / RANK * b @ a
    return state, leaves


@pytest.mark.parametrize("rope_type", ["split", "interleaved"])
@pytest.mark.parametrize("per_token", [False, True], ids=["one-sigma", "first-frame"])
@pytest.mark.parametrize("mode", ["video", "audio", "av"])
@pytest.mark.parametrize("version", ["2.0", "2.3"])
def test_outputs_and_gradients_equal_a_slow_derivation(version, mode, per_token, rope_type):
    batch = inputs(version, per_token=per_token)
    model = build(version, mode, rope_type=rope_type)
    layers = adapt(model)
    model.double()
    state, leaves = reference_state(model, layers)
    video, audio = batch.pick(mode)
    theirs = velocities(state, section(version, rope_type=rope_type), plain(video), plain(audio))
    ours = model(video, audio)
    # float64 leaves room for a much sharper comparison than the oracles allow; the cosines are float32 in ours
    assert_close(ours.video, theirs[0], 1e-6, "video")
    assert_close(ours.audio, theirs[1], 1e-6, "audio")
    loss_of(ours).backward()
    loss_of(tuple(theirs)).backward()
    for path, (a, b) in leaves.items():
        assert_close(layers[path].lora_A.grad, a.grad, 5e-6, f"{path} A")
        assert_close(layers[path].lora_B.grad, b.grad, 5e-6, f"{path} B")


def test_the_older_rule_would_be_noticed(monkeypatch):
    batch = inputs("2.3", per_token=True)
    model = build("2.3")
    ours = model(batch.video, batch.audio)
    monkeypatch.setattr(LTXTransformer, "cross_levels", older_rule)
    older = model(batch.video, batch.audio)
    assert (ours.video - older.video).abs().max() > 1e-3


def test_shift_and_scale_follow_the_own_timesteps_and_the_gate_the_others_sigma():
    batch = inputs("2.3", per_token=True)
    levels = batch.video.levels()
    own, gate = build("2.3").cross_levels(batch.video, batch.audio, levels)
    assert own is levels
    assert gate == (batch.audio.sigma, None)


@pytest.mark.parametrize("recompute", [0, 1, None])
@pytest.mark.parametrize(("version", "per_token"), [("2.0", False), ("2.3", True)])
def test_gradients_equal_finite_differences(version, per_token, recompute):
    batch = inputs(version, batch=1, per_token=per_token)
    model = build(version)
    layers = adapt(model)
    model.double()
    model.set_recompute(recompute)
    leaves = [p for layer in layers.values() for p in (layer.lora_A, layer.lora_B)]
    loss = loss_of(model(batch.video, batch.audio))
    grads = torch.autograd.grad(loss, leaves)
    g = torch.Generator().manual_seed(0)
    for start in range(4):  # directions over a quarter of the tensors each, so that none hides behind another
        step = 1e-6
        chosen = range(start, len(leaves), 4)
        directions = {i: torch.randn(leaves[i].shape, generator=g, dtype=torch.float64) for i in chosen}
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                for i, d in directions.items():
                    leaves[i].add_(d, alpha=sign * step)
                ends.append(float(loss_of(model(batch.video, batch.audio))))
                for i, d in directions.items():
                    leaves[i].sub_(d, alpha=sign * step)
        numeric = (ends[0] - ends[1]) / (2 * step)
        exact = sum(float((grads[i] * d).sum()) for i, d in directions.items())
        assert abs(numeric - exact) <= 2e-6 * max(1.0, abs(exact)), (start, numeric, exact)


@pytest.mark.parametrize("recompute", [0, None])
def test_kept_hidden_states_are_the_streams_and_carry_gradients(recompute):
    batch = inputs("2.3", per_token=True)
    model = build("2.3", num_layers=3)
    layers = adapt(model, "attn1")
    model.set_recompute(recompute)
    out = model(batch.video, batch.audio, keep_hidden={"video.1", "audio.0"})
    assert set(out.hidden) == {"video.1", "audio.0"}
    # the first two blocks alone, without the head
    shorter = build("2.3", num_layers=3)
    adapt(shorter, "attn1")
    del shorter.transformer_blocks[2]
    expected = shorter(batch.video, batch.audio, keep_hidden=["video.1"]).hidden["video.1"]
    assert_close(out.hidden["video.1"], expected)
    out.hidden["video.1"].square().sum().backward()
    for path, layer in layers.items():
        reached = layer.lora_B.grad is not None and bool(layer.lora_B.grad.abs().max() > 0)
        # block 2 comes after; the audio of block 1 cannot reach the video of block 1 any more but through a2v
        assert reached == (not path.startswith("transformer_blocks.2")), path


def test_hidden_states_and_outputs_together_give_the_sum_of_both_gradients():
    batch = inputs("2.3")
    grads = []
    for parts in (("loss",), ("hidden",), ("loss", "hidden")):
        model = build("2.3")
        layers = adapt(model, "attn")
        out = model(batch.video, batch.audio, keep_hidden=["video.0", "audio.1"])
        loss = sum(
            loss_of(out) if part == "loss" else sum(h.square().mean() for h in out.hidden.values()) for part in parts
        )
        loss.backward()
        grads.append({p: torch.zeros(1) if x.lora_B.grad is None else x.lora_B.grad for p, x in layers.items()})
    for path, both in grads[2].items():
        assert_close(both, grads[0][path] + grads[1][path], 1e-4, path)


@pytest.mark.parametrize("recompute", [0, None])
def test_a_modality_without_a_loss_is_no_obstacle(recompute):
    batch = inputs("2.3")
    model = build("2.3")
    layers = adapt(model, "attn")
    model.set_recompute(recompute)
    model(batch.video, batch.audio).audio.sum().backward()
    assert layers["transformer_blocks.0.attn1.to_q"].lora_B.grad.abs().max() > 0
    assert layers["transformer_blocks.1.audio_attn1.to_q"].lora_B.grad.abs().max() > 0


def test_timesteps_that_repeat_one_value_equal_one_column():
    batch = inputs("2.3")
    model = build("2.3")
    column = replace(batch.video, timesteps=batch.video.sigma[:, None])
    assert_close(model(column, None).video, model(batch.video, None).video, 1e-6)
