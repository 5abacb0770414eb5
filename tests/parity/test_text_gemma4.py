"""Gemma 4 of LTX-2.5, from one file and from a folder, equals transformers' own; which Gemma goes with which model."""

import json

import pytest
import torch
import transformers

from ltx2_train import files
from ltx2_train.errors import CheckpointError
from ltx2_train.models.text import FeatureExtractor
from ltx2_train.quant.int8 import KeptConvrot
from ltx2_train.weights.gemma import Fp8Linear, load_gemma, load_tokenizer, tokenizer_digest
from ltx2_train.weights.gemma_files import open_gemma
from ltx2_train.weights.gemma_settings import GemmaSettings
from ltx2_train.weights.reader import TensorFile
from ltx2_train.weights.text_encoder import TextEncoder, check_text_encoder, projection_file
from ltx2_train.weights.tiny_gemma import write_tiny_gemma
from ltx2_train.weights.tiny_gemma4 import write_tiny_gemma4

TEXTS = (
    "A red fox runs through fresh snow at dawn.",
    "x",
    "  Two hands,\n\nclose-up: 24 frames!  ",
    "日本 \U0001f600",
    "",
)
IDS = [2, 300, 310, 320, 9, 40, 41, 42, 43, 44, 45, 46, 300, 301, 302]  # longer than the window
PREFIX = "text_embedding_projection."
SPLIT = {"gemma_source_checkpoint": json.dumps({"ltx_version": "2.5.0", "gemma_version": "gemma4-12b-ltx-v1"})}


def projection():
    generator = torch.Generator().manual_seed(5)
    shapes = FeatureExtractor(7 * 32, 32, 16).state_dict()
    return {PREFIX + name: torch.randn(value.shape, generator=generator) / 15 for name, value in shapes.items()}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny_gemma4(tmp_path_factory.mktemp("gemma4"), projection())


@pytest.fixture(scope="module")
def transformer(tmp_path_factory):
    """What of a transformer's file the encoder is compared with."""
    path = tmp_path_factory.mktemp("transformer") / "ltx-2.5.safetensors"
    block = ("attn1.to_q.weight", "prompt_scale_shift_table", "ff.net.0.proj.weight")
    names = (*(f"transformer_blocks.0.{name}" for name in block), "patchify_proj.weight")
    tensors = {f"model.diffusion_model.{name}": torch.zeros(1, 4) for name in names}
    files.write_tensors(path, tensors | projection(), SPLIT | {"model_version": "2.5.0"})
    return path


def theirs(folder, kind):
    settings = json.loads((folder / "config.json").read_text())["text_config"]
    settings.pop("model_type")
    config, model = (
        (transformers.Gemma4UnifiedTextConfig, transformers.Gemma4UnifiedTextModel)
        if kind == "unified"
        else (transformers.Gemma4TextConfig, transformers.Gemma4TextModel)
    )
    made = model(config(**settings)).eval()
    with open_gemma(folder) as found:
        state = {name: found.read(name) for name in found.tensors}
    missing, unexpected = made.load_state_dict(state, strict=False)
    assert not unexpected
    assert not [name for name in missing if "rotary" not in name and "embed_scale" not in name]
    return made


def states(path, ids, dtype=torch.float32):
    with open_gemma(path) as found:
        model = load_gemma(found, dtype)
    with torch.no_grad():
        return model(model.embed_tokens(torch.tensor([ids])), output_hidden_states=True).hidden_states


