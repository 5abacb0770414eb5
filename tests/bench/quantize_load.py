#!/usr/bin/env python
"""Peak RAM of loading a checkpoint into each storage format, in fresh processes.

A checkpoint of about --gigabytes is written tensor by tensor, then loaded once for each format and once from a file
that was quantized before; that writing is measured too. Prints a table, and with --json one JSON object a row.

    python tests/bench/quantize_load.py --gigabytes 4 [--formats nf4 fp8] [--device cuda]

Goal: the quantized size, the bf16 size of one block, and 0.5 GB; `over` is what the peak exceeds that by, and below 0
where the goal is met.
On CUDA RAM should stay near one tensor, since weights are quantized on the card.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

from load_memory import resident, write_checkpoint  # noqa: E402

ALLOWANCE = 0.5e9


def load(path: Path, format: str, device: str) -> dict[str, float]:
    """In the fresh process: bytes above the start, and those of the model and of its largest block in bf16."""
    import torch

    from ltx2_train.quant.base import QuantLinear
    from ltx2_train.quant.settings import QuantSettings
    from ltx2_train.weights.load import load_transformer

    if format in ("int4", "int2"):
        import optimum.quanto  # noqa: F401  (the library's own size is not the model's)
    torch.zeros(1, device=device)
    before, started = resident("VmRSS"), time.perf_counter()
    model = load_transformer(path, "av", torch.bfloat16, device, quant=QuantSettings(format=format))
    seconds = time.perf_counter() - started

    def plain(module: torch.nn.Module) -> int:
        found = sum(parameter.numel() * 2 for parameter in module.parameters())
        layers = (one for one in module.modules() if isinstance(one, QuantLinear))
        return found + sum(one.in_features * one.out_features * 2 for one in layers)

    return {
        "peak": resident("VmHWM") - before,
        "loaded": sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers())),
        "block": max(plain(block) for block in model.transformer_blocks),
        "seconds": seconds,
    }


def write(path: Path, target: Path, format: str, device: str) -> dict[str, float]:
    """In the fresh process: the same of writing a quantized file."""
    from ltx2_train.quant.settings import QuantSettings
    from ltx2_train.weights.quantized_file import quantize_checkpoint

    before, started = resident("VmRSS"), time.perf_counter()
    quantize_checkpoint(path, target, QuantSettings(format=format, device=device))
    seconds = time.perf_counter() - started
    return {"peak": resident("VmHWM") - before, "loaded": 0, "block": 0, "seconds": seconds}


def fresh(*arguments: object) -> dict[str, float]:
    command = [sys.executable, __file__, "--inside", *map(str, arguments)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


def row(what: str, format: str, found: dict[str, float]) -> dict[str, object]:
    goal = found["loaded"] + found["block"] + ALLOWANCE
    return {
        "what": what,
        "format": format,
        "model_gb": round(found["loaded"] / 1e9, 3),
        "peak_gb": round(found["peak"] / 1e9, 3),
        "goal_gb": round(goal / 1e9, 3),
        "over_gb": round((found["peak"] - goal) / 1e9, 3),
        "seconds": round(found["seconds"], 1),
    }


def main() -> None:
    from ltx2_train.quant.formats import FORMATS

    known = ["none", *FORMATS]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--formats", nargs="+", choices=known, default=known)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--folder", type=Path, help="where the checkpoint is written; it is removed again")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--inside", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside:
        path, format, device, target = args.inside
        run = load(Path(path), format, device) if target == "-" else write(Path(path), Path(target), format, device)
        print(json.dumps(run))
        return
    rows = []
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        path = Path(folder) / "ltx-2.3-bench.safetensors"
        blocks = write_checkpoint(path, args.gigabytes)
        print(f"{path.stat().st_size / 1e9:.2f} GB, {blocks} blocks, {args.device}", file=sys.stderr)
        for format in args.formats:
            rows.append(row("load", format, fresh(path, format, args.device, "-")))
            if format == "none":
                continue
            target = Path(folder) / "quantized.safetensors"
            rows.append(row("write the file", format, fresh(path, format, args.device, target)))
            rows.append(row("load the file", format, fresh(target, "auto", args.device, "-")))
            target.unlink()
    if args.json:
        print("\n".join(json.dumps(one) for one in rows))
        return
    print(f"{'what':<15} {'format':<13} {'model GB':>9} {'peak GB':>8} {'goal GB':>8} {'over GB':>8} {'seconds':>8}")
    for one in rows:
        sizes = f"{one['model_gb']:>9.3f} {one['peak_gb']:>8.3f} {one['goal_gb']:>8.3f} {one['over_gb']:>8.3f}"
        print(f"{one['what']:<15} {one['format']:<13} {sizes} {one['seconds']:>8.1f}")


if __name__ == "__main__":
    main()
