"""One step of our sampler against ltx-core's own parts: schedule, guidance, Euler step, clean first frame."""

import pytest
import torch
from ltx_core.components.diffusion_steps import EulerDiffusionStep
from ltx_core.components.guiders import MultiModalGuider, MultiModalGuiderParams
from ltx_core.components.schedulers import LTX2Scheduler
from ltx_core.utils import to_denoised

from ltx2_train.models.patchify import audio_tokens, video_tokens
from ltx2_train.models.transformer import LTXTransformer, Output, TransformerConfig
from ltx2_train.sampling.denoise import GivenPair, GivenStream, Guidance, Pair, denoise, guide
from ltx2_train.sampling.schedule import sampling_sigmas
from ltx2_train.shapes import AudioLatentShape, LatentShape


class Velocity(torch.nn.Module):
    """Stands for the transformer: fixed velocities that depend on the text and on the attentions that block 0 skips."""

    MOVED = {"video": {"video_self": 0.1, "a2v": 0.4}, "audio": {"audio_self": -0.2, "v2a": -0.3}}

    def __init__(self) -> None:
        super().__init__()
        self.seen: list = []
        self.skipped: list = []

    def forward(self, video, audio, *, skip=None, keep_hidden=()):
        left_out = frozenset() if skip is None else skip.at(0)
        self.seen.append((video, audio))
        self.skipped.append(left_out)

        def out(given, stream):
            moved = sum(by for name, by in self.MOVED[stream].items() if name in left_out)
            return None if given is None else self.velocity(given, moved)

        return Output(out(video, "video"), out(audio, "audio"))

    @staticmethod
    def velocity(given, extra):
        level = given.token_timesteps[..., None]
        return torch.sin(3 * given.latent) * (1 + level) + given.context.mean() + extra


@pytest.mark.parametrize("steps", [1, 4, 30])
def test_schedule_equals_ltx_core(steps):
    ours, theirs = sampling_sigmas(steps), LTX2Scheduler().execute(steps=steps)
    if steps == 1:  # theirs stretches 1 by 0/0
        theirs = torch.tensor([1.0, 0.0])
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_a_step_with_guidance_equals_ltx_core_for_each_modality():
    generator = torch.Generator().manual_seed(0)
    noise = Pair(torch.randn(1, 8, 3, 2, 2, generator=generator), torch.randn(1, 8, 5, 16, generator=generator))
    text = Pair(torch.full((1, 4, 6), 0.3), torch.full((1, 4, 6), 0.1))
    negative = Pair(torch.full((1, 4, 6), -0.2), torch.full((1, 4, 6), 0.4))
    sigmas = torch.tensor([0.9, 0.7])
    guidance = Guidance(cfg=3.0, stg=1.0)
    ours = denoise(Velocity(), noise, sigmas, text, fps=25, negative=negative, guidance=guidance)

    def theirs(x, text, negative, extra):
        level = torch.full((1, 1, 1), 0.9)

        def x0(context, extra):
            velocity = torch.sin(3 * x) * (1 + level) + context.mean() + extra
            return to_denoised(x, velocity, level)

        cond, uncond, skipped = x0(text, 0.0), x0(negative, 0.0), x0(text, extra)
        guided = cond + 2.0 * (cond - uncond) + 1.0 * (cond - skipped)
        return EulerDiffusionStep().step(x, guided, sigmas, 0)

    video = theirs(video_tokens(noise.video), text.video, negative.video, 0.1)
    audio = theirs(audio_tokens(noise.audio), text.audio, negative.audio, -0.2)
    assert torch.allclose(video_tokens(ours.video), video, atol=1e-4)
    assert torch.allclose(audio_tokens(ours.audio), audio, atol=1e-4)


PICTURE = Guidance(cfg=3.0, stg=1.0, modality=3.0, rescale=0.7)
SOUND = Guidance(cfg=7.0, stg=0.5, modality=2.0, rescale=0.7)


