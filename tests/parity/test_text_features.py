"""Feature extractor and connectors equal ltx-core (one left-padded sample at a time) and diffusers (batched)."""

import pytest
import torch
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
from ltx_core.text_encoders.gemma.embeddings_connector import (
    AudioEmbeddings1DConnectorConfigurator,
    Embeddings1DConnectorConfigurator,
)
from ltx_core.text_encoders.gemma.embeddings_processor import convert_to_additive_mask
from ltx_core.text_encoders.gemma.feature_extractor import FeatureExtractorV1, FeatureExtractorV2

from ltx2_train.models.text import FeatureExtractor, TextConnectors, TextFeatures

HIDDEN, STATES, LENGTH = 12, 4, 256
VALID = (122, 7, 256)  # tokens of the three captions; the rest is padding
BASE = {
    "rope_type": "split",
    "frequencies_precision": "float64",
    "connector_positional_embedding_max_pos": [4096],
    "connector_num_learnable_registers": 128,
}
SECTIONS = {
    "2.0": BASE | {"connector_num_attention_heads": 2, "connector_attention_head_dim": 6, "connector_num_layers": 2},
    "2.3": BASE
    | {
        "connector_num_attention_heads": 2,
        "connector_attention_head_dim": 8,
        "audio_connector_num_attention_heads": 2,
        "audio_connector_attention_head_dim": 4,
        "connector_num_layers": 2,
        "connector_apply_gated_attention": True,
    },
}
WIDTHS = {"2.0": (12, 12), "2.3": (16, 8)}


