import math
import time

import pytest
import torch
from safetensors.torch import load_file

from ltx2_train.errors import ConfigError
from ltx2_train.events import Events
from ltx2_train.models.patchify import video_tokens
from ltx2_train.models.positions import video_positions
from ltx2_train.models.transformer import Modality
from ltx2_train.shapes import LatentShape
from ltx2_train.weights.load import load_transformer, load_video_vae
from ltx2_train.weights.tiny import make_tiny
from ltx2_train.weights.tiny_vae import moving_pictures


@pytest.fixture(params=["2.0", "2.3"])
def path(request):
    return request.getfixturevalue("tiny" if request.param == "2.3" else "tiny20").checkpoint


def pictures(count=2):
    """Moving discs that the VAE was not made with: [count, 3, 17, 128, 128]."""
    coarse = moving_pictures(count, torch.Generator().manual_seed(77))
    fine = coarse.repeat_interleave(4, 3).repeat_interleave(4, 4).repeat_interleave(2, 2)
    return torch.cat([fine[:, :, :1], fine], dim=2)


def test_making_one_is_quick_and_small_and_reports(tmp_path):
    stages = []

    class Heard(Events):
        def stage(self, name, total=None):
            stages.append(name)

    started = time.perf_counter()
    made = make_tiny(tmp_path, "2.3", events=Heard())
    assert time.perf_counter() - started < 15
    assert made.checkpoint.stat().st_size < 30e6
    assert made.text_encoder.is_file()
    assert (made.gemma_folder / "config.json").is_file()
    assert stages == ["make a tiny checkpoint"]


def test_a_seed_means_one_file(tiny20, tmp_path):
    again = load_file(make_tiny(tmp_path / "a", "2.0", seed=0).checkpoint)
    other = load_file(make_tiny(tmp_path / "b", "2.0", seed=1).checkpoint)
    first = load_file(tiny20.checkpoint)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(
        first["model.diffusion_model.proj_out.weight"], other["model.diffusion_model.proj_out.weight"]
    )


def test_no_tensor_is_left_at_zero_save_biases_and_tables(path):
    for name, tensor in load_file(path).items():
        assert torch.isfinite(tensor.float()).all(), name
        constant = name.endswith((".bias", ".alpha", ".beta", "inverse_basis"))
        assert constant or tensor.float().abs().max() > 0, name


def test_an_unknown_version_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"2\.0 and 2\.3 and 2\.5"):
        make_tiny(tmp_path, "2.4")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_decoded_clip_resembles_the_encoded_one(path, dtype):
    vae = load_video_vae(path, dtype=dtype)
    clip, bound = pictures(), 0.5
    if dtype == torch.bfloat16:  # in which a CPU takes minutes for it; a small piece has more edge, in float32 too
        clip, bound = clip[:1, :, :9, :64, :64], 0.55
    with torch.no_grad():
        back = vae.decode(vae.encode(clip)).float()
    spread = (clip - clip.mean((2, 3, 4), keepdim=True)).square().mean().sqrt()
    assert (back - clip).square().mean().sqrt() < bound * spread


def test_latents_have_about_zero_mean_and_unit_deviation(path):
    vae = load_video_vae(path, dtype=torch.float32)
    with torch.no_grad():
        latents = vae.encode(pictures(6))
    assert latents.mean((0, 2, 3, 4)).abs().mean() < 0.4
    deviation = latents.std((0, 2, 3, 4))
    assert 0.6 < deviation.mean() < 1.4
    assert deviation.min() > 0.2


def test_the_base_denoises_better_than_knowing_the_variance_alone(path):
    model = load_transformer(path, dtype=torch.float32)
    vae = load_video_vae(path, dtype=torch.float32, decoder=False)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        grid = vae.encode(pictures(2))
        shape = LatentShape(*grid.shape[2:])
        latents = video_tokens(grid)
        width = model.config.caption_channels if model.config.projects_captions else model.config.cross_attention_dim
        context = torch.randn(2, 128, width, generator=generator)
        losses, bounds = [], []
        for sigma in (0.2, 0.4, 0.6, 0.8, 0.95):
            noise = torch.randn(latents.shape, generator=generator)
            noisy = (1 - sigma) * latents + sigma * noise
            at = torch.full((2,), sigma)
            modality = Modality(noisy, at, None, video_positions(shape, 25.0), context)
            losses.append(float((model(modality, None).video - (noise - latents)).square().mean()))
            bounds.append(1 / ((1 - sigma) ** 2 + sigma**2))
    assert math.fsum(losses) < 0.9 * math.fsum(bounds)
    assert all(loss < 1.2 * bound for loss, bound in zip(losses, bounds, strict=True))
