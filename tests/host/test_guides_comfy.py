"""ComfyUI's guide nodes, and what it draws with them, beside our references: the same positions, levels and sample.

A process of its own runs ComfyUI's code on a tiny checkpoint, picture alone. LTXVAddGuide appends where we put in
front, which attention does not tell apart.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from comfy_server import why_not
from safetensors.torch import load_file, save_file

from ltx2_train.conditions.reference import video_lead, video_reference_positions
from ltx2_train.models.positions import video_positions
from ltx2_train.sampling.denoise import GivenPair, GivenStream, Pair, denoise
from ltx2_train.shapes import LatentShape
from ltx2_train.weights.load import load_transformer

pytestmark = [pytest.mark.comfy, pytest.mark.slow, pytest.mark.skipif(bool(why_not()), reason=why_not())]

TARGET = LatentShape(3, 2, 3)
FPS = 25.0
SIGMAS = torch.tensor([1.0, 0.8, 0.5, 0.2, 0.0])

SCRIPT = r"""
import sys
checkpoint, given, out, root, strength = sys.argv[1:6]
sys.path.insert(0, root)
sys.argv = ["main.py", "--cpu", "--force-fp32", "--use-pytorch-cross-attention"]
import torch
import comfy.options
comfy.options.enable_args_parsing()
import comfy.sample, comfy.samplers, comfy.sd
from comfy_extras.nodes_lt import LTXVAddGuide, LTXVCropGuides, LTXVConditioning
from safetensors.torch import load_file, save_file

given = load_file(given)
model, _, vae, _ = comfy.sd.load_checkpoint_guess_config(checkpoint, output_vae=True, output_clip=False)
vae.first_stage_model.float()
vae.vae_dtype = torch.float32
text = [[given["text"], {}]]
positive, negative = LTXVConditioning.execute(text, text, 25.0).args
latent = {"samples": torch.zeros_like(given["noise"])}
positive, negative, latent = LTXVAddGuide.execute(
    positive, negative, vae, latent, given["pixels"], 0, float(strength)
).args
frames = given["noise"].shape[2]
guide = latent["samples"][:, :, frames:]
inner, seen = model.model.diffusion_model, {}
positions, timestep = inner._prepare_positional_embeddings, inner._prepare_timestep
masks = inner._process_transformer_blocks

def keep_positions(coords, *rest, **more):
    seen.setdefault("positions", coords[0].clone().float())
    return positions(coords, *rest, **more)

def keep_timestep(level, *rest, **more):
    seen.setdefault("timesteps", level[:, more["grid_mask"]].reshape(1, -1).clone().float())
    return timestep(level, *rest, **more)

def keep_mask(*rest, **more):
    seen.setdefault("masked", torch.tensor(float(more.get("self_attention_mask") is not None)))
    return masks(*rest, **more)

inner._prepare_positional_embeddings, inner._prepare_timestep = keep_positions, keep_timestep
inner._process_transformer_blocks = keep_mask
noise = torch.cat((given["noise"], torch.ones_like(guide)), dim=2)
drawn = comfy.sample.sample_custom(
    model, noise, 1.0, comfy.samplers.sampler_object("euler"), given["sigmas"], positive, negative,
    latent["samples"], noise_mask=latent["noise_mask"], disable_pbar=True,
)
_, _, cropped = LTXVCropGuides.execute(positive, negative, {"samples": drawn, "noise_mask": latent["noise_mask"]}).args
save_file({"guide": guide.contiguous(), "drawn": cropped["samples"].contiguous(), **seen}, out)
"""


def comfyui(tmp_path, tiny, frames: int, strength: float) -> tuple[dict, dict]:
    """What ComfyUI is given and what it makes of it."""
    generator = torch.Generator().manual_seed(3)
    side = (TARGET.height * 32, TARGET.width * 32)
    config = load_transformer(tiny.checkpoint, "video", torch.float32).config
    text = torch.randn(1, 8, config.video.width, generator=generator)
    heard = torch.randn(1, 8, config.audio.width, generator=generator)
    given = {
        "noise": torch.randn(1, 128, TARGET.frames, TARGET.height, TARGET.width, generator=generator),
        "pixels": torch.rand(frames, *side, 3, generator=generator),
        "text": torch.cat((text, heard), dim=-1),
        "sigmas": SIGMAS,
    }
    save_file(given, tmp_path / "given.safetensors")
    run = subprocess.run(
        [
            sys.executable, "-c", SCRIPT, str(tiny.checkpoint), str(tmp_path / "given.safetensors"),
            str(tmp_path / "out.safetensors"), os.environ["COMFYUI_PATH"], str(strength),
        ],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    return {**given, "text": text}, load_file(tmp_path / "out.safetensors")


@pytest.mark.parametrize("frames", [1, 9, 17])
def test_a_guide_of_comfyui_is_a_reference_of_ours(frames, tiny, tmp_path):
    given, theirs = comfyui(tmp_path, tiny, frames, 1.0)
    guide = theirs["guide"][0]
    size = LatentShape(*guide.shape[1:])
    seconds = torch.tensor([FPS, 1.0, 1.0]).view(1, 3, 1, 1)
    own = torch.cat((video_positions(TARGET, FPS), video_reference_positions(size, FPS)), dim=2)
    assert torch.allclose(theirs["positions"] / seconds[0], own[0], atol=1e-5)
    levels = torch.cat((torch.ones(1, TARGET.tokens), torch.zeros(1, size.tokens)), dim=1)
    assert torch.allclose(theirs["timesteps"], levels)
    assert not theirs["masked"], "all attend to all"

    model = load_transformer(tiny.checkpoint, "video", torch.float32)
    reference = GivenPair(GivenStream(reference=video_lead(guide, TARGET, FPS, 1)))
    drawn = denoise(model, Pair(given["noise"]), SIGMAS, Pair(given["text"]), fps=FPS, given=reference).video
    assert drawn is not None
    spread = float(drawn.std())
    assert float((theirs["drawn"] - drawn).abs().max()) < 2e-3 * spread
    without = denoise(model, Pair(given["noise"]), SIGMAS, Pair(given["text"]), fps=FPS).video
    assert without is not None
    assert float((without - drawn).abs().max()) > 0.05 * spread, "the reference matters"


def test_a_weaker_guide_is_a_rule_of_comfyui_alone(tiny, tmp_path):
    """Below strength 1 it is noised in part and weighs less in attention; ours are clean, as they were in training."""
    _, theirs = comfyui(tmp_path, tiny, 1, 0.6)
    assert torch.allclose(theirs["timesteps"][:, TARGET.tokens :], torch.tensor(0.4), atol=1e-6)
