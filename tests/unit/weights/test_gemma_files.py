"""What is accepted as a text encoder, and what is said about everything else."""

import json
import os
import shutil
import struct
import time

import pytest
import torch

from ltx2_train import files
from ltx2_train.errors import CheckpointError
from ltx2_train.weights.gemma import gemma_config, load_gemma, load_tokenizer
from ltx2_train.weights.gemma_files import open_gemma
from ltx2_train.weights.reader import TensorFile
from ltx2_train.weights.tiny_gemma import write_tiny_gemma


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny_gemma(tmp_path_factory.mktemp("gemma"))


@pytest.fixture
def single(tiny, tmp_path):
    return shutil.copy(tiny[0], tmp_path / "gemma.safetensors")


@pytest.fixture
def folder(tiny, tmp_path):
    return shutil.copytree(tiny[1], tmp_path / "gemma")


def _change(path, change, metadata=None):
    with TensorFile(path) as file:
        tensors = {name: file.read(name) for name in file.tensors}
    files.write_tensors(path, change(tensors), metadata)


def _refused(path, *words):
    with pytest.raises(CheckpointError) as caught:
        open_gemma(path)
    for word in (*words, "gemma_3_12B_it.safetensors"):
        assert word in str(caught.value)


def test_sizes_come_from_the_tensors(tmp_path):
    path, folder = write_tiny_gemma(
        tmp_path, hidden=24, layers=7, heads=4, kv_heads=2, head_dim=8, intermediate=40, vocabulary=400
    )
    for source in (path, folder):
        with open_gemma(source) as found:
            config = gemma_config(found)
        shape = found.shape
        assert (shape.vocabulary, shape.hidden, shape.layers, shape.intermediate) == (400, 24, 7, 40)
        assert (shape.heads, shape.kv_heads, shape.head_dim) == (4, 2, 8)
        assert shape.columns == 24 * 8
        assert config.layer_types == ["sliding_attention"] * 5 + ["full_attention", "sliding_attention"]
        assert config.sliding_window == 1024
        assert config.query_pre_attn_scalar == 8


def test_values_of_config_json_win_over_the_defaults(folder):
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= {"sliding_window": 512, "sliding_window_pattern": 2, "query_pre_attn_scalar": 9}
    files.write_json(folder / "config.json", config)
    with open_gemma(folder) as found:
        made = gemma_config(found)
    assert (made.sliding_window, made.query_pre_attn_scalar) == (512, 9)
    assert made.layer_types[:3] == ["sliding_attention", "full_attention", "sliding_attention"]


@pytest.mark.parametrize(
    "prefix", ["", "model.", "language_model.model.", "model.language_model.", "text.gemma.model."]
)
def test_any_prefix_before_the_text_tower_is_understood(single, prefix):
    def rename(tensors):
        own = {name.replace("model.", prefix, 1): tensor for name, tensor in tensors.items()}
        return own | {"vision_model.layers.0.mlp.weight": torch.zeros(2), "lm_head.weight": torch.zeros(3)}

    _change(single, rename)
    with open_gemma(single) as found:
        assert found.shape.layers == 6
        assert load_gemma(found, torch.float32).norm.weight.shape == (32,)


@pytest.mark.parametrize("change", [0, 1])
def test_a_tower_under_two_prefixes_is_refused_unless_both_are_equal(single, change):
    def again(tensors):
        return tensors | {f"other.{name}": tensor + change for name, tensor in tensors.items()}

    _change(single, again)
    if change:
        with pytest.raises(
            CheckpointError, match="text encoder gemma.safetensors has one weight twice, with other num"
        ):
            open_gemma(single)
    else:
        with open_gemma(single) as found:
            assert found.shape.layers == 6


def test_loading_leaves_the_random_numbers_alone(tiny):
    torch.manual_seed(3)
    expected = torch.randn(4)
    torch.manual_seed(3)
    with open_gemma(tiny[0]) as found:
        load_gemma(found, torch.float32)
    assert torch.equal(torch.randn(4), expected)


