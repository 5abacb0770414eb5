"""How hidden states are compared: by hand, and whatever the length of a clip."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import cosine_similarity

from ltx2_train.objective.alignment import (
    Matching,
    motion_of,
    motion_weights,
    of_changes,
    places,
    products,
    with_neighbors,
)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_tokens_become_frames_and_places():
    hidden = random(2, 6, 5).float()
    assert torch.equal(places(hidden, 3, mean=False), hidden.view(2, 3, 2, 5))
    assert torch.allclose(places(hidden, 3, mean=True)[:, :, 0], hidden.view(2, 3, 2, 5).mean(dim=2))


@pytest.mark.parametrize("own", [True, False])
def test_neighbours_count_by_their_distance(own):
    student, teacher, tau = random(1, 4, 1, 5), random(1, 4, 1, 5, seed=1), 1.5
    total = norm = 0.0
    for f in range(4):
        for g in range(4):
            if abs(f - g) <= 2 and (own or f != g):
                weight = math.exp(-abs(f - g) / tau)
                total += weight * float(cosine_similarity(student[0, f, 0], teacher[0, g, 0], dim=0))
                norm += weight
    assert float(with_neighbors(student, teacher, tau, 2, own)) == pytest.approx(total / norm)


def test_what_agrees_everywhere_is_one_at_any_length():
    for frames in (1, 2, 9):
        same = random(1, 1, 3, 5).expand(1, frames, 3, 5)
        assert float(with_neighbors(same, 2 * same, 1.0, 2)) == pytest.approx(1.0)
    assert float(with_neighbors(same[:, :1], same[:, :1], 1.0, 2, own=False)) == 0.0
    straight = torch.arange(5.0)[None, :, None, None] * random(1, 1, 1, 7).float()
    assert float(of_changes(straight, 3 * straight, 1.0, 3)) == pytest.approx(1.0)
    assert float(of_changes(straight, -straight, 1.0, 3)) == pytest.approx(-1.0)


def test_changes_over_more_frames_count_less():
    student, teacher = random(1, 4, 1, 5), random(1, 4, 1, 5, seed=1)
    total = norm = 0.0
    for step in (1, 2):
        for f in range(4 - step):
            ours, its = student[0, f + step, 0] - student[0, f, 0], teacher[0, f + step, 0] - teacher[0, f, 0]
            total += math.exp(-(step - 1) / 2.0) * float(cosine_similarity(ours, its, dim=0))
            norm += math.exp(-(step - 1) / 2.0)
    assert float(of_changes(student, teacher, 2.0, 2)) == pytest.approx(total / norm)


def test_motion_counts_more_where_there_is_more():
    teacher = torch.zeros(1, 3, 2, 4)
    teacher[0, 1:, 0] = 2.0  # one place moves once
    motion = motion_of(teacher)
    assert motion[0, :, 1].tolist() == [0.0, 0.0, 0.0]
    weights = motion_weights(motion, 0.5)
    assert float(weights.mean()) == pytest.approx(1.5)
    assert float(weights[0, 0, 0]) > 1.5 > float(weights[0, 0, 1]) == 1.0


def test_a_match_is_looked_for_around_its_place():
    teacher = random(1, 1, 12, 5)
    moved = torch.roll(teacher.view(1, 1, 3, 4, 5), 1, dims=3).flatten(2, 3)  # one to the right, on 3 rows of 4
    inside = [p for p in range(12) if p % 4 != 0]
    strict, near = Matching(), Matching(1, 4)
    assert torch.allclose(near(moved, teacher)[0, 0, inside], torch.ones(11 - 2, dtype=torch.float64))
    assert torch.equal(strict(moved, teacher), products(moved, teacher))
    brute = torch.stack([
        max(
            (cosine_similarity(moved[0, 0, p], teacher[0, 0, q], dim=0) for q in range(12)
             if abs(p // 4 - q // 4) <= 1 and abs(p % 4 - q % 4) <= 1),
            key=float,
        )
        for p in range(12)
    ])  # fmt: skip
    assert torch.allclose(near(moved, teacher)[0, 0], brute)
    soft = Matching(1, 4, "soft", 1e-3)(moved, teacher)
    assert torch.allclose(soft[0, 0], brute, atol=1e-3)
    hot = Matching(1, 4, "soft", 1e3)(moved, teacher)
    assert (hot < soft).all()


def test_gradients_are_the_slopes():
    student, teacher = random(1, 3, 2, 3).requires_grad_(), random(1, 3, 2, 3, seed=1)
    weights = motion_weights(motion_of(teacher), 0.3)

    def value(student):
        match = Matching(1, 2, "soft", 0.2)
        frame = with_neighbors(student, teacher, 1.0, 2, own=False, weights=weights, matching=match)
        return frame + of_changes(student, teacher, 1.0, 2, 0.3)

    assert torch.autograd.gradcheck(value, (student,), atol=1e-6)
