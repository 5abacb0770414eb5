from __future__ import annotations

import pytest
import torch

from ltx2_train.models.patchify import audio_grid, audio_tokens, video_grid, video_tokens
from ltx2_train.models.positions import audio_positions, video_positions
from ltx2_train.models.rope import Rope, rope_table, rotate_heads
from ltx2_train.shapes import AudioLatentShape, LatentShape


def test_video_positions_are_seconds_and_pixels_with_a_short_first_frame():
    positions = video_positions(LatentShape(3, 2, 2), fps=10.0)
    assert positions.shape == (1, 3, 12, 2)
    assert positions.dtype == torch.float32
    time, rows, columns = positions[0]
    torch.testing.assert_close(time[::4], torch.tensor([[0.0, 0.1], [0.1, 0.9], [0.9, 1.7]]))
    assert rows[:4].tolist() == [[0, 32], [0, 32], [32, 64], [32, 64]]
    assert columns[:4].tolist() == [[0, 32], [32, 64], [0, 32], [32, 64]]


def test_audio_positions_are_seconds_with_a_short_first_step():
    positions = audio_positions(AudioLatentShape(3))
    torch.testing.assert_close(positions[0, 0], torch.tensor([[0.0, 0.01], [0.01, 0.05], [0.05, 0.09]]))


def test_tokens_and_grids_are_inverse():
    video, audio = torch.randn(2, 4, 3, 2, 5), torch.randn(2, 8, 6, 16)
    tokens = video_tokens(video)
    assert torch.equal(tokens[1, 2 * 10 + 1 * 5 + 3], video[1, :, 2, 1, 3])
    assert torch.equal(video_grid(tokens, LatentShape(3, 2, 5, 4)), video)
    assert audio_tokens(audio)[0, 4, 3 * 16 + 7] == audio[0, 3, 4, 7]
    assert torch.equal(audio_grid(audio_tokens(audio), AudioLatentShape(6)), audio)


def test_rotation_keeps_lengths_is_undone_backward_and_pads_the_first_head():
    rope = rope_table(video_positions(LatentShape(2, 2, 2), 24.0), 16, 2, (20, 2048, 2048))
    assert rope.cos.shape == (1, 8, 2, 4)
    assert torch.all(rope.cos[:, :, 0, :2] == 1)
    assert torch.all(rope.sin[:, :, 0, :2] == 0)
    x = torch.randn(1, 8, 2, 8)
    for table in (rope, Rope(rope.cos, rope.sin, True)):
        turned = rotate_heads(x, table)
        torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
        torch.testing.assert_close(rotate_heads(turned, table, backward=True), x)


def test_equal_positions_of_a_batch_share_one_table():
    positions = video_positions(LatentShape(2, 1, 1), 24.0).expand(5, -1, -1, -1)
    assert rope_table(positions, 16, 2, (20, 2048, 2048)).cos.shape[0] == 1


@pytest.mark.parametrize("clips", [1, 2])
def test_a_table_by_place_is_that_of_the_tokens_to_the_bit(clips):
    shape = LatentShape(3, 4, 5)
    positions = torch.cat([video_positions(shape, 24.0 + clip) for clip in range(clips)])
    sizes = 44, 2, (20, 2048, 2048)  # 3 axes of 7 frequencies, and one feature that is not rotated
    plain, by_place = (rope_table(positions, *sizes, by_place=on) for on in (False, True))
    assert by_place.places is not None
    assert len(by_place.cos) == 3 * clips + 4 + 5
    for ours, theirs in zip(by_place.spread()[:2], plain[:2], strict=True):
        assert torch.equal(ours, theirs)
    some = slice(7, 21)
    assert torch.equal(by_place.part(some).spread().sin, plain.part(some).sin)
    named = torch.tensor([[0, 4, 11], [2, 3, 17]])[:clips]
    assert torch.equal(by_place.at(named).spread().cos, plain.at(named).cos)
    x = torch.randn(clips, shape.tokens, 2, 22)
    assert torch.equal(rotate_heads(x, by_place, backward=True), rotate_heads(x, plain, backward=True))
