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
    sub.add_argument("--block-size", type=int, metavar="N", help="nf4: values that share a scale (default: 32)")
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
    sub.add_argument("--size", type=int, metavar="N", help="with --report: N x N weights (default: 4096)")
    sub.add_argument("--json", action="store_true", help="with --report: print JSON")


def run_quantize(args: argparse.Namespace, events: ConsoleEvents) -> None:
    """Carry the command out."""
    _require_use(args)
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

    table = {"format": args.format, "device": args.device, "loftq": args.loftq}
    if args.block_size is not None:
        table["block_size"] = args.block_size
    settings = parse(QuantSettings, table, "quantize")
    made = quantize_checkpoint(args.checkpoint, args.out, settings, args.rank, events)
    events.finish()
    print(made.summary())


def _require_use(args: argparse.Namespace) -> None:
    """Raise ConfigError for what was given and would be passed over: a report has no file, and a file no report."""
    of_file = {
        "CHECKPOINT": args.checkpoint,
        "--out": args.out,
        "--format": args.format,
        "--block-size": args.block_size,
        "--loftq": args.loftq or None,
        "--rank": args.rank,
    }
    of_report = {"--size": args.size, "--json": args.json or None}
    given = [name for name, value in (of_file if args.report else of_report).items() if value is not None]
    if given:
        there = "without --report, which tries every format on random weights" if args.report else "with --report"
        raise ConfigError(f"{', '.join(given)}: counts only {there}. Leave it out.")
    if args.block_size is not None and args.format not in (None, "nf4"):
        raise ConfigError(f"--block-size counts with --format nf4 alone, and the format is {args.format}.")


def _report(args: argparse.Namespace) -> None:
    from .. import error_table, error_text

    size = 4096 if args.size is None else args.size
    if size < 64:
        raise ConfigError(f"--size is {size}; a weight smaller than 64 x 64 says nothing. Leave it at 4096.")
    rows = error_table(size, device=args.device)
    if args.json:
        print_json(rows)
    else:
        print(error_text(rows))