def test_each_byte_is_read_once_and_progress_reaches_the_end(tiny):
    seen = []
    with open_gemma(tiny[0]) as found:
        load_gemma(found, torch.bfloat16, on_progress=lambda *report: seen.append(report[:2]))
        assert found.files[0].bytes_read == found.nbytes
    assert seen[-1] == (found.nbytes, found.nbytes)
    assert seen == sorted(seen)


def test_a_linear_can_be_stored_otherwise(tiny):
    seen = []

    def replace(path, linear):
        seen.append(path)
        assert not linear.weight.is_meta
        return torch.nn.Identity() if path.endswith("up_proj") else None

    with open_gemma(tiny[0]) as found:
        model = load_gemma(found, torch.float32, on_linear=replace)
    assert len(seen) == 6 * 7
    assert isinstance(model.layers[3].mlp.up_proj, torch.nn.Identity)
    assert isinstance(model.layers[3].mlp.down_proj, torch.nn.Linear)


def test_a_path_that_is_not_there_is_named(tmp_path):
    _refused(tmp_path / "nothing.safetensors", "nothing.safetensors", "does not exist")


def test_an_ltx_checkpoint_in_the_wrong_field_is_recognised(tmp_path):
    path = tmp_path / "ltx.safetensors"
    files.write_tensors(path, {"model.diffusion_model.patchify_proj.weight": torch.zeros(2, 2)})
    _refused(path, "is an LTX checkpoint")


def test_another_language_model_is_refused(single):
    _change(single, lambda tensors: {n: t for n, t in tensors.items() if "q_norm" not in n})
    _refused(single, "another language model")


def test_a_file_without_any_language_model_is_refused(tmp_path):
    files.write_tensors(tmp_path / "vae.safetensors", {"decoder.conv.weight": torch.zeros(2)})
    _refused(tmp_path / "vae.safetensors", "no language model")


def test_one_part_of_a_download_points_at_its_folder(folder):
    _refused(folder / "model-00001-of-00002.safetensors", "choose", "folder")


def test_a_missing_tensor_is_named(single):
    _change(single, lambda tensors: {n: t for n, t in tensors.items() if n != "model.layers.4.mlp.up_proj.weight"})
    _refused(single, "layers.4.mlp.up_proj.weight")


def test_an_unknown_tensor_means_another_gemma(single):
    _change(single, lambda tensors: tensors | {"model.layers.0.altup.weight": torch.ones(1)})
    _refused(single, "layers.0.altup")


def test_a_wrong_shape_is_named(single):
    _change(single, lambda tensors: tensors | {"model.layers.2.mlp.up_proj.weight": torch.zeros(3, 32)})
    _refused(single, "layers.2.mlp.up_proj", "[3, 32]", "[48, 32]")


def _packed(tensors):
    name = "model.layers.0.mlp.up_proj.weight"
    return tensors | {
        name: torch.zeros(48, 16, dtype=torch.uint8),
        f"{name}_scale": torch.ones(48, 2).to(torch.float8_e4m3fn),
        f"{name}_scale_2": torch.tensor(1.0),
    }


def _marked(tensors):
    mark = torch.frombuffer(bytearray(b'{"format": "nvfp4"}'), dtype=torch.uint8)
    return tensors | {"model.layers.0.mlp.up_proj.comfy_quant": mark}


@pytest.mark.parametrize(
    ("change", "words"), [(_packed, "nvfp4 of an unknown layout"), (_marked, "F32, but marked as nvfp4")]
)
def test_four_bit_layers_of_another_layout_are_refused_by_name(single, change, words):
    _change(single, change)
    _refused(single, f"{words} (layers.0.mlp.up_proj)")


def _bare(*endings, start="model."):
    return lambda tensors: {n: t for n, t in tensors.items() if not (n.startswith(start) and n.endswith(endings))}


def test_formats_of_the_metadata_that_are_not_read_are_refused(tmp_path):
    path, _ = write_tiny_gemma(tmp_path, fp8=True)
    formats = {"layers": {"model.layers.0.mlp.up_proj": {"format": "mxfp4"}}}
    _change(path, _bare("comfy_quant"), {"_quantization_metadata": json.dumps(formats)})
    _refused(path, "mxfp4 (layers.0.mlp.up_proj)")


