"""The weight of the audio loss, against its recurrences written out."""

import json
import math

import pytest

from ltx2_train.errors import ConfigError, RunError
from ltx2_train.objective.audio_balance import AudioBalance, BalanceSettings, sample_weights
from ltx2_train.objective.flow import LossSettings
from ltx2_train.settings import parse


def balance(**settings):
    return AudioBalance(BalanceSettings(**settings))


def test_the_weight_of_a_dataset_replaces_that_of_the_run():
    assert sample_weights(2.0, [None, 0.5, 0.0, None]) == [2.0, 0.5, 0.0, 2.0]


def test_without_a_balance_the_weight_is_the_fixed_one():
    one = balance()
    one.observe(True, 1.0, 100.0)
    assert one.weight(0.7) == 0.7


def test_rare_sound_weighs_more_by_the_inverse_of_its_share():
    one, share = balance(mode="inv_freq", beta=0.1, eps=0.2, max=4, start=0.5), 0.5
    for has_sound in (True, False, False, False, True, False):
        one.observe(has_sound)
        share = 0.9 * share + 0.1 * has_sound
        assert one.weight(0.8) == pytest.approx(0.8 / share)
    for _ in range(100):
        one.observe(False)
    assert one.weight(0.5) == pytest.approx(0.5 / 0.2), "eps is the smallest share that is divided by"
    assert one.weight(2.0) == 4.0, "the clamp is on the whole weight, base included"


def test_the_default_start_gives_no_boost_to_a_run_in_which_all_batches_have_sound():
    one = balance(mode="inv_freq")
    for _ in range(20):
        one.observe(True)
    assert one.weight(1.0) == pytest.approx(1.0)


def test_the_audio_loss_is_held_at_its_share_of_the_video_loss_from_the_first_batch_on():
    one = balance(mode="ema_mag", ratio=0.5, decay=0.9, min=0.01, max=50)
    assert one.weight(1.0) == 1.0, "nothing is known before the first batch"
    videos, audios = [0.4, 0.8, 0.2, 0.6], [0.1, 0.3, 0.2, 0.05]
    for n, (video, audio) in enumerate(zip(videos, audios, strict=True), 1):
        one.observe(True, video, audio)
        weights = [0.9 ** (n - 1 - i) for i in range(n)]  # the plain weighted mean that a corrected EMA is
        mean_v = sum(w * x for w, x in zip(weights, videos, strict=False)) / sum(weights)
        mean_a = sum(w * x for w, x in zip(weights, audios, strict=False)) / sum(weights)
        assert one.losses == pytest.approx((mean_v, mean_a))
        assert one.weight(1.0) == pytest.approx(0.5 * mean_v / mean_a)
        assert one.weight(0.1) == pytest.approx(0.05 * mean_v / mean_a)


def test_it_dampens_as_well_as_it_boosts_within_the_clamp():
    loud, quiet = balance(mode="ema_mag"), balance(mode="ema_mag")
    loud.observe(True, 0.1, 10.0)
    quiet.observe(True, 10.0, 0.1)
    assert (loud.weight(1.0), quiet.weight(1.0)) == (0.05, 4.0)


def test_batches_that_say_nothing_of_both_losses_leave_the_means_alone():
    one = balance(mode="ema_mag")
    one.observe(True, 0.4, 0.2)
    before = one.weight(1.0)
    for losses in ((None, 0.5), (0.5, None), (math.nan, 0.1), (0.1, math.inf)):
        one.observe(True, *losses)
    one.observe(False, 9.0, 9.0)
    assert one.weight(1.0) == before


def test_an_audio_loss_of_zero_gives_the_largest_weight_and_no_error():
    one = balance(mode="ema_mag")
    one.observe(True, 0.4, 0.0)
    assert one.weight(1.0) == 4.0


@pytest.mark.parametrize("mode", ["inv_freq", "ema_mag"])
def test_a_weight_of_zero_stays_zero(mode):
    one = balance(mode=mode)
    one.observe(True, 1.0, 1.0)
    assert one.weight(0.0) == 0.0


@pytest.mark.parametrize("mode", ["inv_freq", "ema_mag"])
def test_a_resumed_balance_goes_on_as_if_unbroken(mode):
    batches = [(n % 3 != 0, 0.1 + n % 5, 0.2 + n % 4) for n in range(12)]
    whole, first, second = (balance(mode=mode, beta=0.1, decay=0.8) for _ in range(3))
    for number, batch in enumerate(batches):
        whole.observe(*batch)
        (first if number < 6 else second).observe(*batch)
        if number == 5:
            second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert second.weight(1.0) == whole.weight(1.0)
    assert second.state_dict() == whole.state_dict()


def test_a_state_of_another_kind_is_refused():
    with pytest.raises(RunError, match="loss balance"):
        balance().load_state_dict({"frequency": 1.0})


@pytest.mark.parametrize(
    "wrong",
    [{"beta": 0}, {"beta": 1.1}, {"eps": 0}, {"start": 0}, {"start": 1.5}, {"ratio": 0}, {"decay": 1}, {"min": -1},
     {"max": 0}, {"mode": "ema"}, {"min": 3, "max": 2}],
)  # fmt: skip
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError):
        parse(BalanceSettings, wrong, "run.toml")


def test_it_is_a_part_of_the_loss_settings_with_the_defaults_of_the_community_trainer():
    settings = LossSettings().balance
    assert settings.model_dump() == {
        "mode": "none", "beta": 0.01, "eps": 0.05, "start": 1.0, "ratio": 0.33, "decay": 0.99, "min": 0.05, "max": 4.0
    }  # fmt: skip
