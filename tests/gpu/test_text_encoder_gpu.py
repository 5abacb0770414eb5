"""On a card, streamed or resident, captions get the features that the CPU gives, and the card is left empty."""

import pytest
import torch

from ltx2_train import files
from ltx2_train.models.text import FeatureExtractor
from ltx2_train.weights.text_encoder import TextEncoder
from ltx2_train.weights.tiny_gemma import write_tiny_gemma

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]

CAPTIONS = ["A red fox runs through fresh snow at dawn.", "rain", ""]


@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("stream", [False, True])
def test_features_equal_those_of_the_cpu(tmp_path, fp8, stream):
    gemma, _ = write_tiny_gemma(tmp_path, fp8=fp8)
    checkpoint = tmp_path / "ltx.safetensors"
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"text_embedding_projection.{name}": torch.randn(value.shape, generator=generator) / 15
        for name, value in FeatureExtractor(7 * 32, 24, 16).state_dict().items()
    }
    files.write_tensors(checkpoint, tensors)
    expected = TextEncoder.load(gemma, checkpoint, torch.float32).encode(CAPTIONS)
    encoder = TextEncoder.load(gemma, checkpoint, torch.float32, "cuda", stream=stream)
    found = encoder.encode(CAPTIONS, batch_size=2)
    for one, other in zip(found, expected, strict=True):
        assert one.video.device.type == "cpu"
        torch.testing.assert_close(one.video, other.video, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(one.audio, other.audio, rtol=1e-3, atol=1e-3)
    if stream:
        assert {parameter.device.type for parameter in encoder._gemma.parameters()} == {"cpu"}