def test_block_scales_are_refused(tmp_path):
    path, _ = write_tiny_gemma(tmp_path, fp8=True)
    _change(path, lambda tensors: tensors | {"model.layers.1.mlp.up_proj.weight_scale": torch.ones(48, 2)})
    _refused(path, "fp8 with 96 scales for 48 rows (layers.1.mlp.up_proj)")


_ALL = ("weight_scale", "comfy_quant")
LOST = {
    "one layer": _bare(*_ALL, start="model.layers.1.mlp.up_proj"),
    "input scale alone": lambda t: _bare(*_ALL)(t) | {"model.layers.1.mlp.up_proj.input_scale": torch.tensor(1.0)},
    "mark of the file": lambda t: _bare(*_ALL)(t) | {"scaled_fp8": torch.zeros(2).to(torch.float8_e4m3fn)},
    "mark beside": _bare("weight_scale"),
}


@pytest.mark.parametrize("what", LOST)
def test_an_fp8_layer_whose_scale_is_lost_is_refused_by_name(tmp_path, what):
    path, _ = write_tiny_gemma(tmp_path, fp8=True)
    _change(path, LOST[what])
    with pytest.raises(CheckpointError, match=r"fp8 whose scale is missing \(layers\."):
        open_gemma(path)


def test_numbers_alone_show_that_all_scales_are_lost(tmp_path):
    path, _ = write_tiny_gemma(tmp_path, fp8=True)
    _change(path, _bare(*_ALL))
    with open_gemma(path) as found, pytest.raises(CheckpointError, match=r"stores layers\..* the end of the range"):
        load_gemma(found)


def test_a_folder_must_have_its_config(folder):
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match="no config.json"):
        open_gemma(folder)


def test_a_folder_of_another_model_is_refused(folder):
    files.write_json(folder / "config.json", {"model_type": "llama"})
    _refused(folder, "'llama'")


def test_an_unreadable_config_is_named(folder):
    (folder / "config.json").write_text("[")
    with pytest.raises(CheckpointError, match="config.json is not readable"):
        open_gemma(folder)


def test_an_unfinished_download_names_the_missing_file(folder):
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="model-00002-of-00002.safetensors of 2 files missing"):
        open_gemma(folder)


def test_the_index_decides_which_file_counts(folder, tiny):
    with TensorFile(folder / "model-00001-of-00002.safetensors") as file:
        name = next(name for name in file.tensors if name.endswith("q_proj.weight"))
        wrong = torch.zeros(file.tensors[name].shape)
    files.write_tensors(folder / "stray.safetensors", {name: wrong})
    _change(folder / "model-00002-of-00002.safetensors", lambda tensors: tensors | {name: wrong})
    own = name.removeprefix("language_model.model.")
    with open_gemma(folder) as found, open_gemma(tiny[1]) as plain:
        assert torch.equal(found.read(own), plain.read(own))
    (folder / "stray.safetensors").unlink()
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(CheckpointError, match=rf"holds {name} twice, in model-00001.* and in model-00002"):
        open_gemma(folder)


def test_an_index_that_names_a_file_without_the_tensor_is_refused(folder):
    index = folder / "model.safetensors.index.json"
    table = json.loads(index.read_text())
    name = next(iter(table["weight_map"]))
    table["weight_map"][name] = "model-00002-of-00002.safetensors"
    index.write_text(json.dumps(table))
    with pytest.raises(CheckpointError, match=f"says that {name} lies in model-00002-of-00002.safetensors, but it"):
        open_gemma(folder)


@pytest.mark.parametrize("data", [b"\xff\xfe\x00", b"[" * 100_000, b'{"weight_map": {"a": 1}}'])
def test_an_index_of_other_bytes_is_not_readable(folder, data):
    (folder / "model.safetensors.index.json").write_bytes(data)
    with pytest.raises(CheckpointError, match="index.json is not readable"):
        open_gemma(folder)


