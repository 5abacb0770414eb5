"""The text encoder in little memory: one layer at a time, and by bitsandbytes, which runs on the CPU for real."""

from __future__ import annotations

import importlib.util
import weakref

import pytest
import torch

from ltx2_train import files
from ltx2_train.errors import ConfigError, Stopped
from ltx2_train.events import Events
from ltx2_train.models.text import FeatureExtractor
from ltx2_train.weights import text_encoder, text_layers
from ltx2_train.weights.gemma_settings import GemmaSettings
from ltx2_train.weights.reader import TensorFile
from ltx2_train.weights.text_encoder import TextEncoder, text_fingerprint
from ltx2_train.weights.text_layers import LayeredTextEncoder
from ltx2_train.weights.tiny_gemma import write_tiny_gemma

TEXTS = ["a fox runs", "a woman says hello to the camera", "rain"]
LAYERS = GemmaSettings(placement="layers")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny_gemma(tmp_path_factory.mktemp("gemma"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    generator = torch.Generator().manual_seed(1)
    tensors = {
        f"text_embedding_projection.{name}": torch.randn(value.shape, generator=generator) / 15
        for name, value in FeatureExtractor(7 * 32, 24, 16).state_dict().items()
    }
    path = tmp_path_factory.mktemp("ltx") / "ltx.safetensors"
    files.write_tensors(path, tensors)
    return path


def encode(tiny, checkpoint, settings, texts=TEXTS):
    return TextEncoder.load(tiny[0], checkpoint, torch.float32, settings=settings).encode(texts)


def fp8_of(path, target):
    """The text encoder with its linears in fp8, one scale a tensor."""
    with TensorFile(path) as file:
        tensors = {}
        for name in file.tensors:
            tensor = file.read(name)
            if name.endswith("_proj.weight"):
                scale = tensor.float().abs().max() / 448
                tensors[name + "_scale"] = scale
                tensor = (tensor.float() / scale).to(torch.float8_e4m3fn)
            tensors[name] = tensor
        files.write_tensors(target, tensors, dict(file.metadata))
    return target


def test_fp8_files_pass_layer_by_layer_too(tiny, checkpoint, tmp_path):
    path = fp8_of(tiny[0], tmp_path / "fp8.safetensors")
    whole = TextEncoder.load(path, checkpoint, torch.float32).encode(TEXTS)
    for one, other in zip(encode([path], checkpoint, LAYERS), whole, strict=True):
        torch.testing.assert_close(one.video, other.video, rtol=1e-5, atol=1e-5)


def test_there_is_one_layer_at_a_time_and_each_is_read_once(tiny, checkpoint, monkeypatch):
    alive, read = [], []
    real = text_layers.one_layer

    def one_layer(files, number, *more):
        assert not any(layer() is not None for layer in alive), "two layers at once"
        model = real(files, number, *more)
        alive.append(weakref.ref(model))
        read.append(number)
        return model

    monkeypatch.setattr(text_layers, "one_layer", one_layer)
    encode(tiny, checkpoint, LAYERS, [f"{text} {number}" for text in TEXTS for number in range(20)])
    assert read == list(range(6))


def test_only_the_rows_in_use_of_the_embeddings_are_read(tiny, checkpoint, monkeypatch):
    whole = []
    real = TensorFile.read

    def read(self, name, *more):
        whole.append(name)
        return real(self, name, *more)

    encoder = TextEncoder.load(tiny[0], checkpoint, torch.float32, settings=LAYERS)
    monkeypatch.setattr(TensorFile, "read", read)
    encoder.encode(TEXTS)
    assert whole
    assert not any("embed_tokens" in name for name in whole)


def test_groups_hold_as_much_as_ram_should(tiny, checkpoint, monkeypatch):
    encoder = TextEncoder.load(tiny[0], checkpoint, torch.float32, settings=LAYERS)
    texts = [f"caption number {number}" for number in range(30)]
    assert encoder.groups(texts) == [texts]
    monkeypatch.setattr(text_layers, "GROUP_BYTES", 10_000)
    parts = encoder.groups(texts)
    assert len(parts) > 1
    assert [text for part in parts for text in part] == texts
    expected = encoder.encode(texts)
    found = [features for part in parts for features in encoder.encode(part)]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.video, other.video, rtol=1e-5, atol=1e-5)


def test_a_stop_is_heard_between_batches_and_progress_counts_layers(tiny, checkpoint):
    class Impatient(Events):
        def __init__(self):
            self.told = []

        def progress(self, done, total, text=""):
            self.told.append((done, total, text))

        def should_stop(self):
            return len(self.told) >= 3

    events = Impatient()
    encoder = TextEncoder.load(tiny[0], checkpoint, torch.float32, settings=LAYERS)
    with pytest.raises(Stopped):
        encoder.encode(TEXTS, events=events)
    assert events.told[-1] == (3, 6, "layer 3 of 6")


def test_auto_takes_the_device_where_it_fits_and_the_layers_where_not(tiny, checkpoint, monkeypatch):
    assert isinstance(TextEncoder.load(tiny[0], checkpoint, torch.float32, settings=GemmaSettings()), TextEncoder)
    monkeypatch.setattr(text_encoder, "_fits", lambda *_: False)
    found = TextEncoder.load(tiny[0], checkpoint, torch.float32, settings=GemmaSettings())
    assert isinstance(found, LayeredTextEncoder)
    kept = TextEncoder.load(tiny[0], checkpoint, torch.float32, settings=GemmaSettings(placement="stream"))
    assert kept.stream


@pytest.mark.parametrize(
    ("settings", "least"),
    [
        (GemmaSettings(precision="8bit"), 0.99),
        (GemmaSettings(precision="nf4"), 0.9),
        (GemmaSettings(precision="nf4", double_quant=False), 0.9),
        (GemmaSettings(precision="fp4"), 0.85),
    ],
    ids=["8bit", "nf4", "nf4-single", "fp4"],
)
def test_bitsandbytes_stays_near_the_full_precision(tiny, checkpoint, settings, least):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    encoder = TextEncoder.load(tiny[0], checkpoint, torch.float32, settings=settings)
    kinds = {type(module) for module in encoder._gemma.modules()}
    assert kinds & {bitsandbytes.nn.Linear8bitLt, bitsandbytes.nn.Linear4bit}
    expected = encode(tiny, checkpoint, GemmaSettings())
    for one, other in zip(encoder.encode(TEXTS), expected, strict=True):
        assert torch.nn.functional.cosine_similarity(one.video.flatten(), other.video.flatten(), dim=0) > least
        assert not torch.equal(one.video, other.video)


def test_caches_of_another_precision_are_stale_and_those_as_stored_stay(tiny, checkpoint):
    stored = text_fingerprint(tiny[0], checkpoint)
    assert text_fingerprint(tiny[0], checkpoint, GemmaSettings(placement="layers")) == stored
    assert text_fingerprint(tiny[0], checkpoint, GemmaSettings(precision="nf4")) != stored
    assert encode_fingerprint(tiny, checkpoint, LAYERS) == stored


def encode_fingerprint(tiny, checkpoint, settings):
    return TextEncoder.load(tiny[0], checkpoint, torch.float32, settings=settings).fingerprint


def test_what_cannot_be_is_refused_with_the_way_out(tiny, checkpoint, monkeypatch):
    for placement in ("layers", "stream"):
        with pytest.raises(ConfigError, match="exclude each other"):
            TextEncoder.load(
                tiny[0], checkpoint, torch.float32, settings=GemmaSettings(precision="nf4", placement=placement)
            )
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install bitsandbytes"):
        TextEncoder.load(tiny[0], checkpoint, torch.float32, settings=GemmaSettings(precision="8bit"))
