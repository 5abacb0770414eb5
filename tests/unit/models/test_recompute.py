from __future__ import annotations

import weakref

import pytest
import torch
from torch import nn
from torch.nn.functional import gelu

from ltx2_train.models.recompute import Kept, Remade, deferred, recomputed, unread_gelu


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()


def test_recomputed_has_the_gradients_of_the_plain_run_for_inputs_and_parameters():
    x, y, w = numbers(3, 4), numbers(3, 4, seed=1), numbers(4, 4, seed=2)
    calls = []

    def run(x, y, replay):
        calls.append(replay)
        return (x @ w).tanh() * y, x + y

    plain = torch.autograd.grad(sum(t.square().sum() for t in run(x, y, False)), [x, y, w])
    calls.clear()
    ours = torch.autograd.grad(sum(t.square().sum() for t in recomputed(run, [x, y], [w])), [x, y, w])
    assert calls == [False, True]
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b)


def test_a_gradient_that_came_in_is_let_go_halfway():
    """Autograd holds it until the block is done, which is longest where memory is shortest."""
    x, seen = numbers(3, 4), []

    def run(x, replay):
        first = x.sin()
        if replay:
            first.register_hook(lambda _: seen.append(came_in() is None))
        return (first.cos(),)

    (out,) = recomputed(run, [x], [])
    came_in = None

    def watch(grad):
        nonlocal came_in
        came_in = weakref.ref(grad.untyped_storage())

    out.register_hook(watch)
    (found,) = torch.autograd.grad((out * 2).sum(), [x])
    assert seen == [True]
    torch.testing.assert_close(found, -2 * x.sin().sin() * x.cos())


def test_an_output_without_a_gradient_is_not_run_backward():
    x, y, asked = numbers(3), numbers(3, seed=1), []

    def run(x, y, replay):
        second = y.sin()
        if replay:
            second.register_hook(asked.append)
        return x.sin(), second

    first, _ = recomputed(run, [x, y], [])
    found = torch.autograd.grad(first.sum(), [x, y], allow_unused=True)
    torch.testing.assert_close(found[0], x.cos())
    assert found[1] is None
    assert asked == []


@pytest.mark.parametrize("value", [True, False])
def test_deferred_has_the_gradients_of_the_plain_run_slice_by_slice(value):
    x, scale, w = numbers(2, 7, 4), numbers(4, seed=1), numbers(4, 4, seed=2)
    parts = []

    def run(x, scale, part, unread):
        parts.append((part.start, unread))
        return x + gelu(x * scale @ w)

    weights = numbers(2, 7, 4, seed=3).detach()
    expected = run(x, scale, slice(None), False)
    plain = torch.autograd.grad((expected * weights).sum(), [x, scale, w])
    parts.clear()
    out = deferred(run, x, [scale], [w], 3, value)
    assert [p for p, _ in parts] == ([0, 3, 6] if value else [])
    if value:
        torch.testing.assert_close(out, expected)
    ours = torch.autograd.grad(out, [x, scale, w], weights)
    assert [p for p in parts if p[1]] == [(0, True), (3, True), (6, True)]
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b)


def test_unread_gelu_has_the_gradient_of_the_linear_after_the_gelu():
    layer = nn.Linear(6, 4).double().requires_grad_(False)
    h, weights = numbers(2, 3, 6), numbers(2, 3, 4, seed=1).detach()
    (expected,) = torch.autograd.grad(layer(gelu(h, approximate="tanh")), h, weights)
    out = unread_gelu(layer, h)
    assert out.shape == (2, 3, 4)
    assert out.untyped_storage().nbytes() == 8
    torch.testing.assert_close(torch.autograd.grad(out, h, weights)[0], expected)


def test_unread_gelu_runs_a_layer_that_it_cannot_leave_out():
    trained = nn.Linear(6, 4).double()
    h = numbers(2, 3, 6)
    torch.testing.assert_close(unread_gelu(trained, h), trained(gelu(h, approximate="tanh")))


