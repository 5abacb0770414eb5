"""Whether references are used is measured without touching anything, and said in words."""

from dataclasses import replace

import pytest
import torch
from unit.training.step_parts import make_batch

from ltx2_train.config import make_run
from ltx2_train.feed.batches import GivenData
from ltx2_train.training.proof import OTHERS, OWN, Use, is_wanted, swapped, use_in_words


def run(**settings):
    return make_run({"model": {"mode": "av"}, **settings})


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({}, False),
        ({"video": {"conditions": [{"type": "mask"}]}}, False),
        ({"video": {"conditions": [{"type": "reference"}]}}, True),
        ({"audio": {"conditions": [{"type": "reference"}]}}, True),
        ({"audio": {"generated": False}}, True),
        ({"audio": {"generated": False}, "train": {"prove_references": False}}, False),
    ],
)
def test_it_is_measured_where_another_clip_could_lend_what_is_given(settings, wanted):
    assert is_wanted(run(**settings)) is wanted


def with_reference(value: float, side: int = 2, seed: int = 0):
    return replace(make_batch([4], seed=seed), given=(GivenData((torch.full((128, 1, side, side), value),)),))


def test_a_clip_gets_the_reference_of_another_and_keeps_all_else():
    mine, theirs = with_reference(1.0), with_reference(2.0, seed=1)
    lent = swapped(mine, theirs, ["references"])
    assert lent.given[0].references[0].unique().tolist() == [2.0]
    assert torch.equal(lent.latents, mine.latents)
    assert swapped(mine, with_reference(1.0, seed=1), ["references"]) is None  # the same reference proves nothing
    assert swapped(mine, with_reference(2.0, side=1), ["references"]) is None
    assert swapped(mine, make_batch([4]), ["references"]) is None


def test_a_stream_that_is_given_changes_places_at_its_own_length():
    mine, theirs = make_batch([6]), make_batch([4], seed=1)
    lent = swapped(mine, theirs, ["audio"])
    assert lent.audio.shape == mine.audio.shape
    assert torch.equal(lent.audio[:, :, :4], theirs.audio)
    assert torch.equal(lent.latents, mine.latents)


@pytest.mark.parametrize(
    ("use", "before", "level", "says"),
    [
        (Use(0.20, 0.30, 0.01, 4, True), {OWN: 0.5, OTHERS: 0.51}, "info", "+50.0%.*before training +2.0%.*uses them"),
        (Use(0.20, 0.2001, 0.01, 4, True), {OWN: 0.5, OTHERS: 0.5}, "warning", "makes no use of them"),
        (Use(0.20, 0.22, 0.001, 4, True), {OWN: 0.5, OTHERS: 0.55}, "warning", "makes no use of them"),
        (Use(0.20, 0.30, 0.09, 4, True), None, "warning", "makes no use of them"),
        (Use(0.20, 0.30, 0.01, 4, False), None, "info", "with none 0.3000"),
    ],
)
def test_what_was_found_is_said_in_words(use, before, level, says):
    text, told = use_in_words(use, before, 100, "References")
    assert told == level
    import re

    assert re.search(says.replace("+", r"\+"), text)


def test_before_training_there_is_nothing_to_judge():
    text, level = use_in_words(Use(0.5, 0.5, 0.1, 4, True), None, 0, "References")
    assert level == "info"
    assert text.startswith("Before training, references: the loss is 0.5000 with their own")