@pytest.mark.parametrize("kind", ["unified", "plain"])
def test_file_and_folder_give_the_hidden_states_of_transformers(tiny, kind):
    model = theirs(tiny[1], kind)
    with torch.no_grad():
        output = model(torch.tensor([IDS]), output_hidden_states=True)
    assert len(output.hidden_states) == 7
    for path in tiny:
        ours = states(path, IDS)
        assert len(ours) == 7
        for one, other in zip(ours, output.hidden_states, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(ours[-1], output.last_hidden_state, rtol=1e-4, atol=1e-4)
    # the window is smaller than the caption, and that shows
    assert (states(tiny[0], IDS[:3] + [50] + IDS[4:])[1][0, 3 + 8 :] == ours[1][0, 3 + 8 :]).all()


def test_neither_batch_nor_placement_nor_layout_changes_a_feature(tiny, tmp_path):
    checkpoint = tmp_path / "checkpoint.safetensors"
    files.write_tensors(checkpoint, projection())
    expected = TextEncoder.load(tiny[0], tiny[0], torch.float32).encode(TEXTS)
    assert projection_file(tiny[0], checkpoint) == tiny[0]
    assert projection_file(tiny[1], checkpoint) == checkpoint
    attempts = [(tiny[1], checkpoint, {"stream": True}, 3)]
    attempts += [(path, source, {"settings": GemmaSettings(placement="layers")}, 1)
                 for path, source in ((tiny[0], tiny[0]), (tiny[1], checkpoint))]  # fmt: skip
    for path, source, options, batch in attempts:
        found = TextEncoder.load(path, source, torch.float32, **options).encode(TEXTS, batch)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one.video, other.video, rtol=1e-5, atol=5e-5)
            torch.testing.assert_close(one.audio, other.audio, rtol=1e-5, atol=5e-5)


def test_ids_begin_with_the_begin_token_that_the_tokenizer_itself_does_not_add(tiny, tmp_path):
    with open_gemma(tiny[1]) as found:
        plain = load_tokenizer(found)
        assert plain.ids("") == [2]
        assert plain.ids("a fox")[0] == 2
        assert plain.ids(" a fox ") == plain.ids("a fox") != plain.ids("the fox")
        expected, digest = plain.ids("snow at dawn"), tokenizer_digest(found)
    with TensorFile(tiny[0]) as file:
        tensors = {name: file.read(name) for name in file.tensors}
        metadata = dict(file.metadata)
    text = bytes(tensors.pop("tokenizer_json").tolist())
    signed = torch.frombuffer(bytearray(text), dtype=torch.int8)
    for name, more, header in (
        ("int8", {"tokenizer_json": signed}, {}),
        ("header", {}, {"tokenizer_json": text.decode()}),
    ):
        path = tmp_path / f"{name}.safetensors"
        files.write_tensors(path, tensors | more, metadata | header)
        with open_gemma(path) as found:
            assert load_tokenizer(found).ids("snow at dawn") == expected
            assert tokenizer_digest(found) == digest
    bare = tmp_path / "bare.safetensors"
    files.write_tensors(bare, tensors, metadata)
    with open_gemma(bare) as found, pytest.raises(CheckpointError, match=r"no tokenizer.*tokenizer_json.*gemma4-12b"):
        load_tokenizer(found)


def test_fp8_linears_stay_as_stored(tiny, tmp_path):
    with TensorFile(tiny[0]) as file:
        tensors = {name: file.read(name) for name in file.tensors}
        metadata = dict(file.metadata)
    kept = {
        name: t.to(torch.float8_e4m3fn) if "_proj." in name and "model." in name else t for name, t in tensors.items()
    }
    back = {name: t.float() if t.dtype == torch.float8_e4m3fn else t for name, t in kept.items()}
    paths = [tmp_path / "kept.safetensors", tmp_path / "back.safetensors"]
    for path, content in zip(paths, (kept, back), strict=True):
        files.write_tensors(path, content, metadata)
    with open_gemma(paths[0]) as found:
        assert isinstance(load_gemma(found, torch.float32).layers[5].self_attn.k_proj, Fp8Linear)
    for one, other in zip(states(paths[0], IDS), states(paths[1], IDS), strict=True):
        torch.testing.assert_close(one, other)


