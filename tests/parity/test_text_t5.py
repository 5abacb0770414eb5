"""T5 gives the states of transformers' T5EncoderModel, from each of the files people own, wherever its layers are."""

from __future__ import annotations

import shutil

import pytest
import torch

from ltx2_train.errors import CheckpointError
from ltx2_train.weights.gemma_settings import GemmaSettings
from ltx2_train.weights.t5 import T5Tokenizer, find_tokenizer, load_t5_tokenizer, open_t5
from ltx2_train.weights.t5_encoder import T5Encoder
from ltx2_train.weights.tiny_gemma import SENTENCES
from ltx2_train.weights.tiny_t5 import write_tiny_t5

CAPTIONS = ["", "a red fox", *SENTENCES[:2], " ".join(SENTENCES)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny_t5(tmp_path_factory.mktemp("t5"))


def tokenizer_of(path) -> T5Tokenizer:
    with open_t5(path) as files:
        return load_t5_tokenizer(find_tokenizer(files, None), files.vocabulary)


@torch.no_grad()
def reference(folder) -> list[torch.Tensor]:
    """What transformers makes of CAPTIONS with the folder's numbers."""
    from transformers import T5EncoderModel

    model = T5EncoderModel.from_pretrained(folder / "text_encoder").float().eval()
    tokenizer = tokenizer_of(folder)
    return [model(torch.tensor([tokenizer.ids(text)])).last_hidden_state[0] for text in CAPTIONS]


def apart(ours, theirs) -> float:
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize("placement", ["device", "stream", "layers"])
def test_the_states_are_those_of_transformers(tiny, placement):
    single, folder = tiny
    settings = GemmaSettings(placement=placement)
    theirs = reference(folder)
    assert max(len(one) for one in theirs) > 128, "beyond the distances that the bias tells apart"
    for path in (single, folder) if placement == "device" else (single,):
        with T5Encoder.load(path, torch.float32, settings=settings) as encoder:
            ours = encoder.encode(CAPTIONS)
        for mine, other in zip(ours, theirs, strict=True):
            assert mine.shared
            assert apart(mine.video, other) < 1e-4


@pytest.mark.parametrize("fp8", ["scaled", "plain"])
def test_fp8_files_give_the_numbers_they_stand_for(tmp_path, fp8):
    single, folder = write_tiny_t5(tmp_path, fp8=fp8)
    with T5Encoder.load(single, torch.float32) as encoder:
        ours = encoder.encode(CAPTIONS)
    for mine, other in zip(ours, reference(folder), strict=True):
        assert apart(mine.video, other) < 1e-4


def test_a_text_ends_with_the_end_token_and_is_cut_before_it(tiny):
    pieces, fast = tokenizer_of(tiny[1]), tokenizer_of(tiny[0])  # spiece.model, and tokenizer.json beside the file
    assert pieces.ids("  ") == [1]
    for text in (*CAPTIONS, "  two  spaces ", "A FOX 3"):
        assert pieces.ids(text) == fast.ids(text)
    long = pieces.ids(" ".join(SENTENCES * 9))
    assert (len(long), long[-1]) == (256, 1)
    assert long[:-1] == pieces.ids(" ".join(SENTENCES * 9), 10_000)[:255]


def test_a_file_without_a_tokenizer_says_where_to_take_it_from(tiny, tmp_path):
    alone = shutil.copy(tiny[0], tmp_path / "t5xxl.safetensors")
    with pytest.raises(CheckpointError, match=r"has no tokenizer.*gemma\.tokenizer.*t5_tokenizer.*spiece\.model"):
        T5Encoder.load(alone)
    spiece = tiny[1] / "tokenizer" / "spiece.model"
    stamps = set()
    for given in (spiece, spiece.parent, tiny[1]):
        with T5Encoder.load(alone, settings=GemmaSettings(tokenizer=given)) as encoder:
            stamps.add(encoder.fingerprint)
    shutil.copy(spiece, tmp_path / "spiece.model")
    with T5Encoder.load(alone) as encoder:
        stamps.add(encoder.fingerprint)
    assert len(stamps) == 1, "where it lies changes nothing"
    with pytest.raises(CheckpointError, match=r"gemma\.tokenizer: .* is no tokenizer"):
        T5Encoder.load(alone, settings=GemmaSettings(tokenizer=tmp_path / "nowhere"))