def test_without_an_index_the_missing_part_is_named(folder):
    (folder / "model.safetensors.index.json").unlink()
    (folder / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="incomplete: model-00001-of-00002.safetensors of 2 files missing"):
        open_gemma(folder)


def test_a_folder_without_an_index_is_read_whole(folder):
    (folder / "model.safetensors.index.json").unlink()
    with open_gemma(folder) as found:
        assert found.shape.layers == 6
    for file in folder.glob("*.safetensors"):
        file.unlink()
    _refused(folder, "no .safetensors files")


def test_a_file_without_tokenizer_is_refused_with_a_remedy(single):
    _change(single, lambda tensors: {n: t for n, t in tensors.items() if n != "spiece_model"})
    with open_gemma(single) as found, pytest.raises(CheckpointError, match="spiece_model.*gemma_3_12B_it.safetensors"):
        load_tokenizer(found)


def test_a_damaged_tokenizer_is_refused(single, folder):
    _change(single, lambda tensors: tensors | {"spiece_model": torch.zeros(40, dtype=torch.uint8)})
    (folder / "tokenizer.json").write_text("{}")
    for path in (single, folder):
        with open_gemma(path) as found, pytest.raises(CheckpointError, match="cannot be read"):
            load_tokenizer(found)


def test_a_tokenizer_of_another_model_is_refused(folder):
    text = (folder / "tokenizer.json").read_text().replace("<bos>", "<s>")
    (folder / "tokenizer.json").write_text(text)
    with open_gemma(folder) as found, pytest.raises(CheckpointError, match="<bos>"):
        load_tokenizer(found)


def test_a_folder_without_tokenizer_says_what_to_download(folder):
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").unlink()
    with open_gemma(folder) as found, pytest.raises(CheckpointError, match="Download one of them"):
        load_tokenizer(found)


def test_the_begin_token_comes_first_and_long_texts_are_cut(tiny):
    for path in tiny:
        with open_gemma(path) as found:
            tokenizer = load_tokenizer(found)
        assert tokenizer.ids("") == [2]
        assert tokenizer.ids(" \n a fox \t") == tokenizer.ids("a fox")
        assert tokenizer.ids("a fox")[0] == 2
        assert 1 not in tokenizer.ids("a fox")  # no end token
        long = tokenizer.ids("rain " * 3000)
        assert len(long) == 1024
        assert long == tokenizer.ids("rain " * 3000, limit=5000)[:1024]


@pytest.mark.skipif(os.name == "nt", reason="sparse files")
def test_a_file_of_full_size_is_understood_in_a_moment(tmp_path):
    names = {"model.embed_tokens.weight": [262208, 3840], "model.norm.weight": [3840]}
    for layer in range(48):
        for part, shape in {
            "self_attn.q_proj": [4096, 3840], "self_attn.k_proj": [2048, 3840], "self_attn.v_proj": [2048, 3840],
            "self_attn.o_proj": [3840, 4096], "self_attn.q_norm": [256], "self_attn.k_norm": [256],
            "mlp.gate_proj": [15360, 3840], "mlp.up_proj": [15360, 3840], "mlp.down_proj": [3840, 15360],
            "input_layernorm": [3840], "post_attention_layernorm": [3840], "pre_feedforward_layernorm": [3840],
            "post_feedforward_layernorm": [3840],
        }.items():  # fmt: skip
            names[f"model.layers.{layer}.{part}.weight"] = shape
    header, end = {}, 0
    for name, shape in names.items():
        size = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    path = tmp_path / "gemma_3_12B_it.safetensors"
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)  # 23 GB that take no room
    begin = time.perf_counter()
    with open_gemma(path) as found:
        assert found.shape.columns == 188160
        config = gemma_config(found)
    assert time.perf_counter() - begin < 5
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (16, 8, 256)
    assert (config.query_pre_attn_scalar, config.sliding_window) == (256, 1024)
    assert config.layer_types.count("full_attention") == 8
