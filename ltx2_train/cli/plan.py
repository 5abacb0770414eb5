"""`ltx2-train plan`: what each size of card gets, and what this machine would do, before anything is loaded."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

from .. import MODES, VERSIONS
from ..errors import ConfigError
from .console import ConsoleEvents
from .output import show_report


def add_plan(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the command to the parser by `add(name, function, help)`."""
    sub = add("plan", run_plan, "Predict VRAM, RAM, disk and seconds a step of a run, for each size of card.")
    sub.add_argument("run", type=Path, nargs="?", metavar="RUN.toml", help="run file; not needed with --published")
    sub.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override a setting")
    sub.add_argument("--fit", metavar="GB", help="plan for a card of so many GB, as memory.fit")
    sub.add_argument("--bucket", metavar="WxHxF", help="size of the clips, instead of the largest of the dataset")
    sub.add_argument("--batch", type=int, default=1, metavar="N", help="with --bucket: clips at a time (default: 1)")
    sub.add_argument("--published", choices=VERSIONS, help="plan for a published model, without a file")
    sub.add_argument("--mode", choices=MODES, help="model.mode")
    sub.add_argument("--ram", type=float, metavar="GB", help="RAM to reckon with (default: what is free here)")
    sub.add_argument("--json", action="store_true", help="print JSON")


def run_plan(args: argparse.Namespace, events: ConsoleEvents) -> int:
    """Print the plan; 0 where the run fits, 1 where it does not. Raises ConfigError for what training would refuse of
    the settings."""
    from .. import check_overrides, check_planned, load_run, make_run, predict_run

    if args.run is None and args.published is None:
        raise ConfigError("plan needs a run file, or --published 2.3 with --bucket 512x512x121.")
    if args.batch != 1 and args.bucket is None:
        raise ConfigError(
            f"--batch {args.batch} counts with --bucket alone; a run file's dataset has its own batch_size."
        )
    if args.batch < 1:
        raise ConfigError(f"--batch is {args.batch}; it is the number of clips at a time, at least 1.")
    if args.ram is not None and not 0 < args.ram < math.inf:
        raise ConfigError(f"--ram is {args.ram:g}; it is an amount of memory in GB, above 0.")
    overrides = [*args.set, *_overrides(args)]
    check_overrides(overrides)
    run = load_run(args.run, overrides) if args.run is not None else make_run({}, overrides=overrides)
    if args.bucket is None and args.run is None:
        raise ConfigError("--published needs --bucket, for example --bucket 512x512x121.")
    check_planned(run, args.published, data=args.bucket is None, events=events)
    report = predict_run(run, args.bucket, args.batch, args.published, args.ram, events)
    events.finish()
    show_report(report, args.json)
    return 0 if report.chosen.plan is not None else 1


def _overrides(args: argparse.Namespace) -> list[str]:
    given = []
    if args.fit is not None:
        given.append(f'memory.fit="{args.fit}"')
    if args.mode is not None:
        given.append(f'model.mode="{args.mode}"')
    return given
