"""Keys and values of the text are multiplied once a step, and the gradients do not notice."""

from __future__ import annotations

import pytest
import torch
from parity.oracles_transformer import adapt, build, inputs, loss_of
from torch import nn

BLOCKS = 3


def run(version, where, mode, keep, prepare=None):
    model = build(version, mode, num_layers=BLOCKS)
    layers = adapt(model, where)
    model.keep_text_kv = keep
    if prepare is not None:
        prepare(model)
    loss = loss_of(model(*inputs(version, per_token=True).pick(mode)))
    loss.backward()
    return [loss.detach(), *(p.grad for x in layers.values() for p in (x.lora_A, x.lora_B))]


@pytest.mark.parametrize("mode", ["av", "video"])
@pytest.mark.parametrize("version", ["2.0", "2.3"])
# "attn1": the text linears are frozen; "attn": they are trained; "": whatever makes their context is trained too
@pytest.mark.parametrize("where", ["attn1", "attn", ""])
def test_keeping_them_changes_no_gradient(version, where, mode):
    for a, b in zip(run(version, where, mode, True), run(version, where, mode, False), strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=2e-4, atol=1e-6)  # keys and values are multiplied apart


@pytest.mark.parametrize("keep", [False, True])
def test_frozen_text_linears_run_once_where_they_are_kept(keep):
    runs = []

    def count(model):
        for block in model.transformer_blocks:
            for name in ("to_k", "to_v"):
                linear = getattr(block.attn2, name)
                assert type(linear) is nn.Linear
                linear.register_forward_hook(lambda *_: runs.append(1))

    run("2.3", "attn1", "av", keep, count)
    assert len(runs) == 2 * BLOCKS + (0 if keep else 2 * (BLOCKS - 1))


@pytest.mark.parametrize("keep", [False, True])
def test_the_base_under_an_adapter_is_not_multiplied_again_either(monkeypatch, keep):
    from ltx2_train.lora import layer

    values = []
    plain = layer.low_rank_products

    def noted(x, parts, value=True, *more):
        values.extend(value for part in parts if part.base in text)
        return plain(x, parts, value, *more)

    text = set()

    def prepare(model):
        text.update(getattr(b.attn2, n).base for b in model.transformer_blocks for n in ("to_k", "to_v"))

    monkeypatch.setattr(layer, "low_rank_products", noted)
    run("2.3", "attn", "video", keep, prepare)
    again = 2 * (BLOCKS - 1)
    assert values == [True] * 2 * BLOCKS + [not keep] * again


def test_values_are_let_go_when_backward_is_done():
    import gc
    import weakref

    model = build("2.3", "video", num_layers=BLOCKS)
    adapt(model, "attn1")
    model.keep_text_kv = True
    made = []
    model.transformer_blocks[0].attn2.to_k.register_forward_hook(lambda m, i, o: made.append(weakref.ref(o)))
    loss = loss_of(model(inputs("2.3").video, None))
    assert [r() is not None for r in made] == [True]
    loss.backward()
    gc.collect()
    assert [r() is not None for r in made] == [False]
    assert loss.grad_fn is not None  # the graph itself is still there
