"""Compiled pointwise work: the same numbers, one graph for all numbers of tokens, and a way back when it fails."""

from __future__ import annotations

import logging
import re
from dataclasses import replace

import pytest
import torch
from parity.oracles_transformer import adapt, build, inputs, loss_of
from torch._dynamo.utils import counters

from ltx2_train.models import fused as bodies
from ltx2_train.models.fused import Fused
from ltx2_train.models.norms import (
    RowIndex,
    branched_norm,
    gated_heads,
    gated_sum,
    modulated,
    modulated_norm,
    plain_norm,
    rotated_norm,
)
from ltx2_train.models.rope import rope_table

EPS = 1e-6


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.fixture
def _traced(monkeypatch):
    """Trace as ever, but run the graph as it is: seconds instead of a minute of C++."""
    monkeypatch.setattr(bodies, "BACKEND", "eager")


def numbers(*shape, seed=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=g).to(dtype).requires_grad_()


def calls(tokens=6, dtype=torch.float32, batch=2):
    """Every function with each kind of argument it meets in a block."""
    index = RowIndex(torch.arange(batch * tokens).view(batch, tokens) % 3)
    x, y = numbers(batch, tokens, 16, dtype=dtype), numbers(batch, tokens, 16, seed=1, dtype=dtype)
    a, b = (numbers(batch, 16, seed=s).detach() for s in (2, 3))
    c, d = (numbers(3, 16, seed=s).detach() for s in (4, 5))
    weight, logits = numbers(16, seed=6).detach(), numbers(batch, tokens, 2, seed=7, dtype=dtype)
    rope, woven = (
        rope_table(torch.rand(1, 1, tokens, 2, generator=torch.Generator().manual_seed(0)) * 9, 16, 2, (20,), 100.0, i)
        for i in (False, True)
    )
    return {
        "modulated_norm": (lambda f: modulated_norm(x, a, b, None, EPS, f), [x]),
        "modulated_norm by index": (lambda f: modulated_norm(x, c, d, index, EPS, f), [x]),
        "branched_norm": (lambda f: torch.cat(branched_norm(x, a, b, None, EPS, f)), [x]),
        "plain_norm": (lambda f: plain_norm(x, EPS, f), [x]),
        "gated_sum": (lambda f: gated_sum(x, y, a, None, False, f), [x, y]),
        "gated_sum by index": (lambda f: gated_sum(x, y, c, index, False, f), [x, y]),
        "rotated_norm": (lambda f: rotated_norm(x, weight, rope, 2, EPS, f), [x]),
        "rotated_norm interleaved": (lambda f: rotated_norm(x, weight, woven, 2, EPS, f), [x]),
        "rotated_norm without rotation": (lambda f: rotated_norm(x, weight, None, 2, EPS, f), [x]),
        "gated_heads": (lambda f: gated_heads(x.unflatten(2, (2, 8)), logits, f), [x, logits]),
        "modulated": (lambda f: modulated(x.detach(), a, b, f), []),
    }


def compare(fused, tokens, dtype, **tolerance):
    for name, (run, wanted) in calls(tokens, dtype).items():
        found, expected = run(fused), run(None)
        assert found.dtype == expected.dtype, name
        torch.testing.assert_close(found, expected, msg=lambda m, n=name: f"{n}: {m}", **tolerance)
        if wanted:
            weights = numbers(*found.shape, seed=9, dtype=dtype).detach()
            for a, b in zip(
                torch.autograd.grad(found, wanted, weights), torch.autograd.grad(expected, wanted, weights), strict=True
            ):
                assert a.dtype == b.dtype
                torch.testing.assert_close(a, b, msg=lambda m, n=name: f"{n} gradient: {m}", **tolerance)


BF16 = pytest.param(torch.bfloat16, 2e-2, marks=pytest.mark.slow)


@pytest.mark.usefixtures("_traced")
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), BF16])
def test_every_function_is_the_one_it_stands_for(dtype, limit):
    compare(Fused(), 6, dtype, rtol=limit, atol=limit)
    assert counters["stats"]["unique_graphs"] >= 15


@pytest.mark.slow
def test_compiled_to_machine_code_they_are_too():
    compare(Fused(), 6, torch.bfloat16, rtol=2e-2, atol=2e-2)
    assert counters["inductor"]


@pytest.mark.slow
def test_a_rotation_writes_nothing_in_float32_but_one_number_a_token():
    from torch._inductor import config
    from torch._inductor.utils import run_and_get_code

    x, grad = (numbers(1, 6, 16, seed=seed, dtype=torch.bfloat16).detach() for seed in (0, 1))
    weight, turn = torch.ones(16, dtype=torch.bfloat16), torch.ones(1, 6, 2, 4)
    runs = (
        (bodies.rotated_norm, x, weight, turn, turn, False, EPS),
        (bodies.rotated_norm_gradient, grad, x, torch.ones(1, 6, 1), weight, turn, turn, False),
    )
    for run in runs:
        with config.patch(force_disable_caches=True):
            _, (code,) = run_and_get_code(Fused(), *run)
        made = [line for line in code.splitlines() if "= empty_strided_cpu((" in line and "torch.float32" in line]
        assert all(re.search(r"empty_strided_cpu\(\(1, \w+, 1\)", line) for line in made), made


