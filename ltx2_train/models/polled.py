"""A pass of seconds that can be ended within it: something is asked before each module."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def polled(model: nn.Module | None, poll: Callable[[], None]) -> Iterator[None]:
    """Have `poll` called before each module within `model` runs. What it raises ends the pass, and the hooks go."""
    hooks = [
        module.register_forward_pre_hook(lambda *_: poll())
        for module in (() if model is None else model.modules())
        if module is not model
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
