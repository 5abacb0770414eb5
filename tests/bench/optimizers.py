"""Time and state of one step of each optimizer on the LoRA of a few layers of the real width.

    python tests/bench/optimizers.py [--layers 32] [--rank 32] [--width 4096] [--device cpu] [--steps 5]

Prints a line for each: nanoseconds a step takes for one trainable number, the same as a multiple of adamw, and bytes of
state for one number. Dotted names of classes may be given as arguments to measure them too.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ltx2_train.errors import ConfigError
from ltx2_train.optim import OPTIMIZERS, OptimizerSettings, build_optimizer, state_bytes

# AdamW with each of PyTorch's kernels; without arguments it is PyTorch's own choice, and on cards "fused"
KERNELS = {
    "adamw, a loop": {"foreach": False, "fused": False},
    "adamw, foreach": {"foreach": True},
    "adamw, fused": {"fused": True},
}


def seconds(settings: OptimizerSettings, sizes: list[tuple[int, int]], device: torch.device, steps: int) -> float:
    """The fastest of `steps` steps after the first."""
    params = [torch.nn.Parameter(torch.randn(size, device=device) / 64) for size in sizes]
    optimizer, _ = build_optimizer(params, settings, 1e-4, device)
    taken = []
    for _ in range(steps + 1):
        for param in params:
            param.grad = torch.randn_like(param)
        _wait(device)
        begun = time.perf_counter()
        optimizer.step()
        _wait(device)
        taken.append(time.perf_counter() - begun)
    return min(taken[1:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="dotted names besides those that have one here")
    for name, default in (("layers", 32), ("rank", 32), ("width", 4096), ("steps", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args(arguments)
    sizes = [(given.rank, given.width), (given.width, given.rank)] * given.layers
    numbers = sum(a * b for a, b in sizes)
    print(f"{numbers:,} trainable numbers, {given.device}, torch {torch.__version__}")
    plain = 0.0
    named = {name: OptimizerSettings(name=name) for name in [*OPTIMIZERS, *given.names]}
    kernels = {name: OptimizerSettings(name="adamw", args=args) for name, args in KERNELS.items()}
    for name, settings in {"adamw": named["adamw"], **kernels, **named}.items():
        try:
            took = seconds(settings, sizes, torch.device(given.device), given.steps)
            kept = state_bytes(settings, given.device, given.rank)
        except ConfigError as error:
            print(f"{name:16} {error}", flush=True)
            continue
        plain = plain or took
        per = took / numbers * 1e9
        print(f"{name:16} {per:7.2f} ns  {took / plain:6.2f} x adamw  {kept:6.2f} bytes", flush=True)


if __name__ == "__main__":
    main()
