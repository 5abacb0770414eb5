"""Compiled passes are taken where they prove faster and equal."""

from __future__ import annotations

import pytest
import torch
from parity.oracles_transformer import build

from ltx2_train.models import transformer, trial
from ltx2_train.models.fused import Fused
from ltx2_train.models.transformer import LTXTransformer
from ltx2_train.models.trial import why_not_compiled

CPU = torch.device("cpu")


class Passes(Fused):
    """Runs the functions as they are, or what `wrong` makes of their results."""

    def __init__(self, wrong=None) -> None:
        super().__init__()
        self.calls, self.wrong = 0, wrong

    def _run(self, body, arguments):
        self.calls += 1
        with torch.no_grad():
            out = body(*arguments)
        return out if self.wrong is None else self.wrong(out)


def clock(plain: float, compiled: float):
    """The plain passes are timed first."""
    times = iter((plain, compiled))
    return lambda run, device: next(times)


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(trial, "TOKENS", 8)


def decided(fused: Fused, plain: float = 2.0, compiled: float = 1.0) -> str | None:
    return why_not_compiled(fused, CPU, torch.float32, 32, 2, clock(plain, compiled))


def test_faster_and_equal_is_taken():
    fused = Passes()
    assert decided(fused) is None
    assert fused.calls >= 4, "norms forward and back were really tried"


def test_what_is_hardly_faster_is_not_worth_it():
    assert decided(Passes(), 2.0, 1.95) == "they take 1950.00 ms and the plain ones 2000.00 ms"


def test_other_numbers_are_not_taken_however_fast():
    wrong = Passes(lambda out: tuple(x * 1.01 for x in out) if isinstance(out, tuple) else out * 1.01)
    assert "numbers" in decided(wrong, 2.0, 0.1)


def test_a_compiler_that_fails_says_why():
    def broken(out):
        raise RuntimeError("no Triton")

    assert "no Triton" in decided(Passes(broken))


def test_a_trial_that_fails_ends_nothing(monkeypatch):
    monkeypatch.setattr(trial, "gated_sum", lambda *_, **__: 1 / 0)
    assert "ZeroDivisionError" in decided(Passes())


@pytest.mark.parametrize("answer", [None, "they are slower"])
def test_a_model_that_is_left_to_decide_compiles_by_the_trial_and_tries_once(monkeypatch, answer):
    model, asked = build("2.3", num_layers=2), []
    monkeypatch.setattr(transformer, "why_not_compiled", lambda *_: asked.append(1) or answer)
    assert model.set_compile(None) is None
    assert model.transformer_blocks[0].fused is None, "on the CPU nothing is compiled"
    assert asked == []
    monkeypatch.setattr(LTXTransformer, "device", torch.device("cuda"))
    monkeypatch.setattr(Fused, "try_out", lambda *_: None)
    assert model.set_compile(None) is None
    assert (model.transformer_blocks[0].fused is None) == (answer is not None)
    model.set_compile(None)
    assert asked == [1]
    model.set_compile(False)
    assert model.transformer_blocks[0].fused is None
