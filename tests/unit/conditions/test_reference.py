from __future__ import annotations

import pytest
import torch

from ltx2_train.conditions.reference import (
    audio_lead,
    audio_reference_positions,
    downscale,
    joined_leads,
    video_lead,
    video_reference_positions,
)
from ltx2_train.conditions.settings import AudioReference
from ltx2_train.conditions.trained import Trained
from ltx2_train.lora.metadata import describe_run
from ltx2_train.models.positions import audio_positions, video_positions
from ltx2_train.shapes import AudioLatentShape, LatentShape


def test_a_smaller_reference_covers_the_targets_picture():
    target, reference = LatentShape(3, 4, 6), LatentShape(3, 2, 3)
    assert downscale(reference, target) == 2
    positions = video_reference_positions(reference, 25.0, 2)
    whole = video_positions(target, 25.0)
    assert positions[:, 1:].amax(dim=(2, 3)).tolist() == whole[:, 1:].amax(dim=(2, 3)).tolist()
    assert torch.equal(positions[:, 0, ::6], whole[:, 0, ::24])  # the same clock


@pytest.mark.parametrize(("height", "width"), [(3, 3), (2, 2), (8, 12), (4, 3)])
def test_sizes_that_no_whole_number_ties_together_have_no_factor(height, width):
    assert downscale(LatentShape(1, height, width), LatentShape(3, 4, 6)) is None


def test_fewer_frames_a_second_end_where_the_target_ends():
    target, reference = LatentShape(7, 1, 1), LatentShape(4, 1, 1)
    positions = video_reference_positions(reference, 24.0, temporal_scale=2)[0, 0]
    assert positions[-1, 1].item() == pytest.approx(video_positions(target, 24.0)[0, 0, -1, 1].item())
    assert positions[0].tolist() == pytest.approx([0.0, 1 / 24])
    assert bool((positions[1:, 0] == positions[:-1, 1]).all())


def test_a_sound_before_time_zero_ends_one_step_before_it():
    positions = audio_reference_positions(5, negative=True)[0, 0]
    assert positions[-1, 1].item() == pytest.approx(-0.04)
    plain = audio_positions(AudioLatentShape(5))[0, 0]
    torch.testing.assert_close(positions.diff(dim=0), plain.diff(dim=0))
    assert torch.equal(audio_reference_positions(5, negative=False)[0, 0], plain)


def test_references_of_one_sample_keep_their_positions_and_the_last_stands_first():
    target = LatentShape(3, 4, 4)
    depth, face = (torch.randn(128, *size) for size in ((3, 4, 4), (1, 2, 2)))
    leads = [video_lead(latents, target, 25.0, 1) for latents in (depth, face)]
    both = joined_leads(leads)
    assert both.tokens.shape == (1, 48 + 4, 128)
    assert torch.equal(both.tokens[:, 4:], leads[0].tokens)
    assert torch.equal(both.positions[:, :, :4], leads[1].positions)
    assert both.extent == (1, 2, 2, 3, 4, 4)
    assert joined_leads([None, leads[1]]) is leads[1]
    assert joined_leads([None, None]) is None


def test_sounds_before_and_after_time_zero_are_not_taken_for_alike():
    latents = torch.randn(8, 5, 16)
    before, after = (audio_lead(latents, AudioReference(negative_positions=side)) for side in (True, False))
    assert before.extent != after.extent


@pytest.mark.parametrize("more", [(), (9, 0)])
def test_the_file_of_a_lora_says_how_many_frames_each_reference_had(more):
    trained = Trained(downscale=2, frames=1, more_frames=more)
    told = describe_run(trained.metadata(), 4, 4.0, {})
    assert Trained.read(told) == trained
    assert [trained.count(17, False, number) for number in range(3)] == ([1, 9, 17] if more else [1, 1, 1])
