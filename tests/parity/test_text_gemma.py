"""Gemma from a folder and from one file equals transformers' own, and so does the way captions are fed to it."""

import logging

import pytest
import torch
import transformers

from ltx2_train import files
from ltx2_train.models.text import FeatureExtractor
from ltx2_train.weights.gemma import Fp8Linear, load_gemma, load_tokenizer
from ltx2_train.weights.gemma_files import open_gemma
from ltx2_train.weights.gemma_settings import GemmaSettings
from ltx2_train.weights.reader import TensorFile
from ltx2_train.weights.text_encoder import TextEncoder
from ltx2_train.weights.tiny_gemma import write_tiny_gemma

TEXTS = (
    "A red fox runs through fresh snow at dawn.",
    "x",
    "  Two hands,\n\nclose-up: 24 frames; rain & thunder!  ",
    "Z\u00fcrich \u65e5\u672c \U0001f600",
    "",
)
PREFIX = "text_embedding_projection."


@pytest.fixture(scope="module", params=["plain", "fp8"])
def tiny(request, tmp_path_factory):
    return write_tiny_gemma(tmp_path_factory.mktemp(request.param), fp8=request.param == "fp8")


@pytest.fixture(scope="module")
def whole_model(tiny):
    """The published way: the whole image and text model, by transformers."""
    level = logging.getLogger("transformers").level
    transformers.logging.set_verbosity_error()
    model = transformers.Gemma3ForConditionalGeneration.from_pretrained(tiny[1], dtype=torch.float32).eval()
    logging.getLogger("transformers").setLevel(level)
    return model


def _states(path, ids):
    with open_gemma(path) as found:
        model = load_gemma(found, torch.float32)
    with torch.no_grad():
        return model(torch.tensor([ids]), output_hidden_states=True, use_cache=False).hidden_states


def _close(one, other, tolerance=1e-5):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def _checkpoint(path, version, columns=7 * 32):
    generator = torch.Generator().manual_seed(5)
    extractor = FeatureExtractor(columns, 32, 16 if version == "2.3" else None)
    tensors = {
        PREFIX + name: torch.randn(value.shape, generator=generator) / columns**0.5
        for name, value in extractor.state_dict().items()
    }
    files.write_tensors(path, tensors)
    extractor.load_state_dict({name[len(PREFIX) :]: tensor for name, tensor in tensors.items()})
    return path, extractor


def test_file_and_folder_give_the_ids_of_transformers(tiny):
    reference = transformers.AutoTokenizer.from_pretrained(tiny[1], local_files_only=True)
    for path in tiny:
        with open_gemma(path) as found:
            tokenizer = load_tokenizer(found)
        for text in TEXTS:
            assert tokenizer.ids(text) == reference(text.strip()).input_ids
        long = "thunder and rain " * 600
        expected = reference(long.strip(), truncation=True, max_length=1024).input_ids
        assert tokenizer.ids(long) == expected
        assert len(expected) == 1024


def test_a_folder_with_only_the_sentencepiece_model_gives_the_same_ids(tiny, tmp_path):
    with open_gemma(tiny[1]) as found:
        expected = [load_tokenizer(found).ids(text) for text in TEXTS]
    for file in tiny[1].iterdir():
        if file.name != "tokenizer.json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with open_gemma(tmp_path) as found:
        assert [load_tokenizer(found).ids(text) for text in TEXTS] == expected


def test_file_and_folder_give_the_hidden_states_of_transformers(tiny, whole_model):
    with open_gemma(tiny[0]) as found:
        ids = load_tokenizer(found).ids(TEXTS[0])
    with torch.no_grad():
        expected = whole_model(torch.tensor([ids]), output_hidden_states=True).hidden_states
    for path in tiny:
        _close(_states(path, ids), expected)


