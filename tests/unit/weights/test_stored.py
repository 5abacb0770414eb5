"""Files of other programs: their linears are kept as stored, everything else becomes numbers."""

from __future__ import annotations

import json

import pytest
import torch
from quantized_layouts import (
    block_linears,
    cast_fp8,
    comfy_fp8,
    comfy_marked,
    int8_convrot,
    int8_rows,
    legacy_fp8,
    mark,
    mxfp8,
    nvfp4,
    official_fp8,
    write,
)

from ltx2_train.errors import CheckpointError, ConfigError
from ltx2_train.quant.base import QuantLinear
from ltx2_train.quant.fp8 import KeptFp8
from ltx2_train.quant.int8 import Int8, KeptConvrot
from ltx2_train.quant.mxfp8 import KeptMxfp8
from ltx2_train.quant.nvfp4 import KeptNvfp4
from ltx2_train.quant.settings import QuantSettings
from ltx2_train.weights import keys
from ltx2_train.weights.load import load_connectors, load_transformer, load_video_vae
from ltx2_train.weights.probe import probe
from ltx2_train.weights.quantize import check_quant
from ltx2_train.weights.quantized_file import quantize_checkpoint
from ltx2_train.weights.reader import TensorFile

KEEP = QuantSettings()
FP8_FILES = [official_fp8, legacy_fp8, comfy_fp8, comfy_marked]


@pytest.fixture(scope="module")
def made(tiny, tmp_path_factory):
    """layout -> file, each written once."""
    folder, files = tmp_path_factory.mktemp("layouts"), {}

    def get(layout):
        if layout not in files:
            files[layout] = write(folder / f"{layout.__name__}.safetensors", tiny.checkpoint, layout)
        return files[layout]

    return get


@pytest.fixture(scope="module")
def plain(tiny):
    return load_transformer(tiny.checkpoint, "av", torch.float32)


def kept(model):
    return {path: module for path, module in model.named_modules() if isinstance(module, QuantLinear)}


def raw(path, layer):
    with TensorFile(path) as file:
        return file.read_bytes(f"{keys.TRANSFORMER}{layer}.weight")


@pytest.mark.parametrize("layout", FP8_FILES)
@pytest.mark.parametrize("format", ["auto", "none", "fp8_cast"])
def test_fp8_linears_stay_as_they_are_and_the_rest_is_numbers(made, plain, layout, format):
    path = made(layout)
    model = load_transformer(path, "av", torch.bfloat16, quant=QuantSettings(format=format))
    found = kept(model)
    with TensorFile(path) as file:
        stored = {name for name, info in file.tensors.items() if info.dtype == "F8_E4M3" and name.endswith(".weight")}
    assert {f"{keys.TRANSFORMER}{layer}.weight" for layer in found} == stored
    for layer, module in found.items():
        assert type(module) is KeptFp8
        assert bytes(module.weight.view(torch.uint8).numpy().tobytes()) == raw(path, layer)
        exact = plain.get_submodule(layer)
        assert (module.dequantize(torch.float32) - exact.weight).norm() < 0.05 * exact.weight.norm()
        assert torch.equal(module.bias, exact.bias.bfloat16())
    for name, parameter in model.named_parameters():
        if name.rpartition(".")[0] not in found:
            assert torch.equal(parameter.float(), plain.get_parameter(name)), name


@pytest.mark.parametrize("layout", [*FP8_FILES, cast_fp8])
def test_without_settings_fp8_files_become_numbers(made, plain, layout):
    model = load_transformer(made(layout), "video", torch.float32)
    assert not kept(model)
    loss = 0.3 if layout is cast_fp8 else 0.05  # without a scale, small weights lose most of their digits
    for name, parameter in model.named_parameters():
        assert (parameter - plain.get_parameter(name)).norm() <= loss * plain.get_parameter(name).norm(), name


def test_a_cast_file_has_no_scales_and_its_biases_are_numbers(made):
    model = load_transformer(made(cast_fp8), "av", torch.bfloat16, quant=KEEP)
    found = kept(model)
    assert found
    for module in found.values():
        assert module.scale is None
        assert module.bias.dtype == torch.bfloat16


