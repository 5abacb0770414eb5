"""Which layers get a LoRA. Counts are derived from the model's structure by hand."""

import pytest
import torch
from torch import nn

from ltx2_train.errors import ConfigError
from ltx2_train.lora.targets import branch_of, candidates, count_branches, select

BLOCKS = 2


def paths(make_model, **options):
    return candidates(make_model(**options))


def test_candidates_are_the_linears_of_the_blocks_only(make_model):
    found = paths(make_model)
    assert "transformer_blocks.1.attn1.to_out.0" in found
    assert "patchify_proj" not in found
    assert len(found) == BLOCKS * (6 * 5 + 4)


def test_any_module_with_features_is_a_linear(make_model):
    class Packed(nn.Module):
        def __init__(self, inputs, outputs):
            super().__init__()
            self.in_features, self.out_features = inputs, outputs
            self.weight = nn.Parameter(torch.zeros(inputs * outputs // 2, dtype=torch.uint8), requires_grad=False)

    assert len(paths(make_model, linear=Packed)) == BLOCKS * (6 * 5 + 4)


@pytest.mark.parametrize(
    ("target", "branches"),
    [
        ("t2v", {"video": 8, "audio": 8, "a2v": 4, "v2a": 4}),
        ("v2v", {"video": 10, "audio": 10, "a2v": 4, "v2a": 4}),
        ("audio", {"audio": 10, "v2a": 4}),
        ("audio_ref_only_ic", {"audio": 10, "a2v": 4, "v2a": 4}),
        ("full", {"video": 10, "audio": 10, "a2v": 4, "v2a": 4}),
        ("auto", {"video": 8, "audio": 8, "a2v": 4, "v2a": 4}),
    ],
)
@pytest.mark.parametrize("version", ["2.0", "2.3"])
def test_presets_choose_by_branch(make_model, target, branches, version):
    chosen = select(paths(make_model, version=version), target)
    assert count_branches(chosen) == {branch: count * BLOCKS for branch, count in branches.items()}
    assert not any("to_gate_logits" in path for path in chosen)


def test_auto_is_audio_where_the_model_has_no_video(make_model):
    audio, video = paths(make_model, mode="audio"), paths(make_model, mode="video")
    assert count_branches(select(audio, "auto")) == {"audio": 10 * BLOCKS}
    assert count_branches(select(video, "auto")) == {"video": 8 * BLOCKS}


def test_order_is_the_models(make_model):
    everything = paths(make_model)
    chosen = select(everything, "t2v", include=[r".*\.audio_ff\..*", r".*attn1\.to_q"])
    assert chosen == [path for path in everything if path in set(chosen)]


def test_include_replaces_the_preset_and_must_match_whole_names(make_model):
    everything = paths(make_model)
    assert select(everything, "t2v", include=[r".*\.to_gate_logits"]) == [p for p in everything if p.endswith("logits")]
    only = select(everything, "full", include=[r"transformer_blocks\.0\.attn1\.to_q"])
    assert only == ["transformer_blocks.0.attn1.to_q"]
    with pytest.raises(ConfigError, match="whole name"):
        select(everything, "t2v", include=["to_q"])


def test_exclude_takes_away_but_not_what_include_names(make_model):
    everything = paths(make_model)
    less = select(everything, "t2v", exclude=[r".*audio.*"])
    assert count_branches(less) == {"video": 8 * BLOCKS}
    named = r"transformer_blocks\.0\.attn1\.to_q"
    assert select(everything, "t2v", include=[named], exclude=[r".*attn1.*"]) == ["transformer_blocks.0.attn1.to_q"]
    modules = {"modules": ["attn1.to_q", "attn2.to_q"], "exclude": [r".*\.attn1\..*"]}
    assert select(everything, "t2v", **modules) == [f"transformer_blocks.{block}.attn2.to_q" for block in range(BLOCKS)]
    both = select(everything, "t2v", include=[named], **modules)
    assert both == ["transformer_blocks.0.attn1.to_q", *select(everything, "t2v", **modules)]
    with pytest.raises(ConfigError, match="takes every layer away"):
        select(everything, "t2v", modules=["attn1.to_q"], exclude=[r".*attn1.*"])


def test_module_endings_are_those_of_the_official_trainer(make_model):
    everything = paths(make_model)
    chosen = select(everything, "t2v", modules=["attn1.to_k"])
    assert chosen == [f"transformer_blocks.{block}.attn1.to_k" for block in range(BLOCKS)]
    assert set(select(everything, "full", modules=["to_k", "to_q", "to_v", "to_out.0"])) == set(
        select(everything, "t2v")
    )


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"include": [r".*\.to_querry"]}, "to_q"),
        ({"include": ["to_out"]}, r"attn1\.to_out\.0"),
        ({"exclude": [r".*\.to_z"]}, "matches no layer"),
        ({"include": ["("]}, "not a regular expression"),
        ({"modules": ["attn1.to_kk"]}, r"attn1\.to_k"),
        ({"exclude": [".*"]}, "takes every layer away"),
    ],
)
def test_what_matches_nothing_is_named_with_its_neighbours(make_model, options, text):
    with pytest.raises(ConfigError, match=text) as caught:
        select(paths(make_model), "t2v", **options)
    assert "lora." in str(caught.value)


def test_a_preset_for_absent_layers_is_refused(make_model):
    with pytest.raises(ConfigError, match="audio names no layer"):
        select(paths(make_model, mode="video"), "audio")
    with pytest.raises(ConfigError, match="no linear layers"):
        select([], "t2v")


def test_branches_are_told_from_the_part_of_the_block():
    assert branch_of("transformer_blocks.7.audio_to_video_attn.to_q") == "a2v"
    assert branch_of("transformer_blocks.7.video_to_audio_attn.to_out.0") == "v2a"
    assert branch_of("transformer_blocks.7.ff.net.2") == "video"
    assert branch_of("patchify_proj") == "other"