@pytest.mark.usefixtures("_traced")
def test_gradients_of_trained_rows_and_weights_are_kept():
    x, scale, shift, weight = numbers(2, 6, 16), numbers(2, 16, seed=1), numbers(2, 16, seed=2), numbers(16, seed=3)
    gate, y = numbers(2, 16, seed=4), numbers(2, 6, 16, seed=5)
    for run, wanted in (
        (lambda f: modulated_norm(x, scale, shift, None, EPS, f), [x, scale, shift]),
        (lambda f: modulated(x, scale, shift, f), [x, scale, shift]),
        (lambda f: rotated_norm(x, weight, None, 2, EPS, f), [x, weight]),
        (lambda f: gated_sum(x, y, gate, None, False, f), [x, y, gate]),
    ):
        grads = [torch.autograd.grad(run(f).square().sum(), wanted) for f in (Fused(), None)]
        for a, b in zip(*grads, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def step(model, batch):
    model.zero_grad()
    loss = loss_of(model(batch.video, batch.audio))
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


@pytest.mark.usefixtures("_traced")
@pytest.mark.parametrize("version", [pytest.param("2.0", marks=pytest.mark.slow), "2.3"])
def test_a_step_is_the_same_compiled_or_not_and_may_be_switched(version):
    model = build(version, num_layers=3)
    adapt(model)
    batch = inputs(version, per_token=True)
    plain = step(model, batch)
    assert model.set_compile(True) is None
    found = step(model, batch)
    graphs = counters["stats"]["unique_graphs"]
    assert graphs > 8
    for a, b in zip(found, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert model.set_compile(False) is None
    counters.clear()
    for a, b in zip(step(model, batch), plain, strict=True):
        assert torch.equal(a, b)
    assert counters["stats"]["unique_graphs"] == 0


def other_sizes(batch, video, audio):
    """The batch with other numbers of tokens."""

    def cut(m, tokens):
        latent = m.latent.repeat(1, 9, 1)[:, :tokens]
        timesteps = None if m.timesteps is None else m.timesteps.repeat(1, 9)[:, :tokens]
        return replace(m, latent=latent, timesteps=timesteps, positions=m.positions.repeat(1, 1, 9, 1)[:, :, :tokens])

    return cut(batch.video, video), cut(batch.audio, audio)


@pytest.mark.usefixtures("_traced")
@pytest.mark.slow
@pytest.mark.parametrize(("size", "per_token"), [(1, True), (2, False)])
def test_other_buckets_compile_nothing(size, per_token):
    model = build("2.3", num_layers=3)
    adapt(model, "attn")
    assert model.set_compile(True) is None
    batch = inputs("2.3", batch=size, per_token=per_token)

    def run(video, audio):
        v, a = other_sizes(batch, video, audio)
        out = model(v, a)
        (out.video.square().sum() + out.audio.square().sum()).backward()
        return counters["stats"]["unique_graphs"]

    first = run(24, 9)
    assert first > 8
    assert [run(*sizes) for sizes in ((40, 7), (18, 13), (24, 9))] == [first] * 3
    assert not counters["recompile_limit"]


def broken(*args, **kwargs):
    raise RuntimeError("\nno C compiler\nmore words")


def test_where_compiling_does_not_work_the_reason_is_said(monkeypatch):
    model, batch = build("2.3"), inputs("2.3")
    with torch.no_grad():
        plain = model(batch.video, batch.audio)
        monkeypatch.setattr(torch, "compile", broken)
        said = model.set_compile(True)
        assert "RuntimeError: no C compiler" in said
        assert said.startswith("memory.compile is on, but")
        assert torch.equal(model(batch.video, batch.audio).video, plain.video)


def test_what_fails_later_is_logged_once_and_the_run_goes_on(monkeypatch, caplog):
    model = build("2.3", num_layers=2)
    adapt(model)
    batch = inputs("2.3", per_token=True)
    plain = step(model, batch)
    monkeypatch.setattr(torch, "compile", lambda body, **_: body)
    assert model.set_compile(True) is None
    tried = []
    monkeypatch.setattr(torch, "compile", lambda body, **_: lambda *a: tried.append(body) or broken())
    model.transformer_blocks[0].fused._compiled.clear()
    with caplog.at_level(logging.WARNING):
        found = step(model, batch)
    assert len(tried) == 1
    assert [r.message for r in caplog.records if "no C compiler" in r.message] == [
        "torch.compile failed (RuntimeError: no C compiler). The run goes on without it."
    ]
    for a, b in zip(found, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_out_of_memory_is_not_taken_for_a_compiler_that_fails(monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "compile", lambda body, **_: full)
    with pytest.raises(torch.OutOfMemoryError):
        plain_norm(numbers(1, 4, 8), EPS, Fused())
