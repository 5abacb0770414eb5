"""`ltx2-train compare`: checkpoints of a run, or any LoRAs, beside each other on the same prompts and seeds."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from ..errors import ConfigError
from .console import ConsoleEvents

SPREAD = 6


def add_compare(add: Callable[..., argparse.ArgumentParser], add_run_file: Callable[..., None]) -> None:
    """Add the command to the parser."""
    sub = add("compare", _compare, "Draw a grid: the base and checkpoints of a run, on the same prompts and seeds.")
    add_run_file(sub)
    sub.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the grid and its samples")
    sub.add_argument("--newest", type=int, metavar="N", help="the last N LoRAs that the run has saved")
    sub.add_argument("--spread", type=int, metavar="N", help=f"N of them, evenly over the run (default: {SPREAD})")
    sub.add_argument("--step", type=int, nargs="+", default=[], metavar="N", help="those of these steps")
    sub.add_argument(
        "--index", type=int, nargs="+", default=[], metavar="N", help="by number: 1 is the first save, -1 the last"
    )
    sub.add_argument("--lora", type=Path, nargs="+", default=[], metavar="FILE", help="LoRA files, of any run")
    sub.add_argument("--prompt", action="append", metavar="TEXT", help="prompt with options (--w --h --f ...)")
    sub.add_argument("--seed", type=int, nargs="+", default=[], metavar="N", help="draw each prompt with each of these")
    sub.add_argument(
        "--strength", type=float, nargs="+", default=[], metavar="X", help="of each LoRA (default: sample.strength)"
    )
    add_beside(sub)
    sub.add_argument("--no-base", action="store_true", help="leave the base without a LoRA out")
    sub.add_argument(
        "--sound-cell",
        type=int,
        default=0,
        metavar="N",
        help="whose sound the grid has, by the number in its corner (default: the last of the first row)",
    )


def add_beside(sub: argparse.ArgumentParser) -> None:
    """Add the option for LoRAs that all samples wear."""
    sub.add_argument(
        "--with",
        dest="beside",
        type=_with_strength,
        action="append",
        default=[],
        metavar="FILE[=X]",
        help="another LoRA at strength X for all samples, such as the distilled one; may be repeated",
    )


def _with_strength(text: str) -> tuple[Path, float]:
    path, _, number = text.rpartition("=")
    try:
        return (Path(path), float(number)) if path else (Path(text), 1.0)
    except ValueError:  # the name holds the sign
        return Path(text), 1.0


def _compare(args: argparse.Namespace, events: ConsoleEvents) -> None:
    from .. import compare, load_run, pick_loras

    run = load_run(args.run, args.set)
    picks = {name: count for name, count in (("newest", args.newest), ("spread", args.spread)) if count is not None}
    for name, count in picks.items():
        if count < 1:
            raise ConfigError(f"--{name} is {count}. Give a number from 1 on, or leave it out.")
    loras: dict[str, Path] = {}
    if picks or args.step or args.index or not args.lora:
        run.require_own_folder()
        folder = (run.run.folder or Path("runs").absolute()) / run.run.name
        if not (picks or args.step or args.index):
            picks["spread"] = SPREAD
        loras |= pick_loras(folder, **picks, steps=args.step, numbers=args.index)
    for path in args.lora:
        label = path.stem if path.stem not in loras else str(path)
        loras[label] = path
    comparison = compare(
        run,
        loras,
        args.out,
        events,
        prompts=args.prompt,
        seeds=args.seed,
        strengths=args.strength,
        base=not args.no_base,
        sound_cell=args.sound_cell,
        beside=args.beside,
    )
    events.finish()
    print(comparison.text())