def test_a_noted_tensor_is_made_again_once_for_all_that_kept_it():
    x, w = numbers(5, 4), numbers(4, 4, seed=1)
    made = []

    def make(x):
        made.append(1)
        return x.sin()

    def loss(note):
        y = note(make, x)
        return (y @ w).square().sum() + (y.view(4, 5) * w[:, :1]).sum()

    plain = torch.autograd.grad(loss(lambda f, *a: f(*a)), [x, w])
    made.clear()
    with Remade() as remade:
        value = loss(remade.note)
    for _ in range(2):  # the graph may be walked again
        ours = torch.autograd.grad(value, [x, w], retain_graph=True)
        for a, b in zip(ours, plain, strict=True):
            torch.testing.assert_close(a, b)
    assert len(made) == 3


def test_what_only_an_adapter_keeps_is_a_recipe_too():
    """The first block's norms need no gradient, but the adapter that multiplies them has one."""
    x, w = numbers(5, 4).detach(), numbers(4, 4, seed=1)
    made = []

    def make(x):
        made.append(1)
        return x.sin()

    with Remade() as remade:
        value = (remade.note(make, x) @ w).sum()
    (found,) = torch.autograd.grad(value, [w])
    torch.testing.assert_close(found, torch.autograd.grad((x.sin() @ w).sum(), [w])[0])
    assert len(made) == 2, "made again, not kept"


def test_the_memory_of_a_noted_tensor_goes_with_those_who_work_with_it():
    x, w = numbers(5, 4), numbers(4, 4, seed=1)
    plain = torch.autograd.grad((x.sin() @ w).sum() + (x.cos() @ w).sum(), [x, w])
    with Remade() as remade:
        y = remade.note(torch.sin, x)
        first, memory = y @ w, weakref.ref(y.untyped_storage())
        del y
        assert memory() is None
        y = x.cos()  # may lie where the other did, and is no recipe
        value = first.sum() + (y @ w).sum()
    for found, expected in zip(torch.autograd.grad(value, [x, w]), plain, strict=True):
        torch.testing.assert_close(found, expected)


class Adapted(nn.Module):
    """A linear with a trained part, that can leave its value out."""

    def __init__(self):
        super().__init__()
        self.weight, self.runs = nn.Parameter(numbers(4, 4, seed=7).detach()), []

    def forward(self, x):
        self.runs.append("value")
        return x @ self.weight

    def unread(self, x):
        self.runs.append("unread")
        out = x @ self.weight
        return out - out.detach() + torch.nan  # the gradient, and a value nobody may read


@pytest.mark.parametrize("kind", ["frozen", "adapted", "trained"])
def test_a_kept_value_is_not_computed_again_and_has_the_gradients_of_its_linear(kind):
    frozen, trained = nn.Linear(4, 4).double().requires_grad_(False), nn.Linear(4, 4).double()
    layer = {"frozen": frozen, "adapted": Adapted(), "trained": trained}[kind]
    x, y = numbers(3, 4), numbers(3, 4, seed=1)
    parameters = [p for p in layer.parameters() if p.requires_grad]

    def piece(x, y, linear):
        return (linear(x.sin()).tanh() * y,)

    plain = torch.autograd.grad(piece(x, y, layer)[0].square().sum(), [x, y, *parameters])
    if kind == "adapted":
        layer.runs.clear()
    kept = Kept()

    def run(x, y, replay):
        return piece(x, y, lambda x: kept.value(layer, x))

    loss = recomputed(run, [x, y], parameters, kept=kept)[0].square().sum()
    for _ in range(2):
        ours = torch.autograd.grad(loss, [x, y, *parameters], retain_graph=True)
        for a, b in zip(ours, plain, strict=True):
            torch.testing.assert_close(a, b)
    if kind == "adapted":
        assert layer.runs == ["value", "unread", "unread"]
    assert kept.take() == []
