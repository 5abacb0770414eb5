"""Regularizers: zero where they should be, the right gradient to the LoRA alone, and no trace where they are off."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from unit.training.regularized import Bench, captioned, make_batch
from unit.training.step_parts import losses

from ltx2_train.config import make_run
from ltx2_train.errors import ConfigError
from ltx2_train.models.transformer import LTXTransformer
from ltx2_train.training.regularizers.checks import check_regularized, regularizer_texts
from ltx2_train.training.regularizers.divergence import short_of
from ltx2_train.training.regularizers.preserve import without_trigger
from ltx2_train.weights.load import load_transformer

BLANK, DOP = {"blank": {"weight": 0.5}}, {"dop": {"weight": 0.7, "class_prompt": "a cat"}}
PRIOR, AUDIO = {"prior_divergence": {"weight": 0.1, "margin": 10.0}}, {"audio_dop": {"weight": 0.5}}
PRESERVING = [(BLANK, "video"), (DOP, "audio"), (AUDIO, "av")]
ALL = [*PRESERVING, (PRIOR, "video")]


@pytest.fixture(scope="module")
def models(tiny):
    return {mode: load_transformer(tiny.checkpoint, mode, torch.float32) for mode in ("video", "av", "audio")}


@pytest.fixture
def bench(models, tmp_path):
    made = []

    def make(settings, mode="video", **more):
        made.append(Bench(models[mode], tmp_path, settings, mode, **more))
        for text in ("", "a cat"):
            made[-1].know(text)
        return made[-1]

    yield make
    for one in made:
        one.close()
    for model in models.values():
        model.set_recompute(None)
        model.residence = None


def batch_for(mode, settings):
    lengths = [0, 0] if mode == "video" or "audio_dop" in settings else [6, 4]
    return make_batch(lengths, picture=mode != "audio", longest=6 if mode == "audio" else None)


@pytest.mark.parametrize(("settings", "mode"), PRESERVING)
def test_a_lora_that_does_nothing_has_nothing_to_be_kept_from(bench, settings, mode):
    (name,) = settings
    one = bench(settings, mode, strength=0.0)
    terms = one.step(batch_for(mode, settings))
    assert torch.equal(terms[name].values, torch.zeros(2))
    two = bench(settings, mode) if one.close() is None else one
    assert (two.step(batch_for(mode, settings))[name].values > 0).all()


def test_the_push_from_the_base_ends_at_its_margin(bench):
    base, predicted = torch.ones(2, 3, 4), torch.ones(2, 3, 4)
    predicted[1] += 0.5  # a quarter of the base's square
    assert short_of(predicted, base, None, 0.5).tolist() == [1.0, 0.5]
    assert short_of(predicted, base, None, 0.25).tolist() == [1.0, 0.0]
    terms = bench(PRIOR, strength=0.0).step(batch_for("video", PRIOR))
    assert torch.equal(terms["prior_divergence"].values, torch.ones(2))


@pytest.mark.parametrize(("settings", "mode"), ALL)
def test_the_gradient_goes_to_the_lora_alone_and_is_the_slope(bench, settings, mode):
    (name,) = settings
    one = bench(settings, mode)
    batch = batch_for(mode, settings)
    terms = one.step(batch)
    assert set(terms) > {name}
    assert all(p.grad is None for p in one.model.parameters() if not p.requires_grad)
    found = one.gradients()
    key = max(found, key=lambda key: float(found[key].norm()))
    path, _, half = key.rpartition(".")
    weight, slope = one.loras.layers[path].trained()[half], found[key]
    way, step = slope / slope.norm(), 1e-3
    sides = []
    for sign in (1, -1):
        with torch.no_grad():
            weight.add_(sign * step * way)
        sides.append(one.loss(batch))
        with torch.no_grad():
            weight.sub_(sign * step * way)
    assert (sides[0] - sides[1]) / (2 * step) == pytest.approx(float(slope.norm()), rel=0.03)


@pytest.mark.parametrize(("settings", "mode"), [(DOP, "av"), (PRIOR, "video")])
def test_recomputing_and_copies_of_the_factors_change_nothing(bench, settings, mode):
    one = bench(settings, mode)
    batch = batch_for(mode, settings)
    one.model.set_recompute(0)
    one.step(batch)
    kept = one.gradients()
    for parameter in one.loras.parameters():
        parameter.grad = None
    one.model.set_recompute(None)
    one.step(batch, held=True)
    again = one.gradients()
    assert kept.keys() == again.keys()
    assert all(torch.allclose(kept[key], again[key], rtol=1e-4, atol=1e-6) for key in kept)


def test_off_is_absent_to_the_bit(models, bench):
    one = bench({"blank": {"weight": 0.0}, "dop": {"weight": 0}})
    assert not one.regularizers
    batch = make_batch([0, 0])
    terms = one.step(batch)
    one.close()
    assert set(terms) == {"video"}
    plain = losses(models, batch, "video")
    assert set(plain.terms) == {"video"}


def test_what_is_shown_the_same_is_asked_once(bench):
    both = {**BLANK, "dop": {"weight": 0.7}}  # the class prompt is the empty one
    one, batch = bench(both), make_batch([0, 0])
    calls = []
    real = LTXTransformer.forward

    def counted(self, *args, **options):
        calls.append(torch.is_grad_enabled())
        return real(self, *args, **options)

    with patch.object(LTXTransformer, "forward", counted):
        terms = one.step(batch)
    assert calls == [True, False, True]  # what is learned; the base and the LoRA without a prompt
    assert torch.equal(terms["blank"].values, terms["dop"].values)


@pytest.mark.parametrize("algo", ["lokr", "dora"])
def test_every_kind_of_adapter_can_be_taken_off_the_base(bench, algo):
    one, batch = bench({**BLANK, **PRIOR}, lora={"algo": algo}), make_batch([0, 0])
    terms = one.step(batch)
    assert (terms["blank"].values > 0).all()
    assert (terms["prior_divergence"].values < 1).all()
    assert one.gradients()


def test_only_clips_without_sound_are_kept_silent(bench):
    one = bench(AUDIO, "av")
    terms = one.step(make_batch([6, 0, 4]))
    assert terms["audio_dop"].rows.tolist() == [1]
    assert terms["audio_dop"].values[[0, 2]].tolist() == [0.0, 0.0]
    assert "audio_dop" not in one.step(make_batch([6, 4]))


def test_a_trigger_is_taken_out_of_the_captions_that_have_it(bench):
    assert without_trigger("ohwx, a man", ["ohwx"], "") == "a man"
    assert without_trigger("A photo of OHWX, smiling", ["ohwx"], "a man") == "A photo of a man, smiling"
    assert without_trigger("a photo of ohwx .", ["ohwx"], "") == "a photo of."
    assert without_trigger("ohwxy runs", ["ohwx"], "") is None
    one = bench({"dop": {"weight": 1, "captions": "replace", "class_prompt": "a man"}}, triggers=("ohwx",))
    one.know("a man runs")
    terms = one.step(captioned(make_batch([0, 0]), "ohwx runs", "a tree"))
    assert terms["dop"].rows.tolist() == [0]
    assert terms["dop"].values[1] == 0
    assert "dop" not in one.step(captioned(make_batch([0, 0]), "a house", "a tree"))


def test_prompts_are_known_before_training():
    settings = make_run({"regularizers": {**BLANK, **DOP}}).regularizers
    assert regularizer_texts(settings, ["x"], []) == ["", "a cat"]
    replaced = make_run({"regularizers": {"dop": {"weight": 1, "captions": "replace"}}}).regularizers
    assert regularizer_texts(replaced, ["ohwx runs", "ohwx sits", "a tree"], ["ohwx"]) == ["runs", "sits"]
    with pytest.raises(ConfigError, match="no caption holds the trigger ohwx"):
        regularizer_texts(replaced, ["a tree"], ["ohwx"])
    with pytest.raises(ConfigError, match="there is no trigger to replace"):
        regularizer_texts(replaced, ["a tree"], [])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model": {"mode": "video"}, "regularizers": AUDIO}, "audio_dop.weight is 0.5, and model.mode is video"),
        (
            {"model": {"mode": "av"}, "audio": {"silence_regularizer": True}, "regularizers": AUDIO},
            "both make sound for clips that have none",
        ),
        ({"regularizers": {"dop": {"weight": 1, "trigger": "ohwx"}}}, "nothing looks for it"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(settings, words):
    with pytest.raises(ConfigError, match=words):
        check_regularized(make_run(settings))


def test_a_weight_below_zero_is_refused():
    with pytest.raises(ConfigError, match=r"regularizers\.blank\.weight"):
        make_run({"regularizers": {"blank": {"weight": -1}}})