def test_the_states_are_embeddings_then_layers_and_the_last_is_normed(tiny, whole_model):
    text = whole_model.model.language_model
    ids = torch.tensor([[2, 300, 310, 320]])
    seen = []
    hooks = [layer.register_forward_hook(lambda m, i, o: seen.append(o)) for layer in text.layers]
    with torch.no_grad():
        last = text(ids).last_hidden_state
        embedded = text.embed_tokens(ids)
    for hook in hooks:
        hook.remove()
    outputs = [output[0] if isinstance(output, tuple) else output for output in seen]
    with torch.no_grad():
        torch.testing.assert_close(last, text.norm(outputs[-1]))
    _close(_states(tiny[1], ids[0].tolist()), [embedded, *outputs[:-1], last])


@pytest.mark.parametrize("version", ["2.0", "2.3"])
def test_short_batches_equal_captions_padded_left_to_1024(tiny, whole_model, tmp_path, version):
    checkpoint, extractor = _checkpoint(tmp_path / "checkpoint.safetensors", version)
    encoder = TextEncoder.load(tiny[1], checkpoint, torch.float32)
    ids = [encoder.tokenizer.ids(text) for text in TEXTS]
    padded = torch.tensor([[0] * (1024 - len(row)) + row for row in ids])
    mask = torch.tensor([[0] * (1024 - len(row)) + [1] * len(row) for row in ids])
    with torch.no_grad():
        states = whole_model(padded, attention_mask=mask, output_hidden_states=True).hidden_states
        expected = extractor(states, mask)
    for batch_size in (1, 5):
        for one, other in zip(encoder.encode(TEXTS, batch_size), expected, strict=True):
            # the rotation is relative: 1000 positions further on, fp32 sines differ in the sixth digit
            torch.testing.assert_close(one.video, other.video, rtol=1e-4, atol=5e-5)
            torch.testing.assert_close(one.audio, other.audio, rtol=1e-4, atol=5e-5)


