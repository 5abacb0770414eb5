"""On a card, streamed or resident, captions get the features that the CPU gives, and the card is left empty."""

import pytest
import torch

from ltx2_train import files
from ltx2_train.models.text import FeatureExtractor
from ltx2_train.weights.gemma_files import open_gemma
from ltx2_train.weights.gemma_settings import GemmaSettings
from ltx2_train.weights.text_encoder import TextEncoder
from ltx2_train.weights.tiny_gemma import write_tiny_gemma

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]

CAPTIONS = ["A red fox runs through fresh snow at dawn.", "rain", ""]


def _checkpoint(tmp_path, columns):
    checkpoint = tmp_path / "ltx.safetensors"
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"text_embedding_projection.{name}": torch.randn(value.shape, generator=generator) / 15
        for name, value in FeatureExtractor(columns, 24, 16).state_dict().items()
    }
    files.write_tensors(checkpoint, tensors)
    return checkpoint


@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("placement", ["device", "stream", "layers"])
def test_features_equal_those_of_the_cpu(tmp_path, fp8, placement):
    gemma, _ = write_tiny_gemma(tmp_path, fp8=fp8)
    checkpoint = _checkpoint(tmp_path, 7 * 32)
    expected = TextEncoder.load(gemma, checkpoint, torch.float32).encode(CAPTIONS)
    encoder = TextEncoder.load(gemma, checkpoint, torch.float32, "cuda", settings=GemmaSettings(placement=placement))
    found = encoder.encode(CAPTIONS, batch_size=2)
    for one, other in zip(found, expected, strict=True):
        assert one.video.device.type == "cpu"
        torch.testing.assert_close(one.video, other.video, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(one.audio, other.audio, rtol=1e-3, atol=1e-3)
    if placement == "stream":
        assert {parameter.device.type for parameter in encoder._gemma.parameters()} == {"cpu"}


def _large(tmp_path):
    sizes = {"hidden": 512, "heads": 8, "kv_heads": 4, "head_dim": 64, "intermediate": 2048}
    gemma, _ = write_tiny_gemma(tmp_path, layers=12, dtype=torch.bfloat16, **sizes)
    with open_gemma(gemma) as found:
        one = sum(found.info(name).nbytes for name in found.tensors if name.startswith("layers.0."))
    return gemma, _checkpoint(tmp_path, 13 * 512), one


def _peak(before):
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def test_layers_hold_one_layer_on_the_card_and_leave_nothing(tmp_path):
    gemma, checkpoint, one = _large(tmp_path)
    encoder = TextEncoder.load(gemma, checkpoint, torch.bfloat16, "cuda", settings=GemmaSettings(placement="layers"))
    encoder.encode(CAPTIONS)  # the matrix library takes its own workspace with the first use
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    found = encoder.encode(CAPTIONS)
    assert _peak(before) < 3 * one  # of twelve; the rest is what its largest linear takes on arrival and at work
    encoder.close()
    assert torch.cuda.memory_allocated() == before
    for one_, other in zip(found, TextEncoder.load(gemma, checkpoint, torch.float32).encode(CAPTIONS), strict=True):
        assert torch.nn.functional.cosine_similarity(one_.video.float(), other.video).min() > 0.99


@pytest.mark.parametrize(
    ("precision", "share", "least"), [("8bit", 0.6, 0.98), ("nf4", 0.35, 0.9), ("fp4", 0.35, 0.85)]
)
def test_bitsandbytes_quantizes_as_the_weights_arrive(tmp_path, precision, share, least):
    pytest.importorskip("bitsandbytes")
    gemma, checkpoint, one = _large(tmp_path)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    encoder = TextEncoder.load(gemma, checkpoint, torch.bfloat16, "cuda", settings=GemmaSettings(precision=precision))
    assert torch.cuda.memory_allocated() - before < 12 * one * share
    assert _peak(before) < 12 * one * share + 2 * one
    expected = TextEncoder.load(gemma, checkpoint, torch.float32).encode(CAPTIONS)
    for found, other in zip(encoder.encode(CAPTIONS), expected, strict=True):
        assert (
            torch.nn.functional.cosine_similarity(found.video.float().flatten(), other.video.flatten(), dim=0) > least
        )
