"""The tiny checkpoint in the layouts that other programs publish; and what the tests compare."""

from __future__ import annotations

import json

import torch
from safetensors.torch import load_file, save_file

from ltx2_train.weights import keys
from ltx2_train.weights.reader import TensorFile

# as in the published fp8 files: these blocks and everything about sound stay in bf16
BF16_BLOCKS = ("transformer_blocks.0.",)


def block_linears(tensors):
    """Names of the layers of a checkpoint that get quantized."""
    return [
        name[: -len(".weight")]
        for name, tensor in tensors.items()
        if f"{keys.TRANSFORMER}transformer_blocks." in name
        and name.endswith(".weight")
        and tensor.ndim == 2
        and not name.endswith("to_gate_logits.weight")
    ]


def write(path, checkpoint, change):
    """Save `checkpoint` with what `change(tensors, metadata)` does to it at `path`."""
    with TensorFile(checkpoint) as file:
        metadata = dict(file.metadata)
    tensors = load_file(checkpoint)
    change(tensors, metadata)
    save_file(tensors, path, metadata=metadata)
    return path


def official_fp8(tensors, metadata):
    """e4m3 with one scale a tensor, and scales of the inputs which are no scales of the weights."""
    for layer in block_linears(tensors):
        if "audio" in layer or any(block in layer for block in BF16_BLOCKS):
            continue
        weight = tensors[f"{layer}.weight"].float()
        scale = weight.abs().max() / 448
        tensors[f"{layer}.weight"] = (weight / scale).to(torch.float8_e4m3fn)
        tensors[f"{layer}.weight_scale"] = scale
        tensors[f"{layer}.input_scale"] = torch.tensor(77.0)


def legacy_fp8(tensors, metadata):
    """ComfyUI's older `scaled_fp8` files."""
    official_fp8(tensors, metadata)
    for name in [name for name in tensors if name.endswith((".weight_scale", ".input_scale"))]:
        layer, _, leaf = name.rpartition(".")
        tensors[f"{layer}.{'scale_weight' if leaf == 'weight_scale' else 'scale_input'}"] = tensors.pop(name)
    tensors[f"{keys.TRANSFORMER}scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)


def cast_fp8(tensors, metadata):
    """No scales at all; biases too."""
    for layer in block_linears(tensors):
        for leaf in ("weight", "bias"):
            tensors[f"{layer}.{leaf}"] = tensors[f"{layer}.{leaf}"].to(torch.float8_e4m3fn)


def comfy_fp8(tensors, metadata):
    """ComfyUI's mixed precision: the formats in the header."""
    official_fp8(tensors, metadata)
    layers = {name[: -len(".weight_scale")]: {"format": "float8_e4m3fn"} for name in tensors if "weight_scale" in name}
    metadata["_quantization_metadata"] = json.dumps({"format_version": "1.0", "layers": layers})


def comfy_marked(tensors, metadata):
    """The same with a mark beside each layer."""
    official_fp8(tensors, metadata)
    for name in [name for name in tensors if name.endswith("weight_scale")]:
        mark(tensors, name[: -len(".weight_scale")], {"format": "float8_e4m3fn", "full_precision_matrix_mult": True})


def mark(tensors, layer, entry):
    tensors[f"{layer}.comfy_quant"] = torch.tensor(list(json.dumps(entry).encode()), dtype=torch.uint8)


def nvfp4(tensors, metadata):
    """What ComfyUI's own kernels write; inputs and outputs padded to 16."""
    for layer in block_linears(tensors):
        tensors |= as_nvfp4(layer, tensors[f"{layer}.weight"])


def mxfp8(tensors, metadata):
    """As nvfp4, in blocks of 32 with an exponent each."""
    for layer in block_linears(tensors):
        tensors |= as_mxfp8(layer, tensors[f"{layer}.weight"])


def as_mxfp8(layer, weight):
    """The tensors of one such layer."""
    import comfy_kitchen

    padded = any(size % 32 for size in weight.shape)
    stored, exponents = comfy_kitchen.quantize_mxfp8(weight.float(), pad_32x=padded)
    made = {f"{layer}.weight": stored, f"{layer}.weight_scale": exponents.view(torch.uint8)}
    mark(made, layer, {"format": "mxfp8"})
    return made


def as_nvfp4(layer, weight):
    """The tensors of one layer in NVFP4."""
    import comfy_kitchen

    scale = weight.float().abs().max() / (448 * 6)
    padded = any(size % 16 for size in weight.shape)
    packed, blocks = comfy_kitchen.quantize_nvfp4(weight.float(), scale, pad_16x=padded)
    made = {f"{layer}.weight": packed, f"{layer}.weight_scale": blocks, f"{layer}.weight_scale_2": scale}
    mark(made, layer, {"format": "nvfp4"})
    return made


def int8_rows(tensors, metadata):
    for layer in block_linears(tensors):
        weight = tensors[f"{layer}.weight"].float()
        scale = weight.abs().amax(1, keepdim=True) / 127
        tensors |= {f"{layer}.weight": (weight / scale).round().to(torch.int8), f"{layer}.weight_scale": scale}


def int8_convrot(tensors, metadata):
    """As `int8_rows`, after the rotation of ComfyUI's kernels where the inputs allow its groups."""
    for layer in block_linears(tensors):
        tensors |= as_convrot(layer, tensors[f"{layer}.weight"])


def as_convrot(layer, weight, group=16):
    """The tensors of one such layer; one whose inputs are no whole groups is not rotated."""
    from comfy_kitchen.tensor.int8 import TensorWiseINT8Layout

    turned = weight.shape[1] % group == 0
    stored, about = TensorWiseINT8Layout.quantize(
        weight.float(), per_channel=True, convrot=turned, convrot_groupsize=group
    )
    made = {f"{layer}.weight": stored, f"{layer}.weight_scale": about.scale}
    entry = {"format": "int8_tensorwise", "per_row": True}
    mark(made, layer, entry | ({"convrot": True, "convrot_groupsize": group} if turned else {}))
    return made


def same_state(one, other):
    """Whether two models store the same bytes under the same names in the same classes."""
    left, right = one.state_dict(), other.state_dict()
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].dtype == right[name].dtype, name
        assert torch.equal(as_bytes(left[name]), as_bytes(right[name])), name
    for (name, a), (_, b) in zip(one.named_modules(), other.named_modules(), strict=True):
        assert type(a) is type(b), name
    return True


def as_bytes(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8)
