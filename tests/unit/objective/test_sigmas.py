"""The noise levels, against a derivation of their distribution that shares no code with them."""

import math
from statistics import NormalDist

import numpy as np
import pytest
import torch

from ltx2_train.errors import ConfigError
from ltx2_train.objective.sigmas import SigmaSettings, sample_audio_sigmas, sample_sigmas, shift_for
from ltx2_train.settings import parse

DRAWS = 40_000


def draw(tokens=2000, version="2.3", batch=DRAWS, seed=0, audio_only=False, **settings):
    generator = torch.Generator().manual_seed(seed)
    return sample_sigmas(SigmaSettings(**settings), batch, tokens, version, generator, audio_only)


def logistic(z):
    return 1 / (1 + np.exp(-np.asarray(z, dtype=np.float64)))


def stretched_by_hand(quantile, shift, std=1.0):
    """The value below which `quantile` of the unmirrored, unmixed stretched samples lie."""
    z = shift + std * NormalDist().inv_cdf(quantile)
    low, high = logistic(shift - 2.5758 * std), logistic(shift + 3.0902 * std)
    return float((logistic(z) - low) / (high - low))


@pytest.mark.parametrize(("tokens", "shift"), [(1024, 0.95), (4096, 2.05), (2560, 1.5), (576, 0.7896), (10240, 4.25)])
def test_shift_is_one_line_beyond_its_anchors_too(tokens, shift):
    assert shift_for(tokens) == pytest.approx(shift, abs=1e-4)


def test_only_audio_only_training_clamps_the_shift():
    assert shift_for(4, clamp=True) == 0.95
    assert shift_for(10**6, clamp=True) == 2.05
    assert torch.equal(draw(4, audio_only=True), draw(1024))
    assert torch.equal(draw(60_000, audio_only=True), draw(4096))
    assert not torch.equal(draw(4), draw(1024))


@pytest.mark.parametrize("tokens", [576, 2048, 6144])
@pytest.mark.parametrize("std", [1.0, 0.5])
def test_legacy_is_the_logistic_of_a_normal(tokens, std):
    sigma = draw(tokens, mode="legacy", std=std).double().numpy()
    for q in (0.05, 0.25, 0.5, 0.75, 0.95):
        expected = logistic(shift_for(tokens) + std * NormalDist().inv_cdf(q))
        assert np.quantile(sigma, q) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("tokens", [576, 2048, 6144])
@pytest.mark.parametrize("std", [1.0, 0.5])
def test_stretched_spreads_the_same_normal_over_the_whole_range(tokens, std):
    sigma = draw(tokens, mode="stretched", std=std, uniform_prob=0).double().numpy()
    for q in (0.05, 0.25, 0.5, 0.75, 0.95):
        assert np.quantile(sigma, q) == pytest.approx(stretched_by_hand(q, shift_for(tokens), std), abs=0.01)
    assert sigma.max() > 0.9999  # 99.9 % maps to 1


@pytest.mark.parametrize("eps", [1e-3, 0.2])
@pytest.mark.parametrize("tokens", [576, 4096, 12_000])
def test_stretched_equals_its_textbook_form_and_mirrors_below_eps(tokens, eps):
    sigma = draw(tokens, mode="stretched", uniform_prob=0, eps=eps, batch=4000)
    # the levels come first from the generator
    normal = torch.randn(4000, generator=torch.Generator().manual_seed(0), dtype=torch.float64).numpy()
    shift = shift_for(tokens)
    low, high = logistic(shift - 2.5758), logistic(shift + 3.0902)
    y = (logistic(shift + normal) - low) / (high - low)
    y = np.clip(np.where(y < eps, 2 * eps - y, y), 0, 1)
    assert np.allclose(sigma.double().numpy(), y, atol=2e-7)
    assert sigma.min() >= eps - 1e-7


def test_a_share_of_the_stretched_samples_is_uniform():
    eps, share, threshold = 0.01, 0.3, 0.5
    sigma = draw(10_000, mode="stretched", uniform_prob=share, eps=eps).double().numpy()
    shift = shift_for(10_000)
    low, high = logistic(shift - 2.5758), logistic(shift + 3.0902)
    z = math.log((low + threshold * (high - low)) / (1 - low - threshold * (high - low)))
    below = share * (threshold - eps) / (1 - eps) + (1 - share) * NormalDist().cdf(z - shift)
    assert (sigma < threshold).mean() == pytest.approx(below, abs=0.01)
    everything = draw(mode="stretched", uniform_prob=1, eps=eps)
    assert everything.min() >= eps - 1e-9
    assert np.quantile(everything.numpy(), 0.5) == pytest.approx((1 + eps) / 2, abs=0.01)


def test_mode_follows_the_version():
    assert torch.equal(draw(version="2.0"), draw(mode="legacy"))
    assert torch.equal(draw(version="2.3"), draw(mode="stretched"))
    assert torch.equal(draw(version="2.0", mode="stretched"), draw(version="2.3"))
    assert not torch.equal(draw(version="2.0"), draw(version="2.3"))


