"""A batch's losses: each sample's own, whatever lies beside it; and nothing is computed for a stream that is absent."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from unit.training.step_parts import SHAPE, losses, make_batch, make_sample, measured

from ltx2_train.feed.batches import Batch
from ltx2_train.feed.loader import Sample
from ltx2_train.training.sound import encode_silence
from ltx2_train.weights.load import load_audio_vae, load_transformer


@pytest.fixture(scope="module")
def models(tiny):
    return {mode: load_transformer(tiny.checkpoint, mode, torch.float32) for mode in ("video", "av", "audio")}


def with_noise_in(batch: Batch, where: torch.Tensor) -> Batch:
    """The batch with other numbers in its sound where `where` [B, T] is true."""
    other = torch.where(where[:, None, :, None], torch.full_like(batch.audio, 7.0), batch.audio)
    return Batch(batch.latents, batch.samples, batch.fps, 0, 0, other, batch.audio_mask)


@pytest.mark.parametrize("picture", [True, False])
def test_what_fills_up_a_sound_changes_no_loss(models, picture):
    batch = make_batch([6, 4, 6], picture)
    terms, changed = losses(models, batch), losses(models, with_noise_in(batch, ~batch.audio_mask))
    assert torch.allclose(terms.loss, changed.loss, atol=1e-5)
    assert measured(terms, "audio").shape == (3,)


def test_a_silent_clip_in_a_batch_is_what_it_is_in_video_mode(models):
    batch = make_batch([6, 0, 6])
    both, alone = losses(models, batch), losses(models, batch, "video")
    av_only = load_losses_without_sound(models, batch)
    assert torch.allclose(measured(both, "video")[1], measured(av_only, "video")[1], atol=1e-5)
    assert torch.allclose(measured(av_only, "video"), measured(alone, "video"), atol=1e-5)
    assert measured(both, "audio").shape == (2,)
    assert torch.allclose(both.loss[1], measured(both, "video")[1])


def load_losses_without_sound(models, batch):
    return losses(models, Batch(batch.latents, batch.samples, batch.fps, 0, 0))


def test_losses_come_back_in_the_order_of_the_samples(models):
    batch = make_batch([6, 0, 4])
    terms = losses(models, batch)
    louder = losses(models, with_noise_in(batch, torch.tensor([[False], [False], [True]]).expand(3, 6)))
    changed = (terms.loss - louder.loss).abs() > 1e-4
    assert changed.tolist() == [False, False, True]


def test_the_picture_gets_the_same_noise_with_sound_and_without(models):
    batch = make_batch([6, 6])
    with_sound, without = losses(models, batch), losses(models, batch, "video")
    assert torch.equal(with_sound.facts["sigma"], without.facts["sigma"])


def test_sound_has_the_noise_level_of_its_picture_or_one_of_its_own(models):
    batch = make_batch([6, 6])
    assert torch.equal(*(losses(models, batch).facts[name] for name in ("sigma", "sigma_audio")))
    own = losses(models, batch, audio={"independent_timestep": True})
    assert not torch.equal(own.facts["sigma"], own.facts["sigma_audio"])
    assert torch.equal(own.facts["sigma"], losses(models, batch).facts["sigma"])


def test_weights_of_both_streams_and_of_a_dataset_count(models):
    batch = make_batch([6])
    plain = losses(models, batch)
    video, audio = measured(plain, "video"), measured(plain, "audio")
    assert torch.allclose(plain.loss, video + audio)
    weighed = losses(models, batch, loss={"video_weight": 0.5, "audio_weight": 3.0})
    assert torch.allclose(weighed.loss, 0.5 * video + 3 * audio)
    own = [Sample("0", SHAPE, 25.0, "", Path("0"), Path("0"), audio_steps=6, audio_loss_weight=2.0)]
    batch = Batch(batch.latents, own, 25.0, 0, 0, batch.audio, batch.audio_mask)
    assert torch.allclose(losses(models, batch).loss, video + 2 * audio)


def test_silence_is_encoded_silence_and_weighs_what_is_set(models, tiny):
    silence = encode_silence(load_audio_vae(tiny.checkpoint, decoder=False))
    assert silence.shape == (8, 101, 16)
    assert torch.allclose(silence[:, 60:], silence[:, 60:61].expand(-1, 41, -1), atol=1e-4)
    assert silence.abs().max() > 0.01, "silence is not zeros"
    batch = Batch(make_batch([0]).latents, [make_sample("0")], 25.0, 0, 0)
    half = losses(models, batch, silence=silence, audio={"silence_regularizer": True, "silence_weight": 0.5})
    whole = losses(models, batch, silence=silence, audio={"silence_regularizer": True, "silence_weight": 1.0})
    video = measured(whole, "video")
    assert torch.equal(video, measured(half, "video"))
    assert measured(half, "audio") is None
    assert torch.allclose(whole.loss - video, 2 * (half.loss - video), rtol=1e-5)
    assert (whole.loss > video).all()


def calls(model, work) -> Counter:
    """How often the modules of each side ran: names with audio_ and the others of the blocks."""
    counts: Counter = Counter()
    hooks = []
    for name, module in model.named_modules():
        if name and not list(module.children()):
            side = "audio" if "audio" in name else "video"
            hooks.append(module.register_forward_pre_hook(lambda *_, side=side: counts.update([side])))
    try:
        work()
    finally:
        for hook in hooks:
            hook.remove()
    return counts


def flops(work) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def test_video_mode_has_no_audio_parameter_and_computes_nothing_for_sound(models):
    assert not [name for name, _ in models["video"].named_parameters() if "audio" in name]
    batch = make_batch([6])
    silent = Batch(batch.latents, batch.samples, batch.fps, 0, 0)
    assert flops(lambda: losses(models, batch, "video")) == flops(lambda: losses(models, silent, "video"))


def test_audio_mode_has_no_video_parameter(models):
    names = [name for name, _ in models["audio"].named_parameters()]
    assert names
    assert not [name for name in names if "audio" not in name]
    assert losses(models, make_batch([6, 4], picture=False), "audio").terms.keys() == {"audio"}


def test_a_batch_without_sound_costs_an_audio_video_model_what_it_costs_a_video_model(models):
    batch = make_batch([0, 0], longest=0)
    ran = calls(models["av"], lambda: losses(models, batch))
    assert ran["audio"] == 0
    assert ran["video"] > 0
    assert flops(lambda: losses(models, batch)) == flops(lambda: losses(models, batch, "video"))


def test_a_recording_costs_an_audio_video_model_what_it_costs_an_audio_model(models):
    batch = make_batch([6, 6], picture=False)
    ran = calls(models["av"], lambda: losses(models, batch))
    assert ran["video"] == 0
    assert ran["audio"] > 0
    assert flops(lambda: losses(models, batch)) == flops(lambda: losses(models, batch, "audio"))