@pytest.mark.parametrize(("layout", "kind"), [(nvfp4, KeptNvfp4), (mxfp8, KeptMxfp8)])
def test_linears_in_blocks_of_a_scale_stay_as_they_are(made, plain, layout, kind):
    info = probe(made(layout))
    assert (info.precision, info.problems, info.trainable) == (layout.__name__, [], True)
    assert info.quantized
    assert info.parameters == pytest.approx(probe(made(official_fp8)).parameters, rel=0.03)  # padding
    model = load_transformer(made(layout), "av", torch.float32, quant=KEEP)
    found = kept(model)
    assert found.keys() == {
        path
        for path, module in plain.named_modules()
        if path.startswith("transformer_blocks") and is_chosen(module, path)
    }
    for layer, module in found.items():
        assert type(module) is kind
        weight = plain.get_submodule(layer).weight
        error = (module.dequantize() - weight).norm() / weight.norm()
        assert (0.02 < error < 0.15) if layout is nvfp4 else (0.01 < error < 0.04), layer
        x = torch.randn(2, module.in_features)
        assert module(x).shape == (2, weight.shape[0])


def is_chosen(module, path):
    return isinstance(module, torch.nn.Linear) and not path.endswith("to_gate_logits")


@pytest.mark.parametrize("layout", [nvfp4, mxfp8])
def test_blocks_of_a_scale_become_numbers_without_settings(made, plain, layout):
    model = load_transformer(made(layout), "video", torch.float32)
    assert not kept(model)
    for name, parameter in model.named_parameters():
        assert parameter.shape == plain.get_parameter(name).shape
        assert (parameter - plain.get_parameter(name)).norm() <= 0.2 * plain.get_parameter(name).norm(), name


def test_int8_rows_are_kept_as_int8(made, plain):
    model = load_transformer(made(int8_rows), "video", torch.bfloat16, quant=KEEP)
    for layer, module in kept(model).items():
        assert type(module) is Int8
        weight = plain.get_submodule(layer).weight
        assert (module.dequantize(torch.float32) - weight).norm() < 0.02 * weight.norm()
    assert kept(model)


def test_int8_of_a_rotated_weight_is_kept_rotated_and_becomes_the_numbers_before(made, plain):
    info = probe(made(int8_convrot))
    assert (info.precision, info.problems, info.quantized) == ("int8_convrot", [], True)
    assert check_quant(made(int8_convrot), KEEP) == "int8 convrot"
    model = load_transformer(made(int8_convrot), "av", torch.float32, quant=KEEP)
    numbers = load_transformer(made(int8_convrot), "av", torch.float32)
    assert {(type(module), module.group) for module in kept(model).values()} == {(KeptConvrot, 16)}
    for layer, module in kept(model).items():
        weight = plain.get_submodule(layer).weight
        assert (module.dequantize(torch.float32) - weight).norm() < 0.02 * weight.norm()
        assert torch.equal(numbers.get_submodule(layer).weight, module.dequantize(torch.float32))
    with pytest.raises(ConfigError, match="is int8 convrot already and cannot be quantized again to nf4"):
        check_quant(made(int8_convrot), QuantSettings(format="nf4"))


@pytest.mark.parametrize("layout", [*FP8_FILES, nvfp4, mxfp8, int8_rows])
def test_the_other_parts_of_a_quantized_file_load_as_ever(made, tiny, layout):
    for load in (load_video_vae, load_connectors):
        found, expected = load(made(layout)).state_dict(), load(tiny.checkpoint).state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("layout", FP8_FILES)
def test_fp8_scaled_is_refused_for_a_file_that_is_fp8(made, layout):
    for ask in (
        lambda: load_transformer(made(layout), quant=QuantSettings(fp8_base=True, fp8_scaled=True)),
        lambda: check_quant(made(layout), QuantSettings(format="fp8")),
    ):
        with pytest.raises(ConfigError, match=r"fp8 already.*set quant\.format to none \(or auto\), or use the bf16"):
            ask()


@pytest.mark.parametrize(
    ("layout", "words"), [(official_fp8, "fp8"), (comfy_marked, "fp8"), (cast_fp8, "fp8"), (mxfp8, "mxfp8")]
)
def test_the_guides_fp8_base_keeps_an_fp8_file(made, layout, words):
    assert check_quant(made(layout), QuantSettings(fp8_base=True)) == words


