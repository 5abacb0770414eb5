"""The schedule is that of the official pipelines."""

import pytest
import torch

from ltx2_train.config import DrawSettings, SampleSettings
from ltx2_train.errors import ConfigError
from ltx2_train.sampling.prompts import parse_prompt
from ltx2_train.sampling.schedule import noise_levels, sampling_sigmas


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


def test_the_distilled_levels_are_those_of_the_published_pipelines():
    assert noise_levels("distilled", 8).tolist() == pytest.approx(
        [1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875, 0.0], abs=1e-7
    )
    assert torch.equal(noise_levels("shifted", 8, 6144), sampling_sigmas(8, 6144))


def test_another_number_of_distilled_steps_is_refused_where_the_prompt_is_read():
    settings = DrawSettings.of(SampleSettings(sigmas="distilled", steps=8), "2.3")
    assert parse_prompt("a ball", settings).steps == 8
    with pytest.raises(ConfigError, match="has 8 steps, and 20 are asked for"):
        parse_prompt("a ball --s 20", settings)
