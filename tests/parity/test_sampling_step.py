"""One step of our sampler against ltx-core's own parts: schedule, guidance, Euler step, clean first frame."""

import pytest
import torch
from ltx_core.components.diffusion_steps import EulerDiffusionStep
from ltx_core.components.schedulers import LTX2Scheduler
from ltx_core.utils import to_denoised

from ltx2_train.models.patchify import video_tokens
from ltx2_train.models.transformer import LTXTransformer, TransformerConfig
from ltx2_train.sampling.denoise import Guidance, denoise, guide
from ltx2_train.sampling.schedule import sampling_sigmas
from ltx2_train.shapes import LatentShape


class Velocity(torch.nn.Module):
    """Stands for the transformer: a fixed velocity that depends on the text and on the skipped block."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list = []

    def forward(self, video, audio, *, skip=None, keep_hidden=()):
        self.seen.append(video)
        level = video.sigma[:, None, None] if video.timesteps is None else video.timesteps[..., None]
        value = torch.sin(3 * video.latent) * (1 + level) + video.context.mean() + (0.1 if skip else 0.0)
        return type("Output", (), {"video": value})()


@pytest.mark.parametrize("steps", [1, 4, 30])
def test_schedule_equals_ltx_core(steps):
    ours, theirs = sampling_sigmas(steps), LTX2Scheduler().execute(steps=steps)
    if steps == 1:  # theirs stretches 1 by 0/0
        theirs = torch.tensor([1.0, 0.0])
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_a_step_with_guidance_equals_ltx_core():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, 8, 3, 2, 2, generator=generator)
    text, negative = torch.full((1, 4, 6), 0.3), torch.full((1, 4, 6), -0.2)
    sigmas = torch.tensor([0.9, 0.7])
    model = Velocity()
    ours = denoise(model, noise, sigmas, text, fps=25, negative=negative, guidance=Guidance(cfg=3.0, stg=1.0))

    x = video_tokens(noise)
    level = torch.full((1, 1, 1), 0.9)

    def x0(context, extra):
        velocity = torch.sin(3 * x) * (1 + level) + context.mean() + extra
        return to_denoised(x, velocity, level)

    cond, uncond, skipped = x0(text, 0.0), x0(negative, 0.0), x0(text, 0.1)
    guided = cond + 2.0 * (cond - uncond) + 1.0 * (cond - skipped)
    theirs = EulerDiffusionStep().step(x, guided, sigmas, 0)
    assert torch.allclose(video_tokens(ours), theirs, atol=1e-4)


def test_a_given_first_frame_stays_and_has_timestep_zero():
    noise = torch.randn(1, 8, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    first = torch.full((1, 8, 1, 2, 2), 0.25)
    model = Velocity()
    out = denoise(model, noise, sampling_sigmas(5), torch.zeros(1, 4, 6), fps=25, first_frame=first)
    assert torch.equal(out[:, :, :1], first)
    assert not torch.allclose(out[:, :, 1:], noise[:, :, 1:])
    for step, video in enumerate(model.seen):
        assert torch.equal(video.timesteps[:, :4], torch.zeros(1, 4)), step
        assert (video.timesteps[:, 4:] == video.sigma).all()


def test_rescale_keeps_the_spread_of_the_unguided_prediction():
    cond, uncond = torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    guided = guide(cond, uncond, None, Guidance(cfg=5.0, rescale=1.0))
    assert guided.std(dim=(1, 2)).tolist() == pytest.approx(cond.std(dim=(1, 2)).tolist(), rel=1e-5)


@pytest.mark.parametrize("version", ["2.0", "2.3"])
def test_the_real_model_steps_as_ltx_core_does(version, tiny, tiny20):
    from ltx_core.loader.single_gpu_model_builder import SingleGPUModelBuilder
    from ltx_core.model.transformer.modality import Modality
    from ltx_core.model.transformer.model_configurator import (
        LTXV_MODEL_COMFY_RENAMING_MAP,
        LTXModelConfigurator,
    )

    from ltx2_train.models.positions import video_positions
    from ltx2_train.weights.load import load_transformer

    path = (tiny if version == "2.3" else tiny20).checkpoint
    ours = load_transformer(path, "video", torch.float32)
    assert isinstance(ours, LTXTransformer)
    assert isinstance(ours.config, TransformerConfig)
    theirs = SingleGPUModelBuilder(
        model_path=str(path), model_class_configurator=LTXModelConfigurator,
        model_sd_ops=LTXV_MODEL_COMFY_RENAMING_MAP,
    ).build(device=torch.device("cpu"), dtype=torch.float32)  # fmt: skip
    shape = LatentShape(3, 2, 4)
    generator = torch.Generator().manual_seed(2)
    noise = torch.randn(1, 128, 3, 2, 4, generator=generator)
    width = ours.config.cross_attention_dim if version == "2.3" else ours.config.caption_channels
    context = torch.randn(1, 16, width, generator=generator)
    sigmas = torch.tensor([0.8, 0.6])
    mine = denoise(ours, noise, sigmas, context, fps=25.0)
    x = video_tokens(noise)
    level = torch.tensor([0.8])
    velocity, _ = theirs(
        video=Modality(
            enabled=True, latent=x, sigma=level, timesteps=level[:, None].expand(1, shape.tokens),
            positions=video_positions(shape, 25.0, "cpu"), context=context, context_mask=None,
        ),
        audio=None,
        perturbations=None,
    )  # fmt: skip
    expected = EulerDiffusionStep().step(x, to_denoised(x, velocity, level[:, None, None]), sigmas, 0)
    assert torch.allclose(video_tokens(mine), expected, atol=1e-4, rtol=1e-4)
