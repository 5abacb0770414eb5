"""On a processor the results of attentions are kept, their queries, keys and values made again; no gradient notices."""

from __future__ import annotations

import pytest
import torch
from parity.oracles_transformer import adapt, build, inputs, loss_of
from torch.utils._python_dispatch import TorchDispatchMode

from ltx2_train.models.blocks import Keeping
from ltx2_train.models.results import attend_again

BLOCKS = 3


def run(version, mode, where):
    model = build(version, mode, num_layers=BLOCKS)
    adapt(model, where)
    loss = loss_of(model(*inputs(version, per_token=True).pick(mode)))
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize(
    ("version", "mode", "where"), [("2.3", "av", ""), ("2.3", "video", "attn"), ("2.0", "av", "attn")]
)
def test_gradients_are_those_of_attentions_that_are_run_again_to_the_bit(monkeypatch, version, mode, where):
    ours = run(version, mode, where)
    monkeypatch.setattr(Keeping, "result_of", lambda *_: False)
    plain = run(version, mode, where)
    assert len(ours) == len(plain) > 20
    assert all(torch.equal(a, b) for a, b in zip(ours, plain, strict=True))


class Counting(TorchDispatchMode):
    attended = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.attended += function is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
        return function(*args, **(kwargs or {}))


def test_tokens_attend_to_each_other_once():
    """To the text, which is shorter than they are, they do it again in all blocks but the last."""
    with Counting() as counting:
        run("2.3", "video", "attn")
    assert counting.attended == 2 * BLOCKS + (BLOCKS - 1)


@pytest.mark.parametrize("heads", [1, 3, 8])
def test_parts_of_the_heads_have_the_gradient_of_all(heads):
    q, k, v = (torch.randn(2, tokens, heads, 8, dtype=torch.float64).requires_grad_() for tokens in (5, 9, 9))
    out, sums = attend_again(q, k, v, None)
    grad = torch.randn_like(out)
    plain = torch.autograd.grad(out, (q, k, v), grad)
    again, _ = attend_again(*((x * 1) for x in (q, k, v)), (out.detach(), sums.detach()))
    assert torch.equal(again, out)
    for ours, theirs in zip(torch.autograd.grad(again, (q, k, v), grad), plain, strict=True):
        assert torch.equal(ours, theirs)
