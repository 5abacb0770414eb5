from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from parity.oracles_transformer import adapt, build, inputs, loss_of, section

from ltx2_train.errors import CheckpointError
from ltx2_train.models.adaln import distinct
from ltx2_train.models.attention import text_mask
from ltx2_train.models.transformer import LTXTransformer, TransformerConfig


@pytest.mark.parametrize("version", ["2.0", "2.3"])
def test_one_modality_has_none_of_the_others_parameters_and_both_make_up_the_whole(version):
    names = {mode: set(build(version, mode).state_dict()) for mode in ("video", "audio", "av")}
    other = ("audio", "av_ca", "a2v", "v2a", "video_to")
    assert not [n for n in names["video"] if any(word in n for word in other)]
    assert all("audio" in n for n in names["audio"])
    assert not [n for n in names["audio"] if "av_ca" in n or "a2v" in n or "to_video" in n or "to_audio" in n]
    assert names["video"] | names["audio"] < names["av"]
    assert len(names["av"]) == {"2.0": 198, "2.3": 230}[version]


def test_full_sizes_have_the_published_number_of_tensors_and_parameters():
    full = {"2.3": (4186, 18_988_838_144), "2.0": (3510, 18_876_174_592)}
    for version, (tensors, count) in full.items():
        v23 = version == "2.3"
        with torch.device("meta"):
            config = TransformerConfig(
                cross_attention_adaln=v23, apply_gated_attention=v23, caption_proj_before_connector=v23
            )
            parameters = list(LTXTransformer(config).parameters())
        assert (len(parameters), sum(p.numel() for p in parameters)) == (tensors, count)


def test_recomputing_does_not_change_the_gradients():
    grads = []
    for blocks in (0, 2, None):
        model = build("2.3", num_layers=3)
        layers = adapt(model, "attn")
        model.set_recompute(blocks)
        batch = inputs("2.3", per_token=True)
        loss_of(model(batch.video, batch.audio)).backward()
        grads.append([layer.lora_A.grad for layer in layers.values()])
    for other in grads[1:]:
        for a, b in zip(grads[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_dropout_meets_the_same_mask_when_recomputed():
    grads = []
    for blocks in (0, None):
        model = build("2.3", num_layers=3)
        layers = adapt(model, "attn1")
        for seed, layer in enumerate(layers.values()):
            layer.dropout, layer.dropout_seed = 0.5, seed
        model.set_recompute(blocks)
        batch = inputs("2.3")
        loss_of(model(batch.video, None)).backward()
        assert {x.dropout_draws for p, x in layers.items() if "audio" not in p} == {1}
        grads.append([x.lora_A.grad for p, x in layers.items() if "audio" not in p])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_timesteps_are_embedded_once_for_each_distinct_one():
    values, index = distinct(torch.tensor([[0.0, 0.7, 0.7], [0.0, 0.2, 0.2]]))
    torch.testing.assert_close(values[index.rows], torch.tensor([[0.0, 0.7, 0.7], [0.0, 0.2, 0.2]]))
    assert values.numel() == 3
    assert distinct(torch.tensor([[0.5], [0.6]]).expand(2, 9))[1] is None


def test_a_mask_that_keeps_everything_is_no_mask():
    assert text_mask(torch.ones(2, 4), torch.float32) is None
    mask = text_mask(torch.tensor([[1, 0]]), torch.bfloat16)
    assert mask.shape == (1, 1, 1, 2)
    assert mask.flatten().tolist() == [0.0, torch.finfo(torch.bfloat16).min]


def test_a_hidden_state_that_does_not_exist_is_our_own_mistake():
    batch = inputs("2.3")
    with pytest.raises(AssertionError, match=r"video\.7"):
        build("2.3", "video")(batch.video, None, keep_hidden=["video.7"])


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"qk_norm": "layer_norm"}, "qk_norm"),
        ({"share_ff": True}, "another model family"),
        ({"rope_type": "spiral"}, "spiral"),
        ({"audio_num_attention_heads": 4}, "heads"),
        ({"attention_head_dim": 7}, "even"),
    ],
)
def test_another_networks_config_is_refused_by_name(changes, word):
    with pytest.raises(CheckpointError, match=word):
        TransformerConfig.from_checkpoint(section("2.3", **changes))


def test_a_config_without_sizes_is_refused_and_unknown_keys_are_ignored():
    table = section("2.3")
    del table["num_layers"]
    with pytest.raises(CheckpointError, match="num_layers"):
        TransformerConfig.from_checkpoint(table)
    assert TransformerConfig.from_checkpoint(section("2.0", news=1)).is_v23 is False


def test_the_tensors_say_what_25_brought_and_a_contradiction_is_refused():
    names = set(build("2.5").state_dict())
    table = section("2.3")  # says nothing of it
    config = TransformerConfig.from_checkpoint(table, names)
    assert (config.ff_bias, config.audio_ff_bias, config.use_keyframes_abs_pos_embedding) == (False, True, True)
    assert config.use_prompt_adaln_single
    assert TransformerConfig.from_checkpoint(section("2.5"), names) == config
    with pytest.raises(CheckpointError, match="ff_bias = True, but the tensor .* is missing"):
        TransformerConfig.from_checkpoint(table | {"ff_bias": True}, names)
    older = TransformerConfig.from_checkpoint(table, set(build("2.3").state_dict()))
    assert older.ff_bias
    assert not older.use_keyframes_abs_pos_embedding


def test_timesteps_are_told_apart_once_a_stream(monkeypatch):
    # comparing them makes a card wait, so every call counts
    calls = []
    monkeypatch.setattr("ltx2_train.models.transformer.distinct", lambda given: calls.append(1) or distinct(given))
    batch = inputs("2.3", per_token=True)
    with torch.no_grad():
        build("2.3")(batch.video, batch.audio)
    assert len(calls) == 2


@pytest.mark.parametrize("recompute", [0, None])
@pytest.mark.parametrize("scattered", [False, True])
def test_given_tokens_are_those_at_timestep_zero_however_they_are_told(scattered, recompute):
    batch = inputs("2.3", per_token=True)
    video = batch.video
    assert video.timesteps is not None
    lead = int((video.timesteps[0] == 0).sum())
    given = video.timesteps == 0
    if scattered:  # other tokens in each sample
        lead, given = None, torch.rand(given.shape, generator=torch.Generator().manual_seed(1)) < 0.4
        video = replace(video, timesteps=torch.where(given, 0.0, video.sigma[:, None]))
    told = replace(video, timesteps=None, given=given, lead=lead)
    results = []
    for one in (video, told):
        model = build("2.3", num_layers=3)
        layers = adapt(model)
        model.set_recompute(recompute)
        out = model(one, batch.audio)
        loss_of(out).backward()
        results.append([out.video, out.audio, *(layer.lora_A.grad for layer in layers.values())])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)
