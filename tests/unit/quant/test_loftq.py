from __future__ import annotations

import pytest
import torch

from ltx2_train.quant import FORMATS, QuantSettings
from ltx2_train.quant.loftq import loftq, low_rank


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def quantize(weight):
    return FORMATS.get("nf4").quantize(weight, None, QuantSettings(), weight.dtype)


def error(weight, module, a, b):
    return float((weight.float() - module.dequantize(torch.float32) - b @ a).norm() / weight.float().norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_base_is_what_is_left_of_the_returned_factors(dtype):
    weight = draw(96, 128).to(dtype)
    module, a, b = loftq(weight, quantize, 8, 2)
    assert (a.shape, b.shape, a.dtype, b.dtype) == ((8, 128), (96, 8), torch.float32, torch.float32)
    again = quantize((weight.float() - b @ a).to(dtype))
    assert torch.equal(again.weight, module.weight)
    assert torch.equal(again.scale, module.scale)


def test_more_rounds_and_ranks_come_nearer():
    weight = draw(256, 256)
    plain = float((weight - quantize(weight).dequantize()).norm() / weight.norm())
    by_rounds = [plain, *(error(weight, *loftq(weight, quantize, 16, n)) for n in (1, 2, 4))]
    assert by_rounds == sorted(by_rounds, reverse=True)
    assert by_rounds[2] < 0.93 * plain
    assert error(weight, *loftq(weight, quantize, 32, 2)) < by_rounds[2]


def test_it_is_repeatable_and_touches_no_random_numbers():
    weight = draw(64, 96)
    before = torch.random.get_rng_state()
    module, a, b = loftq(weight, quantize, 4, 2)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(99)
    module2, a2, b2 = loftq(weight, quantize, 4, 2)
    torch.random.set_rng_state(before)
    assert torch.equal(a, a2)
    assert torch.equal(b, b2)
    assert torch.equal(module.weight, module2.weight)


@pytest.mark.parametrize("shape", [(200, 120), (120, 200)])
def test_the_fit_is_nearly_the_best(shape):
    matrix = draw(*shape)  # a flat spectrum, the hard case
    b, a = low_rank(matrix, 16)
    best = torch.linalg.svdvals(matrix)[16:].square().sum().sqrt()
    assert best <= (matrix - b @ a).norm() * (1 + 1e-6)
    assert (matrix - b @ a).norm() < 1.002 * best
    torch.testing.assert_close(b.norm(dim=0), a.norm(dim=1))  # half of the strength each


def test_small_and_zero_matrices():
    matrix = draw(6, 10)
    b, a = low_rank(matrix, 32)
    assert (b.shape, a.shape) == ((6, 32), (32, 10))
    torch.testing.assert_close(b @ a, matrix, rtol=1e-4, atol=1e-5)
    b, a = low_rank(torch.zeros(6, 10), 4)
    assert torch.equal(b @ a, torch.zeros(6, 10))
