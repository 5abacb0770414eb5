"""Weights that were divided by a scale which is not there: refused by name, never taken as numbers."""

from __future__ import annotations

import json

import pytest
import torch
from quantized_layouts import (
    block_linears,
    cast_fp8,
    comfy_fp8,
    comfy_marked,
    int8_rows,
    legacy_fp8,
    nvfp4,
    official_fp8,
    write,
)

from ltx2_train.errors import CheckpointError
from ltx2_train.quant.settings import QuantSettings
from ltx2_train.weights import keys
from ltx2_train.weights.load import load_audio_vae, load_transformer, load_video_vae
from ltx2_train.weights.probe import probe
from ltx2_train.weights.quantize import check_quant
from ltx2_train.weights.quantized_file import quantize_checkpoint

KEEP = QuantSettings()
LAYER = f"{keys.TRANSFORMER}transformer_blocks.2.attn1.to_q"
ADALN = f"{keys.TRANSFORMER}adaln_single.linear"
CONV = "vae.encoder.conv_in.conv"
SOUND = "audio_vae.encoder.conv_in.conv"


def as_fp8(tensors, layer, kept=None):
    """Store a layer as fp8 and its scale under the name `kept`, or not at all."""
    weight = tensors[f"{layer}.weight"].float()
    scale = weight.abs().max() / 448
    tensors[f"{layer}.weight"] = (weight / scale).to(torch.float8_e4m3fn)
    if kept:
        tensors[f"{layer}.{kept}"] = scale


def without(*endings, layer=""):
    return lambda tensors: [tensors.pop(n) for n in list(tensors) if n.startswith(layer) and n.endswith(endings)]


def input_scale_alone(tensors, metadata):
    official_fp8(tensors, metadata)
    without("weight_scale", layer=LAYER)(tensors)


def none_where_others_have_one(tensors, metadata):
    official_fp8(tensors, metadata)
    without("_scale", layer=LAYER)(tensors)


def declared_in_the_header(tensors, metadata):
    comfy_fp8(tensors, metadata)
    without("_scale")(tensors)


def marked_beside(tensors, metadata):
    comfy_marked(tensors, metadata)
    without("_scale")(tensors)


def marked_as_a_whole(tensors, metadata):
    legacy_fp8(tensors, metadata)
    without("scale_weight", "scale_input")(tensors)


def inverted(tensors, metadata):
    official_fp8(tensors, metadata)
    for name in [name for name in tensors if name.endswith(".weight_scale")]:
        tensors[f"{name}_inv"] = tensors.pop(name)


def of_another_name(tensors, metadata):
    as_fp8(tensors, LAYER, "scales")


def adaln(tensors, metadata):
    official_fp8(tensors, metadata)
    as_fp8(tensors, ADALN)


def table(tensors, metadata):
    official_fp8(tensors, metadata)
    name = f"{keys.TRANSFORMER}transformer_blocks.2.scale_shift_table"
    tensors[name] = tensors[name].to(torch.float8_e4m3fn)


def int8_layer(tensors, metadata):
    int8_rows(tensors, metadata)
    without("_scale", layer=LAYER)(tensors)


def int8_table(tensors, metadata):
    name = f"{keys.TRANSFORMER}transformer_blocks.2.scale_shift_table"
    tensors[name] = tensors[name].to(torch.int8)


def nvfp4_and_fp8(tensors, metadata):
    nvfp4(tensors, metadata)
    as_fp8(tensors, ADALN)


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (input_scale_alone, LAYER),
        (none_where_others_have_one, LAYER),
        (declared_in_the_header, "transformer_blocks.1."),
        (marked_beside, "transformer_blocks.1."),
        (marked_as_a_whole, "transformer_blocks.1."),
        (inverted, "fp8 with weight_scale_inv"),
        (of_another_name, LAYER),
        (adaln, ADALN),
        (table, "transformer_blocks.2.scale_shift_table"),
        (int8_layer, LAYER),
        (int8_table, "transformer_blocks.2.scale_shift_table"),
        (nvfp4_and_fp8, ADALN),
    ],
)
def test_a_lost_scale_is_refused_by_name(tiny, tmp_path, spoil, named):
    path = write(tmp_path / "x.safetensors", tiny.checkpoint, spoil)
    info = probe(path)
    assert not info.trainable
    assert named in info.problems[0]
    assert "whose scale is missing" in info.problems[0] or spoil is inverted
    for ask in (
        lambda: check_quant(path, KEEP),
        lambda: load_transformer(path),
        lambda: load_transformer(path, quant=KEEP),
    ):
        with pytest.raises(CheckpointError) as caught:
            ask()
        assert named in str(caught.value)


