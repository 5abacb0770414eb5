"""Blocks that are shared out over the processes of a run, here over one; several are in tests/e2e/test_processes.py."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as distributed
from torch import nn

from ltx2_train.full.parts import Gathered, clip_gradients
from ltx2_train.offload.shards import OwnPart, ShardedBlocks


@pytest.fixture
def blocks(tmp_path):
    distributed.init_process_group("gloo", rank=0, world_size=1, init_method=f"file://{tmp_path}/store")
    torch.manual_seed(0)
    layers = [nn.Linear(5, 5) for _ in range(3)]
    for layer in layers:
        layer.requires_grad_(False)
    shared = ShardedBlocks(layers, torch.device("cpu"))
    for number in range(3):
        shared.admit(number)
    yield shared
    shared.close()
    distributed.destroy_process_group()


def test_what_a_process_trains_of_a_block_is_what_the_next_visit_finds(blocks):
    before = blocks.blocks[0].weight.full_tensor().clone()
    weights = {f"{n}.{name}": one for n, layer in enumerate(blocks.blocks) for name, one in layer.named_parameters()}
    parts = blocks.take_parts({name: one for name, one in weights.items() if name != "1.weight"})
    assert list(parts) == ["0.weight", "0.bias", "1.bias"]  # the last block is whole everywhere
    assert blocks.shares(2) is None
    with torch.no_grad():
        parts["0.weight"].own.add_(1)
    for backward in (False, True, False):  # whichever way it comes
        with blocks.visiting(0, backward):
            torch.testing.assert_close(blocks.blocks[0].weight.detach(), before + 1)
    with blocks.visiting(1, True):
        wholes = blocks.shares(1).wholes()
        assert [one.requires_grad for one in wholes] == [True]
        (gradient,) = blocks.shares(1).parted([torch.full((5,), 2.0)])
        torch.testing.assert_close(gradient, torch.full((5,), 2.0))
        assert parts["1.bias"].taken()
        assert not parts["1.bias"].taken()
        (gradient,) = blocks.shares(1).parted([None])  # no batch reached it
        assert not gradient.any()
        assert not parts["1.bias"].taken()


def test_a_tensor_that_is_held_in_parts_is_put_together_when_it_is_asked_for(blocks):
    part = blocks.take_parts({"w": blocks.blocks[0].weight})["w"]
    asked = []
    whole = Gathered(part, part.own, lambda: asked.append("w"))
    assert (whole.shape, whole.dtype, asked) == ((5, 5), torch.float32, [])
    torch.testing.assert_close(whole.detach(), part.own.detach())
    assert asked == ["w"]


def test_the_norm_of_parts_is_that_of_the_whole(blocks):
    part = blocks.take_parts({"w": blocks.blocks[0].weight})["w"]
    other = nn.Parameter(torch.zeros(3))
    part.own.grad, other.grad = torch.full((5, 5), 2.0), torch.full((3,), 1.0)
    norm = clip_gradients([part.own, other], 1.0, {part.own: part})
    assert float(norm) == pytest.approx((25 * 4 + 3) ** 0.5)
    assert float(part.own.grad[0, 0]) == pytest.approx(2 / float(norm), rel=1e-4)
    assert float(other.grad[0]) == pytest.approx(1 / float(norm), rel=1e-4)


@pytest.mark.parametrize(("rank", "rows"), [(0, [0, 1]), (1, [2, 3]), (2, [4]), (3, [])])
def test_rows_are_cut_evenly_and_the_last_processes_may_have_none(monkeypatch, rank, rows):
    monkeypatch.setattr(distributed, "get_rank", lambda group: rank)
    monkeypatch.setattr(distributed, "get_world_size", lambda group: 4)
    part = OwnPart(nn.Parameter(torch.zeros(5, 2)), None)
    whole = torch.arange(10.0).view(5, 2)
    assert part.of(whole)[:, 0].tolist() == [2.0 * row for row in rows]
    assert part.by_process(whole).shape == (4, 4)
    assert part.by_process(whole).sum() == whole.sum()
