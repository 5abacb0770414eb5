from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck

from ltx2_train.models import norms
from ltx2_train.models.norms import (
    RowIndex,
    branched_norm,
    gated_heads,
    gated_sum,
    modulated_norm,
    plain_norm,
    rotated_norm,
)
from ltx2_train.models.rope import rope_table

EPS = 1e-6


def double(*shape, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=g, dtype=torch.float64).requires_grad_()


@pytest.fixture(params=[1 << 18, 20], ids=["whole", "sliced"])
def _slices(request, monkeypatch):
    monkeypatch.setattr(norms, "SLICE_ELEMENTS", request.param)


@pytest.fixture(params=["row-a-sample", "row-by-index", "lead"])
def index(request):
    if request.param == "row-a-sample":
        return None
    if request.param == "row-by-index":
        return RowIndex(torch.tensor([[0, 2, 1, 1, 0], [2, 2, 0, 1, 1]]))
    return RowIndex(torch.tensor([[0, 0, 1, 1, 1], [0, 0, 2, 2, 2]]), lead=2)


@pytest.mark.usefixtures("_slices")
def test_modulated_norm_has_the_gradient_of_its_value(index):
    rows = 2 if index is None else 3
    x, scale, shift = double(2, 5, 6), double(rows, 6, seed=1), double(rows, 6, seed=2)
    assert gradcheck(lambda a, b, c: modulated_norm(a, b, c, index, EPS), (x, scale, shift))
    assert gradcheck(lambda a, b, c: branched_norm(a, b, c, index, EPS), (x, scale, shift))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_past_a_norm_is_added_as_autograd_would(dtype):
    x, scale, shift = (double(*shape, seed=3) for shape in ((2, 5, 6), (2, 6), (2, 6)))
    x, scale, shift = (t.detach().to(dtype).requires_grad_() for t in (x, scale, shift))
    normal, past = branched_norm(x, scale, shift, None, EPS)
    plain = modulated_norm(x, scale, shift, None, EPS)
    assert torch.equal(past, x)
    for ours, theirs in zip(
        torch.autograd.grad((normal.cos() + past.sin()).sum(), (x, scale, shift)),
        torch.autograd.grad((plain.cos() + x.sin()).sum(), (x, scale, shift)),
        strict=True,
    ):
        assert torch.equal(ours, theirs)
    past = branched_norm(x, scale, shift, None, EPS)[1]
    assert torch.equal(torch.autograd.grad(past.sum(), x)[0], torch.ones_like(x))


@pytest.mark.usefixtures("_slices")
def test_modulated_norm_is_the_formula(index):
    rows = 2 if index is None else 3
    x, scale, shift = double(2, 5, 6), double(rows, 6, seed=1), double(rows, 6, seed=2)
    s, t = (v[:, None] if index is None else v[index.rows] for v in (scale, shift))
    expected = x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * (1 + s) + t
    torch.testing.assert_close(modulated_norm(x, scale, shift, index, EPS), expected)
    torch.testing.assert_close(plain_norm(x, EPS), x / (x.square().mean(-1, keepdim=True) + EPS).sqrt())


@pytest.mark.usefixtures("_slices")
def test_gated_sum_has_the_gradient_of_its_value(index):
    rows = 2 if index is None else 3
    x, y, gate = double(2, 5, 6), double(2, 5, 6, seed=1), double(rows, 6, seed=2)
    assert gradcheck(lambda a, b, c: gated_sum(a, b, c, index), (x, y, gate))
    expected = x + y * (gate[:, None] if index is None else gate[index.rows])
    torch.testing.assert_close(gated_sum(x, y, gate, index), expected)


@pytest.mark.usefixtures("_slices")
@pytest.mark.parametrize("interleaved", [None, False, True])
def test_rotated_norm_has_the_gradient_of_its_value(interleaved):
    positions = torch.rand(2, 1, 5, 2, generator=torch.Generator().manual_seed(0)) * 9
    rope = None if interleaved is None else rope_table(positions, 8, 2, (20,), interleaved=interleaved)
    if rope is not None:  # gradcheck compares to twelve digits, so the table must have as many
        rope = rope._replace(cos=rope.cos.double(), sin=rope.sin.double())
    assert gradcheck(lambda a, b: rotated_norm(a, b, rope, 2, EPS), (double(2, 5, 8), double(8, seed=1)))


@pytest.mark.usefixtures("_slices")
@pytest.mark.parametrize("rotated", [False, True])
def test_heads_that_lie_one_behind_the_other_are_the_same_numbers(rotated):
    positions = torch.rand(1, 1, 5, 2, generator=torch.Generator().manual_seed(0)) * 9
    rope = rope_table(positions, 8, 2, (20,)) if rotated else None
    x, weight = double(2, 5, 8).detach().float().requires_grad_(), double(8, seed=1).detach().float()
    logits, grad = double(2, 5, 2, seed=2).detach().float().requires_grad_(), double(2, 5, 8, seed=3).detach().float()
    found = []
    for by_head in (False, True):
        heads = rotated_norm(x, weight, rope, 2, EPS, None, by_head)
        assert heads.shape == (2, 5, 2, 4)
        assert heads.transpose(1, 2).is_contiguous() == by_head
        out = gated_heads(heads, logits)
        assert out.shape == (2, 5, 8)
        assert out.is_contiguous()
        assert torch.equal(out, (heads * (torch.sigmoid(logits) * 2).unsqueeze(3)).flatten(2))
        found.append((out, *torch.autograd.grad(out, [x, logits], grad)))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_gated_heads_have_the_gradient_of_their_value():
    assert gradcheck(gated_heads, (double(2, 5, 2, 4), double(2, 5, 2, seed=1)))


def test_an_unread_sum_computes_nothing_but_its_gradient():
    x, y = double(1, 4, 6), double(1, 4, 6, seed=1)
    gate = double(1, 6, seed=2).detach()
    out = gated_sum(x, y, gate, None, unread=True)
    assert out.shape == x.shape
    assert out.untyped_storage().nbytes() == 8
    g = torch.ones_like(x)
    out.backward(g)
    torch.testing.assert_close(y.grad, g * gate)
    torch.testing.assert_close(x.grad, g)


def test_bfloat16_is_rounded_once_at_the_end():
    x = torch.randn(1, 64, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    scale, shift = (torch.full((1, 32), v) for v in (1e-3, 3e-3))
    exact = modulated_norm(x.double(), scale.double(), shift.double(), None, EPS)
    ours = modulated_norm(x, scale, shift, None, EPS)
    assert ours.dtype == torch.bfloat16
    assert torch.equal(ours, exact.bfloat16())