def test_picture_and_sound_are_guided_apart_as_ltx_core_guides_them():
    generator = torch.Generator().manual_seed(0)
    noise = Pair(torch.randn(1, 8, 3, 2, 2, generator=generator), torch.randn(1, 8, 5, 16, generator=generator))
    text = Pair(torch.full((1, 4, 6), 0.3), torch.full((1, 4, 6), 0.1))
    negative = Pair(torch.full((1, 4, 6), -0.2), torch.full((1, 4, 6), 0.4))
    model, sigmas = Velocity(), torch.tensor([0.9, 0.7])
    ours = denoise(
        model, noise, sigmas, text, fps=25, negative=negative, guidance=PICTURE, audio_guidance=SOUND, stg_blocks=[0]
    )
    both = {"video_self", "audio_self"}
    assert model.skipped == [set(), set(), both, {"a2v", "v2a"}], "once each: prompt, negative, blocks, isolated"

    def theirs(x, text, negative, strength, moved):
        level = torch.full((1, 1, 1), 0.9)

        def x0(context, extra=0.0):
            return to_denoised(x, torch.sin(3 * x) * (1 + level) + context.mean() + extra, level)

        params = MultiModalGuiderParams(strength.cfg, strength.stg, [0], strength.rescale, strength.modality)
        skipped, isolated = moved.values()
        guided = MultiModalGuider(params).calculate(x0(text), x0(negative), x0(text, skipped), x0(text, isolated))
        return EulerDiffusionStep().step(x, guided, sigmas, 0)

    video = theirs(video_tokens(noise.video), text.video, negative.video, PICTURE, Velocity.MOVED["video"])
    audio = theirs(audio_tokens(noise.audio), text.audio, negative.audio, SOUND, Velocity.MOVED["audio"])
    assert torch.allclose(video_tokens(ours.video), video, atol=1e-4)
    assert torch.allclose(audio_tokens(ours.audio), audio, atol=1e-4)


@pytest.mark.parametrize("whole", ["video", "audio", "absent"])
def test_what_is_not_made_is_not_guided_and_costs_no_pass(whole):
    """A sound that is given, with a picture that nothing guides: one pass a step."""
    noise = Pair(torch.randn(1, 8, 3, 2, 2), None if whole == "absent" else torch.randn(1, 8, 5, 16))
    given = {
        "video": GivenPair(GivenStream(noise.video, whole=True)),
        "audio": GivenPair(None, GivenStream(noise.audio, whole=True)),
    }
    text = Pair(torch.zeros(1, 4, 6), None if whole == "absent" else torch.zeros(1, 4, 6))
    off, model = Guidance(), Velocity()
    strengths = {"video": (PICTURE, off), "audio": (off, SOUND), "absent": (Guidance(modality=3.0), SOUND)}[whole]
    denoise(
        model, noise, sampling_sigmas(2), text, fps=25, negative=text, guidance=strengths[0],
        audio_guidance=strengths[1], given=given.get(whole),
    )  # fmt: skip
    assert model.skipped == [set(), set()]


def test_a_given_first_frame_stays_and_has_timestep_zero():
    generator = torch.Generator().manual_seed(1)
    noise = Pair(torch.randn(1, 8, 3, 2, 2, generator=generator), torch.randn(1, 8, 5, 16, generator=generator))
    first = torch.full((1, 8, 1, 2, 2), 0.25)
    model, text = Velocity(), torch.zeros(1, 4, 6)
    latents, tokens = torch.zeros(1, 8, 3, 2, 2), torch.arange(12) < 4
    latents[:, :, :1] = first
    given = GivenPair(GivenStream(latents, tokens))
    out = denoise(model, noise, sampling_sigmas(5), Pair(text, text), fps=25, given=given)
    assert torch.equal(out.video[:, :, :1], first)
    assert not torch.allclose(out.video[:, :, 1:], noise.video[:, :, 1:])
    for step, (video, audio) in enumerate(model.seen):
        assert torch.equal(video.token_timesteps[:, :4], torch.zeros(1, 4)), step
        assert (video.token_timesteps[:, 4:] == video.sigma).all()
        assert (video.single, audio.single) == (slice(0, 4), None)
        assert audio.timesteps is None  # no part of the sound is given
        assert torch.equal(audio.sigma, video.sigma)


