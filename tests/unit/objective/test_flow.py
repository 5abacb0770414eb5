"""Flow matching and its losses, against numpy."""

import numpy as np
import pytest
import torch

from ltx2_train.objective.flow import (
    LossSettings,
    add_noise,
    draw_first_frame,
    element_loss,
    first_frame_tokens,
    masked_mean,
    velocity,
)
from ltx2_train.shapes import LatentShape


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 6, 4, generator=generator), torch.randn(2, 6, 4, generator=generator)


def test_noise_is_mixed_per_sample_and_per_token(pair):
    x0, noise = pair
    sigma = torch.tensor([0.25, 1.0])
    mixed = add_noise(x0, noise, sigma)
    assert torch.allclose(mixed[0], 0.75 * x0[0] + 0.25 * noise[0])
    assert torch.equal(mixed[1], noise[1])
    tokens = torch.zeros(2, 6)
    tokens[0, 3] = 0.5
    mixed = add_noise(x0, noise, tokens)
    assert torch.equal(mixed[1], x0[1])
    assert torch.allclose(mixed[0, 3], 0.5 * (x0 + noise)[0, 3])


def test_velocity_is_the_slope_of_the_mix_and_leads_back_to_the_data(pair):
    x0, noise = pair
    sigma = torch.tensor([0.3, 0.9])
    slope = (add_noise(x0, noise, sigma + 0.05) - add_noise(x0, noise, sigma)) / 0.05
    assert torch.allclose(slope, velocity(x0, noise), atol=1e-4)
    back = add_noise(x0, noise, sigma) - sigma[:, None, None] * velocity(x0, noise)
    assert torch.allclose(back, x0, atol=1e-5)


def test_low_precision_inputs_are_worked_on_in_float32(pair):
    x0, noise = (t.bfloat16() for t in pair)
    sigma = torch.tensor([0.1234567, 0.5])
    assert add_noise(x0, noise, sigma).dtype == torch.float32
    assert torch.equal(add_noise(x0, noise, sigma), add_noise(x0.float(), noise.float(), sigma))
    assert velocity(x0, noise).dtype == torch.float32
    assert element_loss(x0, noise, LossSettings()).dtype == torch.float32


@pytest.mark.parametrize("delta", [0.1, 1.0])
def test_losses_equal_their_formulas(pair, delta):
    a, b = (t.double().numpy() for t in pair)
    d = a - b
    huber = np.where(np.abs(d) < delta, 0.5 * d**2 / delta, np.abs(d) - 0.5 * delta)
    for kind, expected in {"mse": d**2, "mae": np.abs(d), "huber": huber}.items():
        loss = element_loss(*pair, LossSettings(type=kind, huber_delta=delta))
        assert np.allclose(loss.numpy(), expected, atol=1e-5)


def test_the_community_names_of_losses_are_known():
    assert LossSettings(type="smooth_l1").type == "huber"
    assert LossSettings(type="l1").type == "mae"


def test_mean_is_per_sample_over_unmasked_tokens(pair):
    loss = pair[0].square()
    mask = torch.tensor([[1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1]])
    expected = [loss[0, :2].mean(), loss[1].mean()]
    assert torch.allclose(masked_mean(loss, mask), torch.stack(expected))
    assert torch.allclose(masked_mean(loss), loss.mean(dim=(1, 2)))


def test_a_short_sample_counts_as_much_as_a_long_one():
    loss = torch.ones(2, 10, 3)
    mask = torch.zeros(2, 10)
    mask[0, 0] = 1
    mask[1] = 1
    assert masked_mean(loss, mask).tolist() == [1.0, 1.0]


def test_an_empty_mask_gives_zero_loss_and_zero_gradient(pair):
    prediction = pair[0].clone().requires_grad_()
    mask = torch.zeros(2, 6)
    mask[1] = 1
    loss = masked_mean(element_loss(prediction, pair[1], LossSettings()), mask)
    assert loss[0] == 0
    loss.sum().backward()
    assert prediction.grad[0].abs().max() == 0
    assert prediction.grad[1].abs().max() > 0


def test_first_frame_tokens_are_clean_and_only_for_the_samples_that_are_given_it():
    shape = LatentShape(frames=3, height=2, width=2)
    clean = first_frame_tokens(shape, torch.tensor([True, False]))
    assert clean.tolist() == [[True] * 4 + [False] * 8, [False] * 12]


def test_a_single_frame_is_never_given_away():
    shape = LatentShape(frames=1, height=2, width=2)
    assert not first_frame_tokens(shape, torch.tensor([True])).any()


def test_first_frame_coins_follow_the_chance_of_each_sample():
    generator = torch.Generator().manual_seed(0)
    coins = draw_first_frame([0.3] * 4000, generator)
    assert coins.float().mean().item() == pytest.approx(0.3, abs=0.03)
    assert draw_first_frame([0.0, 1.0] * 50, generator).tolist() == [False, True] * 50


def test_first_frame_chances_do_not_shift_later_numbers():
    after = []
    for chances in ([0.0, 0.0], [1.0, 0.5]):
        generator = torch.Generator().manual_seed(1)
        draw_first_frame(chances, generator)
        after.append(torch.rand(1, generator=generator))
    assert after[0] == after[1]