def _fill(module: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        values = torch.randn(parameter.shape, generator=generator) * 0.3
        parameter.data = values + 1 if "norm" in name else values


def _extractor(version: str) -> FeatureExtractor:
    video, audio = WIDTHS[version]
    extractor = FeatureExtractor(HIDDEN * STATES, video, audio if version == "2.3" else None)
    _fill(extractor, 1)
    return extractor


def _states(side: str) -> tuple[list[torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    states = [torch.randn(len(VALID), LENGTH, HIDDEN, generator=generator) * (1 + i) + i for i in range(STATES)]
    mask = torch.zeros(len(VALID), LENGTH, dtype=torch.long)
    for row, count in zip(mask, VALID, strict=True):
        row[LENGTH - count :] = side == "left"
        row[:count] += side == "right"
    return states, mask


def _core_extractor(version: str, ours: FeatureExtractor) -> torch.nn.Module:
    video, audio = WIDTHS[version]
    columns = HIDDEN * STATES
    if version == "2.0":
        core = FeatureExtractorV1(torch.nn.Linear(columns, video, bias=False), is_av=True)
    else:
        core = FeatureExtractorV2(torch.nn.Linear(columns, video), HIDDEN, torch.nn.Linear(columns, audio))
    core.load_state_dict(ours.state_dict())
    return core


def _core_connector(kind, section, ours: torch.nn.Module) -> torch.nn.Module:
    core = kind.from_config({"transformer": section}).float()  # its registers are born bf16
    core.load_state_dict(ours.state_dict())
    return core


def _diffusers(version: str, extractor: FeatureExtractor, connectors: TextConnectors) -> LTX2TextConnectors:
    section, new = SECTIONS[version], version == "2.3"
    video, audio = WIDTHS[version]
    theirs = LTX2TextConnectors(
        caption_channels=HIDDEN,
        text_proj_in_factor=STATES,
        video_connector_num_attention_heads=2,
        video_connector_attention_head_dim=video // 2,
        video_connector_num_layers=2,
        audio_connector_num_attention_heads=2,
        audio_connector_attention_head_dim=audio // 2,
        audio_connector_num_layers=2,
        video_gated_attn=new,
        audio_gated_attn=new,
        connector_rope_base_seq_len=4096,
        rope_type=section["rope_type"],
        rope_double_precision=section["frequencies_precision"] == "float64",
        per_modality_projections=new,
        video_hidden_dim=video,
        audio_hidden_dim=audio,
        proj_bias=new,
    )
    renames = (
        ("video_aggregate_embed", "video_text_proj_in"),
        ("audio_aggregate_embed", "audio_text_proj_in"),
        ("aggregate_embed", "text_proj_in"),
        ("_embeddings_connector", "_connector"),
        ("transformer_1d_blocks", "transformer_blocks"),
        (".q_norm", ".norm_q"),
        (".k_norm", ".norm_k"),
    )
    state = {}
    for name, tensor in {**extractor.state_dict(), **connectors.state_dict()}.items():
        for old, name_there in renames:
            name = name.replace(old, name_there)
        state[name] = tensor
    theirs.load_state_dict(state)
    return theirs.eval()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("version", ["2.0", "2.3"])
def test_features_equal_ltx_core_on_valid_tokens(version, side):
    ours = _extractor(version)
    states, mask = _states(side)
    with torch.no_grad():
        found = ours(states, mask)
        video, audio = _core_extractor(version, ours)(tuple(states), mask, padding_side=side)
    for sample, features in enumerate(found):
        valid = mask[sample].bool()
        assert features.tokens == VALID[sample]
        torch.testing.assert_close(features.video, video[sample][valid], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(features.audio, audio[sample][valid], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rope", ["split", "interleaved"])
@pytest.mark.parametrize("version", ["2.0", "2.3"])
def test_connectors_equal_ltx_core_one_sample_at_a_time(version, rope):
    section = SECTIONS[version] | {"rope_type": rope}
    extractor, connectors = _extractor(version), TextConnectors(section, minimum=LENGTH)
    _fill(connectors, 2)
    states, mask = _states("left")
    video_core = _core_connector(Embeddings1DConnectorConfigurator, section, connectors.video_embeddings_connector)
    audio_core = _core_connector(AudioEmbeddings1DConnectorConfigurator, section, connectors.audio_embeddings_connector)
    core = _core_extractor(version, extractor)
    with torch.no_grad():
        video, audio = connectors(extractor(states, mask))
        for sample in range(len(VALID)):
            one = slice(sample, sample + 1)
            features = core(tuple(state[one] for state in states), mask[one])
            additive = convert_to_additive_mask(mask[one], torch.float32)
            torch.testing.assert_close(video[one], video_core(features[0], additive)[0], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(audio[one], audio_core(features[1], additive)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("version", ["2.0", "2.3"])
def test_the_whole_text_path_equals_diffusers_batched(version, side):
    extractor, connectors = _extractor(version), TextConnectors(SECTIONS[version], minimum=LENGTH)
    _fill(connectors, 2)
    states, mask = _states(side)
    with torch.no_grad():
        video, audio = connectors(extractor(states, mask))
        theirs = _diffusers(version, extractor, connectors)(torch.stack(states, -1), mask, padding_side=side)
    torch.testing.assert_close(video, theirs[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(audio, theirs[1], rtol=1e-5, atol=1e-5)
    assert theirs[2].all()  # so no mask needs to travel with the context


def test_single_precision_frequencies_equal_ltx_core():
    section = SECTIONS["2.3"] | {"frequencies_precision": "float32", "connector_attention_head_dim": 64}
    connectors = TextConnectors(section, "video", minimum=LENGTH)
    _fill(connectors, 3)
    for parameter in connectors.parameters():
        parameter.data *= 0.3
    tokens = torch.randn(100, 128, generator=torch.Generator().manual_seed(4))
    core = _core_connector(Embeddings1DConnectorConfigurator, section, connectors.video_embeddings_connector)
    padded = torch.cat([torch.zeros(LENGTH - 100, 128), tokens])[None]
    mask = (torch.arange(LENGTH) >= LENGTH - 100).long()[None]
    with torch.no_grad():
        video, audio = connectors([TextFeatures(tokens, tokens)])
        expected, _ = core(padded, convert_to_additive_mask(mask, torch.float32))
    assert audio is None
    torch.testing.assert_close(video, expected, rtol=1e-5, atol=1e-5)


def test_bf16_stays_within_rounding_of_fp32():
    extractor, connectors = _extractor("2.3"), TextConnectors(SECTIONS["2.3"], minimum=LENGTH)
    _fill(connectors, 2)
    states, mask = _states("left")
    with torch.no_grad():
        exact = connectors(extractor(states, mask))
        rounded = connectors.bfloat16()(extractor.bfloat16()([state.bfloat16() for state in states], mask))
    for one, other in zip(exact, rounded, strict=True):
        assert other.dtype == torch.bfloat16
        assert ((one - other.float()).norm() / one.norm()).item() < 0.03
