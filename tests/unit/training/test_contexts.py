"""Contexts come back the same from RAM and from the file, one a stream, and a dropped caption gives way to another."""

import pytest
import torch

from ltx2_train import RunError
from ltx2_train.training.contexts import EMPTY_PROMPT, ContextStore, streams_of


def test_contexts_over_the_limit_go_to_a_file_and_come_back_equal(tmp_path):
    store = ContextStore(tmp_path / "c.bin", limit=2 * 4 * 6 * 2)
    made = {key: torch.randn(4, 6).to(torch.bfloat16) for key in "abcd"}
    for key, context in made.items():
        store.add(key, "video", context)
    assert store.spilled == 2 * 4 * 6 * 2
    assert (tmp_path / "c.bin").stat().st_size == store.spilled
    for key, context in made.items():
        assert torch.equal(store[key, "video"], context)
    assert store.batch(["a", "d"], "video", "cpu").shape == (2, 4, 6)
    store.close()
    assert not (tmp_path / "c.bin").exists()


def test_what_a_killed_run_left_is_written_over(tmp_path):
    (tmp_path / "c.bin").write_bytes(b"x" * 1000)
    store = ContextStore(tmp_path / "c.bin", limit=0)
    made = {key: torch.randn(4, 6) for key in "ab"}
    for key, context in made.items():
        store.add(key, "video", context)
    assert (tmp_path / "c.bin").stat().st_size == 2 * 4 * 6 * 4
    assert all(torch.equal(store[key, "video"], context) for key, context in made.items())
    store.close()


def test_a_full_disk_is_named_with_what_to_do(tmp_path):
    (tmp_path / "file").write_text("x")
    store = ContextStore(tmp_path / "file" / "c.bin", limit=0)
    with pytest.raises(RunError, match=r"c\.bin.*memory\.context_gb"):
        store.add("a", "video", torch.zeros(4, 6))
    store.close()


def test_each_stream_has_its_own_context(tmp_path):
    store = ContextStore(tmp_path / "c.bin", limit=10**6)
    video, audio = torch.ones(4, 6), torch.ones(4, 3)
    store.add("a", "video", video)
    assert store.pair("a")[1] is None
    store.add("a", "audio", audio)
    assert [tuple(one.shape) for one in store.pair("a")] == [(4, 6), (4, 3)]
    assert store.batch(["a", "a"], "audio", "cpu").shape == (2, 4, 3)
    assert [streams_of(mode) for mode in ("video", "av", "audio")] == [("video",), ("video", "audio"), ("audio",)]


def test_a_dropped_caption_gives_way_to_the_empty_prompt_or_to_zeros(tmp_path):
    store = ContextStore(tmp_path / "c.bin", limit=10**6)
    for value, key in enumerate(("a", "b", EMPTY_PROMPT), 1):
        store.add(key, "video", torch.full((2, 3), float(value)))
    empty = store.batch(["a", "b"], "video", "cpu", [False, True])
    assert empty[:, 0, 0].tolist() == [1, 3]
    zeros = store.batch(["a", "b"], "video", "cpu", [True, False], "zeros")
    assert zeros[:, 0, 0].tolist() == [0, 2]
    assert store["a", "video"].eq(1).all(), "what is kept stays as it is"