@pytest.mark.parametrize("format", ["fp8", "fp8_cast", "fp8uz"])
def test_the_guides_fp8_base_keeps_an_fp8_file_of_ours(tiny, tmp_path, format):
    quantize_checkpoint(tiny.checkpoint, tmp_path / "x.safetensors", QuantSettings(format=format))
    for settings in (QuantSettings(fp8_base=True), QuantSettings(), QuantSettings(format=format)):
        assert check_quant(tmp_path / "x.safetensors", settings) == format


@pytest.mark.parametrize("layout", [official_fp8, nvfp4, mxfp8, int8_rows])
@pytest.mark.parametrize("more", [{"format": "nf4"}, {"format": "int8_rotated"}, {"format": "nf4", "loftq": True}])
def test_quantizing_twice_is_refused(made, layout, more):
    with pytest.raises(ConfigError, match="already and cannot be quantized again"):
        check_quant(made(layout), QuantSettings(**more))


def test_awq_needs_full_precision(made):
    with pytest.raises(ConfigError, match=r"quant\.awq needs the full-precision weights"):
        check_quant(made(official_fp8), QuantSettings(format="nf4", awq=True))


def first(tensors):
    return block_linears(tensors)[0]


def mxfp8_row_by_row(tensors, metadata):
    layer = first(tensors)
    tensors[f"{layer}.weight"] = tensors[f"{layer}.weight"].to(torch.float8_e4m3fn)
    tensors[f"{layer}.weight_scale"] = torch.ones(160, 5, dtype=torch.uint8)


def packed(tensors, metadata):
    tensors[f"{first(tensors)}.weight"] = torch.zeros(160, 80, dtype=torch.uint8)


def smoothed(tensors, metadata):
    nvfp4(tensors, metadata)
    tensors[f"{first(tensors)}.pre_quant_scale"] = torch.ones(160)


def rotated(tensors, metadata):
    int8_rows(tensors, metadata)
    layers = {first(tensors): {"format": "int8_tensorwise", "convrot": True}}
    metadata["_quantization_metadata"] = json.dumps({"layers": layers})


def newer(tensors, metadata):
    metadata["quant_format"] = "nf3"


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        (mxfp8_row_by_row, "mxfp8 of an unknown layout"),
        (packed, "4-bit"),
        (smoothed, "pre_quant_scale"),
        (rotated, "int8_tensorwise with convrot in groups of 256"),
        (newer, "nf3 of a newer version"),
    ],
)
def test_other_layouts_are_refused_with_the_remedy(tiny, tmp_path, layout, words):
    path = write(tmp_path / "x.safetensors", tiny.checkpoint, layout)
    info = probe(path)
    assert not info.trainable
    assert words in info.problems[0]
    assert "Use the bf16 or fp8 checkpoint" in info.problems[0]
    with pytest.raises(CheckpointError, match=words):
        load_transformer(path, quant=KEEP)
    load_video_vae(path)


def test_a_mark_beside_a_layer_is_read(tiny, tmp_path):
    def marked(tensors, metadata):
        int8_rows(tensors, metadata)
        mark(tensors, first(tensors), {"format": "int8_tensorwise", "convrot": True})

    path = write(tmp_path / "x.safetensors", tiny.checkpoint, marked)
    assert "convrot" in probe(path).problems[0]
    for ask in (lambda: check_quant(path, KEEP), lambda: load_transformer(path, quant=KEEP)):
        with pytest.raises(CheckpointError, match="convrot"):
            ask()


def test_a_weight_of_another_size_is_named(tiny, tmp_path):
    def shrunk(tensors, metadata):
        official_fp8(tensors, metadata)
        name = next(name for name, tensor in tensors.items() if tensor.dtype == torch.float8_e4m3fn)
        tensors[name] = tensors[name][:, :-2].contiguous()

    path = write(tmp_path / "x.safetensors", tiny.checkpoint, shrunk)
    with pytest.raises(CheckpointError, match="160x158, expected 160x160"):
        load_transformer(path, quant=KEEP)
