"""ComfyUI's own key map, asked about a LoRA file of ours: every key is taken, and the change it makes is ours.

ComfyUI says nothing but a line in its log about a key that it does not know, so a LoRA with wrong names "works"
without any effect. Runs in a process of its own, since ComfyUI claims the names of its modules.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ltx2_train.lora.file import verify_saved
from ltx2_train.lora.inject import inject
from ltx2_train.lora.save import save_lora
from ltx2_train.lora.settings import LoraSettings
from ltx2_train.models.transformer import LTXTransformer, TransformerConfig

pytestmark = [
    pytest.mark.comfy,
    pytest.mark.skipif(not os.environ.get("COMFYUI_PATH"), reason="COMFYUI_PATH names no ComfyUI work tree"),
]

SIZES = {
    "_class_name": "AVTransformer3DModel",
    "num_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "audio_num_attention_heads": 2,
    "audio_attention_head_dim": 4,
    "cross_attention_dim": 16,
    "audio_cross_attention_dim": 8,
    "in_channels": 4,
    "out_channels": 4,
    "audio_in_channels": 128,
    "audio_out_channels": 128,
    "caption_channels": 12,
    "positional_embedding_max_pos": [20, 2048, 2048],
    "audio_positional_embedding_max_pos": [20],
    "rope_type": "split",
    "frequencies_precision": "float64",
    "timestep_scale_multiplier": 1000,
    "av_ca_timestep_scale_multiplier": 1000.0,
    "use_middle_indices_grid": True,
    "causal_temporal_positioning": True,
}
NEWER = {
    "apply_gated_attention": True,
    "cross_attention_adaln": True,
    "caption_proj_before_connector": True,
    "caption_projection_first_linear": False,
    "caption_projection_second_linear": False,
    "caption_proj_input_norm": False,
}

LTX_VIDEO = {"_class_name": "Transformer3DModel"}
VIDEO_KEYS = {name for name in SIZES if "audio" not in name and name not in ("rope_type", "frequencies_precision")}

ASK_COMFYUI = """
import json, sys
root, lora_path, config, out, base_path = sys.argv[1:6]
sys.argv = sys.argv[:1]
sys.path.insert(0, root)
import comfy.options
from comfy.cli_args import args
args.cpu = True
import torch
import comfy.lora, comfy.supported_models, comfy.utils
from safetensors.torch import load_file, save_file

config = json.loads(config)
kinds = {"AVTransformer3DModel": comfy.supported_models.LTXAV, "Transformer3DModel": comfy.supported_models.LTXV}
kind = kinds[config["_class_name"]]
family = kind({**kind.unet_config, **config})
family.set_inference_dtype(torch.float32, None)
model = family.get_model({}, device="meta")
lora = comfy.utils.load_torch_file(lora_path, safe_load=True)
patches = comfy.lora.load_lora(lora, comfy.lora.model_lora_keys_unet(model, {}))
shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
base = load_file(base_path)
used = set().union(*(patch.loaded_keys for patch in patches.values()))
changes = {}
for key, patch in patches.items():
    weight = base[key].clone()
    assert weight.shape == shapes[key], key
    changes[key] = comfy.lora.calculate_weight([(1.0, patch, 1.0, None, None)], weight, key).contiguous()
save_file(changes, out)
print(json.dumps({"unused": sorted(set(lora) - used), "weights": sorted(shapes)}))
"""


KINDS = {"*audio_attn*": {"algo": "lokr"}, "*attn2*": {"algo": "loha"}, "*ff*": {"algo": "dora"}, "*to_v": {"rank": 2}}


@pytest.mark.parametrize(
    ("version", "modules"), [pytest.param("2.0", {}, marks=pytest.mark.slow), ("2.3", KINDS), ("ltxv", {})]
)
def test_comfyui_takes_every_key_and_makes_the_same_change(tmp_path, version, modules):
    section = {**SIZES, **(NEWER if version == "2.3" else {})}
    if version == "ltxv":
        section = {name: SIZES[name] for name in VIDEO_KEYS - {"use_middle_indices_grid"}} | LTX_VIDEO
    model = LTXTransformer(TransformerConfig.from_checkpoint(section), "video" if version == "ltxv" else "av")
    generator = torch.Generator().manual_seed(0)
    # the gates too, so that every linear of a block is asked for
    loras = inject(model, LoraSettings(rank=3, alpha=6, include_patterns=[".*"], modules=modules), generator)
    with torch.no_grad():
        for parameter in loras.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    base = {f"diffusion_model.{name}.weight": layer.base.weight.detach() for name, layer in loras.layers.items()}
    save_file(base, tmp_path / "base")
    path = tmp_path / "lora.safetensors"
    save_lora(path, loras, {}, "fp32")

    done = subprocess.run(
        [
            sys.executable,
            "-c",
            ASK_COMFYUI,
            os.environ["COMFYUI_PATH"],
            str(path),
            json.dumps(section),
            str(tmp_path / "out"),
            str(tmp_path / "base"),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answer = json.loads(done.stdout.splitlines()[-1])
    changes = load_file(Path(tmp_path / "out"))
    assert answer["unused"] == []
    assert "lora key not loaded" not in done.stderr + done.stdout
    assert set(changes) == {f"diffusion_model.{name}.weight" for name in loras.layers}
    for name, layer in loras.layers.items():
        # column by column what the layer makes of it, whatever kind it is
        expected = (layer(torch.eye(layer.in_features)) - (0 if layer.base.bias is None else layer.base.bias)).T
        assert torch.allclose(changes[f"diffusion_model.{name}.weight"], expected, atol=1e-4), name

    # our own check after saving, with the names that ComfyUI's model has
    verify_saved(path, {f"model.{key}": tuple(changes[key].shape) for key in changes}, trained=True)