def test_sound_alone_gives_the_model_no_video():
    noise = Pair(None, torch.randn(1, 8, 5, 16, generator=torch.Generator().manual_seed(1)))
    model = Velocity()
    out = denoise(model, noise, sampling_sigmas(3), Pair(None, torch.zeros(1, 4, 6)), fps=25)
    assert out.video is None
    assert out.audio.shape == noise.audio.shape
    assert [video for video, _ in model.seen] == [None, None, None]


def test_rescale_keeps_the_spread_of_the_unguided_prediction():
    cond, uncond = torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    guided = guide(cond, uncond, None, Guidance(cfg=5.0, rescale=1.0))
    assert guided.std(dim=(1, 2)).tolist() == pytest.approx(cond.std(dim=(1, 2)).tolist(), rel=1e-5)


@pytest.mark.parametrize("version", ["2.0", "2.3"])
@pytest.mark.parametrize("mode", ["video", "av"])
def test_the_real_model_steps_as_ltx_core_does(mode, version, tiny, tiny20):
    from ltx_core.loader.single_gpu_model_builder import SingleGPUModelBuilder
    from ltx_core.model.transformer.modality import Modality
    from ltx_core.model.transformer.model_configurator import (
        LTXV_MODEL_COMFY_RENAMING_MAP,
        LTXModelConfigurator,
    )

    from ltx2_train.models.positions import audio_positions, video_positions
    from ltx2_train.weights.load import load_transformer

    path = (tiny if version == "2.3" else tiny20).checkpoint
    ours = load_transformer(path, mode, torch.float32)
    assert isinstance(ours, LTXTransformer)
    assert isinstance(ours.config, TransformerConfig)
    theirs = SingleGPUModelBuilder(
        model_path=str(path), model_class_configurator=LTXModelConfigurator,
        model_sd_ops=LTXV_MODEL_COMFY_RENAMING_MAP,
    ).build(device=torch.device("cpu"), dtype=torch.float32)  # fmt: skip
    generator = torch.Generator().manual_seed(2)
    config = ours.config
    shape, steps = LatentShape(3, 2, 4), AudioLatentShape(17)
    noise = Pair(torch.randn(1, 128, 3, 2, 4, generator=generator), torch.randn(1, 8, 17, 16, generator=generator))
    widths = [config.caption_channels] * 2 if version == "2.0" else [config.video.width, config.audio.width]
    context = Pair(*(torch.randn(1, 16, width, generator=generator) for width in widths))
    if mode == "video":
        noise, context = Pair(noise.video), Pair(context.video)
    sigmas, level = torch.tensor([0.8, 0.6]), torch.tensor([0.8])
    mine = denoise(ours, noise, sigmas, context, fps=25.0)

    def modality(x, positions, text):
        timesteps = level[:, None].expand(1, x.shape[1])
        return Modality(
            enabled=True, latent=x, sigma=level, timesteps=timesteps, positions=positions, context=text,
            context_mask=None,
        )  # fmt: skip

    def stepped(x, velocity):
        return EulerDiffusionStep().step(x, to_denoised(x, velocity, level[:, None, None]), sigmas, 0)

    x = video_tokens(noise.video)
    a = None if mode == "video" else audio_tokens(noise.audio)
    velocity, heard = theirs(
        video=modality(x, video_positions(shape, 25.0, "cpu"), context.video),
        audio=None if a is None else modality(a, audio_positions(steps, "cpu"), context.audio),
        perturbations=None,
    )
    assert torch.allclose(video_tokens(mine.video), stepped(x, velocity), atol=1e-4, rtol=1e-4)
    if a is not None:
        assert torch.allclose(audio_tokens(mine.audio), stepped(a, heard), atol=1e-4, rtol=1e-4)
