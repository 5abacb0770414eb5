from __future__ import annotations

import pytest
import torch

from ltx2_train.conditions.given import Target, draw_given, tokens_of, why_not_given
from ltx2_train.conditions.settings import FirstFrame, Mask, Prefix, Reference, SpatialCrop, Suffix
from ltx2_train.shapes import LatentShape

CLIP = Target.video(LatentShape(4, 2, 3), fps=24.0)
SOUND = Target(10)


def frames(given, target=CLIP):
    """Which latent frames are given whole."""
    return given.reshape(target.frames, -1).all(1).nonzero().flatten().tolist()


def test_each_condition_gives_its_own_tokens():
    assert frames(tokens_of(FirstFrame(), CLIP)) == [0]
    assert frames(tokens_of(Prefix(temporal_boundary=(2, 2)), CLIP)) == [0, 1]
    assert frames(tokens_of(Suffix(temporal_boundary=(1, 3)), CLIP)) == [1, 2, 3]
    assert frames(tokens_of(Prefix(seconds=(0.375, 0.375)), CLIP)) == [0, 1]  # nine frames
    assert frames(tokens_of(Prefix(seconds=(0.2, 0.2)), SOUND), SOUND) == [0, 1, 2, 3, 4]
    crop = tokens_of(SpatialCrop(spatial_region=(0, 32, 32, 96)), CLIP).reshape(4, 2, 3)
    assert crop[0].tolist() == [[False, True, True], [False, False, False]]
    assert bool((crop == crop[:1]).all())
    mask = torch.rand(4, 2, 3) > 0.5
    assert torch.equal(tokens_of(Mask(), CLIP, mask), mask.flatten())
    assert not tokens_of(Mask(), CLIP).any()


def test_a_picture_keeps_its_only_frame():
    picture = Target.video(LatentShape(1, 2, 3), 24.0)
    for condition in (FirstFrame(), Prefix(temporal_boundary=(1, 1)), Suffix(seconds=(1.0, 1.0))):
        assert not tokens_of(condition, picture).any()


def test_coins_are_each_samples_own_and_fall_as_often_as_asked():
    generator = torch.Generator().manual_seed(0)
    given = draw_given([FirstFrame(probability=0.25)], CLIP, [None] * 2000, generator)
    assert given[:, :6].all(1).float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert not given[:, 6:].any()


def test_lengths_are_drawn_from_their_range():
    given = draw_given([Prefix(temporal_boundary=(1, 3))], CLIP, [None] * 600, torch.Generator().manual_seed(1))
    counts = given.reshape(600, 4, 6).all(2).sum(1).bincount()
    assert counts[0] == 0
    assert all(150 < count < 250 for count in counts[1:4].tolist())


def test_conditions_compose_and_a_reference_gives_nothing_of_the_target():
    both = [FirstFrame(), Suffix(temporal_boundary=(1, 1)), Reference()]
    assert frames(draw_given(both, CLIP, [None], torch.Generator())[0]) == [0, 3]


def test_what_a_coin_shows_does_not_move_the_numbers_after_it():
    after = []
    for probability in (0.0, 1.0):
        generator = torch.Generator().manual_seed(3)
        draw_given([Prefix(temporal_boundary=(1, 3), probability=probability)], CLIP, [None] * 3, generator)
        after.append(torch.rand(1, generator=generator))
    assert torch.equal(*after)


@pytest.mark.parametrize(
    ("conditions", "target", "said"),
    [
        ([Prefix(temporal_boundary=(1, 4))], CLIP, "a prefix of up to 4 leaves nothing"),
        ([Suffix(seconds=(1, 2))], SOUND, "has 10 latent steps, and a suffix of up to 50"),
        ([SpatialCrop(spatial_region=(0, 0, 96, 64))], CLIP, "is 96x64 as cached"),
        ([SpatialCrop(spatial_region=(0, 0, 20, 64))], CLIP, "holds none"),
        ([Prefix(temporal_boundary=(2, 2)), Suffix(temporal_boundary=(2, 2))], CLIP, "given whole by its conditions"),
        ([SpatialCrop(spatial_region=(0, 0, 64, 96))], CLIP, "given whole"),
        ([FirstFrame(), Prefix(temporal_boundary=(3, 3)), Mask()], CLIP, None),
    ],
)
def test_refusals_name_what_does_not_fit(conditions, target, said):
    reason = why_not_given(conditions, target)
    assert reason is None if said is None else said in (reason or "")
