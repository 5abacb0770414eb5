"""What a block stands on while it works: weights that come and go, and inputs that wait elsewhere."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from parity.oracles_transformer import adapt, build, inputs, loss_of

from ltx2_train.models.recompute import recomputed

BLOCKS = 4


class Diary:
    """A residence that writes down its visits and takes the weights away between them."""

    def __init__(self, model, streamed):
        self.pages, self.inside = [], []
        self.streamed = set(streamed)
        self.frozen = {n: [p for p in b.parameters() if not p.requires_grad] for n, b in self._blocks(model)}
        self.kept = {n: [p.detach().clone() for p in tensors] for n, tensors in self.frozen.items()}
        for number in streamed:
            self._poison(number)

    @staticmethod
    def _blocks(model):
        return enumerate(model.transformer_blocks)

    def _poison(self, number):
        for parameter in self.frozen[number]:
            parameter.data = torch.full_like(parameter, torch.nan)

    @contextmanager
    def visiting(self, number, backward):
        self.pages.append((number, backward))
        self.inside.append(number)
        if number in self.streamed:
            for parameter, value in zip(self.frozen[number], self.kept[number], strict=True):
                parameter.data = value.clone()
        yield
        assert self.inside.pop() == number
        if number in self.streamed:
            self._poison(number)

    def resident(self, number):
        return number not in self.streamed


class Drawer:
    """A store that takes copies, so a tensor that autograd kept beside it would show."""

    def __init__(self):
        self.puts, self.gets = [], 0

    def put(self, tensor):
        self.puts.append(tensor.detach().clone())
        return len(self.puts) - 1

    def get(self, handle):
        self.gets += 1
        return self.puts[handle].clone()


def gradients(prepare=None, blocks=None, mode="av", **changes):
    model = build("2.3", mode, num_layers=BLOCKS)
    layers = adapt(model, "attn")
    model.set_recompute(blocks)
    if prepare is not None:
        prepare(model)
    video, audio = inputs("2.3", per_token=True, **changes).pick(mode)
    loss = loss_of(model(video, audio))
    loss.backward()
    return [loss.detach(), *(p.grad for layer in layers.values() for p in (layer.lora_A, layer.lora_B))]


def assert_bit_equal(found, expected):
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert (a is None) == (b is None)
        assert a is None or torch.equal(a, b)


def test_any_set_of_blocks_is_recomputed_and_a_number_means_the_first():
    model = build("2.3", num_layers=BLOCKS)
    assert model.recompute == {0, 1, 2, 3}
    for asked, found in ((0, set()), (2, {0, 1}), (9, {0, 1, 2, 3}), ([3, 1], {1, 3}), (None, {0, 1, 2, 3})):
        model.set_recompute(asked)
        assert model.recompute == found
    with pytest.raises(AssertionError, match="blocks"):
        model.set_recompute([4])


def test_exactly_the_chosen_blocks_run_again(monkeypatch):
    runs = []
    block = type(build("2.3", num_layers=1).transformer_blocks[0])
    plain = block.forward

    def noted(self, vx, ax, video, audio, skip=frozenset(), replay=False, slim=False, **rest):
        runs.append((self.number, "replay" if replay else "slim" if slim else "run"))
        return plain(self, vx, ax, video, audio, skip, replay, slim, **rest)

    def number(model):
        for n, b in enumerate(model.transformer_blocks):
            b.number = n

    monkeypatch.setattr(block, "forward", noted)
    gradients(number, blocks=[0, 2])
    assert runs == [(0, "run"), (1, "run"), (2, "run"), (3, "run"), (2, "replay"), (0, "replay")]
    runs.clear()
    gradients(number, blocks=[1, 3])
    assert runs == [(0, "run"), (1, "run"), (2, "run"), (3, "slim"), (1, "replay")]


@pytest.mark.parametrize("mode", ["av", "video", "audio"])
@pytest.mark.parametrize("streamed", [[0, 2], [0, 1, 2]])
def test_weights_may_come_and_go_between_visits(mode, streamed):
    diary = []

    def prepare(model):
        model.residence = Diary(model, streamed)
        diary.append(model.residence)

    assert_bit_equal(gradients(prepare, mode=mode), gradients(mode=mode))
    assert diary[0].pages == [(0, False), (1, False), (2, False), (3, False), (2, True), (1, True), (0, True)]
    assert diary[0].inside == []


def test_every_block_is_visited_in_sampling_too():
    model = build("2.3", num_layers=BLOCKS)
    batch = inputs("2.3")
    with torch.no_grad():
        expected = model(batch.video, batch.audio)
        model.residence = Diary(model, range(BLOCKS))  # without a gradient the last one may come and go
        found = model(batch.video, batch.audio)
    assert torch.equal(found.video, expected.video)
    assert torch.equal(found.audio, expected.audio)
    assert model.residence.pages == [(n, False) for n in range(BLOCKS)]


@pytest.mark.parametrize(("recompute", "streamed", "number"), [([0, 2], [1], 1), (None, [3], 3)])
def test_a_streamed_block_that_is_not_recomputed_is_our_own_mistake(recompute, streamed, number):
    def prepare(model):
        model.residence = Diary(model, streamed)

    with pytest.raises(AssertionError, match=f"block {number} come and go"):
        gradients(prepare, recompute)


@pytest.mark.parametrize("mode", ["av", "video"])
def test_inputs_of_recomputed_blocks_may_wait_elsewhere(mode):
    drawers = []

    def prepare(model):
        model.activations = Drawer()
        drawers.append(model.activations)

    assert_bit_equal(gradients(prepare, mode=mode), gradients(mode=mode))
    streams = 2 if mode == "av" else 1
    assert len(drawers[0].puts) == drawers[0].gets == streams * (BLOCKS - 1)


@pytest.mark.parametrize(
    ("blocks", "stored", "trained", "times"),
    [(None, False, False, 2), ([1, 2], False, False, 1), (None, True, False, 1), (None, False, True, 1)],
)
def test_the_first_block_finds_its_input_again_in_the_latents(blocks, stored, trained, times):
    made = []

    def prepare(model):
        if trained:
            adapt(model, "patchify_proj")
        if stored:
            model.activations = Drawer()
        for name in ("patchify_proj", "audio_patchify_proj"):
            getattr(model, name).register_forward_hook(lambda *_, name=name: made.append(name))

    found = gradients(prepare, blocks)
    assert sorted(made) == sorted(["patchify_proj", "audio_patchify_proj"] * times)
    if not trained:
        assert_bit_equal(found, gradients(blocks=0))


def test_a_stream_that_rests_is_not_stored_once_a_block():
    model, drawer = build("2.3", num_layers=BLOCKS), Drawer()
    adapt(model, "attn")
    model.activations = drawer
    batch = inputs("2.3")
    loss_of(model(batch.video, replace(batch.audio, enabled=False))).backward()
    assert len(drawer.puts) == BLOCKS - 1


def test_stored_inputs_are_not_kept_by_autograd():
    x, w = (torch.randn(3, 3, generator=torch.Generator().manual_seed(0)).requires_grad_() for _ in range(2))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        (out,) = recomputed(lambda x, replay: ((x @ w).tanh(),), [x], [w], None, Drawer(), [0])
    assert kept == []
    ours = torch.autograd.grad(out.square().sum(), [x, w])
    for a, b in zip(ours, torch.autograd.grad((x @ w).tanh().square().sum(), [x, w]), strict=True):
        assert torch.equal(a, b)
