"""The schedule is that of the official pipelines."""

import pytest
import torch

from ltx2_train.sampling.schedule import sampling_sigmas


@pytest.mark.parametrize(
    ("steps", "tokens", "head"),
    [
        (8, 4096, [1, 0.96571, 0.92187, 0.86386, 0.78345, 0.66458, 0.471, 0.1, 0]),
        (8, 6144, [1, 0.97391, 0.93983, 0.89342, 0.82651, 0.72165, 0.53381, 0.1, 0]),
        (30, 4096, [1, 0.99496, 0.9896, 0.98391]),
    ],
)
def test_published_values(steps, tokens, head):
    sigmas = sampling_sigmas(steps, tokens)
    assert sigmas.shape == (steps + 1,)
    assert sigmas[: len(head)].tolist() == pytest.approx(head, abs=1e-5)


@pytest.mark.parametrize("tokens", [1, 576, 60_000, 10_000_000])
@pytest.mark.parametrize("steps", [1, 2, 30])
def test_any_size_gives_finite_falling_levels(steps, tokens):
    sigmas = sampling_sigmas(steps, tokens)
    assert torch.isfinite(sigmas).all()
    assert sigmas[0] == 1
    assert sigmas[-1] == 0
    assert (sigmas.diff() <= 0).all()
