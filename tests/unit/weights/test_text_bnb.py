"""Gemma in 8 and 4 bits by bitsandbytes, which runs on the CPU for real."""

from __future__ import annotations

import gc
import importlib.util
import logging
import weakref

import pytest
import torch

from ltx2_train import build_caches, files, load_run
from ltx2_train.errors import ConfigError
from ltx2_train.models.text import FeatureExtractor
from ltx2_train.sampling import render
from ltx2_train.weights.gemma_bnb import bitsandbytes_linear
from ltx2_train.weights.gemma_settings import GemmaSettings
from ltx2_train.weights.text_encoder import TextEncoder
from ltx2_train.weights.tiny_gemma import write_tiny_gemma

bitsandbytes = pytest.importorskip("bitsandbytes")
TEXTS = ["a fox runs", "a woman says hello to the camera", "rain"]
SIZES = {"hidden": 64, "heads": 4, "kv_heads": 2, "intermediate": 128}  # whole blocks in every linear
EIGHT, FOUR = GemmaSettings(precision="8bit"), GemmaSettings(precision="nf4")


@pytest.fixture(scope="module", params=["plain", "fp8"])
def gemma(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return write_tiny_gemma(folder, fp8=request.param == "fp8", **SIZES)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    generator = torch.Generator().manual_seed(1)
    tensors = {
        f"text_embedding_projection.{name}": torch.randn(value.shape, generator=generator) / 21
        for name, value in FeatureExtractor(7 * 64, 24, 16).state_dict().items()
    }
    path = tmp_path_factory.mktemp("ltx") / "ltx.safetensors"
    files.write_tensors(path, tensors)
    return path


@pytest.mark.parametrize(
    ("settings", "least"),
    [
        (EIGHT, 0.99),
        (FOUR, 0.9),
        (GemmaSettings(precision="nf4", double_quant=False), 0.9),
        (GemmaSettings(precision="fp4"), 0.85),
    ],
    ids=["8bit", "nf4", "nf4-single", "fp4"],
)
def test_features_stay_near_those_of_the_full_precision(gemma, checkpoint, settings, least):
    expected = TextEncoder.load(gemma[1], checkpoint, torch.float32).encode(TEXTS)
    for path in gemma:  # an fp8 file is turned into numbers first
        encoder = TextEncoder.load(path, checkpoint, torch.float32, settings=settings)
        kind = bitsandbytes.nn.Linear8bitLt if settings.precision == "8bit" else bitsandbytes.nn.Linear4bit
        for name, module in encoder._gemma.named_modules():
            assert isinstance(module, kind) or not name.endswith("_proj"), name
        for one, other in zip(encoder.encode(TEXTS), expected, strict=True):
            assert torch.nn.functional.cosine_similarity(one.video.flatten(), other.video.flatten(), dim=0) > least
            assert not torch.equal(one.video, other.video)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("settings", [EIGHT, FOUR], ids=["8bit", "nf4"])
def test_half_precision_may_compute(gemma, checkpoint, settings, dtype):
    expected = TextEncoder.load(gemma[1], checkpoint, torch.float32).encode(TEXTS)
    settings = settings.model_copy(update={"compute_dtype": "fp16" if dtype == torch.float16 else "bf16"})
    encoder = TextEncoder.load(gemma[0], checkpoint, torch.float32, settings=settings)
    for one, other in zip(encoder.encode(TEXTS), expected, strict=True):
        assert one.video.dtype == dtype
        similar = torch.nn.functional.cosine_similarity(one.video.float().flatten(), other.video.flatten(), dim=0)
        assert similar > 0.9


@pytest.mark.parametrize("settings", [EIGHT, FOUR], ids=["8bit", "nf4"])
def test_a_linear_is_small_as_soon_as_it_has_arrived(settings):
    linear = torch.nn.Linear(256, 128, bias=False)
    made = bitsandbytes_linear(settings, torch.float32)("layers.0.mlp.up_proj", linear)
    assert made.weight.nbytes == 256 * 128 // (1 if settings is EIGHT else 2)
    assert made.weight.dtype == (torch.int8 if settings is EIGHT else torch.uint8)
    x = torch.randn(5, 256, generator=torch.Generator().manual_seed(0))
    assert torch.nn.functional.cosine_similarity(made.eval()(x).flatten(), linear(x).flatten(), dim=0) > 0.98


def test_8_bits_do_not_count_on_the_move_of_a_parameter(monkeypatch):
    # which quantizes what comes from the CPU alone: on a card all of Gemma would lie there in fp16 first
    monkeypatch.setattr(bitsandbytes.nn.Int8Params, "to", lambda self, *_, **__: self)
    made = bitsandbytes_linear(EIGHT, torch.float32)("layers.0.mlp.up_proj", torch.nn.Linear(64, 32, bias=False))
    assert made.weight.dtype == torch.int8
    assert made.weight.SCB.shape == (32,)


@pytest.mark.parametrize("settings", [EIGHT, FOUR], ids=["8bit", "nf4"])
def test_a_closed_encoder_leaves_its_weights_at_once(gemma, checkpoint, settings):
    encoder = TextEncoder.load(gemma[0], checkpoint, torch.float32, settings=settings)
    encoder.encode(["rain"])
    linears = [weakref.ref(m) for n, m in encoder._gemma.named_modules() if n.endswith("_proj")]
    assert linears
    gc.collect()
    gc.disable()
    try:
        encoder.close()
        assert not any(linear() is not None for linear in linears)
    finally:
        gc.enable()


def test_8_bits_do_not_fill_the_log(gemma, checkpoint, caplog):
    with caplog.at_level(logging.WARNING):
        TextEncoder.load(gemma[0], checkpoint, torch.float32, settings=EIGHT).encode(["rain"])
    assert not caplog.records


def test_a_missing_bitsandbytes_is_told_before_anything_is_encoded(run_file, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(render, "load_video_vae", lambda *_, **__: pytest.fail("the video VAE was loaded"))
    with pytest.raises(ConfigError, match=r"gemma.precision = nf4 needs.*pip install bitsandbytes.*layers"):
        build_caches(load_run(run_file, ["gemma.precision=nf4", "cache.skip_existing=false"]))


def test_a_missing_bitsandbytes_is_told_by_the_encoder_too(gemma, checkpoint, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install bitsandbytes"):
        TextEncoder.load(gemma[0], checkpoint, torch.float32, settings=EIGHT)
