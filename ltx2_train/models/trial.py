"""Whether compiled passes are worth it on a card: the same numbers as the plain ones, in less time.

What is tried is what a block does most: a modulated norm, a norm with a rotation, a gated sum, with their gradients,
on as many tokens as a short clip has.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor

from .fused import Fused
from .norms import gated_sum, modulated_norm, rotated_norm
from .rope import rope_table

TOKENS, ROUNDS = 2048, 5
FASTER = 0.95  # of the plain time, or compiling is not worth the wait at the start
APART = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 4e-2}  # as far as rounding goes

Stopwatch = Callable[[Callable[[], object], torch.device], float]


def why_not_compiled(
    fused: Fused, device: torch.device, dtype: torch.dtype, width: int, heads: int, clock: Stopwatch | None = None
) -> str | None:
    """Why passes of `fused` are not taken for streams of this width, as the end of a sentence; None where they are.

    `clock(run, device)` is the seconds that `run()` takes there.
    """
    clock = _seconds if clock is None else clock
    plain, compiled = (_work(device, dtype, width, heads, way) for way in (None, fused))
    try:
        expected, found = plain(), compiled()
        if fused.failure is not None:
            return f"they fail here ({fused.failure})"
        for one, other in zip(expected, found, strict=True):
            if not torch.allclose(one.float(), other.float(), rtol=APART[dtype], atol=APART[dtype]):
                return "their numbers are not those of the plain ones"
        before, after = clock(plain, device), clock(compiled, device)
    except torch.OutOfMemoryError:
        return "there is no room to try them"
    except Exception as error:  # a trial must not end a run
        return f"they cannot be tried here ({type(error).__name__}: {str(error)[:200]})"
    if after > FASTER * before:
        return f"they take {after * 1e3:.2f} ms and the plain ones {before * 1e3:.2f} ms"
    return None


def _work(
    device: torch.device, dtype: torch.dtype, width: int, heads: int, fused: Fused | None
) -> Callable[[], list[Tensor]]:
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int, kind: torch.dtype = dtype) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device=device, dtype=kind)

    x, y = drawn(1, TOKENS, width).requires_grad_(), drawn(1, TOKENS, width).requires_grad_()
    rows = [drawn(1, width, kind=torch.float32) for _ in range(3)]
    weight, grad = drawn(width), drawn(1, TOKENS, width)
    places = torch.rand(1, 1, TOKENS, 2, generator=generator).to(device)
    rope = rope_table(places, width, heads, (20.0,))

    def run() -> list[Tensor]:
        with torch.enable_grad():
            normal = modulated_norm(x, rows[0], rows[1], None, 1e-6, fused)
            turned = rotated_norm(normal, weight, rope, heads, 1e-6, fused).flatten(2)
            out = gated_sum(turned, y, rows[2], None, fused=fused)
            return [out.detach(), *torch.autograd.grad(out, [x, y], grad)]

    return run


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    times = []
    for _ in range(ROUNDS + 2):
        torch.cuda.synchronize(device)
        begun = time.perf_counter()
        run()
        torch.cuda.synchronize(device)
        times.append(time.perf_counter() - begun)
    return median(times[2:])