@pytest.mark.parametrize(("layer", "load"), [(CONV, load_video_vae), (SOUND, load_audio_vae)])
@pytest.mark.parametrize("kept", ["input_scale", "weight_scale", "int8", None])
def test_convolutions_are_no_exception(tiny, tmp_path, layer, load, kept):
    def spoil(tensors, metadata):
        if kept == "int8":
            tensors[f"{layer}.weight"] = (tensors[f"{layer}.weight"].float() * 100).to(torch.int8)
        else:
            as_fp8(tensors, layer, kept)

    path = write(tmp_path / "x.safetensors", tiny.checkpoint, spoil)
    if kept == "weight_scale":
        name = layer.partition(".encoder.")[2]
        found, expected = (load(one).encoder.get_submodule(name).weight.float() for one in (path, tiny.checkpoint))
        assert (found - expected).norm() < 0.05 * expected.norm()
        return
    if kept is not None:
        assert layer in probe(path).problems[0]
    with pytest.raises(CheckpointError, match=layer):  # None: nothing but the numbers shows it
        load(path)


@pytest.mark.parametrize("settings", [None, KEEP])
def test_numbers_that_reach_the_end_of_fp8_show_that_a_scale_is_lost(tiny, tmp_path, settings):
    def spoil(tensors, metadata):
        official_fp8(tensors, metadata)
        without("_scale")(tensors)

    path = write(tmp_path / "x.safetensors", tiny.checkpoint, spoil)
    assert probe(path).trainable  # names and shapes are those of a file without scales
    with pytest.raises(CheckpointError, match=r"stores .*transformer_blocks.1.* reach the end of the range"):
        load_transformer(path, quant=settings)


def test_a_file_that_never_had_scales_is_read(tiny, tmp_path):
    path = write(tmp_path / "x.safetensors", tiny.checkpoint, cast_fp8)
    assert probe(path).trainable
    load_transformer(path, quant=KEEP)


@pytest.mark.parametrize("value", [1.0, 0.001])
def test_plain_numbers_beside_a_scale_are_not_guessed_at(tiny, tmp_path, value):
    def spoil(tensors, metadata):
        tensors[f"{LAYER}.weight_scale"] = torch.tensor(value)

    path = write(tmp_path / "x.safetensors", tiny.checkpoint, spoil)
    if value == 1.0:
        load_transformer(path)
        return
    with pytest.raises(CheckpointError, match=f"stores {LAYER} as .* beside a scale"):
        load_transformer(path)


@pytest.mark.parametrize(
    ("format", "part"), [("fp8", ".scale_weight"), ("int8", ".scale_weight"), ("nf4", ".scale_weight")]
)
def test_a_file_of_ours_that_lacks_a_part_is_refused(tiny, tmp_path, format, part):
    made = tmp_path / "made.safetensors"
    quantize_checkpoint(tiny.checkpoint, made, QuantSettings(format=format))
    path = write(tmp_path / "x.safetensors", made, lambda tensors, metadata: tensors.pop(LAYER + part))
    assert f"{format} without {part} ({LAYER})" in probe(path).problems[0]
    with pytest.raises(CheckpointError, match=f"{format} without {part}"):
        load_transformer(path, quant=KEEP)


@pytest.mark.parametrize("format", ["nvfp4", "mxfp8", "int8_tensorwise"])
def test_a_declaration_that_contradicts_the_tensors_is_refused(tiny, tmp_path, format):
    def spoil(tensors, metadata):
        comfy_fp8(tensors, metadata)
        table = json.loads(metadata["_quantization_metadata"])
        table["layers"][LAYER] = {"format": format}
        metadata["_quantization_metadata"] = json.dumps(table)

    path = write(tmp_path / "x.safetensors", tiny.checkpoint, spoil)
    assert f"fp8, but marked as {format} ({LAYER})" in probe(path).problems[0]


def test_scales_in_an_order_that_is_not_known_are_refused(tiny, tmp_path):
    """Where rows and blocks are whole tiles, only ComfyUI's mark tells its order from that of others."""
    name = "text_embedding_projection.aggregate_embed"

    def spoil(tensors, metadata):
        assert len(block_linears(tensors))
        tensors |= {
            f"{name}.weight": torch.zeros(128, 64, dtype=torch.uint8),
            f"{name}.weight_scale": torch.ones(128, 8).to(torch.float8_e4m3fn),
            f"{name}.weight_scale_2": torch.tensor(1.0),
        }

    path = write(tmp_path / "x.safetensors", tiny.checkpoint, spoil)
    assert (
        f"nvfp4 without ComfyUI's mark, so that the order of its scales is not known ({name})"
        in probe(path).problems[0]
    )
