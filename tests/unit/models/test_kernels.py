"""Attention by another kernel, and in pieces: the same values and gradients, and plain words where it cannot be had."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from parity.oracles_transformer import adapt, build, inputs, loss_of

from ltx2_train.models import kernels
from ltx2_train.models.blocks import FEED_FORWARD_TOKENS
from ltx2_train.models.kernels import Way, attend, find_kernel

CPU = torch.device("cpu")
PACKAGES = {"flash2": "flash_attn", "flash3": "flash_attn_interface"}


class FakeFlash(ModuleType):
    """A FlashAttention of plain products, that counts its calls."""

    def __init__(self, name, tuples=False):
        super().__init__(name)
        self.calls, self.tuples = [], tuples

    def flash_attn_func(self, q, k, v):
        self.calls.append((tuple(q.shape), tuple(k.shape)))
        scores = torch.einsum("bthk,bshk->bhts", q.float(), k.float()) / q.shape[-1] ** 0.5
        out = torch.einsum("bhts,bshk->bthk", scores.softmax(-1), v.float()).to(q.dtype)
        return (out, scores) if self.tuples else out


@pytest.fixture
def _anywhere(monkeypatch):
    """Let kernels for CUDA in bf16 run where these tests do."""
    monkeypatch.setattr(kernels, "FLASH_DEVICES", {"cpu"})
    monkeypatch.setattr(kernels, "FLASH_DTYPES", {torch.float32})


def run(prepare=lambda model: None, where="attn", recompute=None, mode="av", per_token=True, mask=False, seen=None):
    model = build("2.3", mode, num_layers=2)
    layers = adapt(model, where)
    model.set_recompute(recompute)
    said = prepare(model)
    if seen is not None:
        seen.append(said)
    batch = inputs("2.3", per_token=per_token)
    if mask:
        keep = torch.ones(2, batch.video.context.shape[1])
        keep[0, 3:] = 0
        weights = torch.rand(2, *[batch.video.latent.shape[1]] * 2, generator=torch.Generator().manual_seed(2))
        batch.video = batch.video.__class__(
            **{**vars(batch.video), "context_mask": keep, "attention_mask": (weights > 0.2) * weights}
        )
    output = model(*batch.pick(mode))
    loss_of(output).backward()
    outs = [x for x in (output.video, output.audio) if x is not None]
    return outs, [p.grad for layer in layers.values() for p in (layer.lora_A, layer.lora_B) if p.grad is not None]


def assert_same(found, expected, **tolerance):
    for some, others in zip(found, expected, strict=True):
        for a, b in zip(some, others, strict=True):
            torch.testing.assert_close(a, b, **tolerance)


@pytest.mark.usefixtures("_anywhere")
@pytest.mark.parametrize("tuples", [False, True])
@pytest.mark.parametrize("name", PACKAGES)
def test_a_kernel_that_is_installed_is_used_and_changes_nothing(monkeypatch, name, tuples):
    fake, seen = FakeFlash(PACKAGES[name], tuples), []
    monkeypatch.setitem(sys.modules, PACKAGES[name], fake)
    found = run(lambda model: model.set_attention(name), seen=seen)
    assert seen == [None]
    assert len(fake.calls) == 1 + 6 * 2 + 6  # the trial, six attentions a block, and those of the first one again
    assert_same(found, run(), rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("_anywhere")
def test_attention_with_a_mask_is_never_given_to_a_kernel_that_takes_none(monkeypatch):
    fake = FakeFlash("flash_attn")
    monkeypatch.setitem(sys.modules, "flash_attn", fake)
    found = run(lambda model: model.set_attention("flash2"), mask=True)
    tokens, text = inputs("2.3").video.latent.shape[1], inputs("2.3").video.context.shape[1]
    shapes = {(q[1], k[1]) for q, k in fake.calls}
    assert (tokens, tokens) not in shapes  # video self-attention has weights
    audio = inputs("2.3").audio.latent.shape[1]
    assert {(audio, audio), (audio, text), (tokens, audio), (audio, tokens)} <= shapes
    assert_same(found, run(mask=True), rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("_anywhere")
def test_the_kernel_may_be_changed_at_any_time(monkeypatch):
    fake = FakeFlash("flash_attn")
    monkeypatch.setitem(sys.modules, "flash_attn", fake)
    model, batch = build("2.3"), inputs("2.3")
    model.set_split("query", 3)
    with torch.no_grad():
        expected = model(batch.video, batch.audio)
        assert model.set_attention("flash2") is None
        assert_same([[model(batch.video, batch.audio).video]], [[expected.video]], rtol=1e-4, atol=1e-6)
        calls = len(fake.calls)
        assert calls > 12
        assert model.set_attention("sdpa") is None
        assert torch.equal(model(batch.video, batch.audio).video, expected.video)
    assert len(fake.calls) == calls


def broken(error):
    def flash_attn_func(q, k, v):
        raise error

    module = ModuleType("flash_attn")
    module.flash_attn_func = flash_attn_func
    return module


@pytest.mark.usefixtures("_anywhere")
@pytest.mark.parametrize(
    ("module", "words"),
    [
        (None, "not installed"),
        (broken(RuntimeError("no kernel image is available\nfor execution")), "no kernel image is available\\)"),
        (broken(OSError("undefined symbol: _ZN3c10")), "undefined symbol"),
        (ModuleType("flash_attn"), "AttributeError"),
    ],
    ids=["absent", "other-card", "other-torch", "empty"],
)
def test_a_kernel_that_fails_is_replaced_and_the_reason_said(monkeypatch, module, words):
    monkeypatch.setitem(sys.modules, "flash_attn", module)  # None makes the import fail
    seen = []
    found = run(lambda model: model.set_attention("flash2"), seen=seen)
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(seen[0])
    assert "FlashAttention 2" in seen[0]
    assert seen[0].endswith("(sdpa) is used.")
    assert_same(found, run(), rtol=0, atol=0)


def test_a_module_that_cannot_even_be_loaded_is_no_obstacle(monkeypatch, tmp_path):
    monkeypatch.setattr(kernels, "FLASH_DEVICES", {"cpu"})
    (tmp_path / "flash_attn_interface.py").write_text("raise SystemError('CUDA 11 build')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "flash_attn_interface", raising=False)
    kernel, reason = find_kernel("flash3", CPU, torch.bfloat16)
    assert kernel is None
    assert "SystemError: CUDA 11 build" in reason


def test_a_device_or_precision_that_a_kernel_cannot_do_is_said_before_anything_is_imported(monkeypatch):
    monkeypatch.setitem(sys.modules, "flash_attn", FakeFlash("flash_attn"))
    assert "CUDA only and the model is on cpu" in find_kernel("flash2", CPU, torch.bfloat16)[1]
    assert "torch.float32" in find_kernel("flash2", torch.device("cuda"), torch.float32)[1]
    assert find_kernel("sdpa", CPU, torch.float32) == (None, None)
    with pytest.raises(AssertionError, match="flash9"):
        find_kernel("flash9", CPU, torch.float32)


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("recompute", [0, None])
@pytest.mark.parametrize(("split", "size"), [("batch", 0), ("query", 3)])
def test_attention_in_pieces_is_the_whole(split, size, recompute, mask):
    found = run(lambda model: model.set_split(split, size), recompute=recompute, mask=mask)
    exact = {"rtol": 0, "atol": 0} if split == "batch" else {"rtol": 1e-4, "atol": 1e-6}
    assert_same(found, run(recompute=recompute, mask=mask), **exact)


@pytest.mark.parametrize("mode", ["video", "audio"])
def test_one_modality_may_be_split_too(mode):
    assert_same(run(lambda m: m.set_split("query", 2), mode=mode), run(mode=mode), rtol=1e-4, atol=1e-6)


def test_pieces_are_never_larger_than_asked_and_gradients_of_keys_are_added_up_in_float32():
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, n, 2, 8, generator=g).bfloat16().requires_grad_() for n in (64, 16, 16))
    weights = torch.randn(1, 64, 2, 8, generator=g).bfloat16()
    sizes = []

    def kernel(q, k, v):
        sizes.append(q.shape[1])
        return torch.nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)

    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    expected = torch.autograd.grad(attend(*exact, None, Way()), exact, weights.double())
    whole = torch.autograd.grad(attend(q, k, v, None, Way()), (q, k, v), weights)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "FLASH_DEVICES", {"cpu"})
        found = torch.autograd.grad(attend(q, k, v, None, Way(kernel, "query", 3)), (q, k, v), weights)
    assert set(sizes) == {3, 1}
    for a, b, c in zip(found, whole, expected, strict=True):
        assert (a - c).norm() < 1.2 * (b - c).norm() + 1e-3


def test_a_piece_at_a_time_is_all_that_backward_holds():
    q, k = torch.randn(1, 64, 1, 8, requires_grad=True), torch.randn(1, 32, 1, 8)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        attend(q, k, k, None, Way(None, "query", 8))
    assert sorted(kept) == sorted([q.shape, k.shape, k.shape])


@pytest.mark.parametrize(
    ("target", "names"),
    [
        ("self", {"attn1", "audio_attn1"}),
        ("text_cross", {"attn2", "audio_attn2"}),
        ("av_cross", {"audio_to_video_attn", "video_to_audio_attn"}),
        ("cross", {"attn2", "audio_attn2", "audio_to_video_attn", "video_to_audio_attn"}),
        ("video", {"attn1", "attn2"}),
        ("audio", {"audio_attn1", "audio_attn2"}),
        ("all", {"attn1", "audio_attn1", "attn2", "audio_attn2", "audio_to_video_attn", "video_to_audio_attn"}),
    ],
)
def test_a_target_names_its_attentions_and_a_later_one_replaces_it(target, names):
    model = build("2.3")
    assert model.set_split("query", 7, "all") is None
    assert model.set_split("batch", 0, target) is None
    for block in model.transformer_blocks:
        ways = {n: m.way for n, m in block.named_children() if hasattr(m, "way")}
        assert {n for n, way in ways.items() if way.split == "batch"} == names
        assert {way.split for n, way in ways.items() if n not in names} <= {"off"}


def test_a_target_that_the_mode_has_not_is_said():
    model = build("2.3", "video")
    assert "split_attention_target is av_cross" in model.set_split("batch", 0, "av_cross")
    assert "mode video" in model.set_ff_chunk(8, "audio")
    assert model.set_split("off", 0, "av_cross") is None
    assert model.set_ff_chunk(0, "audio") is None


@pytest.mark.parametrize("recompute", [0, None])
@pytest.mark.parametrize("target", ["all", "video", "audio"])
def test_feed_forward_chunks_change_nothing(recompute, target):
    found = run(lambda m: m.set_ff_chunk(3, target), where="", recompute=recompute)
    assert_same(found, run(where="", recompute=recompute), rtol=1e-4, atol=1e-6)


def test_feed_forward_chunks_have_the_size_asked_for_in_sampling_and_in_backward(monkeypatch):
    model, seen = build("2.3", "video"), []
    adapt(model, "attn")
    ff = model.transformer_blocks[0].ff
    plain = ff.forward
    monkeypatch.setattr(ff, "forward", lambda x, unread=False: seen.append(x.shape[1]) or plain(x, unread))
    batch, tokens = inputs("2.3"), inputs("2.3").video.latent.shape[1]

    def sizes(run):
        seen.clear()
        run()
        return list(seen)

    def train():
        loss_of(model(batch.video, None)).backward()

    sample = torch.no_grad()(lambda: model(batch.video, None))
    assert sizes(sample) == [tokens]
    model.set_ff_chunk(5)
    pieces = [5] * (tokens // 5) + [tokens % 5] * (tokens % 5 > 0)
    assert sizes(sample) == pieces
    assert sizes(train) == 2 * pieces
    model.set_ff_chunk(5, "audio")
    assert sizes(sample) == [tokens]
    monkeypatch.setitem(FEED_FORWARD_TOKENS, "cpu", 4)
    assert max(sizes(sample)) == 4
