"""Contexts come back the same from RAM and from the file."""

import torch

from ltx2_train.training.contexts import ContextStore


def test_contexts_over_the_limit_go_to_a_file_and_come_back_equal(tmp_path):
    store = ContextStore(tmp_path / "c.bin", limit=2 * 4 * 6 * 2)
    made = {key: torch.randn(4, 6).to(torch.bfloat16) for key in "abcd"}
    for key, context in made.items():
        store.add(key, context)
    assert store.spilled == 2 * 4 * 6 * 2
    assert (tmp_path / "c.bin").stat().st_size == store.spilled
    for key, context in made.items():
        assert torch.equal(store[key], context)
    assert store.batch(["a", "d"], "cpu").shape == (2, 4, 6)
    store.close()
    assert not (tmp_path / "c.bin").exists()
