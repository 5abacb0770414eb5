"""A step that is queued before anybody has looked at its gradients."""

import torch

from ltx2_train.optim import can_be_guarded, guarded_step


def adamw(**more) -> torch.optim.AdamW:
    torch.manual_seed(0)
    return torch.optim.AdamW([torch.nn.Parameter(torch.randn(5))], lr=0.1, weight_decay=0.1, **more)


def steps(optimizer: torch.optim.AdamW, *grads: float | None) -> list[torch.Tensor]:
    """The weights and the state after steps with these gradients; None is a bad one."""
    parameter = optimizer.param_groups[0]["params"][0]
    for grad in grads:
        bad = grad is None
        parameter.grad = torch.full_like(parameter, float("nan") if bad else grad)
        guarded_step(optimizer, torch.tensor(float(bad)))
    return [parameter.detach().clone(), *(value.clone() for value in optimizer.state[parameter].values())]


def test_a_bad_step_changes_neither_weights_nor_state_and_is_not_counted():
    clean, mixed = steps(adamw(fused=True), 1.0, -2.0), steps(adamw(fused=True), None, 1.0, None, -2.0)
    assert all(torch.equal(a, b) for a, b in zip(clean, mixed, strict=True))
    assert torch.isfinite(clean[0]).all()


def test_a_good_step_is_the_optimizers_own():
    one, two = adamw(fused=True), adamw(fused=True)
    parameter = two.param_groups[0]["params"][0]
    parameter.grad = torch.full_like(parameter, 0.5)
    two.step()
    assert torch.equal(steps(one, 0.5)[0], parameter)
    assert not hasattr(one, "found_inf"), "the next step may be a plain one"


def test_only_the_fused_kernels_look_at_the_flag():
    assert can_be_guarded(adamw(fused=True))
    assert not can_be_guarded(adamw())
    assert not can_be_guarded(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1))
