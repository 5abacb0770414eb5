"""What is given of a sample, and references in front of it, in the losses of a batch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from unit.training.step_parts import SHAPE, losses, make_batch, measured

from ltx2_train.feed.batches import GivenData
from ltx2_train.weights.load import load_transformer

NONE = {"first_frame_probability": 0.0}
REFERENCE = {"type": "reference"}
CHECKERED = torch.tensor([[[0, 1], [1, 0]]] * 2) > 0


@pytest.fixture(scope="module")
def models(tiny):
    return {mode: load_transformer(tiny.checkpoint, mode, torch.float32) for mode in ("video", "av", "audio")}


def with_data(batch, *data: GivenData):
    return replace(batch, given=data)


def reference(seed: int, frames: int = 1, side: int = 2) -> GivenData:
    generator = torch.Generator().manual_seed(seed)
    return GivenData((torch.randn(128, frames, side, side, generator=generator),))


def voice(seed: int, steps: int = 5) -> GivenData:
    return GivenData(reference_audios=(torch.randn(8, steps, 16, generator=torch.Generator().manual_seed(seed)),))


def test_a_reference_changes_the_loss_of_its_own_sample_alone(models):
    batch = make_batch([0, 0, 0])
    run = {"train": NONE, "video": {"conditions": [REFERENCE]}}
    one = losses(models, with_data(batch, reference(1), reference(2), GivenData()), "video", **run)
    two = losses(models, with_data(batch, reference(1), reference(3), GivenData()), "video", **run)
    none = losses(models, batch, "video", **run)
    difference = (one.loss - two.loss).abs()
    assert difference[1] > 1e-4
    assert difference[[0, 2]].max() < 1e-6
    assert (one.loss - none.loss).abs()[2] < 1e-5  # without a reference it is as if there were no such condition
    assert (one.loss - none.loss).abs()[0] > 1e-5


def test_references_of_several_shapes_stand_in_one_batch(models):
    batch = make_batch([0, 0])
    run = {"train": NONE, "video": {"conditions": [REFERENCE]}}
    mixed = losses(models, with_data(batch, reference(1, 2), reference(2, 1, 1)), "video", **run)
    alike = losses(models, with_data(batch, reference(1, 2), reference(1, 2)), "video", **run)
    assert torch.allclose(mixed.loss[0], alike.loss[0], atol=1e-5)


def test_a_reference_is_left_out_as_often_as_its_coin_says(models):
    batch = with_data(make_batch([0, 0]), reference(1), reference(2))
    run = {"train": NONE, "video": {"conditions": [{**REFERENCE, "probability": 0.0}]}}
    assert torch.allclose(losses(models, batch, "video", **run).loss, losses(models, batch, "video", train=NONE).loss)


@pytest.mark.parametrize("mode", ["av", "audio"])
@pytest.mark.parametrize("flags", [{}, {"negative_positions": True, "hide_from_video": True, "hide_text": True}])
def test_a_reference_sound_changes_its_own_samples_sound(models, mode, flags):
    batch = make_batch([6, 6, 4], picture=mode == "av")
    run = {"train": NONE, "audio": {"conditions": [{**REFERENCE, **flags}]}}
    one, two = (losses(models, with_data(batch, voice(1), voice(s), GivenData()), mode, **run) for s in (2, 3))
    difference = (measured(one, "audio") - measured(two, "audio")).abs()
    assert difference[1] > 1e-5
    assert difference[[0, 2]].max() < 1e-6


def test_a_clip_without_sound_trains_its_picture_beside_reference_sounds(models):
    run = {
        "train": NONE,
        "video": {"conditions": [REFERENCE]},
        "audio": {"conditions": [{**REFERENCE, "negative_positions": True}]},
    }
    both = replace(reference(1), reference_audios=voice(1).reference_audios)
    terms = losses(models, with_data(make_batch([6, 0]), both, reference(2)), **run)
    other = losses(models, with_data(make_batch([6, 0]), both, reference(3)), **run)
    assert bool(torch.isfinite(terms.loss).all())
    assert len(measured(terms, "audio")) == 1, "the sound of one clip is learned"
    assert len(measured(terms, "video")) == 2
    assert (terms.loss - other.loss).abs()[1] > 1e-4, "the reference of the silent clip is used"


def test_a_mask_gives_its_tokens_and_only_the_others_count(models):
    mask = torch.zeros(SHAPE.frames, SHAPE.height, SHAPE.width, dtype=torch.bool)
    mask[1] = True
    batch = make_batch([0, 0])
    run = {"train": NONE, "video": {"conditions": [{"type": "mask"}]}}
    masked = losses(models, with_data(batch, GivenData(mask=mask), GivenData(mask=~mask)), "video", **run)
    suffix = {"train": NONE, "video": {"conditions": [{"type": "suffix", "temporal_boundary": 1}]}}
    assert torch.allclose(masked.loss[0], losses(models, batch, "video", **suffix).loss[0], atol=1e-6)
    first = {"train": {"first_frame_probability": 1.0}}
    assert torch.allclose(masked.loss[1], losses(models, batch, "video", **first).loss[1], atol=1e-6)


def test_the_condition_first_frame_is_the_short_form(models):
    batch = make_batch([0, 0])
    long = {"video": {"conditions": [{"type": "first_frame", "probability": 1.0}]}, "train": NONE}
    short = {"train": {"first_frame_probability": 1.0}}
    assert torch.equal(losses(models, batch, "video", **long).loss, losses(models, batch, "video", **short).loss)


@pytest.mark.parametrize(("given", "learned"), [("audio", "video"), ("video", "audio")])
def test_a_stream_that_is_given_has_no_loss_and_is_seen_clean(models, given, learned):
    batch = make_batch([6, 6])
    run = {"train": NONE, given: {"generated": False}}
    terms = losses(models, batch, **run)
    assert set(terms.terms) == {learned}
    assert torch.allclose(terms.loss, measured(terms, learned))
    other = replace(batch, audio=-batch.audio) if given == "audio" else replace(batch, latents=-batch.latents)
    assert (losses(models, other, **run).loss - terms.loss).abs().min() > 1e-5


def test_sounds_end_where_they_end_when_a_suffix_is_given(models):
    run = {"audio": {"conditions": [{"type": "suffix", "temporal_boundary": 2}]}}
    both = losses(models, make_batch([6, 4], picture=False), "audio", **run)
    other = make_batch([6, 4], picture=False)
    other.audio[1, :, 4:] = 9.0  # what fills up
    assert torch.allclose(both.loss, losses(models, other, "audio", **run).loss, atol=1e-5)


@pytest.mark.parametrize(
    ("mode", "settings", "data"),
    [
        ("video", {"video": {"conditions": [{"type": "first_frame"}]}}, GivenData()),
        ("video", {"video": {"conditions": [{"type": "suffix", "temporal_boundary": 1}]}}, GivenData()),
        (
            "video",
            {"video": {"conditions": [{"type": "mask"}]}},
            GivenData(mask=torch.tensor([[[0, 1], [1, 0]]] * 2) > 0),
        ),
        ("video", {"video": {"conditions": [REFERENCE]}}, reference(1)),
        ("audio", {"audio": {"conditions": [{"type": "prefix", "temporal_boundary": 2}]}}, GivenData()),
        ("audio", {"audio": {"conditions": [{**REFERENCE, "negative_positions": True, "hide_text": True}]}}, voice(1)),
        ("av", {"audio": {"conditions": [{**REFERENCE, "hide_from_video": True}]}}, voice(1)),
        ("av", {"audio": {"generated": False}}, GivenData()),
        ("av", {"video": {"generated": False}}, GivenData()),
    ],
)
def test_gradients_with_each_condition_are_those_of_finite_differences(tiny, mode, settings, data):
    model = load_transformer(tiny.checkpoint, mode, torch.float32).double()
    batch = with_data(make_batch([6] if mode != "video" else [0], picture=mode != "audio"), data)
    run = {"train": NONE, **settings}
    learns_sound = mode == "audio" or (mode == "av" and settings != {"audio": {"generated": False}})
    block = model.transformer_blocks[0]
    weight = (block.audio_attn1 if learns_sound else block.attn1).to_v.weight

    def loss() -> torch.Tensor:
        return losses({mode: model}, batch, mode, **run).loss.sum()

    for parameter in model.parameters():
        parameter.requires_grad_(parameter is weight)
    (gradient,) = torch.autograd.grad(loss(), weight)
    direction, step = gradient / gradient.norm(), 0.1  # losses are in float32, so it takes a wide step up the slope
    with torch.no_grad():
        ends = []
        for sign in (1, -1):
            weight += sign * step * direction
            ends.append(float(loss()))
            weight -= sign * step * direction
    measured_slope = (ends[0] - ends[1]) / (2 * step)
    assert measured_slope == pytest.approx(float(gradient.norm()), rel=1e-2)


def test_the_first_latent_frame_of_a_clip_is_marked_in_training_and_a_reference_is_not(models):
    seen = []
    hook = models["av"].register_forward_pre_hook(lambda _, given: seen.append(given))
    batch = with_data(make_batch([5, 5]), reference(1), reference(2))
    losses(models, batch, "av", train=NONE, video={"conditions": [REFERENCE]})
    hook.remove()
    video, audio = seen[0]
    front, frame = video.latent.shape[1] - SHAPE.tokens, SHAPE.height * SHAPE.width
    assert front > 0
    assert (video.single, audio.single) == (slice(front, front + frame), None)


def test_each_of_two_references_counts_and_has_its_own_coin(models):
    batch = make_batch([0, 0])
    one, two = reference(1).references[0], reference(2, 2).references[0]
    run = {"train": NONE, "video": {"conditions": [REFERENCE, REFERENCE]}}

    def loss(*given, **more):
        return losses(models, with_data(batch, *given), "video", **{**run, **more}).loss

    both = loss(GivenData((one, two)), GivenData((one, two)))
    other = loss(GivenData((one, two)), GivenData((one, -two)))
    assert (both - other).abs()[1] > 1e-4
    assert (both - other).abs()[0] < 1e-6
    # a sample that lacks one trains with what it has, whatever the others of its batch have
    lacking = loss(GivenData((one, two)), GivenData((None, two)))
    alone = losses(
        models, with_data(batch, GivenData(), GivenData((two,))), "video", train=NONE, video=given(REFERENCE)
    )
    assert abs(lacking[1] - alone.loss[1]) < 1e-5
    never = loss(
        GivenData((one, two)), GivenData((one, two)), video=given(REFERENCE, {**REFERENCE, "probability": 0.0})
    )
    first = losses(models, with_data(batch, *[GivenData((one,))] * 2), "video", train=NONE, video=given(REFERENCE))
    assert (never - first.loss).abs().max() < 1e-5


def given(*conditions):
    return {"conditions": list(conditions)}