@pytest.mark.parametrize("mode", ["legacy", "stretched"])
@pytest.mark.parametrize("tokens", [1, 4096, 60_000, 93_000, 1_000_000, 10**9])
def test_any_length_gives_finite_levels_below_one(mode, tokens):
    sigma = draw(tokens, mode=mode, batch=4000)
    assert sigma.dtype == torch.float32
    assert torch.isfinite(sigma).all()
    assert sigma.min() >= 0
    assert sigma.max() < 1


def test_stretched_keeps_its_spread_at_great_length():
    # in the limit 1 - sigma = (e^-n - e^-high) / (e^-low - e^-high) for a standard normal n
    sigma = draw(93_000, mode="stretched", uniform_prob=0).double().numpy()
    low, high = math.exp(2.5758), math.exp(-3.0902)
    for q in (0.1, 0.5, 0.9):
        n = NormalDist().inv_cdf(q)
        assert np.quantile(sigma, q) == pytest.approx((low - math.exp(-n)) / (low - high), abs=0.01)


def test_the_range_squeezes_and_does_not_reject():
    whole, part = draw().double(), draw(min_timestep=200, max_timestep=700).double()
    assert torch.allclose(part, 0.2 + whole * 0.5, atol=1e-6)
    flat = draw(sampling="uniform", min_timestep=100, max_timestep=300).double().numpy()
    assert flat.min() >= 0.1
    assert flat.max() <= 0.3
    assert np.quantile(flat, [0.25, 0.5, 0.75]) == pytest.approx([0.15, 0.2, 0.25], abs=0.005)


def test_shift_override_replaces_the_token_count():
    assert torch.equal(draw(100, shift=1.2), draw(9000, shift=1.2))
    assert draw(shift=-1.0, mode="legacy").median() == pytest.approx(logistic(-1.0), abs=0.01)


def test_same_generator_state_same_levels_and_always_the_same_advance():
    after = []
    for settings in ({}, {"sampling": "uniform"}, {"mode": "legacy", "min_timestep": 10}):
        generator = torch.Generator().manual_seed(7)
        sample_sigmas(SigmaSettings(**settings), 3, 2000, "2.3", generator)
        after.append(torch.rand(1, generator=generator))
    assert after[0] == after[1] == after[2]
    assert torch.equal(draw(seed=3), draw(seed=3))
    assert not torch.equal(draw(seed=3), draw(seed=4))


def test_settings_accept_the_community_default_and_refuse_a_reversed_range():
    assert SigmaSettings(sampling="sigma").sampling == "shifted_logit_normal"
    with pytest.raises(ConfigError, match=r"min_timestep \(700\) is above max_timestep \(200\)"):
        parse(SigmaSettings, {"min_timestep": 700, "max_timestep": 200}, "run.toml")
    with pytest.raises(ConfigError, match="eps"):
        parse(SigmaSettings, {"eps": 0.6}, "run.toml")


def test_samples_of_several_lengths_get_the_shift_of_their_own():
    counts = [576, 4096, 20_000]
    mixed = draw(counts, batch=3)
    for row, tokens in enumerate(counts):
        assert mixed[row] == draw(tokens, batch=3)[row]
    clamped = draw([4, 1024, 10**6], batch=3, audio_only=True)
    assert torch.equal(clamped, draw([1024, 1024, 4096], batch=3))


def test_sound_with_a_level_of_its_own_gets_a_uniform_one_in_the_range():
    settings = SigmaSettings(min_timestep=200, max_timestep=600, shift=5.0)
    sigma = sample_audio_sigmas(settings, DRAWS, torch.Generator().manual_seed(0)).double().numpy()
    assert sigma.min() >= 0.2 - 1e-6
    assert sigma.max() <= 0.6 + 1e-6
    for q in (0.05, 0.25, 0.5, 0.75, 0.95):
        assert np.quantile(sigma, q) == pytest.approx(0.2 + 0.4 * q, abs=0.005)
    full = sample_audio_sigmas(SigmaSettings(), DRAWS, torch.Generator().manual_seed(1))
    assert full.dtype == torch.float32
    assert 0 <= full.min()
    assert full.max() < 1


@pytest.mark.parametrize("sampling", ["uniform", "shifted_logit_normal"])
@pytest.mark.parametrize("batch", [1, 3])
def test_buckets_give_every_slice_its_turn(sampling, batch):
    count, tokens = 12, 2000
    settings = SigmaSettings(sampling=sampling, mode="legacy", buckets=count)
    generator = torch.Generator().manual_seed(3)
    drawn = torch.cat(
        [sample_sigmas(settings, batch, tokens, "2.0", generator, turn=turn) for turn in range(24 // batch)]
    )
    if sampling == "uniform":
        shares = drawn.double()
    else:  # back through the distribution: what share of it lies below each level
        normal = torch.distributions.Normal(0.0, 1.0)
        shares = normal.cdf(torch.logit(drawn.double()) - shift_for(tokens))
    for half in (shares[:count], shares[count:]):
        assert sorted((half * count).floor().int().tolist()) == list(range(count))
    assert (shares[:count] * count).floor().tolist() != (shares[count:] * count).floor().tolist()


def test_without_buckets_the_turn_changes_nothing():
    one, other = (
        sample_sigmas(SigmaSettings(), 4, 500, "2.3", torch.Generator().manual_seed(1), turn=turn) for turn in (0, 9)
    )
    assert torch.equal(one, other)
