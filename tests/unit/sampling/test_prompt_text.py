"""Prompts are encoded once and kept, one that fails apart from the others."""

from __future__ import annotations

import re

import pytest
import torch

from ltx2_train import Events
from ltx2_train.caching.encode_text import each_features
from ltx2_train.errors import DataError
from ltx2_train.models.text import TextFeatures
from ltx2_train.sampling import prompt_text
from ltx2_train.sampling.prompt_text import prompt_features
from ltx2_train.weights.gemma import load_tokenizer
from ltx2_train.weights.gemma_files import open_gemma


class Encoder:
    """Encodes to its length, and cannot encode "bad"."""

    opened = 0

    def __init__(self):
        Encoder.opened += 1

    def groups(self, captions):
        return [list(captions)]

    def encode_each(self, captions, events=None):
        for text in captions:
            features = torch.full((len(text), 8), float(len(text)))
            yield text, DataError("not finite: bad") if text == "bad" else TextFeatures(features, features)

    def close(self):
        pass


@pytest.fixture
def features(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(prompt_text.TextEncoder, "load", lambda *args, **more: Encoder())
    monkeypatch.setattr(Encoder, "opened", 0)

    def ask(*texts):
        return prompt_features(
            texts, tmp_path / "prompts", tiny.text_encoder, tiny.checkpoint, torch.device("cpu"), Events()
        )

    return ask


def test_a_prompt_that_fails_does_not_cost_the_others(features):
    with pytest.raises(DataError, match="bad"):
        features("one", "bad", "three")
    assert Encoder.opened == 1
    found = features("three", "one")
    assert Encoder.opened == 1
    assert {text: one.tokens for text, one in found.items()} == {"three": 5, "one": 3}


def test_a_folder_that_cannot_be_written_costs_only_the_cache(features, tmp_path):
    (tmp_path / "prompts").write_text("a file where the folder would be")
    found = features("one", "three")
    assert {text: one.tokens for text, one in found.items()} == {"one": 3, "three": 5}


def test_a_prompt_of_another_encoder_is_made_again_and_one_of_an_older_version_is_kept(features, tmp_path, monkeypatch):
    """Older versions told encoders apart by sixteen characters, and files are called by these."""
    plain, one, other = "0" * 16, "0" * 16 + "a", "0" * 16 + "b"
    for fingerprint, opened in ((plain, 1), (one, 1), (other, 1)):
        monkeypatch.setattr(prompt_text, "text_fingerprint", lambda *_, fingerprint=fingerprint: fingerprint)
        features("a fox")
        assert Encoder.opened == opened
    (path,) = (tmp_path / "prompts").iterdir()
    path.unlink()
    for fingerprint, opened in ((one, 2), (one, 2), (other, 3), (other, 3)):
        monkeypatch.setattr(prompt_text, "text_fingerprint", lambda *_, fingerprint=fingerprint: fingerprint)
        features("a fox")
        assert Encoder.opened == opened
    assert [found.name for found in (tmp_path / "prompts").iterdir()] == [path.name]


def test_a_text_that_is_cut_is_told(tiny):
    encoder, told, events = Encoder(), [], Events()
    with open_gemma(tiny.text_encoder) as found:
        encoder.tokenizer = load_tokenizer(found)
    events.message = lambda text, level="info": told.append((level, text))
    list(each_features(encoder, ["a fox", "rain " * 1100], events))
    ((level, text),) = told
    assert level == "warning"
    assert re.fullmatch(
        r"The text 'rain rain .*'\.\.\. is too long: its last \d+ tokens are not read\. Shorten it\.", text
    )
