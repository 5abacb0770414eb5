"""Rules of the text path that no peer shows: lengths, registers, streams, refusals."""

import pytest
import torch

from ltx2_train.errors import CheckpointError
from ltx2_train.models.text import Connector, FeatureExtractor, TextConnectors, TextFeatures

SECTION = {
    "connector_num_attention_heads": 2,
    "connector_attention_head_dim": 8,
    "audio_connector_num_attention_heads": 2,
    "audio_connector_attention_head_dim": 4,
    "connector_num_layers": 1,
    "connector_num_learnable_registers": 8,
}


def _features(*lengths: int) -> list[TextFeatures]:
    generator = torch.Generator().manual_seed(0)
    return [
        TextFeatures(torch.randn(n, 16, generator=generator), torch.randn(n, 8, generator=generator)) for n in lengths
    ]


@pytest.mark.parametrize(
    ("mode", "built"),
    [("video", {"video_embeddings_connector"}), ("audio", {"audio_embeddings_connector"}), ("av", None)],
)
def test_only_the_streams_of_the_mode_are_built(mode, built):
    connectors = TextConnectors(SECTION, mode, minimum=16)
    owners = {name.split(".")[0] for name in connectors.state_dict()}
    assert owners == (built or {"video_embeddings_connector", "audio_embeddings_connector"})
    video, audio = connectors(_features(3, 5))
    assert (video is not None, audio is not None) == (mode != "audio", mode != "video")


def test_context_is_1024_long_and_grows_by_whole_sets_of_registers():
    connectors = TextConnectors({**SECTION, "connector_num_learnable_registers": 128})
    lengths = {1: 1024, 1024: 1024, 1025: 1152, 1152: 1152, 1153: 1280}
    for tokens, expected in lengths.items():
        assert connectors.length([TextFeatures(torch.empty(tokens, 16), torch.empty(tokens, 8))]) == expected
    assert TextConnectors(SECTION, minimum=20).length(_features(3)) == 24


def test_registers_fill_by_absolute_position():
    connector = Connector(heads=2, head_width=8, layers=0, registers=8)  # no layers: only the last norm
    tokens = torch.randn(5, 16, generator=torch.Generator().manual_seed(1))
    expected = torch.cat([tokens, connector.learnable_registers.data.repeat(2, 1)[5:]])
    expected = expected / expected.square().mean(-1, keepdim=True).add(1e-6).sqrt()
    torch.testing.assert_close(connector([tokens], 16)[0], expected)


def test_a_caption_does_not_depend_on_its_neighbours():
    connectors = TextConnectors(SECTION, minimum=16)
    features = _features(3, 16, 0, 9)
    together = connectors(features)
    for i, one in enumerate(features):
        for batched, alone in zip(together, connectors([one]), strict=True):
            torch.testing.assert_close(batched[i], alone[0], rtol=1e-5, atol=1e-6)


def test_no_gradient_passes_and_inputs_stay_as_they_were():
    connectors = TextConnectors(SECTION, minimum=16)
    features = _features(4)
    before = features[0].video.clone()
    video, audio = connectors(features)
    assert not video.requires_grad
    assert not audio.requires_grad
    assert torch.equal(features[0].video, before)


def test_features_of_another_version_are_refused():
    with pytest.raises(CheckpointError, match=r"12 wide.*takes 16.*text cache"):
        TextConnectors(SECTION, "video", minimum=16)([TextFeatures(torch.zeros(2, 12), torch.zeros(2, 12))])


def test_gates_are_built_only_where_the_checkpoint_has_them():
    def gated(section: dict) -> bool:
        return any("to_gate_logits" in name for name in TextConnectors(section).state_dict())

    assert not gated(SECTION)
    assert gated({**SECTION, "connector_apply_gated_attention": True})


def test_a_2_0_header_without_connector_keys_gives_the_published_sizes():
    with torch.device("meta"):
        connectors = TextConnectors({})
    for connector in (connectors.video_embeddings_connector, connectors.audio_embeddings_connector):
        assert (connector.width, connector.heads, len(connector.transformer_1d_blocks)) == (3840, 30, 2)
        assert connector.max_pos == (4096,)
        assert sum(parameter.numel() for parameter in connector.parameters()) == 354_470_400


def test_the_published_2_3_sizes():
    with torch.device("meta"):
        connectors = TextConnectors(
            {
                "connector_num_attention_heads": 32, "connector_attention_head_dim": 128, "connector_num_layers": 8,
                "audio_connector_num_attention_heads": 32, "audio_connector_attention_head_dim": 64,
                "connector_apply_gated_attention": True,
            }
        )  # fmt: skip
        extractor = FeatureExtractor(188160, 4096, 2048)
    count = [sum(parameter.numel() for parameter in m.parameters()) for m in (*connectors.children(), extractor)]
    assert count == [1_612_546_304, 403_620_096, 1_156_061_184]


def test_an_empty_row_gives_no_features():
    for audio in (None, 4):
        extractor = FeatureExtractor(12, 6, audio)
        states = [torch.randn(2, 5, 4) for _ in range(3)]
        mask = torch.tensor([[0, 0, 0, 0, 0], [0, 1, 1, 0, 0]])
        empty, other = extractor(states, mask)
        assert empty.video.shape == (0, 6)
        assert other.tokens == 2


def test_a_text_encoder_of_another_size_is_refused():
    with pytest.raises(CheckpointError, match=r"2 x 4 = 8 values.*takes 12"):
        FeatureExtractor(12, 6)([torch.zeros(1, 5, 4)] * 2, torch.ones(1, 5))


def test_shapes_decide_the_version():
    assert not FeatureExtractor.from_shapes({"aggregate_embed.weight": (6, 12)}).is_v23
    both = {"video_aggregate_embed.weight": (6, 12), "audio_aggregate_embed.weight": (4, 12)}
    assert FeatureExtractor.from_shapes(both).is_v23
    for wrong in ({}, {"video_aggregate_embed.weight": (6, 12)}):
        with pytest.raises(CheckpointError, match="text projection is missing"):
            FeatureExtractor.from_shapes(wrong)