def test_only_the_gemma_of_this_very_model_is_taken(tiny, transformer, tmp_path):
    assert check_text_encoder(tiny[0], tiny[0], transformer).columns == 7 * 32
    older = tmp_path / "ltx-2.3.safetensors"
    files.write_tensors(older, projection())
    stock = write_tiny_gemma4(tmp_path / "stock", projection(), version="")
    other = write_tiny_gemma4(tmp_path / "other", projection(), version="gemma4-12b-ltx-v2")
    three = write_tiny_gemma(tmp_path / "three")
    for path in stock:
        with pytest.raises(CheckpointError, match=r"stock Gemma 4.*gemma4-12b-ltx-v1.*Choose gemma4-12b-with-proj"):
            check_text_encoder(path, transformer)
    with pytest.raises(CheckpointError, match=r"of version 'gemma4-12b-ltx-v2'; ltx-2\.5\.safetensors"):
        check_text_encoder(other[0], other[0], transformer)
    with pytest.raises(CheckpointError, match=r"is Gemma 3; ltx-2\.5\.safetensors is LTX-2\.5"):
        check_text_encoder(three[0], transformer)
    with pytest.raises(CheckpointError, match=r"is Gemma 4, which belongs to LTX-2\.5.*gemma_3_12B_it"):
        check_text_encoder(tiny[1], older)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model.layers.5.layer_scalar": None}, "incomplete"),
        ({"model.layers.2.self_attn.v_proj.weight": torch.zeros(3, 32)}, r"layers\.2\.self_attn\.v_proj.*\[3, 32\]"),
        ({"model.layers.0.per_layer_input_gate.weight": torch.zeros(2, 2)}, "unknown tensors"),
        ({"model.layers.1.mlp.up_proj.weight": torch.zeros(48, 32, dtype=torch.int8),
          "model.layers.1.mlp.up_proj.weight_scale": torch.ones(1),
          "model.layers.1.mlp.up_proj.comfy_quant": torch.frombuffer(
              bytearray(b'{"format": "int8_tensorwise", "convrot": true}'), dtype=torch.uint8)}, "int8.*convrot"),
    ],
)  # fmt: skip
def test_another_gemma_4_is_refused_by_what_differs(tiny, tmp_path, change, words):
    with TensorFile(tiny[0]) as file:
        tensors = {name: file.read(name) for name in file.tensors} | change
        files.write_tensors(
            tmp_path / "x.safetensors", {n: t for n, t in tensors.items() if t is not None}, file.metadata
        )
    with pytest.raises(CheckpointError, match=words):
        open_gemma(tmp_path / "x.safetensors")


def test_its_file_of_rotated_int8_is_kept_and_near_the_original(tiny, tmp_path):
    from quantized_layouts import as_convrot

    with TensorFile(tiny[0]) as file:
        tensors, metadata = {name: file.read(name) for name in file.tensors}, file.metadata
    for name in [name for name in tensors if name.endswith("_proj.weight") and "layers." in name]:
        tensors |= as_convrot(name.removesuffix(".weight"), tensors[name])
    files.write_tensors(tmp_path / "int8.safetensors", tensors, metadata)
    encoder = TextEncoder.load(tmp_path / "int8.safetensors", tmp_path / "int8.safetensors", torch.float32)
    linears = {type(m) for name, m in encoder._gemma.named_modules() if name.endswith("_proj")}
    assert linears == {KeptConvrot}
    expected = TextEncoder.load(tiny[0], tiny[0], torch.float32).encode(TEXTS)
    for one, other in zip(encoder.encode(TEXTS), expected, strict=True):
        assert torch.nn.functional.cosine_similarity(one.video.flatten(), other.video.flatten(), dim=0) > 0.95
        assert not torch.equal(one.video, other.video)


# attention of scale 1 is sharp where weights are random, so rounding to 4 bits shows more than in the real model
@pytest.mark.parametrize(("precision", "least"), [("8bit", 0.9), ("nf4", 0.5)])
def test_its_linears_become_8_or_4_bits(tmp_path, precision, least):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    generator = torch.Generator().manual_seed(5)
    shapes = FeatureExtractor(7 * 64, 32, 16).state_dict()
    wide = {PREFIX + name: torch.randn(value.shape, generator=generator) / 21 for name, value in shapes.items()}
    single, _ = write_tiny_gemma4(tmp_path, wide, hidden=64)
    expected = TextEncoder.load(single, single, torch.float32).encode(TEXTS)
    encoder = TextEncoder.load(single, single, torch.float32, settings=GemmaSettings(precision=precision))
    kind = bitsandbytes.nn.Linear8bitLt if precision == "8bit" else bitsandbytes.nn.Linear4bit
    linears = [m for name, m in encoder._gemma.named_modules() if name.endswith("_proj")]
    assert sum(isinstance(linear, kind) for linear in linears) > len(linears) // 2
    for one, other in zip(encoder.encode(TEXTS), expected, strict=True):
        assert torch.nn.functional.cosine_similarity(one.video.flatten(), other.video.flatten(), dim=0) > least
        assert not torch.equal(one.video, other.video)
