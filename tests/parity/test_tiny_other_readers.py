"""Other programs read tiny checkpoints as they read published ones: ltx-core's configurators, ComfyUI's loaders."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from ltx2_train.models.text import FeatureExtractor
from ltx2_train.weights import keys
from ltx2_train.weights.load import load_audio_vae, load_video_vae, load_vocoder
from ltx2_train.weights.reader import TensorFile


@pytest.fixture(params=["2.0", "2.3"])
def path(request):
    return request.getfixturevalue("tiny" if request.param == "2.3" else "tiny20").checkpoint


def build(path, configurator, ops, extra=frozenset()):
    """ltx-core's own configuration, key operations and a strict load; `extra` begin keys that it leaves to others."""
    with TensorFile(path) as file:
        config = file.config
        state = {}
        for name in file.tensors:
            renamed = ops.apply_to_key(name)
            if renamed is None:
                continue
            for result in ops.apply_to_key_value(renamed, file.read(name, dtype=torch.float32)):
                state[result.new_key] = result.new_value
    with torch.device("meta"):
        model = configurator.from_config(config)
    state = {name: tensor for name, tensor in state.items() if not name.startswith(tuple(extra))}
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval()


def test_ltx_core_loads_the_transformer_strictly(path):
    core = pytest.importorskip("ltx_core.model.transformer.model_configurator")
    model = build(
        path,
        core.LTXModelConfigurator,
        core.LTXV_MODEL_COMFY_RENAMING_MAP,
        ("audio_embeddings_connector.", "video_embeddings_connector."),
    )
    assert len(model.transformer_blocks) == 4


def test_ltx_core_makes_the_same_latents_and_pixels(path):
    core = pytest.importorskip("ltx_core.model.video_vae.model_configurator")
    encoder = build(path, core.VideoEncoderConfigurator, core.VAE_ENCODER_COMFY_KEYS_FILTER)
    decoder = build(path, core.VideoDecoderConfigurator, core.VAE_DECODER_COMFY_KEYS_FILTER)
    ours = load_video_vae(path, dtype=torch.float32)
    pixels = torch.rand(1, 3, 9, 64, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        latents = ours.encode(pixels)
        assert torch.allclose(encoder(pixels), latents, atol=2e-4)
        assert torch.allclose(decoder(latents), ours.decode(latents), atol=2e-4)


def test_ltx_core_makes_the_same_sound(path):
    core = pytest.importorskip("ltx_core.model.audio_vae.model_configurator")
    encoder = build(path, core.AudioEncoderConfigurator, core.AUDIO_VAE_ENCODER_COMFY_KEYS_FILTER)
    decoder = build(path, core.AudioDecoderConfigurator, core.AUDIO_VAE_DECODER_COMFY_KEYS_FILTER)
    vocoder = build(path, core.VocoderConfigurator, core.VOCODER_COMFY_KEYS_FILTER)
    ours = load_audio_vae(path)
    mel = torch.randn(1, 2, 21, 64, generator=torch.Generator().manual_seed(0)) - 5
    with torch.no_grad():
        latents = ours.encode(mel)
        assert torch.allclose(encoder(mel), latents, atol=1e-4)
        decoded = ours.decode(latents)
        assert torch.allclose(decoder(latents), decoded, atol=1e-4)
        assert torch.allclose(vocoder(decoded), load_vocoder(path)(decoded), atol=1e-4)


def test_the_text_projection_fits_the_tiny_gemma(path):
    tensors = {
        name[len(keys.TEXT_PROJECTION) :]: tensor
        for name, tensor in load_file(path).items()
        if name.startswith(keys.TEXT_PROJECTION)
    }
    extractor = FeatureExtractor.from_shapes({name: tensor.shape for name, tensor in tensors.items()})
    extractor.load_state_dict(tensors, strict=True)
    with TensorFile(path) as file:
        assert file.config["transformer"]["caption_channels"] * 7 == extractor.columns


COMFY = """
import json, logging, sys
path, out, comfy = sys.argv[1:4]
sys.path.insert(0, comfy)
sys.argv = ["main.py", "--cpu"]
lines = []
class Keep(logging.Handler):
    def emit(self, record):
        lines.append(record.getMessage())
logging.getLogger().addHandler(Keep())
import torch
import comfy.options
comfy.options.enable_args_parsing()
import comfy.sd, comfy.utils
from safetensors.torch import load_file, save_file

model, _, vae, _ = comfy.sd.load_checkpoint_guess_config(path, output_vae=True, output_clip=False)
state, metadata = comfy.utils.load_torch_file(path, return_metadata=True)
sound = {k: v for k, v in state.items() if k.startswith(("audio_vae.", "vocoder."))}
audio = comfy.sd.VAE(sd=sound, metadata=metadata)
given = load_file(out)
pixels = given["pixels"]  # [F, H, W, 3] in 0..1
vae.first_stage_model.float()
vae.vae_dtype = torch.float32
latents = vae.encode(pixels)
decoded = vae.decode(latents)
wave = audio.first_stage_model.decode(given["audio_latents"])
save_file({"latents": latents.contiguous(), "pixels": decoded.contiguous(), "wave": wave.contiguous()}, out)
inner = model.model.diffusion_model
print("RESULT" + json.dumps({
    "model": type(model.model).__name__,
    "blocks": len(inner.transformer_blocks),
    "gated": getattr(inner.transformer_blocks[0].attn1, "to_gate_logits", None) is not None,
    "width": inner.patchify_proj.weight.shape[0],
    "complaints": [line for line in lines if "missing" in line.lower() or "unexpected" in line.lower()],
    "left": [line for line in lines if "left over" in line.lower()],
}))
"""


@pytest.mark.comfy
@pytest.mark.parametrize("path", [pytest.param("2.0", marks=pytest.mark.slow), "2.3"], indirect=True)
@pytest.mark.skipif(not os.environ.get("COMFYUI_PATH"), reason="COMFYUI_PATH names no ComfyUI work tree")
def test_comfyui_loads_all_of_it_and_agrees(path, tmp_path):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(9, 64, 96, 3, generator=generator)
    audio_latents = torch.randn(1, 8, 6, 16, generator=generator)
    save_file({"pixels": pixels, "audio_latents": audio_latents}, tmp_path / "x.safetensors")
    run = subprocess.run(
        [sys.executable, "-c", COMFY, str(path), str(tmp_path / "x.safetensors"), os.environ["COMFYUI_PATH"]],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    found = json.loads(next(line for line in run.stdout.splitlines() if line.startswith("RESULT"))[6:])
    version = "2.3" if "2.3" in path.name else "2.0"
    # the text projection belongs to the text encoder loader
    assert [line for line in found["left"] if "text_embedding_projection" not in line] == []
    assert found["complaints"] == []
    assert (found["model"], found["blocks"], found["width"]) == ("LTXAV", 4, 160)
    assert found["gated"] == (version == "2.3")

    theirs = load_file(tmp_path / "x.safetensors")
    vae = load_video_vae(path, dtype=torch.float32)
    with torch.no_grad():
        latents = vae.encode(pixels.movedim(-1, 0)[None] * 2 - 1)
        assert torch.allclose(theirs["latents"], latents, atol=2e-3)
        back = (vae.decode(theirs["latents"])[0].movedim(0, -1) / 2 + 0.5).clamp(0, 1)
        assert torch.allclose(theirs["pixels"].reshape(back.shape), back, atol=2e-3)
        wave = load_vocoder(path)(load_audio_vae(path).decode(audio_latents))
    assert torch.allclose(theirs["wave"], wave, atol=1e-3)