@pytest.mark.parametrize("version", ["2.0", "2.3"])
def test_neither_batch_nor_streaming_nor_layout_changes_a_feature(tiny, tmp_path, version):
    checkpoint, _ = _checkpoint(tmp_path / "checkpoint.safetensors", version)
    expected = TextEncoder.load(tiny[0], checkpoint, torch.float32).encode(TEXTS)
    for path in tiny:
        for stream in (False, True):
            encoder = TextEncoder.load(path, checkpoint, torch.float32, stream=stream)
            for batch_size in (1, 3):
                for one, other in zip(encoder.encode(TEXTS, batch_size), expected, strict=True):
                    torch.testing.assert_close(one.video, other.video, rtol=1e-5, atol=1e-5)
                    torch.testing.assert_close(one.audio, other.audio, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("version", ["2.0", "2.3"])
def test_one_layer_at_a_time_is_the_whole_model(tiny, tmp_path, version):
    checkpoint, _ = _checkpoint(tmp_path / "checkpoint.safetensors", version)
    expected = TextEncoder.load(tiny[0], checkpoint, torch.float32).encode(TEXTS)
    for path in tiny:
        layered = TextEncoder.load(path, checkpoint, torch.float32, settings=GemmaSettings(placement="layers"))
        for one, other in zip(layered.encode(TEXTS), expected, strict=True):
            torch.testing.assert_close(one.video, other.video, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(one.audio, other.audio, rtol=1e-5, atol=1e-5)


def test_in_bf16_one_layer_at_a_time_is_as_near_to_the_truth(tiny, tmp_path):
    checkpoint, _ = _checkpoint(tmp_path / "checkpoint.safetensors", "2.3")
    truth = TextEncoder.load(tiny[0], checkpoint, torch.float32).encode(TEXTS)
    whole = TextEncoder.load(tiny[0], checkpoint, torch.bfloat16).encode(TEXTS)
    layers = TextEncoder.load(tiny[0], checkpoint, torch.bfloat16, settings=GemmaSettings(placement="layers"))
    distance = {"whole": 0.0, "layers": 0.0}
    for exact, one, other in zip(truth, whole, layers.encode(TEXTS), strict=True):
        distance["whole"] += float((one.video.float() - exact.video).square().sum())
        distance["layers"] += float((other.video.float() - exact.video).square().sum())
    assert distance["layers"] < 1.1 * distance["whole"]


def _rewrite(source, target, change):
    with TensorFile(source) as file:
        tensors = {name: file.read(name) for name in file.tensors}
    files.write_tensors(target, change(tensors))
    return target


def _legacy(tensors):
    renamed = {name.replace(".weight_scale", ".scale_weight"): tensor for name, tensor in tensors.items()}
    renamed = {name: tensor for name, tensor in renamed.items() if "comfy_quant" not in name}
    return renamed | {"scaled_fp8": torch.zeros(2).to(torch.float8_e4m3fn)}


def _per_row(tensors):
    return {
        name: tensor.expand(tensors[name.removesuffix("_scale")].shape[0], 1) if name.endswith("_scale") else tensor
        for name, tensor in tensors.items()
    }


@pytest.mark.parametrize("change", [_legacy, _per_row])
def test_every_spelling_of_fp8_scales_equals_the_dequantized_folder(tmp_path, change):
    single, folder = write_tiny_gemma(tmp_path, fp8=True)
    path = _rewrite(single, tmp_path / "other.safetensors", change)
    ids = [2, 300, 310, 320, 9]
    _close(_states(path, ids), _states(folder, ids))


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_plain_fp8_casts_stay_fp8_in_memory_and_equal_their_values(tmp_path, kind):
    single, _ = write_tiny_gemma(tmp_path)

    def cast(tensors):
        return {name: t if name == "spiece_model" else t.to(kind) for name, t in tensors.items()}

    def cast_back(tensors):
        return {name: t if name == "spiece_model" else t.to(kind).float() for name, t in tensors.items()}

    path = _rewrite(single, tmp_path / "cast.safetensors", cast)
    reference = _rewrite(single, tmp_path / "back.safetensors", cast_back)
    with open_gemma(path) as found:
        model = load_gemma(found, torch.bfloat16)
    for layer in model.layers:
        assert isinstance(layer.mlp.up_proj, Fp8Linear)
        assert layer.mlp.up_proj.weight.dtype == kind
    assert model.embed_tokens.weight.dtype == kind
    ids = [2, 300, 310, 320, 9]
    _close(_states(path, ids), _states(reference, ids))


def test_bf16_embeddings_are_scaled_as_transformers_scales_them(tmp_path):
    # the root of the width is rounded to bf16 first; 32 has a root that shows it
    single, folder = write_tiny_gemma(tmp_path, dtype=torch.bfloat16)
    path = _rewrite(
        single,
        tmp_path / "fp8.safetensors",
        lambda tensors: (
            tensors | {"model.embed_tokens.weight": tensors["model.embed_tokens.weight"].to(torch.float8_e4m3fn)}
        ),
    )
    ids = torch.tensor([[2, 300, 310]])
    with open_gemma(path) as found:
        kept = load_gemma(found, torch.bfloat16).embed_tokens(ids)
    text = transformers.Gemma3TextModel(transformers.Gemma3TextConfig(**_text_config(folder))).bfloat16()
    with TensorFile(path) as file:
        text.embed_tokens.weight.data = file.read("model.embed_tokens.weight", dtype=torch.bfloat16)
    assert torch.equal(kept, text.embed_tokens(ids))


def _text_config(folder):
    import json

    return json.loads((folder / "config.json").read_text())["text_config"]


@pytest.mark.parametrize("kind", ["text only", "saved again"])
def test_folders_written_by_transformers_itself_give_the_same_states(tmp_path, kind):
    _, folder = write_tiny_gemma(tmp_path)
    ids = [2, 300, 310, 320, 9]
    expected = _states(folder, ids)
    transformers.logging.set_verbosity_error()
    if kind == "text only":
        with open_gemma(folder) as found:
            model = load_gemma(found, torch.float32)
        causal = transformers.Gemma3ForCausalLM(model.config)
        causal.model.load_state_dict(model.state_dict())
        causal.save_pretrained(tmp_path / "again")
    else:
        model = transformers.Gemma3ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
        model.save_pretrained(tmp_path / "again")
    _close(_states(tmp_path / "again", ids), expected)
