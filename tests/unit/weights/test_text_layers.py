"""The text encoder in little memory: one layer at a time."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from ltx2_train import files
from ltx2_train.errors import ConfigError, DataError, OutOfMemory, Stopped
from ltx2_train.events import Events
from ltx2_train.models.text import FeatureExtractor
from ltx2_train.sampling.prompt_text import encoder_bytes
from ltx2_train.settings import parse
from ltx2_train.weights import text_encoder, text_layers
from ltx2_train.weights.gemma_files import open_gemma
from ltx2_train.weights.gemma_settings import GemmaSettings
from ltx2_train.weights.reader import TensorFile
from ltx2_train.weights.text_encoder import TextEncoder, text_fingerprint
from ltx2_train.weights.text_layers import LayeredTextEncoder
from ltx2_train.weights.tiny_gemma import write_tiny_gemma

TEXTS = ["a fox runs", "a woman says hello to the camera", "rain"]
LAYERS = GemmaSettings(placement="layers")
CPU = torch.device("cpu")


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


def test_caches_of_another_precision_are_stale_and_those_as_stored_stay(tiny, checkpoint):
    stored = text_fingerprint(tiny[0], checkpoint)
    assert text_fingerprint(tiny[0], checkpoint, GemmaSettings(placement="layers")) == stored
    four, single, eight = (
        text_fingerprint(tiny[0], checkpoint, settings)
        for settings in (
            GemmaSettings(precision="nf4"),
            GemmaSettings(precision="nf4", double_quant=False),
            GemmaSettings(precision="8bit"),
        )
    )
    assert len({stored, four, single, eight}) == 4
    assert text_fingerprint(tiny[0], checkpoint, GemmaSettings(precision="8bit", double_quant=False)) == eight
    assert encode_fingerprint(tiny, checkpoint, LAYERS) == stored


def encode_fingerprint(tiny, checkpoint, settings):
    return TextEncoder.load(tiny[0], checkpoint, torch.float32, settings=settings).fingerprint


def test_what_cannot_be_together_is_refused_when_the_settings_are_read():
    for placement in ("layers", "stream"):
        with pytest.raises(ConfigError, match=f"gemma.placement = {placement} and gemma.precision = nf4 exclude"):
            parse(GemmaSettings, {"precision": "nf4", "placement": placement}, "run.toml")


def _poisoned(path, target, tokens):
    """The text encoder with embeddings of `tokens` that are no numbers."""
    with TensorFile(path) as file:
        tensors = {name: file.read(name) for name in file.tensors}
        tensors["model.embed_tokens.weight"][sorted(tokens)] = float("nan")
        files.write_tensors(target, tensors, dict(file.metadata))
    return target


def test_a_caption_that_fails_is_named_and_the_others_are_kept(tiny, checkpoint, tmp_path):
    expected = encode(tiny, checkpoint, LAYERS)
    tokenizer = TextEncoder.load(tiny[0], checkpoint, torch.float32, settings=LAYERS).tokenizer
    alone = set(tokenizer.ids(TEXTS[2])) - set(tokenizer.ids(TEXTS[0])) - set(tokenizer.ids(TEXTS[1]))
    path = _poisoned(tiny[0], tmp_path / "poisoned.safetensors", alone)
    encoder = TextEncoder.load(path, checkpoint, torch.float32, settings=LAYERS)
    found = dict(encoder.encode_each(TEXTS))
    for caption, features in zip(TEXTS[:2], expected, strict=False):
        torch.testing.assert_close(found[caption].audio, features.audio, rtol=1e-5, atol=1e-5)
    assert isinstance(found["rain"], DataError)
    assert "'rain'" in str(found["rain"])
    with pytest.raises(DataError, match="'rain'"):
        encoder.encode(TEXTS)


def test_a_full_device_gets_smaller_batches_before_it_is_an_error(tiny, checkpoint, monkeypatch):
    real, most, sizes = text_layers.one_layer, 1, []

    def one_layer(*args):
        model = real(*args)

        def look(module, arguments, more):
            if len(more["inputs_embeds"]) > most:
                raise torch.OutOfMemoryError("no room")
            sizes.append(len(more["inputs_embeds"]))

        model.register_forward_pre_hook(look, with_kwargs=True)
        return model

    expected = encode(tiny, checkpoint, LAYERS)
    monkeypatch.setattr(text_layers, "one_layer", one_layer)
    for one, other in zip(encode(tiny, checkpoint, LAYERS), expected, strict=True):
        torch.testing.assert_close(one.video, other.video, rtol=1e-5, atol=1e-5)
    assert sizes == [1] * (3 * 6)
    most = 0
    with pytest.raises(OutOfMemory, match=r"One layer.*model.device = cpu"):
        encode(tiny, checkpoint, LAYERS)


def test_a_device_that_is_full_while_states_are_added_counts_none_twice(tiny, checkpoint, monkeypatch):
    expected = encode(tiny, checkpoint, LAYERS)
    real, calls = text_layers.PartialFeatures.add, [0]

    def add(self, rows, slices):
        calls[0] += 1
        if calls[0] in (5, 9):  # the second of a batch, when the first has been added
            raise torch.OutOfMemoryError("no room")
        real(self, rows, slices)

    monkeypatch.setattr(text_layers.PartialFeatures, "add", add)
    for one, other in zip(encode(tiny, checkpoint, LAYERS), expected, strict=True):
        torch.testing.assert_close(one.video, other.video, rtol=1e-5, atol=1e-5)
    assert calls[0] == 2 + 3 * 7


@pytest.mark.parametrize("audio", [None, 16])
def test_the_projection_is_turned_in_place_and_gives_the_same_columns(audio):
    extractor = FeatureExtractor(7 * 32, 70, audio).to(torch.bfloat16)
    expected = [[head.weight[:, number::7].float() for head in extractor.heads] for number in range(7)]
    places = [head.weight.data_ptr() for head in extractor.heads]
    extractor.lay_by_state(7)
    extractor.lay_by_state(7)
    for number, slices in enumerate(expected):
        found = extractor.column_slices(number, 7, "cpu")
        assert all(torch.equal(one, other) for one, other in zip(found, slices, strict=True))
    assert [head.weight.data_ptr() for head in extractor.heads] == places


def test_a_closed_encoder_holds_no_weights_and_encodes_nothing(tiny, checkpoint):
    encoder = TextEncoder.load(tiny[0], checkpoint, torch.float32, settings=LAYERS)
    held = weakref.ref(encoder._extractor)
    encoder.encode(TEXTS)
    encoder.close()
    gc.collect()
    assert held() is None
    with pytest.raises(RuntimeError, match="closed"):
        encoder.encode(TEXTS)


def _live():
    """Bytes of all tensors that are reachable, each storage once."""
    storages = {}
    for thing in gc.get_objects():
        if type(thing) in (torch.Tensor, torch.nn.Parameter) and not thing.is_meta:
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def test_one_layer_is_what_it_takes_where_the_whole_is_nine(tmp_path, monkeypatch):
    path, _ = write_tiny_gemma(
        tmp_path, hidden=512, layers=8, heads=4, kv_heads=2, head_dim=64, intermediate=1024, dtype=torch.bfloat16
    )
    head = {"aggregate_embed.weight": torch.randn(24, 9 * 512) / 60}
    checkpoint = tmp_path / "ltx.safetensors"
    files.write_tensors(checkpoint, {f"text_embedding_projection.{name}": tensor for name, tensor in head.items()})
    with open_gemma(path) as found:
        one = sum(found.info(name).nbytes for name in found.tensors if name.startswith("layers.0."))
    gc.collect()
    before, peaks = _live(), []
    real = text_layers.one_layer

    def one_layer(*args):
        model = real(*args)
        peaks.append(_live() - before)
        return model

    monkeypatch.setattr(text_layers, "one_layer", one_layer)
    encoder = TextEncoder.load(path, checkpoint, torch.bfloat16, settings=LAYERS)
    layered = encoder.encode(TEXTS)
    assert len(peaks) == 8
    assert one < max(peaks) < 1.2 * one
    del encoder
    gc.collect()
    before = _live()
    whole = TextEncoder.load(path, checkpoint, torch.bfloat16)
    assert _live() - before > 8 * one
    for a, b in zip(layered, whole.encode(TEXTS), strict=True):
        assert torch.nn.functional.cosine_similarity(a.video.float(), b.video.float()).min() > 0.999


def test_what_is_asked_of_the_device_follows_placement_and_precision(tiny):
    whole = encoder_bytes(tiny[0], GemmaSettings(), CPU)
    with open_gemma(tiny[0]) as found:
        assert whole == sum(found.info(name).elements for name in found.tensors) * 4
    layers = encoder_bytes(tiny[0], LAYERS, CPU)
    assert layers == encoder_bytes(tiny[0], GemmaSettings(placement="stream"), CPU)
    assert 6 * layers < whole
    eight, four = (encoder_bytes(tiny[0], GemmaSettings(precision=name), CPU) for name in ("8bit", "nf4"))
    assert layers < four < eight < whole
    assert encoder_bytes(tiny[0], GemmaSettings(compute_dtype="bf16"), CPU) == whole // 2
    assert encoder_bytes(tiny[1], GemmaSettings(), CPU) == whole
