"""`ltx2-train quantize`: write a quantized checkpoint, or print what each format loses."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from ..errors import ConfigError
from .console import ConsoleEvents
from .output import print_json


def add_quantize(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Declare the command."""
    sub = add(
        "quantize",
        run_quantize,
        "Write a checkpoint with a quantized transformer once, so that each run loads it small; or, with --report, "
        "print what each format loses.",
    )
    sub.add_argument("checkpoint", type=Path, nargs="?", metavar="CHECKPOINT", help="bf16 checkpoint; it is kept")
    sub.add_argument("--out", type=Path, metavar="FILE", help="file to write (.safetensors)")
    # what can be chosen is said by the setting, which loads torch; a command line that is only parsed does not
    sub.add_argument("--format", metavar="NAME", help="how the blocks are stored, as quant.format, for example nf4")
    sub.add_argument(
        "--block-size", type=int, default=32, metavar="N", help="nf4: values that share a scale (default: 32)"
    )
    sub.add_argument("--device", default="auto", metavar="NAME", help="where to quantize: auto, cpu, cuda ...")
    sub.add_argument("--loftq", action="store_true", help="nf4: also write the beginning of a LoRA of one rank")
    sub.add_argument("--rank", type=int, metavar="N", help="that rank, the same as lora.rank in training")
    sub.add_argument(
        "--loftq-iters",
        type=int,
        default=1,
        metavar="N",
        help="rounds of LoftQ: 1, since the file stays good for any rank, and for it one round is the best there is",
    )
    sub.add_argument("--report", action="store_true", help="print the error of each format on random weights")
    sub.add_argument("--size", type=int, default=4096, metavar="N", help="with --report: N x N weights (default: 4096)")
    sub.add_argument("--json", action="store_true", help="with --report: print JSON")


def run_quantize(args: argparse.Namespace, events: ConsoleEvents) -> None:
    """Carry the command out."""
    if args.report:
        _report(args)
        return
    missing = [name for name in ("checkpoint", "out", "format") if getattr(args, name) is None]
    if missing:
        names = ", ".join({"checkpoint": "CHECKPOINT", "out": "--out", "format": "--format"}[name] for name in missing)
        raise ConfigError(
            f"quantize lacks {names}. Example: "
            "ltx2-train quantize dev.safetensors --out dev-nf4.safetensors --format nf4"
        )
    if args.out.exists():
        raise ConfigError(f"--out: {args.out} is there already. Name another file, or delete it first.")
    if args.loftq_iters != 1:
        raise ConfigError(
            f"--loftq-iters is {args.loftq_iters}: a file keeps the weights quantized as they are, so that it is good "
            "for any rank and without LoftQ, and for these one round finds the best LoRA there is. Leave it at 1. More "
            "rounds change the weights: train from the bf16 checkpoint with quant.loftq and quant.loftq_iters."
        )
    from .. import quantize_checkpoint
    from ..quant import QuantSettings
    from ..settings import parse

    table = {"format": args.format, "block_size": args.block_size, "device": args.device, "loftq": args.loftq}
    settings = parse(QuantSettings, table, "quantize")
    made = quantize_checkpoint(args.checkpoint, args.out, settings, args.rank, events)
    events.finish()
    print(made.summary())


def _report(args: argparse.Namespace) -> None:
    from .. import error_table, error_text

    if args.size < 64:
        raise ConfigError(f"--size is {args.size}; a weight smaller than 64 x 64 says nothing. Leave it at 4096.")
    rows = error_table(args.size, device=args.device)
    if args.json:
        print_json(rows)
    else:
        print(error_text(rows))
