"""ComfyUI's guide nodes, and what it draws with them, beside our references: the same positions, levels and sample.

A process of its own runs ComfyUI's code on a tiny checkpoint, picture alone. LTXVAddGuide appends where we put in
front, which attention does not tell apart. A smaller guide is put in by the same class, as the IC-LoRA guide node of
the model's own pack does it: its latents lie on every second place of the sample's grid, and the places between them
are marked to be left out.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from comfy_server import why_not
from safetensors.torch import load_file, save_file

from ltx2_train.conditions.reference import joined_leads, video_lead, video_reference_positions
from ltx2_train.models.positions import video_positions
from ltx2_train.sampling.denoise import GivenPair, GivenStream, Pair, denoise
from ltx2_train.shapes import LatentShape
from ltx2_train.weights.load import load_transformer

pytestmark = [pytest.mark.comfy, pytest.mark.slow, pytest.mark.skipif(bool(why_not()), reason=why_not())]

TARGET = LatentShape(3, 2, 4)
FPS = 25.0
SIGMAS = torch.tensor([1.0, 0.8, 0.5, 0.2, 0.0])

SCRIPT = r"""
import sys
checkpoint, given, out, root, strength, *factors = sys.argv[1:]
sys.path.insert(0, root)
sys.argv = ["main.py", "--cpu", "--force-fp32", "--use-pytorch-cross-attention"]
import torch
import comfy.options
comfy.options.enable_args_parsing()
import comfy.sample, comfy.samplers, comfy.sd
from comfy_extras import nodes_lt
from comfy_extras.nodes_lt import LTXVAddGuide, LTXVCropGuides, LTXVConditioning
from safetensors.torch import load_file, save_file

given = load_file(given)
model, _, vae, _ = comfy.sd.load_checkpoint_guess_config(checkpoint, output_vae=True, output_clip=False)
vae.first_stage_model.float()
vae.vae_dtype = torch.float32
text = [[given["text"], {}]]
positive, negative = LTXVConditioning.execute(text, text, 25.0).args
latent = {"samples": torch.zeros_like(given["noise"])}
frames, rows, columns = given["noise"].shape[2:]
guides = {}

def smaller(positive, negative, latent, pixels, factor):
    scales = vae.downscale_index_formula
    _, small = LTXVAddGuide.encode(vae, columns // factor, rows // factor, pixels, scales)
    spread = torch.zeros(*small.shape[:3], rows, columns)
    spread[..., ::factor, ::factor] = small
    left_out = torch.full_like(spread[:, :1], -1.0)
    left_out[..., ::factor, ::factor] = 1.0
    positive, negative, samples, mask = LTXVAddGuide.append_keyframe(
        positive, negative, 0, latent["samples"], nodes_lt.get_noise_mask(latent), spread, float(strength), scales,
        guide_mask=left_out, latent_downscale_factor=factor,
    )
    positive, negative = nodes_lt._append_guide_attention_entry(
        positive, negative, spread[0, 0].numel(), list(small.shape[2:]), strength=float(strength)
    )
    return positive, negative, {"samples": samples, "noise_mask": mask}, small

for number, factor in enumerate(map(int, factors)):
    pixels, before = given[f"pixels_{number}"], latent["samples"].shape[2]
    if factor == 1:
        positive, negative, latent = LTXVAddGuide.execute(
            positive, negative, vae, latent, pixels, 0, float(strength)
        ).args
        guides[f"guide_{number}"] = latent["samples"][:, :, before:].clone().contiguous()
    else:
        positive, negative, latent, small = smaller(positive, negative, latent, pixels, factor)
        guides[f"guide_{number}"] = small.contiguous()
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
# by its own count a frame of two guides is one
own = drawn[:, :, :frames].contiguous()
assert len(factors) > 1 or torch.equal(own, cropped["samples"])
save_file({"drawn": own, **guides, **seen}, out)
"""


def comfyui(tmp_path, tiny, guides: list[tuple[int, int]], strength: float) -> tuple[dict, dict]:
    """What ComfyUI is given and what it makes of it; `guides` are the frames and the factor of each."""
    generator = torch.Generator().manual_seed(3)
    side = (TARGET.height * 32, TARGET.width * 32)
    config = load_transformer(tiny.checkpoint, "video", torch.float32).config
    text = torch.randn(1, 8, config.video.width, generator=generator)
    heard = torch.randn(1, 8, config.audio.width, generator=generator)
    given = {
        "noise": torch.randn(1, 128, TARGET.frames, TARGET.height, TARGET.width, generator=generator),
        **{f"pixels_{n}": torch.rand(frames, *side, 3, generator=generator) for n, (frames, _) in enumerate(guides)},
        "text": torch.cat((text, heard), dim=-1),
        "sigmas": SIGMAS,
    }
    save_file(given, tmp_path / "given.safetensors")
    run = subprocess.run(
        [
            sys.executable, "-c", SCRIPT, str(tiny.checkpoint), str(tmp_path / "given.safetensors"),
            str(tmp_path / "out.safetensors"), os.environ["COMFYUI_PATH"], str(strength),
            *(str(factor) for _, factor in guides),
        ],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    return {**given, "text": text}, load_file(tmp_path / "out.safetensors")


@pytest.mark.parametrize(
    "guides",
    [[(1, 1)], [(9, 1)], [(17, 1)], [(1, 2)], [(17, 2)], [(9, 1), (1, 1)], [(17, 2), (9, 2)]],
    ids=lambda guides: " and ".join(f"{frames} frames of 1/{factor}" for frames, factor in guides),
)
def test_guides_of_comfyui_are_references_of_ours(guides, tiny, tmp_path):
    given, theirs = comfyui(tmp_path, tiny, guides, 1.0)
    shown = [theirs[f"guide_{number}"][0] for number in range(len(guides))]
    sizes = [LatentShape(*one.shape[1:]) for one in shown]
    seconds = torch.tensor([FPS, 1.0, 1.0]).view(1, 3, 1, 1)
    places = [video_reference_positions(size, FPS, factor) for size, (_, factor) in zip(sizes, guides, strict=True)]
    own = torch.cat((video_positions(TARGET, FPS), *places), dim=2)
    assert torch.allclose(theirs["positions"] / seconds[0], own[0], atol=1e-5)
    clean = torch.zeros(1, sum(size.tokens for size in sizes))
    assert torch.allclose(theirs["timesteps"], torch.cat((torch.ones(1, TARGET.tokens), clean), dim=1))
    assert not theirs["masked"], "all attend to all"

    model = load_transformer(tiny.checkpoint, "video", torch.float32)
    reference = GivenPair(GivenStream(reference=joined_leads([video_lead(one, TARGET, FPS, 1) for one in shown])))
    drawn = denoise(model, Pair(given["noise"]), SIGMAS, Pair(given["text"]), fps=FPS, given=reference).video
    assert drawn is not None
    spread = float(drawn.std())
    assert float((theirs["drawn"] - drawn).abs().max()) < 2e-3 * spread
    without = denoise(model, Pair(given["noise"]), SIGMAS, Pair(given["text"]), fps=FPS).video
    assert without is not None
    assert float((without - drawn).abs().max()) > 0.01 * spread, "the reference matters"


def test_a_weaker_guide_is_a_rule_of_comfyui_alone(tiny, tmp_path):
    """Below strength 1 it is noised in part and weighs less in attention; ours are clean, as they were in training."""
    _, theirs = comfyui(tmp_path, tiny, [(1, 1)], 0.6)
    assert torch.allclose(theirs["timesteps"][:, TARGET.tokens :], torch.tensor(0.4), atol=1e-6)
